"""A model's forward passes over texts that grow: the prompts first, then one token at a time."""

import inspect
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, StaticCache

from layerlens.axes import Logits
from layerlens.compat import can_fill_a_static_cache, can_grow_a_cache
from layerlens.models import Model

# What a pass takes that an earlier one left; a family with none of them reads the whole text again.
_MEMORIES = ("past_key_values", "cache_params", "state")


class Forward:
    """Passes that carry on from one another; all tensors lie on the model's device.

    Attributes:
        is_static: whether the cache keeps its size, so that steps can be captured as a graph.
    """

    def __init__(
        self, model: Model, ids: Int[Tensor, "rows seq"], mask: Int[Tensor, "rows seq"], n_steps: int, *, static: bool
    ) -> None:
        """Begin with the prompts.

        Args:
            model: from `load`.
            ids: of the prompts, padded on the left.
            mask: 1 where `ids` is no padding.
            n_steps: tokens that will be read after the prompts, at most.
            static: whether to use a cache of fixed size where the family can.
        """
        self._hf: Any = model.hf
        self._text = ids
        self._n_seen = 0
        # slots after the present one are masked by causality, so that with a static cache the mask keeps its shape
        self._mask = torch.cat([mask, mask.new_ones(len(ids), n_steps)], dim=1)
        self._position = self._positions()[:, ids.shape[1] - 1 : ids.shape[1]].clone()
        self._inputs = set(inspect.signature(model.hf.forward).parameters)
        self._name = next((name for name in _MEMORIES if name in self._inputs), None)
        self._memory, self.is_static = self._cache(model, ids.shape[1] + n_steps, static=static)
        self._hands_on = self._forgets_rows = False

    def prompts(self) -> Logits:
        """The pass over the prompts; of this and every other pass, the logits after the last token."""
        logits = self._pass(self._text, self._positions()[:, : self._text.shape[1]], is_first=True)
        # other families' own kinds of memory cannot be told to forget a row
        self._forgets_rows = self._name is None or (
            self._hands_on and type(self._memory) in (DynamicCache, StaticCache)
        )
        return logits

    def step(self, token_ids: Int[Tensor, "rows 1"]) -> Logits:
        """The pass over one more token of each row."""
        self._position.add_(1)
        if self._name is None:
            self._text = torch.cat([self._text, token_ids], dim=1)
            return self._pass(self._text, self._positions()[:, : self._text.shape[1]])
        return self._pass(token_ids, self._position)

    def keep_rows(self, index: Int[Tensor, " kept"]) -> bool:
        """Go on with these rows only; False where the family cannot."""
        if self._forgets_rows:
            if self._name is None:
                self._text = self._text[index]
            else:
                self._memory.reorder_cache(index)
            self._mask, self._position = self._mask[index], self._position[index]
        return self._forgets_rows

    def _pass(self, ids: Tensor, position: Tensor, *, is_first: bool = False) -> Logits:
        self._n_seen = ids.shape[1] if self._name is None else self._n_seen + ids.shape[1]
        inputs = self._hf.prepare_inputs_for_generation(
            ids,
            attention_mask=self._mask if self.is_static and not is_first else self._mask[:, : self._n_seen],
            use_cache=True,
            is_first_iteration=is_first,
            **({} if self._name is None else {self._name: self._memory}),
            **({"position_ids": position} if "position_ids" in self._inputs else {}),
            **({"logits_to_keep": 1} if "logits_to_keep" in self._inputs else {}),
        )
        outputs = self._hf(**inputs, return_dict=True)
        self._hands_on = self._name in outputs
        self._memory = outputs.get(self._name, self._memory)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _positions(self) -> Tensor:
        return (self._mask.cumsum(1) - 1).clamp_min(0)

    def _cache(self, model: Model, length: int, *, static: bool) -> tuple[Any, bool]:
        """An empty cache and whether it is static; None for families that make their own in the first pass."""
        if self._name is None or not can_grow_a_cache(self._hf):
            return None, False
        if self._hf.config.get_text_config(decoder=True).num_hidden_layers < model.n_layers:
            return DynamicCache(), False  # the decoder half of a translator, whose config counts the encoder's layers
        if static and can_fill_a_static_cache(self._hf):
            return StaticCache(config=self._hf.config, max_cache_len=length), True
        return DynamicCache(config=self._hf.config), False
