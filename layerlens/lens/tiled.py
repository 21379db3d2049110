"""From residual-stream states to a few numbers for each, in tiles over rows and vocabulary, so that memory does not
grow with the vocabulary. Sums are in float32, whatever the type of the weights."""

import math
import os
from importlib.util import find_spec

import torch
from jaxtyping import Int
from torch import Tensor

from layerlens.axes import States
from layerlens.formulas import LOWEST
from layerlens.lens.head import Head
from layerlens.lens.ranking import Chosen, FirstWords
from layerlens.lens.reading import Reading
from layerlens.lens.sums import Sums
from layerlens.models.unembed import Unembed

# On a CPU a tile and its probabilities stay in the cache; on an accelerator they fill the chip, at 32 MiB each.
_CPU_TILE = (512, 1024)
_ACCELERATOR_TILE = (512, 16384)


@torch.no_grad()
def read(
    states: States,
    head: Head,
    chosen: Int[Tensor, "rows chosen"] | None = None,
    *,
    n_first: int = 0,
    tile: tuple[int, int] | None = None,
) -> Reading:
    """Entropy and top token of every state, and what else is asked for; the largest temporary is one tile.

    Args:
        states: residual-stream states as a block handed them on, in the model's dtype, or as a transport mapped them.
        head: the model's.
        chosen: token ids, 0..V-1, of each row whose log-probability and rank are wanted.
        n_first: how many of the first tokens are wanted, 0..V.
        tile: rows and tokens of a tile; by default what suits the device.
    """
    if chosen is None and n_first == 0 and len(states) and (unembed := fused(head)) is not None:
        from layerlens.lens.kernels import read_fused

        return read_fused(states, unembed)
    rows, words = tile or tile_for(states.device)
    choices = [None] * (len(states) // rows + 1) if chosen is None else chosen.split(rows)
    parts = [read_rows(part, head, ids, n_first, words) for part, ids in zip(states.split(rows), choices, strict=False)]
    return parts[0] if len(parts) == 1 else Reading.joined(parts)


def fused(head: Head) -> Unembed | None:
    """The head, if the kernel can read it: in 16-bit types, for which it was made, on GPUs that have room for it."""
    unembed = head.whole
    if unembed is None or not unembed.fused or find_spec("triton") is None or unembed.weight.stride(1) != 1:
        return None
    from layerlens.lens.kernels import LEAST_SHARED, shared_bytes

    weight = unembed.weight
    on_gpu = weight.is_cuda and weight.dtype.itemsize == 2 and shared_bytes(weight.device) >= LEAST_SHARED
    return unembed if on_gpu or os.environ.get("TRITON_INTERPRET") == "1" else None


def tile_for(device: torch.device) -> tuple[int, int]:
    """Rows and tokens of a tile that suits the device."""
    return _CPU_TILE if device.type == "cpu" else _ACCELERATOR_TILE


def tile_bytes(d_model: int, dtype: torch.dtype, device: torch.device) -> int:
    """The memory that `read` takes, in bytes, for states of a model in that type: a tile of logits, its probabilities,
    the normed rows, and, on a CPU with an unembedding in another type, its rows of a tile in float32."""
    rows, words = tile_for(device)
    copied = words * d_model if device.type == "cpu" and dtype != torch.float32 else 0
    return 4 * (2 * rows * words + 2 * rows * d_model + copied)


def read_rows(
    states: States, head: Head, chosen: Tensor | None, n_first: int, words: int, kept: list[Tensor] | None = None
) -> Reading:
    """One pass over the vocabulary, tile by tile; `kept` gets every tile of logits if it is given."""
    normed = head.normed(states)
    maximum = normed.new_full((len(states),), -math.inf, dtype=torch.float32)
    top = torch.zeros_like(maximum, dtype=torch.long)
    picked = [] if chosen is None else [Chosen(ids, normed, head, words) for ids in chosen.unbind(1)]
    first = FirstWords(len(states), n_first, normed.device) if n_first else None
    starts = range(0, head.n_vocab, words)
    # in one piece: small tensors that outlive a tile would lie between the large ones, and the heap would grow
    parts = normed.new_empty(3, len(starts), len(states), dtype=torch.float32)
    for place, start in enumerate(starts):
        logits = head.logits_tile(normed, start, min(start + words, head.n_vocab))
        if head.bans_words:
            logits.clamp_(min=LOWEST)
        if kept is not None:
            kept.append(logits)
        for one in picked:
            one.add(logits, start)
        torch.stack(Sums.of_tile(logits, maximum, top, start), out=parts[:, place])
        if first is not None:
            first.add(logits, parts[0, place], start)
    sums = Sums.joined(parts)
    log_normalizer = sums.log_normalizer.unsqueeze(1)
    reading = Reading(sums.entropy(head.n_vocab), top, sums.log_normalizer, None)
    if picked:
        log_probs = torch.stack([one.logits for one in picked], dim=1) - log_normalizer
        reading = reading._replace(log_probs=log_probs, ranks=torch.stack([one.ranks(top) for one in picked], dim=1))
    if first is not None:
        first_logits, ids = first.result(top, maximum)
        reading = reading._replace(first_ids=ids, first_log_probs=first_logits - log_normalizer)
    return reading
