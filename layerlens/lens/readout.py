"""From residual-stream states to a few numbers each, in tiles over rows and vocabulary, so that memory does not grow
with the vocabulary. Float32 accumulation whatever the weights' type."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Scalars, States, TokenIds
from layerlens.models.unembed import Unembed

# On a CPU a tile and the exponentials of it stay in the cache; on an accelerator they fill the chip, at 32 MiB each.
_CPU_TILE = (512, 1024)
_ACCELERATOR_TILE = (512, 16384)
LOWEST = -1e30
_BLOCK = 64  # words per block in the two-step arg-max: a plain arg-max over the tile costs ten times as much


class Reading(NamedTuple):
    """What the model would say if it stopped at a state."""

    entropy: Scalars
    """Shannon entropy in nats, 0..ln V; NaN where a logit is. Eq. 5 of arXiv 2606.21906."""
    top_token_id: TokenIds
    """Arg-max of the logits; on a CPU the lowest id where several are equal."""
    log_normalizer: Scalars
    """ln Σ exp(logit)."""
    log_probs: Float[Tensor, "rows chosen"] | None
    """Natural log-probability of each chosen token, <= 0; None where none were asked for."""


@torch.no_grad()
def read(
    states: States,
    unembed: Unembed,
    chosen: Int[Tensor, "rows chosen"] | None = None,
    *,
    tile: tuple[int, int] | None = None,
) -> Reading:
    """Entropy, top token and chosen log-probs of every state; the largest temporary is one tile.

    Args:
        states: residual-stream states as a block handed them on, in the model's dtype.
        unembed: the model's head.
        chosen: token ids, 0..V-1, of each row whose log-probability is wanted.
        tile: rows and words of a tile; by default what suits the device.
    """
    if len(states) == 0:
        empty = states.new_empty(0, dtype=torch.float32)
        return Reading(empty, empty.long(), empty, None if chosen is None else empty.new_empty(0, chosen.shape[1]))
    rows, words = tile or tile_for(states.device)
    choices = [None] * len(states) if chosen is None else chosen.split(rows)
    readings = [_read_rows(part, unembed, ids, words) for part, ids in zip(states.split(rows), choices, strict=False)]
    log_probs = None if chosen is None else torch.cat([r.log_probs for r in readings if r.log_probs is not None])
    return Reading(
        torch.cat([r.entropy for r in readings]),
        torch.cat([r.top_token_id for r in readings]),
        torch.cat([r.log_normalizer for r in readings]),
        log_probs,
    )


def tile_for(device: torch.device) -> tuple[int, int]:
    """Rows and words of a tile that suits the device."""
    return _CPU_TILE if device.type == "cpu" else _ACCELERATOR_TILE


def tile_bytes(d_model: int, dtype: torch.dtype, device: torch.device) -> int:
    """What `read` takes while it reads states of a model in that type: a tile of logits, its exponentials, their
    products, the normed rows, and on a CPU the words of a tile in float32 where the unembedding is in another type."""
    rows, words = tile_for(device)
    copied = words * d_model if device.type == "cpu" and dtype != torch.float32 else 0
    return 4 * (3 * rows * words + 2 * rows * d_model + copied)


def _read_rows(states: States, unembed: Unembed, chosen: Tensor | None, words: int) -> Reading:
    """One pass over the vocabulary with a running maximum m, Σ exp(z − m) and Σ exp(z − m)·(z − m).

    Centring at the running maximum keeps both sums small numbers whatever the logits' offset, so H = ln Σ − ratio
    loses no digits to cancellation.
    """
    normed = unembed.normed(states)
    n_rows = len(states)
    words = min(words, unembed.n_vocab)
    logits_space, exp_space = (normed.new_empty(n_rows * words, dtype=torch.float32) for _ in range(2))
    maximum = normed.new_full((n_rows,), -math.inf, dtype=torch.float32)
    total, moment = torch.zeros_like(maximum), torch.zeros_like(maximum)
    top = torch.zeros_like(maximum, dtype=torch.long)
    chosen_logits = None if chosen is None else torch.full_like(chosen, -math.inf, dtype=torch.float32)

    for start in range(0, unembed.n_vocab, words):
        stop = min(start + words, unembed.n_vocab)
        size = n_rows * (stop - start)
        logits = unembed.logits_tile(normed, start, stop, logits_space[:size].view(n_rows, stop - start))
        if unembed.bias is not None:
            logits.clamp_(min=LOWEST)  # a bias of minus infinity bans a word: 0 · ln 0 = 0, not NaN
        tile_maximum, tile_top = _top(logits)
        if chosen is not None and chosen_logits is not None:
            _pick(logits, chosen, start, chosen_logits)
        raised = torch.maximum(maximum, tile_maximum)
        top = torch.where(tile_maximum > maximum, tile_top + start, top)
        shrink = torch.exp(maximum - raised)
        # the first tile shifts by an infinite amount, but there is nothing to shift yet
        shift = torch.where(total > 0, maximum - raised, 0.0)
        logits -= raised.unsqueeze(1)
        exps = torch.exp(logits, out=exp_space[:size].view(n_rows, stop - start))
        moment = shrink * (moment + shift * total) + torch.linalg.vecdot(exps, logits)
        total = shrink * total + exps.sum(1)
        maximum = raised

    entropy = (total.log() - moment / total).clamp(0.0, math.log(unembed.n_vocab))
    log_normalizer = maximum + total.log()
    log_probs = None if chosen_logits is None else chosen_logits - log_normalizer.unsqueeze(1)
    return Reading(entropy, top, log_normalizer, log_probs)


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each row and the first index that holds it."""
    n_rows, words = logits.shape
    whole = words - words % _BLOCK
    if logits.device.type != "cpu" or whole == 0:
        maximum, index = logits.max(1)
        return maximum, index
    blocks = logits[:, :whole].unflatten(1, (-1, _BLOCK))
    block_maximum = blocks.amax(2)
    block = block_maximum.argmax(1)
    within = blocks[torch.arange(n_rows), block].argmax(1)
    maximum, index = block_maximum.amax(1), block * _BLOCK + within
    if whole == words:
        return maximum, index
    rest_maximum, rest_index = logits[:, whole:].max(1)
    later = rest_maximum > maximum
    return torch.maximum(maximum, rest_maximum), torch.where(later, rest_index + whole, index)


def _pick(logits: Tensor, chosen: Tensor, start: int, chosen_logits: Tensor) -> None:
    inside = (chosen >= start) & (chosen < start + logits.shape[1])
    found = logits.gather(1, (chosen - start).clamp(0, logits.shape[1] - 1))
    chosen_logits.copy_(torch.where(inside, found, chosen_logits))
