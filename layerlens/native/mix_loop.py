"""How mixed two distributions are, from the logits of one and the probabilities of the other, while they are in the
cache."""

import math

from layerlens.native.assembly import all_integers, all_lanes, exponential, float32, greater, unpacked

_TERMS = 5  # of the series of the logarithm; the rest is below the rounding of float32
_ROOT_HALF = 0x3F3504F3  # the bits of the square root of a half, as a float32
_LEAST = 1e-37  # in place of a sum of two probabilities that are both 0


def assembly(lanes: int) -> str:
    """`work` on rows: Σ (p + q) ln(p + q), where p is the exponential of a logit less the centre of its row.

    Arguments, i64 each: rows, values of a row, which fill whole registers, and values from a row to the next; then the
    addresses of the logits, of the centres [rows], of the probabilities q, with as many values from a row to the next,
    and of out [rows].

    A logit of minus infinity has p = 0. NaN makes a row's sum NaN.
    """
    v, ints = f"<{lanes} x float>", f"<{lanes} x i32>"
    return "\n".join(
        [
            f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})",
            f"declare {v} @llvm.rint.v{lanes}f32({v})",
            f"declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, {v})",
            "define void @work(ptr %arguments, i64 %begin, i64 %end) #0 {",
            "entry:",
            *unpacked(
                **dict.fromkeys(["rows", "words", "stride"], "i64"),
                **dict.fromkeys(["logits", "centers", "probs", "out"], "ptr"),
            ),
            "  %some = icmp ult i64 %begin, %end",
            "  br i1 %some, label %row, label %finish",
            "row:",
            "  %r = phi i64 [ %begin, %entry ], [ %r_next, %row_end ]",
            "  %offset = mul i64 %r, %stride",
            "  %z = getelementptr float, ptr %logits, i64 %offset",
            "  %q = getelementptr float, ptr %probs, i64 %offset",
            "  %center_at = getelementptr float, ptr %centers, i64 %r",
            "  %center = load float, ptr %center_at",
            f"  %center_first = insertelement {v} poison, float %center, i64 0",
            f"  %center_all = shufflevector {v} %center_first, {v} poison, {ints} zeroinitializer",
            "  br label %sum",
            "sum:",
            "  %i = phi i64 [ 0, %row ], [ %i_next, %sum ]",
            f"  %sums = phi {v} [ zeroinitializer, %row ], [ %sums_next, %sum ]",
            "  %zi = getelementptr float, ptr %z, i64 %i",
            f"  %these = load {v}, ptr %zi, align 4",
            *exponential(lanes, "these", ""),
            "  %qi = getelementptr float, ptr %q, i64 %i",
            f"  %others = load {v}, ptr %qi, align 4",
            f"  %both = fadd {v} %e, %others",
            *greater(lanes, "%y", all_lanes(lanes, _LEAST), "%both"),
            *_logarithm(lanes),
            f"  %sums_next = call {v} @llvm.fma.v{lanes}f32({v} %y, {v} %log, {v} %sums)",
            f"  %i_next = add i64 %i, {lanes}",
            "  %more_sum = icmp ult i64 %i_next, %words",
            "  br i1 %more_sum, label %sum, label %row_end",
            "row_end:",
            f"  %total = call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32(float -0.0, {v} %sums_next)",
            "  %sum_at = getelementptr float, ptr %out, i64 %r",
            "  store float %total, ptr %sum_at",
            "  %r_next = add i64 %r, 1",
            "  %more = icmp ult i64 %r_next, %end",
            "  br i1 %more, label %row, label %finish",
            "finish:",
            "  ret void",
            "}",
        ]
    )


def _logarithm(lanes: int) -> list[str]:
    """%log, the natural logarithm of %y, which is a normal number above 0, or NaN.

    y = 2^n · m with m from √½ to √2, and ln m = 2 (t + t³/3 + t⁵/5 + ...) with t = (m - 1) / (m + 1).
    """
    v, ints, high = f"<{lanes} x float>", f"<{lanes} x i32>", float32(math.log(2))
    fma, one = f"call {v} @llvm.fma.v{lanes}f32", all_lanes(lanes, 1.0)
    lines = [
        f"  %y_bits = bitcast {v} %y to {ints}",
        f"  %above = sub {ints} %y_bits, {all_integers(lanes, _ROOT_HALF)}",
        f"  %power = ashr {ints} %above, {all_integers(lanes, 23)}",
        f"  %power_bits = shl {ints} %power, {all_integers(lanes, 23)}",
        f"  %m_bits = sub {ints} %y_bits, %power_bits",
        f"  %m = bitcast {ints} %m_bits to {v}",
        f"  %log_n = sitofp {ints} %power to {v}",
        f"  %below_one = fsub {v} %m, {one}",
        f"  %above_one = fadd {v} %m, {one}",
        f"  %t = fdiv {v} %below_one, %above_one",
        f"  %tt = fmul {v} %t, %t",
    ]
    before = all_lanes(lanes, 2 / (2 * _TERMS - 1))
    for term in reversed(range(_TERMS - 1)):
        lines.append(f"  %l{term} = {fma}({v} {before}, {v} %tt, {v} {all_lanes(lanes, 2 / (2 * term + 1))})")
        before = f"%l{term}"
    return [
        *lines,
        f"  %log_m_low = fmul {v} %log_n, {all_lanes(lanes, math.log(2) - high)}",
        f"  %log_m = {fma}({v} %t, {v} %l0, {v} %log_m_low)",
        f"  %log = {fma}({v} %log_n, {v} {all_lanes(lanes, high)}, {v} %log_m)",
    ]
