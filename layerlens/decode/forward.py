"""A model's forward passes over texts that grow: the prompts first, then one token at a time."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from layerlens.axes import Logits
from layerlens.compat import can_fill_a_static_cache, can_grow_a_cache, windows_rewind
from layerlens.decode.growing import GrowingLayer, growing
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
        n_spare: int = 0,
    ) -> None:
        """Begin with the prompts.

        Args:
            model: from `load`.
            ids: of the prompts, padded on the left.
            mask: 1 where `ids` is not padding.
            n_steps: the most tokens that will be read after the prompts.
            static: whether to use a cache of fixed size where the family can.
            rewinds: whether `rewind` will be called, for which some caches keep more.
            n_spare: how many tokens `aside` can take back.
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
        self._n_spare = n_spare
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
        kinds = (StaticLayer,) if self.is_static else (DynamicLayer, GrowingLayer, *windows)
        return self._forgets_rows and all(type(layer) in kinds for layer in layers)

    @property
    def n_slots(self) -> int:
        """How many tokens of each row were read, padding included."""
        return self._n_seen

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
        self._refuse_fixed()
        self._refuse_more_than_read(n_tokens)
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
                self._crop(layer, layer.keys.shape[2] - (layer.get_seq_length() - self._n_seen))

    def retract(self, n_read: int, kept: Sequence[Sequence[int]]) -> None:
        """Of the last tokens read, keep some of each row, and take back the others, as if they had not been read.

        Args:
            n_read: how many tokens of each row this is about, all read by whole passes since the last call of this or
                of `rewind`.
            kept: for each row which of them stay, 0-based and increasing. The rows may keep different numbers of them.

        Raises:
            ModelError: `can_rewind` is false, or the rows keep different tokens and the cache has a fixed size.
            OptionError: n_read is larger than the number of tokens that were read.
        """
        most = max(map(len, kept))
        if all(list(row) == list(range(most)) for row in kept):
            self.rewind(n_read - most)
            return
        self._refuse_fixed()
        self._refuse_more_than_read(n_read)
        if self.is_static:
            raise ModelError(f"{self._source} keeps its states in a cache of fixed size", "use a growing cache")
        self._n_new = 0
        device = self._mask.device
        counts = torch.tensor([len(row) for row in kept], device=device)
        self._position += (counts - n_read).unsqueeze(1)
        before, self._n_seen = self._n_seen - n_read, self._n_seen - n_read + most
        # rows stay aligned on the right: one that keeps fewer tokens gets padding on the left
        texts = [[-1] * (most - len(row)) + list(range(before)) + [before + index for index in row] for row in kept]
        source = torch.tensor(texts, device=device)
        self._mask[:, : self._n_seen] = self._mask.gather(1, source.clamp_min(0)).masked_fill(source < 0, 0)
        self._mask[:, self._n_seen :] = 1  # what will be read is no padding
        if self._name is None:
            self._text = self._text.gather(1, source.clamp_min(0))
            return
        for layer in self._memory.layers:
            if layer.is_initialized:
                dropped = before + n_read - layer.keys.shape[2]  # slots that have left a window
                here = (source[:, dropped:] - dropped).clamp_min(0).to(layer.keys.device)[:, None, :, None]
                layer.keys, layer.values = (
                    one.gather(2, here.expand(-1, one.shape[1], -1, one.shape[3])) for one in (layer.keys, layer.values)
                )
                self._crop(layer, layer.keys.shape[2])

    def _crop(self, layer: Any, n_slots: int) -> None:
        """Keep the first slots of a growing cache; of a window, those that later passes can see, and some to spare."""
        first = 0
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = self._n_seen
            first = max(0, n_slots - (layer.sliding_window - 1 + self._n_spare))
        layer.keys, layer.values = layer.keys[:, :, first:n_slots], layer.values[:, :, first:n_slots]

    @contextmanager
    def aside(self, n_back: int = 0) -> Iterator[None]:
        """While open, the last tokens are taken back and others can be read; afterwards everything is as it was.

        The cache is not read again: its tensors are kept, and the passes make new ones.

        Args:
            n_back: how many of the last tokens of each row are taken back, at most `n_spare`.

        Raises:
            ModelError: `can_rewind` is false, or the cache has a fixed size.
        """
        self._refuse_fixed()
        if self.is_static:
            raise ModelError(f"{self._source} keeps its states in a cache of fixed size", "use a growing cache")
        assert n_back <= self._n_spare, "windows keep no more"
        names = ("keys", "values", "rooms", "cumulative_length", "is_initialized")
        layers = [] if self._name is None else self._memory.layers
        kept = [{name: getattr(layer, name) for name in names if hasattr(layer, name)} for layer in layers]
        own = (self._text, self._mask, self._position.clone(), self._n_seen, self._n_new)
        for layer in layers:
            if isinstance(layer, GrowingLayer):
                layer.rooms = (None, None)  # so that nothing is written over what is taken back
        try:
            self._n_new = n_back
            self.rewind(n_back)
            yield
        finally:
            self._text, self._mask, self._position, self._n_seen, self._n_new = own
            for layer, state in zip(layers, kept, strict=True):
                for name, value in state.items():
                    setattr(layer, name, value)

    def branch(
        self,
        token_ids: Int[Tensor, "rows new"],
        parents: Int[Tensor, "rows new"],
        n_read: int,
    ) -> Float[Tensor, "rows read vocab"]:
        """The pass over a tree of tokens: each token reads the text, its ancestors and itself.

        Args:
            token_ids: of the nodes, parents first.
            parents: for each node the index of the node before it, or -1 where the text is before it.
            n_read: of how many nodes, counted back from the last one, the logits are returned.

        Raises:
            ModelError: `can_rewind` is false.
        """
        self._refuse_fixed()
        n_rows, n_new = token_ids.shape
        self.make_room(n_new)
        rows = torch.arange(n_rows, device=token_ids.device)
        ancestors = torch.eye(n_new, dtype=torch.bool, device=token_ids.device).repeat(n_rows, 1, 1)
        depth = torch.zeros_like(token_ids)
        for node in range(n_new):
            parent, inner = parents[:, node].clamp_min(0), parents[:, node] >= 0
            ancestors[:, node] |= ancestors[rows, parent] & inner.unsqueeze(1)
            depth[:, node] = (depth[rows, parent] + 1) * inner
        inputs = {
            "input_ids": token_ids,
            "attention_mask": self._tree_masks(ancestors, depth),
            "position_ids": self._position + 1 + depth,
            "use_cache": True,
            str(self._name): self._memory,
            **({"logits_to_keep": n_read} if "logits_to_keep" in self._inputs else {}),
        }
        self._n_new += n_new
        self._n_seen += n_new
        self._position.add_(n_new)
        logits: Tensor = self._hf(**inputs, return_dict=True).logits[:, -n_read:]
        return logits

    def _tree_masks(self, ancestors: Bool[Tensor, "rows new new"], depth: Int[Tensor, "rows new"]) -> Any:
        """What is added to the attention of the nodes; by kind where the layers are of several kinds."""
        config = self._hf.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or ["full_attention"]
        firsts = {kind: self._memory.layers[kinds.index(kind)] for kind in set(kinds)}
        masks = {kind: self._tree_mask(ancestors, depth, layer) for kind, layer in firsts.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _tree_mask(self, ancestors: Tensor, depth: Tensor, layer: Any) -> Float[Tensor, "rows 1 new slots"]:
        _, first = layer.get_mask_sizes(ancestors.shape[1])
        text = self._mask[:, None, first : self._n_seen].bool()
        if isinstance(layer, DynamicSlidingWindowLayer):
            slots = torch.arange(first, self._n_seen, device=depth.device)
            text = text & (self._n_seen + depth.unsqueeze(2) - slots < layer.sliding_window)
            ancestors = ancestors & (depth.unsqueeze(2) - depth.unsqueeze(1) < layer.sliding_window)
        visible = torch.cat([text.expand(-1, ancestors.shape[1], -1), ancestors], dim=2)
        mask = torch.zeros(visible.shape, dtype=self._hf.dtype, device=depth.device)
        return mask.masked_fill_(~visible, torch.finfo(mask.dtype).min).unsqueeze(1)

    def _refuse_fixed(self) -> None:
        if not self.can_rewind:
            raise ModelError(
                f"{self._source} keeps a recurrence or a window of fixed size", "read its text again from the beginning"
            )

    def _refuse_more_than_read(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self._n_new:
            raise OptionError(
                f"{n_tokens} tokens cannot be taken back",
                f"give 0 to {self._n_new}, which were read since the last time",
                given=n_tokens,
            )

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
        kinds = (DynamicLayer, GrowingLayer, DynamicSlidingWindowLayer)
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
                kept = layer.sliding_window - 1 + self._n_spare
                more = min(layer.cumulative_length, kept) - layer.keys.shape[2]
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
            # for the decoder half of a translator the config counts the encoder's layers
            return growing(DynamicCache()), False
        if static and can_fill_a_static_cache(self._hf):
            return StaticCache(config=self._hf.config, max_cache_len=length), True
        return growing(DynamicCache(config=self._hf.config)), False
