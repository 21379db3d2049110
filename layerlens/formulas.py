"""What each number is, in torch alone: changes between two states, entropy from sums over words, the walk of Eq. 7.

A server that runs a model for nnsight has torch and not layerlens, so that the functions travel there as source. They
take and return tensors and numbers, and what they use besides is torch or stands here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOWEST = -1e30  # a bias of minus infinity bans a word: with this in its place 0 · ln 0 is 0, not NaN
_LEAST_NORM = 1e-6
_BLOCK = 64


def changes(before: Tensor, part: Tensor | None, after: Tensor, parallel: bool) -> Tensor:
    """Norm ratio, I/O cosine, attention and MLP ratio of each row: float32 [4, rows]. §2.1 of arXiv 2606.21906.

    Args:
        before: what entered the block, [rows, d_model].
        part: what stood between attention and MLP; in parallel, what attention adds. None where a block has no such
            parts, whose ratios are then NaN.
        after: what left it.
        parallel: whether attention and MLP both read what entered.
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
    """Products of states with words made logits, in place: bias, scale, and c·tanh(logits / c) where c caps them."""
    if bias is not None:
        products += bias
    if scale != 1.0:
        products *= scale
    if softcap is not None:
        products.div_(softcap).tanh_().mul_(softcap)
    return products


def tile_sums(logits: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits z [rows, words] with the maximum m of each row: Σ exp(z − m) and Σ exp(z − m)·(z − m), [rows] each.

    By softmax, which reads and writes each row once and within the cache: the largest probability is 1 / Σ. An offset a
    of all logits costs about 2e-7·a nats of entropy, a few times what the rounding of such logits does.
    """
    probs = torch.softmax(logits, dim=1)
    total = 1 / probs.amax(1)
    return total, total * (probs.mul_(logits).sum(1) - maximum)


def joined_sums(maxima: Tensor, totals: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum and both sums of all words, [rows] each, from those of their parts, [parts, rows] each."""
    maximum = maxima.amax(0)
    # where nothing is there is nothing to shift
    shift = torch.where(totals > 0, maxima - maximum, 0.0)
    shrink = torch.exp(shift)
    return maximum, (shrink * totals).sum(0), (shrink * (moments + shift * totals)).sum(0)


def entropy_of(total: Tensor, moment: Tensor, n_vocab: int) -> Tensor:
    """Shannon entropy in nats, 0..ln V, from Σ exp(z − m) and Σ exp(z − m)·(z − m). Eq. 5 of arXiv 2606.21906.

    Centred at the maximum both sums are small numbers whatever the logits' offset, so that no digits are lost to
    cancellation.
    """
    return (total.log() - moment / total).clamp(0.0, math.log(n_vocab))


def raise_top(top: Tensor, logits: Tensor, least: Tensor, start: int) -> Tensor:
    """The maximum of each row; where it is above `least` the first word that has it, counted from `start`, into `top`.

    On a CPU by blocks of words, of which only one a row is searched: a plain arg-max costs ten times as much.
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
    """How many layers back from the last one a criterion [rows, window], L last, strictly falls: int64 [rows].

    Eq. 7 of arXiv 2606.21906. A tie or a NaN ends the walk.
    """
    candidates = values.flip(1)
    return (candidates[:, 1:] < candidates[:, :-1]).cumprod(1).sum(1)


def n_steps_back(values: Sequence[float]) -> int:
    """As `steps_back`, of one row that the host already has: six operations on small tensors take 50 µs a token."""
    steps = 0
    while steps + 1 < len(values) and values[-steps - 2] < values[-steps - 1]:
        steps += 1
    return steps


def _norm(states: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(states, dim=1)
    return norm


def _size(states: Tensor) -> Tensor:
    """The norm as a denominator: never zero."""
    return _norm(states).clamp_min(_LEAST_NORM)
