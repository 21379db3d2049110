"""The loops in LLVM's assembly language, for a number of float32 lanes."""

import math
import struct

LOWEST = -87.0  # its exponential is float32's smallest, nearly
BLOCK = 32  # words whose products with all states are made before the next ones': they stay in the cache
STATES = 10  # multiplied at once: their sums fill the registers
_WORDS = 2  # multiplied at once, so that a state's values are loaded once for both
_AHEAD = 2048  # values of the weight, 8 KB of them, by which they are asked for before they are needed
_PIECE = 1024  # words that are added up one after another, before these sums are
_TERMS = 7  # of the exponential's series; what is left out is below float32's rounding
_ADDRESSES = {"weight", "states", "logits", "out", "greatest", "top"}

# What every thread of a team does: its share of the pieces of work, whose number comes first in `arguments`.
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

def products(lanes: int, kind: str, sums: int, rest: int) -> str:
    """`work` on blocks of words: out[row, word] = states[row] · weight[word].

    Arguments, i64 each: blocks, words, d (a multiple of the lanes), groups of STATES states; then the addresses of the
    weight [words, d] of `kind`, the states [rows, d] and out [rows, words], both float32.

    Args:
        lanes: float32 values in a register.
        kind: "float", "bfloat" or "half".
        sums: of a state and a word each, for which there are registers.
        rest: states beside the whole groups, 0..STATES - 1.
    """
    lines = _unpack("blocks words d groups weight states out".split())
    body = [
        "define void @work(ptr %arguments, i64 %begin, i64 %end) {",
        "entry:",
        *lines,
        f"  %rest_row = mul i64 %groups, {STATES}",
        "  %some = icmp ult i64 %begin, %end",
        "  br i1 %some, label %block, label %finish",
        "block:",
        "  %b = phi i64 [ %begin, %entry ], [ %b_next, %block_end ]",
        f"  %first = mul i64 %b, {BLOCK}",
        f"  %full = add i64 %first, {BLOCK}",
        "  %last = call i64 @llvm.umin.i64(i64 %full, i64 %words)",
        "  %has_groups = icmp ugt i64 %groups, 0",
        "  br i1 %has_groups, label %group, label %remainder",
        "group:",
        "  %g = phi i64 [ 0, %block ], [ %g_next, %group ]",
        f"  %row = mul i64 %g, {STATES}",
        _call(STATES, "%row"),
        "  %g_next = add i64 %g, 1",
        "  %more_groups = icmp ult i64 %g_next, %groups",
        "  br i1 %more_groups, label %group, label %remainder",
        "remainder:",
    ]
    if rest:
        body.append(_call(rest, "%rest_row"))
    body += [
        "  br label %block_end",
        "block_end:",
        "  %b_next = add i64 %b, 1",
        "  %more = icmp ult i64 %b_next, %end",
        "  br i1 %more, label %block, label %finish",
        "finish:",
        "  ret void",
        "}",
    ]
    vector = f"<{lanes} x float>"
    head = [
        f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})",
        f"declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, {vector})",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        "declare i64 @llvm.umin.i64(i64, i64)",
    ]
    some = [line for n in sorted({STATES, rest} - {0}) for line in _some(n, lanes, kind, sums)]
    return "\n".join([*head, *some, *body])


def _call(rows: int, first: str) -> str:
    return (
        f"  call void @some{rows}(ptr %weight, ptr %states, ptr %out, i64 {first}, i64 %first, i64 %last, i64 %d,"
        " i64 %words)"
    )


def _some(rows: int, lanes: int, kind: str, sums: int) -> list[str]:
    """`some<rows>`: products of so many states with the words first..last - 1, two words at a time.

    Where one is left the word before it is multiplied again.
    """
    out = [
        f"define internal void @some{rows}(ptr %weight, ptr %states, ptr %out, i64 %row, i64 %first, i64 %last, i64 %d,"
        " i64 %n) #0 {",
        "entry:",
        f"  %final = sub i64 %last, {_WORDS}",
        "  br label %word",
        "word:",
        "  %next = phi i64 [ %first, %entry ], [ %after, %finished ]",
        "  %at = call i64 @llvm.umin.i64(i64 %next, i64 %final)",
    ]
    for word in range(_WORDS):
        out += [
            f"  %word{word} = add i64 %at, {word}",
            f"  %value{word} = mul i64 %word{word}, %d",
            f"  %weight{word} = getelementptr {kind}, ptr %weight, i64 %value{word}",
        ]
    for row in range(rows):
        out += [
            f"  %row{row} = add i64 %row, {row}",
            f"  %place{row} = mul i64 %row{row}, %d",
            f"  %state{row} = getelementptr float, ptr %states, i64 %place{row}",
        ]
    n_passes = -(-rows * _WORDS // sums)
    passes = [range(rows * p // n_passes, rows * (p + 1) // n_passes) for p in range(n_passes)]
    for number, these in enumerate(passes):
        start = "word" if number == 0 else f"done{number - 1}"
        asked = [word for word in range(_WORDS) if word % n_passes == number]  # spread over the passes
        out += _pass(number, these, start, lanes, kind, asked)
    return [
        *out,
        "  br label %finished",
        "finished:",
        f"  %after = add i64 %next, {_WORDS}",
        "  %goes_on = icmp ult i64 %after, %last",
        "  br i1 %goes_on, label %word, label %finish",
        "finish:",
        "  ret void",
        "}",
    ]


def _pass(number: int, rows: range, start: str, lanes: int, kind: str, asked: list[int]) -> list[str]:
    """The products of some of the rows: what comes after the block `start`. Of the words `asked` those further on are
    asked for."""
    vector, stored = f"<{lanes} x float>", f"<{lanes} x {kind}>"
    size = 4 if kind == "float" else 2
    each = [(row, word) for row in rows for word in range(_WORDS)]
    n = str(number)
    out = [
        f"  br label %inner{n}",
        f"inner{n}:",
        f"  %i{n} = phi i64 [ 0, %{start} ], [ %i_next{n}, %inner{n} ]",
        *(f"  %sum{r}_{w} = phi {vector} [ zeroinitializer, %{start} ], [ %new{r}_{w}, %inner{n} ]" for r, w in each),
    ]
    for word in range(_WORDS):
        at = f"{n}_{word}"
        out += [f"  %from{at} = getelementptr {kind}, ptr %weight{word}, i64 %i{n}"]
        if word in asked:
            out += [
                f"  %soon{at} = getelementptr {kind}, ptr %from{at}, i64 {_AHEAD * 4 // size}",
                f"  call void @llvm.prefetch.p0(ptr %soon{at}, i32 0, i32 3, i32 1)",
            ]
        if kind == "float":
            out += [f"  %w{at} = load {vector}, ptr %from{at}, align 4"]
        else:
            out += [
                f"  %stored{at} = load {stored}, ptr %from{at}, align 2",
                f"  %w{at} = fpext {stored} %stored{at} to {vector}",
            ]
    fma = f"call {vector} @llvm.fma.v{lanes}f32"
    for row in rows:
        out += [
            f"  %of{row} = getelementptr float, ptr %state{row}, i64 %i{n}",
            f"  %s{row} = load {vector}, ptr %of{row}, align 4",
            *(
                f"  %new{row}_{w} = {fma}({vector} %s{row}, {vector} %w{n}_{w}, {vector} %sum{row}_{w})"
                for w in range(_WORDS)
            ),
        ]
    out += [
        f"  %i_next{n} = add i64 %i{n}, {lanes}",
        f"  %more{n} = icmp ult i64 %i_next{n}, %d",
        f"  br i1 %more{n}, label %inner{n}, label %done{n}",
        f"done{n}:",
    ]
    for r, w in each:
        out += [
            f"  %total{r}_{w} = call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32(float -0.0, {vector} %new{r}_{w})",
            f"  %line{r}_{w} = mul i64 %row{r}, %n",
            f"  %cell{r}_{w} = add i64 %line{r}_{w}, %word{w}",
            f"  %to{r}_{w} = getelementptr float, ptr %out, i64 %cell{r}_{w}",
            f"  store float %total{r}_{w}, ptr %to{r}_{w}",
        ]
    return out


def row_sums(lanes: int) -> str:
    """`work` on rows of logits z: the maximum m, Σ exp(z - m), Σ exp(z - m)·(z - m), and the word on top.

    Arguments, i64 each: rows, words, values from a row to the next, the number of the first word; then the addresses of
    the logits, out [3, rows], and, both 0 where no word is looked for, greatest [rows] and top [rows]: where m is above
    `greatest` it takes its place, and the first word that has it becomes `top`.

    A logit of minus infinity adds nothing; NaN makes all three sums NaN.
    """
    v, ints = f"<{lanes} x float>", f"<{lanes} x i32>"
    nothing = _all(lanes, -math.inf)
    return "\n".join(
        [
            f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})",
            f"declare {v} @llvm.maxnum.v{lanes}f32({v}, {v})",
            f"declare {v} @llvm.rint.v{lanes}f32({v})",
            f"declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, {v})",
            f"declare float @llvm.vector.reduce.fmax.v{lanes}f32({v})",
            "declare i64 @llvm.umin.i64(i64, i64)",
            "define void @work(ptr %arguments, i64 %begin, i64 %end) #0 {",
            "entry:",
            *_unpack("rows words stride start logits out greatest top".split()),
            "  %twice = shl i64 %rows, 1",
            f"  %whole = and i64 %words, -{lanes}",
            "  %has_whole = icmp ugt i64 %whole, 0",
            f"  %spare = alloca {v}",
            "  %some = icmp ult i64 %begin, %end",
            "  br i1 %some, label %row, label %finish",
            "row:",
            "  %r = phi i64 [ %begin, %entry ], [ %r_next, %row_end ]",
            "  %offset = mul i64 %r, %stride",
            "  %z = getelementptr float, ptr %logits, i64 %offset",
            # words that do not fill a register, with nothing beside them
            f"  store {v} {nothing}, ptr %spare",
            "  %has_left = icmp ult i64 %whole, %words",
            "  br i1 %has_left, label %copy, label %copied",
            "copy:",
            "  %c = phi i64 [ %whole, %row ], [ %c_next, %copy ]",
            "  %zc = getelementptr float, ptr %z, i64 %c",
            "  %copying = load float, ptr %zc",
            "  %spare_place = sub i64 %c, %whole",
            "  %spare_at = getelementptr float, ptr %spare, i64 %spare_place",
            "  store float %copying, ptr %spare_at",
            "  %c_next = add i64 %c, 1",
            "  %more_copies = icmp ult i64 %c_next, %words",
            "  br i1 %more_copies, label %copy, label %copied",
            "copied:",
            f"  %left = load {v}, ptr %spare",
            f"  %left_high = call {v} @llvm.maxnum.v{lanes}f32({v} %left, {v} {nothing})",
            "  br i1 %has_whole, label %highest, label %maximum",
            "highest:",
            "  %i = phi i64 [ 0, %copied ], [ %i_next, %highest ]",
            f"  %high = phi {v} [ %left_high, %copied ], [ %higher, %highest ]",
            "  %zi = getelementptr float, ptr %z, i64 %i",
            f"  %these = load {v}, ptr %zi, align 4",
            f"  %higher = call {v} @llvm.maxnum.v{lanes}f32({v} %these, {v} %high)",
            f"  %i_next = add i64 %i, {lanes}",
            "  %more_high = icmp ult i64 %i_next, %whole",
            "  br i1 %more_high, label %highest, label %maximum",
            "maximum:",
            f"  %highs = phi {v} [ %left_high, %copied ], [ %higher, %highest ]",
            f"  %m = call float @llvm.vector.reduce.fmax.v{lanes}f32({v} %highs)",
            f"  %is_nothing = fcmp oeq float %m, {_literal(-math.inf)}",
            "  %center = select i1 %is_nothing, float 0.0, float %m",
            f"  %center_first = insertelement {v} poison, float %center, i64 0",
            f"  %center_all = shufflevector {v} %center_first, {v} poison, {ints} zeroinitializer",
            *_exponential(lanes, "left", "left_"),
            f"  %left_moments = fmul {v} %left_e, %left_x",
            "  br i1 %has_whole, label %piece, label %summed",
            "piece:",
            "  %first = phi i64 [ 0, %maximum ], [ %j_next, %piece_end ]",
            f"  %all_totals = phi {v} [ %left_e, %maximum ], [ %all_totals_next, %piece_end ]",
            f"  %all_moments = phi {v} [ %left_moments, %maximum ], [ %all_moments_next, %piece_end ]",
            f"  %full = add i64 %first, {_PIECE}",
            "  %last = call i64 @llvm.umin.i64(i64 %full, i64 %whole)",
            "  br label %sum",
            "sum:",
            "  %j = phi i64 [ %first, %piece ], [ %j_next, %sum ]",
            f"  %totals = phi {v} [ zeroinitializer, %piece ], [ %totals_next, %sum ]",
            f"  %moments = phi {v} [ zeroinitializer, %piece ], [ %moments_next, %sum ]",
            "  %zj = getelementptr float, ptr %z, i64 %j",
            f"  %those = load {v}, ptr %zj, align 4",
            *_exponential(lanes, "those", ""),
            f"  %totals_next = fadd {v} %totals, %e",
            f"  %moments_next = call {v} @llvm.fma.v{lanes}f32({v} %e, {v} %x, {v} %moments)",
            f"  %j_next = add i64 %j, {lanes}",
            "  %more_sum = icmp ult i64 %j_next, %last",
            "  br i1 %more_sum, label %sum, label %piece_end",
            "piece_end:",
            f"  %all_totals_next = fadd {v} %all_totals, %totals_next",
            f"  %all_moments_next = fadd {v} %all_moments, %moments_next",
            "  %more_pieces = icmp ult i64 %j_next, %whole",
            "  br i1 %more_pieces, label %piece, label %summed",
            "summed:",
            f"  %t = phi {v} [ %left_e, %maximum ], [ %all_totals_next, %piece_end ]",
            f"  %mo = phi {v} [ %left_moments, %maximum ], [ %all_moments_next, %piece_end ]",
            f"  %total = call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32(float -0.0, {v} %t)",
            f"  %moment = call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32(float -0.0, {v} %mo)",
            "  %is_nan = fcmp uno float %total, 0.0",
            "  %true_m = select i1 %is_nan, float %total, float %m",
            "  %at0 = getelementptr float, ptr %out, i64 %r",
            "  store float %true_m, ptr %at0",
            "  %at1 = getelementptr float, ptr %at0, i64 %rows",
            "  store float %total, ptr %at1",
            "  %at2 = getelementptr float, ptr %at0, i64 %twice",
            "  store float %moment, ptr %at2",
            "  %unwanted = icmp eq ptr %greatest, null",
            "  br i1 %unwanted, label %row_end, label %compare",
            "compare:",
            "  %of_row = getelementptr float, ptr %greatest, i64 %r",
            "  %known = load float, ptr %of_row",
            "  %is_higher = fcmp ogt float %true_m, %known",
            "  br i1 %is_higher, label %search, label %row_end",
            "search:",
            "  %k = phi i64 [ 0, %compare ], [ %k_next, %search ]",
            "  %zk = getelementptr float, ptr %z, i64 %k",
            "  %one = load float, ptr %zk",
            "  %k_next = add i64 %k, 1",
            "  %found = fcmp oeq float %one, %m",
            "  br i1 %found, label %record, label %search",
            "record:",
            "  store float %m, ptr %of_row",
            "  %id = add i64 %start, %k",
            "  %top_of_row = getelementptr i64, ptr %top, i64 %r",
            "  store i64 %id, ptr %top_of_row",
            "  br label %row_end",
            "row_end:",
            "  %r_next = add i64 %r, 1",
            "  %more = icmp ult i64 %r_next, %end",
            "  br i1 %more, label %row, label %finish",
            "finish:",
            "  ret void",
            "}",
        ]
    )


def _exponential(lanes: int, of: str, name: str) -> list[str]:
    """%<name>x, which is %<of> less %center_all but 0 where that is below LOWEST, and %<name>e, its exponential, 0 there.

    2^n times the series of the rest, which lies within ± ln 2 / 2.
    """
    v, ints, bools, high = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{lanes} x i1>", _float32(math.log(2))
    fma, n = f"call {v} @llvm.fma.v{lanes}f32", f"%{name}"
    lines = [
        f"  {n}centred = fsub {v} %{of}, %center_all",
        f"  {n}below = fcmp olt {v} {n}centred, {_all(lanes, LOWEST)}",
        f"  {n}x = select {bools} {n}below, {v} zeroinitializer, {v} {n}centred",
        f"  {n}powers = fmul {v} {n}x, {_all(lanes, 1 / math.log(2))}",
        f"  {n}rounded = call {v} @llvm.rint.v{lanes}f32({v} {n}powers)",
        f"  {n}n = call {v} @llvm.maxnum.v{lanes}f32({v} {n}rounded, {v} {_all(lanes, -127.0)})",
        f"  {n}most = {fma}({v} {n}n, {v} {_all(lanes, -high)}, {v} {n}x)",
        f"  {n}rest = {fma}({v} {n}n, {v} {_all(lanes, high - math.log(2))}, {v} {n}most)",
    ]
    before = _all(lanes, 1 / math.factorial(_TERMS))
    for power in reversed(range(_TERMS)):
        term = _all(lanes, 1 / math.factorial(power))
        lines.append(f"  {n}p{power} = {fma}({v} {before}, {v} {n}rest, {v} {term})")
        before = f"{n}p{power}"
    return [
        *lines,
        f"  {n}integer = fptosi {v} {n}n to {ints}",
        f"  {n}shifted = shl {ints} {n}integer, splat (i32 23)",
        f"  {n}bits = add {ints} {n}shifted, splat (i32 1065353216)",
        f"  {n}scale = bitcast {ints} {n}bits to {v}",
        f"  {n}scaled = fmul {v} {n}p0, {n}scale",
        f"  {n}e = select {bools} {n}below, {v} zeroinitializer, {v} {n}scaled",
    ]


def _all(lanes: int, value: float) -> str:
    return f"<{', '.join([f'float {_literal(value)}'] * lanes)}>"


def _unpack(names: list[str]) -> list[str]:
    """The fields of %arguments; the last ones, whose names are in _ADDRESSES, are addresses."""
    lines = []
    for place, name in enumerate(names):
        kind = "ptr" if name in _ADDRESSES else "i64"
        lines += [
            f"  %{name}_at = getelementptr i64, ptr %arguments, i64 {place}",
            f"  %{name} = load {kind}, ptr %{name}_at",
        ]
    return lines


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _literal(value: float) -> str:
    """A float32 as LLVM reads it without loss: the bits of the same number in float64."""
    return "0x" + struct.pack(">d", _float32(value)).hex().upper()
