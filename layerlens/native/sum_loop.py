"""From rows of logits to the sums that a reading needs, while the rows are in the cache."""

import math

from layerlens.native.assembly import all_integers, all_lanes, float32, literal, unpacked

_LOWEST = -87.0  # its exponential is nearly the smallest float32
_PIECE = 1024  # logits that are added up one after another, before their sums are
_TERMS = 7  # terms of the series of the exponential; the rest is below the rounding of float32


def assembly(lanes: int) -> str:
    """`work` on rows of logits z: the maximum m, Σ exp(z - m), Σ exp(z - m)·(z - m), and the token on top.

    Arguments, i64 each: rows, logits of a row, values from a row to the next, the id of the first token; then the
    addresses of the logits, of out [3, rows], and of greatest [rows] and top [rows], which are both 0 where no token is
    looked for. Where m is above `greatest`, it is stored there, and the first token that has it is stored in `top`.

    A logit of minus infinity adds nothing; NaN makes all three sums NaN.
    """
    v, ints = f"<{lanes} x float>", f"<{lanes} x i32>"
    nothing = all_lanes(lanes, -math.inf)
    return "\n".join(
        [
            f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})",
            f"declare {v} @llvm.rint.v{lanes}f32({v})",
            f"declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, {v})",
            f"declare float @llvm.vector.reduce.fmax.v{lanes}f32({v})",
            "declare i64 @llvm.umin.i64(i64, i64)",
            "define void @work(ptr %arguments, i64 %begin, i64 %end) #0 {",
            "entry:",
            *unpacked(
                **dict.fromkeys(["rows", "words", "stride", "start"], "i64"),
                **dict.fromkeys(["logits", "out", "greatest", "top"], "ptr"),
            ),
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
            # logits that do not fill a register, padded with nothing
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
            *_greater(lanes, "%left_high", "%left", nothing),
            "  br i1 %has_whole, label %highest, label %maximum",
            "highest:",
            "  %i = phi i64 [ 0, %copied ], [ %i_next, %highest ]",
            f"  %high = phi {v} [ %left_high, %copied ], [ %higher, %highest ]",
            "  %zi = getelementptr float, ptr %z, i64 %i",
            f"  %these = load {v}, ptr %zi, align 4",
            *_greater(lanes, "%higher", "%these", "%high"),
            f"  %i_next = add i64 %i, {lanes}",
            "  %more_high = icmp ult i64 %i_next, %whole",
            "  br i1 %more_high, label %highest, label %maximum",
            "maximum:",
            f"  %highs = phi {v} [ %left_high, %copied ], [ %higher, %highest ]",
            f"  %m = call float @llvm.vector.reduce.fmax.v{lanes}f32({v} %highs)",
            f"  %is_nothing = fcmp oeq float %m, {literal(-math.inf)}",
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
            "  %is_maximum = fcmp oeq float %one, %m",
            "  br i1 %is_maximum, label %record, label %search",
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
        *_greater(lanes, f"{n}n", f"{n}rounded", all_lanes(lanes, -127.0)),
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


def _greater(lanes: int, name: str, first: str, second: str) -> list[str]:
    """The greater of both, or the second where one is NaN: a single instruction, unlike any function of LLVM."""
    v = f"<{lanes} x float>"
    return [
        f"  {name}_first = fcmp ogt {v} {first}, {second}",
        f"  {name} = select <{lanes} x i1> {name}_first, {v} {first}, {v} {second}",
    ]
