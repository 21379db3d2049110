"""What the loops share, in LLVM's assembly language."""

import struct

# The work of every thread of a team: its share of the pieces, whose number is the first of `arguments`.
TEAM = """
declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()

define void @share(ptr %arguments) {
  %me32 = call i32 @omp_get_thread_num()
  %all32 = call i32 @omp_get_num_threads()
  %me = zext i32 %me32 to i64
  %all = zext i32 %all32 to i64
  %n = load i64, ptr %arguments
  %before = mul i64 %me, %n
  %begin = udiv i64 %before, %all
  %next = add i64 %me, 1
  %after = mul i64 %next, %n
  %end = udiv i64 %after, %all
  call void @work(ptr %arguments, i64 %begin, i64 %end)
  ret void
}

define void @shared(ptr %arguments, i32 %threads) {
  call void @GOMP_parallel(ptr @share, ptr %arguments, i32 %threads, i32 0)
  ret void
}
"""


def all_lanes(lanes: int, value: float) -> str:
    """A register with the same value everywhere."""
    return f"<{', '.join([f'float {literal(value)}'] * lanes)}>"


def all_integers(lanes: int, value: int) -> str:
    """The same for 32-bit integers."""
    return f"<{', '.join([f'i32 {value}'] * lanes)}>"


def unpacked(**kinds: str) -> list[str]:
    """The fields of %arguments by name, "i64" or "ptr" each."""
    lines = []
    for place, (name, kind) in enumerate(kinds.items()):
        lines += [
            f"  %{name}_at = getelementptr i64, ptr %arguments, i64 {place}",
            f"  %{name} = load {kind}, ptr %{name}_at",
        ]
    return lines


def float32(value: float) -> float:
    """The nearest float32."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def literal(value: float) -> str:
    """A float32 as LLVM reads it without loss: the bits of the same number in float64."""
    return "0x" + struct.pack(">d", float32(value)).hex().upper()
