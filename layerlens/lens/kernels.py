"""The readout as one Triton kernel: products, soft-cap and all sums over the vocabulary in one pass over the
unembedding, without logits in memory. It uses no atomics: the sums of the programs are joined in a fixed order, so that
two runs agree bit for bit.

Imported where it is used, because Triton is not there on every machine. With TRITON_INTERPRET=1 it runs on a CPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import States
from layerlens.formulas import LOWEST
from layerlens.lens.reading import Reading
from layerlens.lens.sums import Sums
from layerlens.models.unembed import Unembed

_PROGRAMS = 1024  # enough to fill the largest GPU several times over


class Shape(NamedTuple):
    """How the work is cut: rows and tokens of a tile, columns at a time, warps of a program, columns in flight."""

    rows: int
    words: int
    width: int
    warps: int
    stages: int


# By the largest number of rows for which each is used. They compile for Hopper with almost no spilled registers; their
# speed is not measured yet.
_FEW, _SOME, _MANY, _WIDE = (
    Shape(16, 128, 128, 4, 3),
    Shape(64, 128, 64, 4, 4),
    Shape(128, 128, 64, 8, 3),
    Shape(128, 256, 64, 8, 3),
)
LEAST_SHARED, SHARED_WHEN_WIDE = 98_304, 147_456  # bytes that a program takes, in 16-bit types


@torch.no_grad()
def read_fused(
    states: States,
    unembed: Unembed,
    chosen: Int[Tensor, "rows chosen"] | None = None,
    *,
    logits: Float[Tensor, "rows vocab"] | None = None,
    n_live: Int[Tensor, ""] | None = None,
    shape: Shape | None = None,
) -> Reading:
    """As `read`, for any number of rows in one launch; the rows share each part of the unembedding that is loaded.

    Args:
        states: residual-stream states as a block handed them on.
        unembed: the model's head, whose weight is stored row by row; products are in its type and added up in float32.
        chosen: token ids, 0..V-1, [rows, chosen], whose log-probabilities are wanted.
        logits: float32, row by row, to be filled with the logits; None where they are not wanted.
        n_live: on the device, how many rows are wanted, from the first on. The others cost nothing: their entropy is
            NaN, and their other values have no meaning.
        shape: of the tiles; by default one for the number of rows.
    """
    if len(states) == 0:
        return Reading.of_nothing(states, chosen)
    assert unembed.weight.stride(1) == 1
    assert logits is None or logits.stride(1) == 1
    normed = unembed.normed(states).to(unembed.weight.dtype).contiguous()
    n_rows, width = normed.shape
    shape = shape or shape_for(n_rows, normed.device)
    n_tiles = triton.cdiv(n_rows, shape.rows)
    n_parts = max(1, min(triton.cdiv(unembed.n_vocab, shape.words), _PROGRAMS // n_tiles))
    words = triton.cdiv(triton.cdiv(unembed.n_vocab, n_parts), shape.words) * shape.words
    n_parts = triton.cdiv(unembed.n_vocab, words)
    sums = normed.new_empty(3, n_parts, n_rows, dtype=torch.float32)
    tops = normed.new_empty(n_parts, n_rows, dtype=torch.int64)
    _read[n_tiles, n_parts](
        normed,
        unembed.weight,
        unembed.weight if unembed.bias is None else unembed.bias.contiguous(),
        sums,
        tops,
        sums if logits is None else logits,
        tops if n_live is None else n_live,
        n_rows,
        unembed.n_vocab,
        width,
        normed.stride(0),
        unembed.weight.stride(0),
        0 if logits is None else logits.stride(0),
        words,
        unembed.scale,
        unembed.softcap or 1.0,
        LOWEST,
        HAS_BIAS=unembed.bias is not None,
        HAS_CAP=unembed.softcap is not None,
        WRITES=logits is not None,
        COUNTS=n_live is not None,
        WIDENS=not normed.is_cuda,  # Triton's interpreter multiplies no bfloat16
        ROWS=shape.rows,
        WORDS=shape.words,
        WIDTH=shape.width,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    joined = Sums.joined(sums)
    entropy = joined.entropy(unembed.n_vocab)
    top = tops.masked_fill(sums[0] < joined.maximum, unembed.n_vocab).amin(0)
    top = top.clamp(0, unembed.n_vocab - 1)  # for a row with NaN
    if n_live is not None:
        entropy = entropy.where(torch.arange(n_rows, device=entropy.device) < n_live, torch.nan)
    log_probs = None if chosen is None else _logits_of(normed, chosen, unembed) - joined.log_normalizer.unsqueeze(1)
    return Reading(entropy, top, joined.log_normalizer, log_probs)


def shape_for(n_rows: int, device: torch.device) -> Shape:
    """The tiles that suit so many rows on that device."""
    many = _WIDE if shared_bytes(device) >= SHARED_WHEN_WIDE else _MANY
    return next((shape for shape in (_FEW, _SOME) if n_rows <= shape.rows), many)


def shared_bytes(device: torch.device) -> int:
    """How much shared memory a program may use, in bytes; 0 where that is unknown."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


def _logits_of(normed: Tensor, chosen: Tensor, unembed: Unembed) -> Tensor:
    products = torch.bmm(unembed.weight[chosen].float(), normed.float().unsqueeze(2)).squeeze(2)
    return unembed.finished(products, chosen).clamp(min=LOWEST)


@triton.jit  # type: ignore[untyped-decorator]
def _read(  # type: ignore[no-untyped-def]  # what Triton compiles
    states,
    weight,
    bias,
    sums,
    tops,
    logits,
    n_live,
    n_rows,
    n_words,
    width,
    state_stride,
    weight_stride,
    logits_stride,
    words_per_part,
    scale,
    softcap,
    lowest,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WRITES: tl.constexpr,
    COUNTS: tl.constexpr,
    WIDENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # neighbouring programs read the same tokens, for other rows
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    is_row = row < n_rows
    if COUNTS:  # noqa: SIM102  # of two conditions in one Triton would compile both
        if tl.program_id(0) * ROWS >= tl.load(n_live):
            return
    state_row = states + row[:, None].to(tl.int64) * state_stride
    maximum = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    top = tl.zeros((ROWS,), tl.int64)
    first = part * words_per_part
    for start in range(first, min(first + words_per_part, n_words), WORDS):
        word = start + tl.arange(0, WORDS)
        is_word = word < n_words
        weight_row = weight + word[None, :].to(tl.int64) * weight_stride
        z = tl.zeros((ROWS, WORDS), tl.float32)
        for at in range(0, width, WIDTH):
            column = at + tl.arange(0, WIDTH)
            is_column = column < width
            left = tl.load(state_row + column[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
            right = tl.load(weight_row + column[:, None], mask=is_column[:, None] & is_word[None, :], other=0.0)
            if WIDENS:
                left, right = left.to(tl.float32), right.to(tl.float32)
            z = tl.dot(left, right, z, input_precision="ieee")
        if HAS_BIAS:
            z += tl.load(bias + word, mask=is_word, other=0.0).to(tl.float32)[None, :]
        z *= scale
        if HAS_CAP:
            shrunk = tl.exp(-2.0 * tl.abs(z / softcap))  # tanh, without overflow
            size = softcap * (1.0 - shrunk) / (1.0 + shrunk)
            z = tl.where(z < 0, -size, size)
        if WRITES:
            place = logits + row[:, None].to(tl.int64) * logits_stride + word[None, :]
            tl.store(place, z, mask=is_row[:, None] & is_word[None, :])
        if HAS_BIAS:
            z = tl.where(z < lowest, lowest, z)
        z = tl.where(is_word[None, :], z, -float("inf"))
        # a NaN is not a maximum, and makes the sums of its row NaN
        highest, place_of = tl.max(tl.where(z == z, z, -float("inf")), 1, return_indices=True)
        top = tl.where(highest > maximum, start + place_of, top)
        raised = tl.maximum(maximum, highest)
        shift = tl.where(total > 0, maximum - raised, 0.0)
        shrink = tl.exp(shift)
        below = tl.where(is_word[None, :], z - raised[:, None], 0.0)
        exps = tl.where(is_word[None, :], tl.exp(below), 0.0)
        moment = shrink * (moment + shift * total) + tl.sum(exps * below, 1)
        total = shrink * total + tl.sum(exps, 1)
        maximum = raised
    place = sums + part.to(tl.int64) * n_rows + row
    tl.store(place, maximum, mask=is_row)
    part_stride = tl.num_programs(1).to(tl.int64) * n_rows
    tl.store(place + part_stride, total, mask=is_row)
    tl.store(place + 2 * part_stride, moment, mask=is_row)
    tl.store(tops + part.to(tl.int64) * n_rows + row, top, mask=is_row)
