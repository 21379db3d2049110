"""A model's forward passes over texts that grow: the prompts first, then one token at a time."""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from layerlens.axes import Logits
from layerlens.compat import can_fill_a_static_cache, can_grow_a_cache, windows_rewind
from layerlens.errors import ModelError, OptionError
from layerlens.models import Model

# What an earlier pass left for the next one; a family with none of these reads the whole text again.
_MEMORIES = ("past_key_values", "cache_params", "state")


class Forward:
    """Passes, each of which continues the last one; all tensors are on the model's device. Call `prompts` first.

    Attributes:
        is_static: whether the cache keeps its size, so that steps can be captured as a graph.
    """

    def __init__(
        self,
        model: Model,
        ids: Int[Tensor, "rows seq"],
        mask: Int[Tensor, "rows seq"],
        n_steps: int,
        *,
        static: bool,
        rewinds: bool = False,
    ) -> None:
        """Begin with the prompts.

        Args:
            model: from `load`.
            ids: of the prompts, padded on the left.
            mask: 1 where `ids` is not padding.
            n_steps: the most tokens that will be read after the prompts.
            static: whether to use a cache of fixed size where the family can.
            rewinds: whether `rewind` will be called, for which some caches keep more.
        """
        self._hf: Any = model.hf
        self._source = model.source
        self._text = ids
        self._n_seen = 0
        # later slots are masked by causality, so that with a static cache the mask keeps its shape
        self._mask = torch.cat([mask, mask.new_ones(len(ids), n_steps)], dim=1)
        self._position = self._positions()[:, ids.shape[1] - 1 : ids.shape[1]].clone()
        self._inputs = set(inspect.signature(model.hf.forward).parameters)
        self._name = next((name for name in _MEMORIES if name in self._inputs), None)
        self._memory, self.is_static = self._cache(model, ids.shape[1] + n_steps, static=static)
        self._rewinds = rewinds = rewinds and windows_rewind()
        self._n_new = 0  # tokens that can be taken back
        if rewinds and hasattr(self._memory, "activate_past_recording"):
            self._memory.activate_past_recording()
        self._hands_on = self._forgets_rows = False

    def prompts(self) -> Logits:
        """The pass over the prompts: the logits after the last token of each."""
        logits = self._pass(self._text, self._positions()[:, : self._text.shape[1]], 1, is_first=True)[:, 0]
        # the memory of other families cannot drop a row
        self._forgets_rows = self._name is None or (
            self._hands_on and type(self._memory) in (DynamicCache, StaticCache)
        )
        return logits

    def step(self, token_ids: Int[Tensor, "rows new"], n_read: int = 1) -> Float[Tensor, "rows read vocab"]:
        """The pass over more tokens of each row: the logits after each of the last `n_read` of them.

        Where a `Chooser` chooses the logits of the pass, its `n_read` must be the same.

        Raises:
            ModelError: there are several, and `can_rewind` is false.
            OptionError: there is no room for so many, or a chooser chooses for another number of positions.
        """
        n_new = token_ids.shape[1]
        room = self._mask.shape[1] - (self._text.shape[1] if self._name is None else self._n_seen)
        if n_new > room:
            raise OptionError(
                f"there is room for {room} more tokens after the prompts, and not for {n_new}",
                "give a larger n_steps; tokens that are taken back count until they are",
                given=n_new,
            )
        self._n_new += n_new
        if n_new > 1 and not self.can_rewind:
            raise ModelError(
                f"{self._source} cannot read {n_new} tokens in one pass after its prompts: it keeps a recurrence or a "
                "window of fixed size",
                "read them one by one",
                given=n_new,
            )
        self._position.add_(n_new)
        if self._name is None:
            self._text = torch.cat([self._text, token_ids], dim=1)
            return self._pass(self._text, self._positions()[:, : self._text.shape[1]], n_read)
        if n_new == 1:
            return self._pass(token_ids, self._position, n_read)
        return self._pass(token_ids, self._position + torch.arange(1 - n_new, 1, device=token_ids.device), n_read)

    @property
    def can_rewind(self) -> bool:
        """Whether several tokens can be read in one pass, and taken back; known once the prompts were read.

        Most families of transformers with a recurrence continue by one token at a time. Some give wrong logits for
        several tokens, and none can take a token out of a sum.
        """
        if self._name is None:
            return True
        layers = getattr(self._memory, "layers", [])
        windows = (DynamicSlidingWindowLayer,) if self._rewinds else ()
        kinds = (StaticLayer,) if self.is_static else (DynamicLayer, *windows)
        return self._forgets_rows and all(type(layer) in kinds for layer in layers)

    def rewind(self, n_tokens: int) -> None:
        """Take back the last tokens of every row, as if they had not been read, even by steps with skipped blocks.

        Where the cache was made to rewind, call this now and then, with 0 if no token is taken back. Until then the
        cache keeps everything.

        Args:
            n_tokens: at most the number of tokens read by steps since the last call.

        Raises:
            ModelError: `can_rewind` is false.
            OptionError: n_tokens is larger than the number of tokens that were read.
        """
        if not self.can_rewind:
            raise ModelError(
                f"{self._source} keeps a recurrence or a window of fixed size", "read its text again from the beginning"
            )
        if not 0 <= n_tokens <= self._n_new:
            raise OptionError(
                f"{n_tokens} tokens cannot be taken back",
                f"give 0 to {self._n_new}, which were read since the last time",
                given=n_tokens,
            )
        self._n_new = 0
        self._position.sub_(n_tokens)
        self._n_seen -= n_tokens
        if self._name is None:
            self._text = self._text[:, : self._n_seen]
            return
        for layer in self._memory.layers:
            if self.is_static:
                layer.cumulative_length.fill_(self._n_seen)
            elif layer.is_initialized:
                layer.crop(min(0, self._n_seen - layer.get_seq_length()))

    def keep_rows(self, index: Int[Tensor, " kept"]) -> bool:
        """Continue with these rows only; False where the family cannot."""
        if self._forgets_rows:
            if self._name is None:
                self._text = self._text[index]
            else:
                self._memory.reorder_cache(index)
            self._mask, self._position = self._mask[index], self._position[index]
        return self._forgets_rows

    @property
    def can_join(self) -> bool:
        """Whether rows of another batch can be put beside these; known once the prompts were read."""
        if not self._forgets_rows or self._name is None:
            return self._forgets_rows
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        return not self.is_static and all(type(layer) in kinds for layer in self._memory.layers)

    def join(self, other: "Forward") -> None:
        """Put the rows of another batch of the same model beside these, whatever both have read so far.

        Args:
            other: one that `can_join`; of no further use afterwards.
        """
        length = max(self._n_seen, other._n_seen)
        for one in (self, other):
            one._widen(length - one._n_seen)
        room = max(one._mask.shape[1] for one in (self, other))
        # what will be read is no padding
        masks = [functional.pad(one._mask, (0, room - one._mask.shape[1]), value=1) for one in (self, other)]
        self._mask = torch.cat(masks)
        self._position = torch.cat([self._position, other._position])
        if self._name is None:
            self._text = torch.cat([self._text, other._text])
            return
        for layer, more in zip(self._memory.layers, other._memory.layers, strict=True):
            if layer.is_initialized:
                layer.keys, layer.values = torch.cat([layer.keys, more.keys]), torch.cat([layer.values, more.values])

    def make_room(self, n_steps: int) -> None:
        """Let at least so many more tokens be read."""
        room = self._mask.shape[1] - self._n_seen
        self._mask = functional.pad(self._mask, (0, max(0, n_steps - room)), value=1)

    def narrow(self) -> None:
        """Drop what is padding in every row, at the beginning, where rows can join."""
        padding = int(self._mask.cumsum(1).eq(0).all(0).sum())
        if padding and self.can_join:
            self._widen(-padding)

    def _widen(self, n: int) -> None:
        """Put n tokens of padding before every row; below 0, take so many away."""
        self._n_seen += n
        self._mask = functional.pad(self._mask, (n, 0))
        if self._name is None:
            self._text = functional.pad(self._text, (n, 0))
            return
        for layer in self._memory.layers:
            if not layer.is_initialized:
                continue
            more = n
            if isinstance(layer, DynamicSlidingWindowLayer) and layer.keys is not None:
                layer.cumulative_length += n
                more = min(layer.cumulative_length, layer.sliding_window - 1) - layer.keys.shape[2]
            layer.keys, layer.values = (functional.pad(one, (0, 0, more, 0)) for one in (layer.keys, layer.values))

    def _pass(self, ids: Tensor, position: Tensor, n_read: int, *, is_first: bool = False) -> Tensor:
        self._n_seen = ids.shape[1] if self._name is None else self._n_seen + ids.shape[1]
        inputs = self._hf.prepare_inputs_for_generation(
            ids,
            attention_mask=self._mask if self.is_static and not is_first else self._mask[:, : self._n_seen],
            use_cache=True,
            is_first_iteration=is_first,
            **({} if self._name is None else {self._name: self._memory}),
            **({"position_ids": position} if "position_ids" in self._inputs else {}),
            **({"logits_to_keep": n_read} if "logits_to_keep" in self._inputs else {}),
        )
        outputs = self._hf(**inputs, return_dict=True)
        self._hands_on = self._name in outputs
        self._memory = outputs.get(self._name, self._memory)
        logits: Tensor = outputs.logits[:, -n_read:]
        if logits.shape[1] != n_read:
            raise OptionError(
                f"{n_read} positions are read, and the chooser chooses for {logits.shape[1]}",
                "set its n_read to the same number",
                given=n_read,
            )
        return logits

    def _positions(self) -> Tensor:
        return (self._mask.cumsum(1) - 1).clamp_min(0)

    def _cache(self, model: Model, length: int, *, static: bool) -> tuple[Any, bool]:
        """An empty cache and whether it is static; None for families that make their own in the first pass."""
        if self._name is None or not can_grow_a_cache(self._hf):
            return None, False
        if self._hf.config.get_text_config(decoder=True).num_hidden_layers < model.n_layers:
            return DynamicCache(), False  # for the decoder half of a translator the config counts the encoder's layers
        if static and can_fill_a_static_cache(self._hf):
            return StaticCache(config=self._hf.config, max_cache_len=length), True
        return DynamicCache(config=self._hf.config), False
