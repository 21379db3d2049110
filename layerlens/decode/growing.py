"""Keys and values that grow in place, a token at a time."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """A layer's cache with room for tokens to come.

    Transformers' own joins all keys and values anew for every token. Each time it needs a slightly larger piece of
    memory, which does not fit where the last one was, so that a process that decodes large batches can take several
    times what its caches hold.

    Attributes:
        rooms: what `keys` and `values` are the beginning of, [rows, heads, slots, width] each. None, or another one:
            they are copied before they grow.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rooms: tuple[Tensor | None, Tensor | None] = (None, None)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values of more tokens, [rows, heads, new, width]; returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys, key_room = _grown(self.keys, self.rooms[0], key_states)
        self.values, value_room = _grown(self.values, self.rooms[1], value_states)
        self.rooms = (key_room, value_room)
        return self.keys, self.values

    def reset(self) -> None:
        """Drop everything."""
        self.rooms = (None, None)
        super().reset()


def _grown(kept: Tensor, room: Tensor | None, more: Tensor) -> tuple[Tensor, Tensor | None]:
    """All tokens, and the room that they are in."""
    if kept.numel() == 0:
        return more.clone(memory_format=torch.contiguous_format), None
    n, n_all = kept.shape[2], kept.shape[2] + more.shape[2]
    if room is None or not _begins(kept, room) or n_all > room.shape[2]:
        room = kept.new_empty(*kept.shape[:2], n_all + n_all // 8 + 32, kept.shape[3])
        room[:, :, :n] = kept
    room[:, :, n:n_all] = more
    return room[:, :, :n_all], room


def _begins(kept: Tensor, room: Tensor) -> bool:
    """Whether the kept tokens are where the room begins, and are as many rows."""
    same = kept.data_ptr() == room.data_ptr() and kept.stride() == room.stride()
    return same and kept.shape[:2] == room.shape[:2] and kept.shape[3] == room.shape[3]


def growing(cache: DynamicCache) -> DynamicCache:
    """The cache, still empty, with layers that grow in place where it had transformers' own for full attention."""
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
