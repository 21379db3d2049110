"""What the loops share, in LLVM's assembly language."""

import math
import struct

_LOWEST = -87.0  # its exponential is nearly the smallest float32
_TERMS = 7  # terms of the series of the exponential; the rest is below the rounding of float32

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


def exponential(lanes: int, of: str, name: str) -> list[str]:
    """%<name>x, which is %<of> less %center_all, and %<name>e, its exponential; both 0 where that is below _LOWEST.

    2^n times the series of the rest, which lies within ± ln 2 / 2.
    """
    v, ints, bools, high = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{lanes} x i1>", float32(math.log(2))
    fma, n = f"call {v} @llvm.fma.v{lanes}f32", f"%{name}"
    lines = [
        f"  {n}centred = fsub {v} %{of}, %center_all",
        f"  {n}below = fcmp olt {v} {n}centred, {all_lanes(lanes, _LOWEST)}",
        f"  {n}x = select {bools} {n}below, {v} zeroinitializer, {v} {n}centred",
        f"  {n}powers = fmul {v} {n}x, {all_lanes(lanes, 1 / math.log(2))}",
        f"  {n}rounded = call {v} @llvm.rint.v{lanes}f32({v} {n}powers)",
        *greater(lanes, f"{n}n", f"{n}rounded", all_lanes(lanes, -127.0)),
        f"  {n}most = {fma}({v} {n}n, {v} {all_lanes(lanes, -high)}, {v} {n}x)",
        f"  {n}rest = {fma}({v} {n}n, {v} {all_lanes(lanes, high - math.log(2))}, {v} {n}most)",
    ]
    before = all_lanes(lanes, 1 / math.factorial(_TERMS))
    for power in reversed(range(_TERMS)):
        term = all_lanes(lanes, 1 / math.factorial(power))
        lines.append(f"  {n}p{power} = {fma}({v} {before}, {v} {n}rest, {v} {term})")
        before = f"{n}p{power}"
    return [
        *lines,
        f"  {n}integer = fptosi {v} {n}n to {ints}",
        f"  {n}shifted = shl {ints} {n}integer, {all_integers(lanes, 23)}",
        f"  {n}bits = add {ints} {n}shifted, {all_integers(lanes, 127 << 23)}",
        f"  {n}scale = bitcast {ints} {n}bits to {v}",
        f"  {n}scaled = fmul {v} {n}p0, {n}scale",
        f"  {n}e = select {bools} {n}below, {v} zeroinitializer, {v} {n}scaled",
    ]


def greater(lanes: int, name: str, first: str, second: str) -> list[str]:
    """The greater of both, or the second where one is NaN: a single instruction, unlike any function of LLVM."""
    v = f"<{lanes} x float>"
    return [
        f"  {name}_first = fcmp ogt {v} {first}, {second}",
        f"  {name} = select <{lanes} x i1> {name}_first, {v} {first}, {v} {second}",
    ]
