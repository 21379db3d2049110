"""Texts to probe a model with, what its blocks hand on for them, and how much two results differ."""

from typing import Any

import torch
from torch import Tensor

from layerlens.models.hooks import OnBlock, watch_blocks
from layerlens.models.model import Model

Streams = list[tuple[Tensor, Tensor | None, Tensor]]
"""For each block, the stream that entered it, the stream between its parts or None, and the stream that left it."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_PACKED_TOLERANCE = 3e-2  # schemes that also round the states that go through a layer, to 8 bits


def probe(model: Model) -> Tensor:
    """Two texts that differ only in their last token; int64 [2, 7]."""
    n_words = min(model.n_vocab, model.n_known_tokens)
    least = min(3, n_words // 4)
    ids = torch.linspace(least, n_words - 1 - least, 7, dtype=torch.float64).long().repeat(2, 1)
    ids[1, -1] = n_words // 3
    for place in _placeholders(model.hf.config):  # an image would be expected there
        ids[ids == place] = place - 1 if place else 1
    return ids.to(model.device)


def _placeholders(config: Any) -> set[int]:
    """Token ids that stand for pictures or sound."""
    media = ("image", "video", "audio", "vision")
    names = [name for name in vars(config) if "_token_" in name and name.startswith(media)]
    return {getattr(config, name) for name in names}


def watched(model: Model, ids: Tensor) -> tuple[Tensor, Streams]:
    """The model's own logits of these texts, and what its blocks handed on."""
    streams: Streams = []
    with watch_blocks(model.blocks, model.sublayers, keeper(streams)):
        logits = model.hf(input_ids=ids, use_cache=False).logits
    return logits, streams


def keeper(streams: Streams) -> OnBlock:
    """For `watch_blocks`: puts what it sees into the list."""

    def keep(_: int, h_in: Tensor, part: Tensor | None, h_out: Tensor) -> None:
        # the first block on a device is seen before its inputs are brought there
        here = h_out.device
        streams.append((h_in.to(here), None if part is None else part.to(here), h_out))

    return keep


def mismatch(left: Tensor, right: Tensor) -> float:
    """The largest absolute difference at a position, relative to the largest absolute value there, at worst.

    It is computed position by position, because states of the first token can be thousands of times as large as others.
    Both are [..., width].
    """
    left, right = left.float().flatten(0, -2), right.float().flatten(0, -2)
    scale = torch.maximum(left.abs().amax(1), right.abs().amax(1)).clamp_min(1e-20)
    return float(((left - right).abs().amax(1) / scale).max())


def tolerance(model: Model, *, packed: bool) -> float:
    """Tolerance for rounding in the model's type, or by the scheme of quantised weights that were used."""
    plain = _TOLERANCE.get(model.hf.dtype, 3e-2)
    return max(plain, _PACKED_TOLERANCE) if packed else plain
