"""How much of the available memory a model will take, before its weights are read."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerlens.compat import SHAPES_ONLY_LOG, shapes_only
from layerlens.errors import ModelError
from layerlens.lens.tiled import tile_bytes
from layerlens.models import checkpoints, loading, memory, sizes
from layerlens.models.placement import Place, place_for
from layerlens.models.quiet import quiet
from layerlens.tracing.meter import states_bytes

_MEMORIES = ("past_key_values", "cache_params", "state")
_COUNTED_IN = torch.bfloat16  # the only type in which products with experts work in a pass without numbers


@dataclass(frozen=True)
class Estimate:
    """How much memory a trace needs, and how much there is.

    Attributes:
        weights: those of the model once it is loaded.
        shape: the model type and the number of its layers.
        cache_bytes: keys and values, or recurrent states; None where they cannot be told from the config.
        tracer_bytes: what measuring takes in addition to the passes.
        batch_size, n_tokens: how many texts pass together, and how long they are.
        room: free bytes by device.
        may_use_disk: whether weights that fit on no device can stay on disk.
    """

    weights: sizes.Weights
    shape: str
    cache_bytes: int | None
    tracer_bytes: int
    batch_size: int
    n_tokens: int
    room: Mapping[str, int]
    may_use_disk: bool

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return self.weights.n_bytes + (self.cache_bytes or 0) + self.tracer_bytes

    @property
    def fits(self) -> bool | None:
        """Whether this is less than what is free on all devices, with the disk for weights; None where unknown."""
        needed = self.n_bytes - (self.weights.n_bytes if self.may_use_disk else 0)
        if not self.room:
            return None
        return False if needed > sum(self.room.values()) else None if self.cache_bytes is None else True


def estimate(
    model: str, place: Place | None = None, *, batch_size: int = 1, n_tokens: int = 2048, **options: Any
) -> Estimate:
    """How much memory a trace of so many texts of so many tokens will take.

    Args:
        model: as in `load`.
        place: where it is to be put; None for what `load` chooses.
        batch_size: texts that pass together.
        n_tokens: tokens of each text, generated ones included.
        **options: options of `load`: dtype, quantize, keep_quantized, revision, trust_remote_code.

    Raises:
        ModelError: the model is not found, or its size is unknown.
        OptionError: the options contradict each other.
    """
    place = place or place_for(None)
    with quiet():
        config, loader, dtype, weights = loading.sized(model, place, **options)
        if weights is None:
            raise ModelError(
                f"{model} holds no weights that can be read", checkpoints.weights_advice(model), given=model
            )
        cache_bytes = _cache_bytes(config, loader, dtype, batch_size, n_tokens)
    text = config.get_text_config(decoder=True)
    device = torch.device("cuda" if place.uses_gpu else "cpu")
    waiting = states_bytes(text.num_hidden_layers, text.hidden_size, dtype, batch_size * n_tokens)
    return Estimate(
        weights,
        f"{text.model_type}, {text.num_hidden_layers} layers",
        cache_bytes,
        tile_bytes(text.hidden_size, dtype, device) + waiting,
        batch_size,
        n_tokens,
        memory.room(place),
        place.may_use_disk and weights.may_lie_on_disk,
    )


def _cache_bytes(config: Any, loader: Any, dtype: torch.dtype, batch_size: int, n_tokens: int) -> int | None:
    """Bytes that a pass over so many tokens leaves for the next one, from a pass without numbers."""
    hf = sizes.skeleton(config, loader)
    if hf is None:
        return None
    ids = torch.zeros(batch_size, n_tokens, dtype=torch.long, device="meta")
    log = logging.getLogger(SHAPES_ONLY_LOG)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with torch.no_grad(), shapes_only():
            outputs = hf.to(_COUNTED_IN).eval()(input_ids=ids, use_cache=True)
    except Exception:  # from a model that looks at numbers in its pass
        return None
    finally:
        log.setLevel(level)
    left = [outputs.get(name) for name in _MEMORIES]
    tensors = {id(tensor): tensor for one in left for tensor in _tensors(one, set())}.values()
    # some recurrent states are float32 whatever the model's type is
    return sum(tensor.numel() * (dtype if tensor.dtype == _COUNTED_IN else tensor.dtype).itemsize for tensor in tensors)


def _tensors(thing: Any, seen: set[int]) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    if id(thing) in seen or isinstance(thing, str | int | float | type | torch.dtype | torch.device | None):
        return []
    seen.add(id(thing))
    inside = (
        thing.values() if isinstance(thing, Mapping) else thing if isinstance(thing, list | tuple) else ()
    ) or getattr(thing, "__dict__", {}).values()
    return [tensor for one in inside for tensor in _tensors(one, seen)]
