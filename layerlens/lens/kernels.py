"""The readout as one Triton kernel: products, soft-cap and all sums over the words in one pass over the unembedding,
without logits in memory. Without atomics: what the programs add up is joined in a fixed order, so that two runs agree
bit for bit.

Imported where it is used, because Triton is not there on every machine. With TRITON_INTERPRET=1 it runs on a CPU.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import States
from layerlens.lens.sums import LOWEST, Reading, Sums
from layerlens.models.unembed import Unembed

_LEAST_ROWS, _MOST_ROWS = 16, 128  # of a tile: what tensor cores take at least, and what registers hold
_WORDS, _WIDTH = 128, 64
_PROGRAMS = 1024  # enough to fill the largest GPU several times over


@torch.no_grad()
def read_fused(
    states: States,
    unembed: Unembed,
    chosen: Int[Tensor, "rows chosen"] | None = None,
    logits: Float[Tensor, "rows vocab"] | None = None,
) -> Reading:
    """As `read`, of any number of rows in one launch, which share what is read of the unembedding.

    Args:
        states: residual-stream states as a block handed them on.
        unembed: the model's head; its products are in the type of its weight, added up in float32.
        chosen: token ids, 0..V-1, of each row whose log-probability is wanted.
        logits: float32, to be filled with the logits; None where they are not wanted.
    """
    normed = unembed.normed(states).to(unembed.weight.dtype).contiguous()
    n_rows, width = normed.shape
    rows = min(_MOST_ROWS, max(_LEAST_ROWS, triton.next_power_of_2(n_rows)))
    n_tiles = triton.cdiv(n_rows, rows)
    n_parts = max(1, min(triton.cdiv(unembed.n_vocab, _WORDS), _PROGRAMS // n_tiles))
    words = triton.cdiv(triton.cdiv(unembed.n_vocab, n_parts), _WORDS) * _WORDS
    n_parts = triton.cdiv(unembed.n_vocab, words)
    sums = normed.new_empty(3, n_parts, n_rows, dtype=torch.float32)
    tops = normed.new_empty(n_parts, n_rows, dtype=torch.int64)
    _read[n_tiles, n_parts](
        normed,
        unembed.weight,
        unembed.weight if unembed.bias is None else unembed.bias,
        sums,
        tops,
        sums if logits is None else logits,
        n_rows,
        unembed.n_vocab,
        width,
        normed.stride(0),
        unembed.weight.stride(0),
        0 if logits is None else logits.stride(0),
        words,
        n_parts * n_rows,
        unembed.scale,
        unembed.softcap or 1.0,
        LOWEST,
        HAS_BIAS=unembed.bias is not None,
        HAS_CAP=unembed.softcap is not None,
        WRITES=logits is not None,
        WIDENS=not normed.is_cuda,  # Triton's interpreter multiplies no bfloat16
        ROWS=rows,
        WORDS=_WORDS,
        WIDTH=_WIDTH,
        num_warps=8 if rows == _MOST_ROWS else 4,
        num_stages=3,
    )
    joined = Sums.joined(sums)
    top = tops.masked_fill(sums[0] < joined.maximum, unembed.n_vocab).amin(0)
    top = top.clamp(max=unembed.n_vocab - 1)  # of a row that is not a number
    log_probs = None if chosen is None else _logits_of(normed, chosen, unembed) - joined.log_normalizer.unsqueeze(1)
    return Reading(joined.entropy(unembed.n_vocab), top, joined.log_normalizer, log_probs)


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
    n_rows,
    n_words,
    width,
    state_stride,
    weight_stride,
    logits_stride,
    words_per_part,
    part_stride,
    scale,
    softcap,
    lowest,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WRITES: tl.constexpr,
    WIDENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # neighbouring programs read the same words, for other rows
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    is_row = row < n_rows
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
        if HAS_BIAS:
            z = tl.where(z < lowest, lowest, z)
        if WRITES:
            place = logits + row[:, None].to(tl.int64) * logits_stride + word[None, :]
            tl.store(place, z, mask=is_row[:, None] & is_word[None, :])
        z = tl.where(is_word[None, :], z, -float("inf"))
        # what is not a number is no maximum, and makes the sums of its row no numbers either
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
    tl.store(place + part_stride, total, mask=is_row)
    tl.store(place + 2 * part_stride, moment, mask=is_row)
    tl.store(tops + part.to(tl.int64) * n_rows + row, top, mask=is_row)
