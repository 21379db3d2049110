"""The formula of each number, in torch alone: changes between states, entropy from sums over tokens, the walk of Eq. 7.

A server that runs a model for nnsight has torch but not layerlens, so these functions are sent there as source. They
take and return tensors and numbers. They use only torch and what is in this file.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOWEST = -1e30  # a bias of minus infinity bans a token: with this in its place 0 · ln 0 is 0, not NaN
_LEAST_NORM = 1e-6
_BLOCK = 64


def changes(before: Tensor, part: Tensor | None, after: Tensor, parallel: bool) -> Tensor:
    """Norm ratio, I/O cosine, attention and MLP ratio of each row: float32 [4, rows]. §2.1 of arXiv 2606.21906.

    Args:
        before: what entered the block, [rows, d_model].
        part: the stream between attention and MLP; in a parallel block, what attention adds. None where a block has no
            such parts: their ratios are then NaN.
        after: what left the block.
        parallel: whether attention and MLP both read what entered the block.
    """
    before, after = before.float(), after.float()
    size_before, size_after = _size(before), _size(after)
    ratio = _norm(after - before) / size_before
    cosine = (torch.linalg.vecdot(before, after) / (size_before * size_after)).clamp(-1.0, 1.0)
    if part is None:
        absent = torch.full_like(ratio, torch.nan)
        return torch.stack([ratio, cosine, absent, absent])
    middle = before + part.float() if parallel else part.float()
    attention = _norm(middle - before) / size_before
    mlp = _norm(after - middle) / (size_before if parallel else _size(middle))
    return torch.stack([ratio, cosine, attention, mlp])


def finished(products: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Turn products of states with rows of the unembedding into logits, in place: bias, scale, cap c·tanh(u / c)."""
    if bias is not None:
        products += bias
    if scale != 1.0:
        products *= scale
    if softcap is not None:
        products.div_(softcap).tanh_().mul_(softcap)
    return products


def tile_sums(logits: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Σ exp(z − m) and Σ exp(z − m)·(z − m), [rows] each, of logits z [rows, tokens] with the maximum m of each row.

    Computed by softmax, which reads and writes each row once, within the cache: the largest probability is 1 / Σ. An
    offset a of all logits causes an error of about 2e-7·a nats in the entropy, a few times that of rounding such
    logits.
    """
    probs = torch.softmax(logits, dim=1)
    total = 1 / probs.amax(1)
    return total, total * (probs.mul_(logits).sum(1) - maximum)


def joined_sums(maxima: Tensor, totals: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum and both sums over the whole vocabulary, [rows] each, from those of its parts, [parts, rows] each."""
    maximum = maxima.amax(0)
    # a part with no finite logit needs no shift
    shift = torch.where(totals > 0, maxima - maximum, 0.0)
    shrink = torch.exp(shift)
    return maximum, (shrink * totals).sum(0), (shrink * (moments + shift * totals)).sum(0)


def entropy_of(total: Tensor, moment: Tensor, n_vocab: int) -> Tensor:
    """Shannon entropy in nats, 0..ln V, from Σ exp(z − m) and Σ exp(z − m)·(z − m). Eq. 5 of arXiv 2606.21906.

    Both sums are relative to the maximum. So they are small whatever the offset of the logits, and no digits are lost
    to cancellation.
    """
    return (total.log() - moment / total).clamp(0.0, math.log(n_vocab))


def raise_top(top: Tensor, logits: Tensor, least: Tensor, start: int) -> Tensor:
    """The maximum of each row; where it is above `least`, `top` gets the first token that has it, counted from `start`.

    On a CPU the row is cut into blocks, and only one block of each row is searched: a plain arg-max costs ten times as
    much.
    """
    words = logits.shape[1]
    whole = words - words % _BLOCK
    if logits.device.type != "cpu" or whole == 0:
        maximum, index = logits.max(1)
        torch.where(maximum > least, index + start, top, out=top)
        return maximum
    maximum, block = logits[:, :whole].unflatten(1, (-1, _BLOCK)).amax(2).max(1)
    rows = (maximum > least).nonzero()[:, 0]
    if len(rows):
        block = block[rows]
        within = logits[:, :whole].unflatten(1, (-1, _BLOCK))[rows, block].argmax(1)
        top[rows] = start + block * _BLOCK + within
    if whole < words:
        rest = raise_top(top, logits[:, whole:], torch.maximum(maximum, least), start + whole)
        maximum = torch.maximum(maximum, rest)
    return maximum


def steps_back(values: Tensor) -> Tensor:
    """How many layers, going back from the last, a criterion [rows, window], L last, strictly falls: int64 [rows].

    Eq. 7 of arXiv 2606.21906. A tie or a NaN ends the walk.
    """
    candidates = values.flip(1)
    return (candidates[:, 1:] < candidates[:, :-1]).cumprod(1).sum(1)


def n_steps_back(values: Sequence[float]) -> int:
    """As `steps_back`, for one row that the host already has. Six small operations would take 50 µs a token."""
    steps = 0
    while steps + 1 < len(values) and values[-steps - 2] < values[-steps - 1]:
        steps += 1
    return steps


def _norm(states: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(states, dim=1)
    return norm


def _size(states: Tensor) -> Tensor:
    """The norm, for use as a denominator: never zero."""
    return _norm(states).clamp_min(_LEAST_NORM)
