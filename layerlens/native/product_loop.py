"""A few states times all rows of an unembedding ("words" here), which is read once."""

from layerlens.native.assembly import unpacked

BLOCK = 128  # words whose products with all states are made together, so that they stay in the cache
STATES = 10  # multiplied at once
# Words multiplied at once, so that a state's values are loaded once for both. They are half a block apart: the
# processor prefetches two long runs through memory by itself, but not two runs of alternating words.
_WORDS = 2
_AHEAD = 4096  # bytes by which the weight is prefetched before it is needed


def assembly(lanes: int, kind: str, sums: int, rest: int) -> str:
    """`work` on blocks of words: out[row, word] = states[row] · weight[word].

    Arguments, i64 each: blocks, words, d (a multiple of the lanes), groups of STATES states; then the addresses of the
    weight [words, d] of `kind`, the states [rows, d] and out [rows, words], both float32.

    Args:
        lanes: float32 values in a register.
        kind: "float", "bfloat" or "half".
        sums: how many sums, of one state and one word each, fit into registers.
        rest: number of states that do not fill a group, 0..STATES - 1.
    """
    lines = unpacked(blocks="i64", words="i64", d="i64", groups="i64", weight="ptr", states="ptr", out="ptr")
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
    """`some<rows>`: products of so many states with the words first..last - 1, one of each half at a time.

    Where the number of words is odd the halves share the middle one.
    """
    out = [
        f"define internal void @some{rows}(ptr %weight, ptr %states, ptr %out, i64 %row, i64 %first, i64 %last, i64 %d,"
        " i64 %n) #0 {",
        "entry:",
        "  %all = sub i64 %last, %first",
        "  %apart = lshr i64 %all, 1",
        "  %middle = sub i64 %last, %apart",
        "  br label %word",
        "word:",
        "  %word0 = phi i64 [ %first, %entry ], [ %after, %finished ]",
        "  %word1 = add i64 %word0, %apart",
    ]
    for word in range(_WORDS):
        out += [
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
        "  %after = add i64 %word0, 1",
        "  %goes_on = icmp ult i64 %after, %middle",
        "  br i1 %goes_on, label %word, label %finish",
        "finish:",
        "  ret void",
        "}",
    ]


def _pass(number: int, rows: range, start: str, lanes: int, kind: str, asked: list[int]) -> list[str]:
    """The products of some of the rows: the code after the block `start`. For the words `asked`, memory further on is
    prefetched."""
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
                f"  %soon{at} = getelementptr {kind}, ptr %from{at}, i64 {_AHEAD // size}",
                f"  call void @llvm.prefetch.p0(ptr %soon{at}, i32 0, i32 2, i32 1)",
            ]
        if kind == "float":
            out += [f"  %w{at} = load {vector}, ptr %from{at}, align 4"]
        else:
            out += [
                f"  %stored{at} = load {stored}, ptr %from{at}, align 2",
                f"  %w{at} = fpext {stored} %stored{at} to {vector}",
            ]
    fma, add = f"call {vector} @llvm.fma.v{lanes}f32", f"call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32"
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
            f"  %total{r}_{w} = {add}(float -0.0, {vector} %new{r}_{w})",
            f"  %line{r}_{w} = mul i64 %row{r}, %n",
            f"  %cell{r}_{w} = add i64 %line{r}_{w}, %word{w}",
            f"  %to{r}_{w} = getelementptr float, ptr %out, i64 %cell{r}_{w}",
            f"  store float %total{r}_{w}, ptr %to{r}_{w}",
        ]
    return out
