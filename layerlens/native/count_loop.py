"""How many logits of a row are above a bound, while they are in the cache."""

from layerlens.native.assembly import unpacked


def assembly(lanes: int) -> str:
    """`work` on rows of logits: adds to `above` how many of them are greater than the bound. A NaN is not greater.

    Arguments, i64 each: rows, logits of a row, values from a row to the next; then the addresses of the logits, of the
    bounds [rows] and of above [rows], i64.
    """
    v, ints, bools = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{lanes} x i1>"
    return "\n".join(
        [
            f"declare i32 @llvm.vector.reduce.add.v{lanes}i32({ints})",
            "define void @work(ptr %arguments, i64 %begin, i64 %end) #0 {",
            "entry:",
            *unpacked(
                **dict.fromkeys(["rows", "words", "stride"], "i64"),
                **dict.fromkeys(["logits", "bounds", "above"], "ptr"),
            ),
            f"  %whole = and i64 %words, -{lanes}",
            "  %some = icmp ult i64 %begin, %end",
            "  br i1 %some, label %row, label %finish",
            "row:",
            "  %r = phi i64 [ %begin, %entry ], [ %r_next, %row_end ]",
            "  %offset = mul i64 %r, %stride",
            "  %z = getelementptr float, ptr %logits, i64 %offset",
            "  %bound_at = getelementptr float, ptr %bounds, i64 %r",
            "  %bound = load float, ptr %bound_at",
            f"  %bound_first = insertelement {v} poison, float %bound, i64 0",
            f"  %bound_all = shufflevector {v} %bound_first, {v} poison, {ints} zeroinitializer",
            "  br label %several",
            "several:",
            "  %i = phi i64 [ 0, %row ], [ %i_next, %count ]",
            f"  %counts = phi {ints} [ zeroinitializer, %row ], [ %counts_next, %count ]",
            "  %is_whole = icmp ult i64 %i, %whole",
            "  br i1 %is_whole, label %count, label %counted",
            "count:",
            "  %zi = getelementptr float, ptr %z, i64 %i",
            f"  %these = load {v}, ptr %zi, align 4",
            f"  %are_above = fcmp ogt {v} %these, %bound_all",
            f"  %ones = zext {bools} %are_above to {ints}",
            f"  %counts_next = add {ints} %counts, %ones",
            f"  %i_next = add i64 %i, {lanes}",
            "  br label %several",
            "counted:",
            f"  %sum32 = call i32 @llvm.vector.reduce.add.v{lanes}i32({ints} %counts)",
            "  %sum = zext i32 %sum32 to i64",
            "  br label %single",
            "single:",
            "  %k = phi i64 [ %whole, %counted ], [ %k_next, %one ]",
            "  %n = phi i64 [ %sum, %counted ], [ %n_next, %one ]",
            "  %is_left = icmp ult i64 %k, %words",
            "  br i1 %is_left, label %one, label %row_end",
            "one:",
            "  %zk = getelementptr float, ptr %z, i64 %k",
            "  %this = load float, ptr %zk",
            "  %is_above = fcmp ogt float %this, %bound",
            "  %is_one = zext i1 %is_above to i64",
            "  %n_next = add i64 %n, %is_one",
            "  %k_next = add i64 %k, 1",
            "  br label %single",
            "row_end:",
            "  %of_row = getelementptr i64, ptr %above, i64 %r",
            "  %before = load i64, ptr %of_row",
            "  %after = add i64 %before, %n",
            "  store i64 %after, ptr %of_row",
            "  %r_next = add i64 %r, 1",
            "  %more = icmp ult i64 %r_next, %end",
            "  br i1 %more, label %row, label %finish",
            "finish:",
            "  ret void",
            "}",
        ]
    )
