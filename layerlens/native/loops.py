"""The functions that call the loops."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerlens.compat import is_watched
from layerlens.native import count_loop, mix_loop, product_loop, sum_loop
from layerlens.native.compiled import Loop, compiled, processor

_MOST_STATES = 80  # states of one product: with more, oneDNN is as fast
_LEAST_WORDS = 64
_KINDS = {torch.float32: "float", torch.bfloat16: "bfloat", torch.float16: "half"}


def products(states: Tensor, weight: Tensor) -> Float[Tensor, "rows words"] | None:
    """states [rows, d] in float32 times weight [tokens, d] transposed, added up in float32.

    The weight is read once, in its own type and order, so that a few states take as long as one. The result for a row
    does not depend on how many rows there are, on other rows, or on the number of threads. None where there are too
    many states, d is not a multiple of 16, or the tensors are not in a CPU's memory row after row.
    """
    rows, d = states.shape
    this = processor()
    if this is None or not 0 < rows <= _MOST_STATES or len(weight) < _LEAST_WORDS or d == 0 or d % 16 != 0:
        return None
    if weight.dim() != 2 or weight.shape[1] != d:  # torch refuses this combination
        return None
    if states.dtype != torch.float32 or weight.dtype not in _KINDS or not (_is_plain(states) and _is_plain(weight)):
        return None
    if not (states.is_contiguous() and weight.is_contiguous()):
        return None
    out = states.new_empty(rows, len(weight))
    groups, rest = divmod(rows, product_loop.STATES)
    blocks = -(-len(weight) // product_loop.BLOCK)
    run = _products(_KINDS[weight.dtype], rest)
    run(blocks, len(weight), d, groups, weight.data_ptr(), states.data_ptr(), out.data_ptr())
    return out


def row_sums(
    logits: Tensor, greatest: Tensor | None = None, top: Tensor | None = None, start: int = 0
) -> Float[Tensor, "3 rows"] | None:
    """For each row z of float32 logits [rows, tokens]: m = max z, Σ exp(z − m) and Σ exp(z − m)·(z − m).

    Where m is above `greatest` [rows], it is stored there, and `top` [rows] gets `start` plus the place of the first
    token that has it. A logit of minus infinity adds nothing; NaN makes a row's sums NaN. None where rows are not in a
    CPU's memory value after value.
    """
    rows, words = logits.shape
    if not _are_rows(logits):
        return None
    if not (_is_column(greatest, rows, torch.float32) and _is_column(top, rows, torch.int64)):
        return None
    out = logits.new_empty(3, rows)
    places = (0, 0) if greatest is None or top is None else (greatest.data_ptr(), top.data_ptr())
    _row_sums()(rows, words, logits.stride(0), start, logits.data_ptr(), out.data_ptr(), *places)
    return out


def count_above(logits: Tensor, bounds: Tensor, above: Tensor) -> bool:
    """Add to `above`, int64 [rows], how many logits [rows, tokens] of each row are greater than its bound, [rows].

    Returns False, and does nothing, where there are no float32 rows in a CPU's memory value after value.
    """
    rows, words = logits.shape
    if not _are_rows(logits):
        return False
    if not (_is_column(bounds, rows, torch.float32) and _is_column(above, rows, torch.int64)):
        return False
    places = (logits.data_ptr(), bounds.data_ptr(), above.data_ptr())
    _counts()(rows, words, logits.stride(0), *places)
    return True


def mixed_sums(logits: Tensor, log_normalizers: Tensor, probs: Tensor) -> Float[Tensor, " rows"] | None:
    """Σ (p + q) ln(p + q) of each row, from the logits of p [rows, words], their log-normalizers [rows], and q.

    The sum is in float32, one value after another, so that rows should have a few thousand words. None where rows are
    not in a CPU's memory value after value, at the same distance in both, or do not fill whole registers.
    """
    rows, words = logits.shape
    this = processor()
    if this is None or words % this.lanes or not (_are_rows(logits) and _are_rows(probs)):
        return None
    if probs.shape != logits.shape or probs.stride(0) != logits.stride(0):
        return None
    if not _is_column(log_normalizers, rows, torch.float32):
        return None
    out = logits.new_empty(rows)
    places = (logits.data_ptr(), log_normalizers.data_ptr(), probs.data_ptr(), out.data_ptr())
    _mixed_sums()(rows, words, logits.stride(0), *places)
    return out


def _are_rows(logits: Tensor) -> bool:
    """Whether these are float32 rows in a CPU's memory, value after value, and there are loops for them."""
    if processor() is None or logits.numel() == 0:
        return False
    return logits.dtype == torch.float32 and _is_plain(logits) and logits.stride(1) == 1


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values are in memory, and neither a gradient nor a mode watching operations would miss the loop."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not is_watched()
    )


def _is_column(tensor: Tensor | None, rows: int, dtype: torch.dtype) -> bool:
    """Whether one number for each row can be written into it, or nothing is to be written."""
    return tensor is None or (
        tensor.dtype == dtype and tensor.shape == (rows,) and tensor.is_contiguous() and _is_plain(tensor)
    )


@cache
def _products(kind: str, rest: int) -> Loop:
    this = processor()
    assert this is not None
    return compiled(product_loop.assembly(this.lanes, kind, this.sums, rest), this)


@cache
def _row_sums() -> Loop:
    this = processor()
    assert this is not None
    return compiled(sum_loop.assembly(this.lanes), this)


@cache
def _counts() -> Loop:
    this = processor()
    assert this is not None
    return compiled(count_loop.assembly(this.lanes), this)


@cache
def _mixed_sums() -> Loop:
    this = processor()
    assert this is not None
    return compiled(mix_loop.assembly(this.lanes), this)
