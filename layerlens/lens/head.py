"""What a lens and a decoding strategy need of a model's head."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from layerlens.axes import Logits, States
from layerlens.models.unembed import Unembed


@runtime_checkable
class Head(Protocol):
    """From residual-stream states to logits: `Unembed`, all of which is in this process, or a head in shards."""

    @property
    def n_vocab(self) -> int:
        """Number of vocabulary entries of the readout."""

    @property
    def device(self) -> torch.device:
        """Where states are brought and logits come from."""

    @property
    def bans_words(self) -> bool:
        """Whether a logit can be minus infinity."""

    @property
    def whole(self) -> Unembed | None:
        """The head with all of its unembedding here, which kernels read in their own order; None if it is in shards."""

    def normed(self, states: States, *, norm: bool = True) -> Tensor:
        """The states as the unembedding sees them, [rows, d_head]; without `norm` only a change of width is applied."""

    def logits_tile(self, normed: Tensor, start: int, stop: int) -> Logits:
        """Float32 logits of the tokens start..stop−1: [rows, stop − start]."""

    def logits(self, states: States, *, norm: bool = True) -> Logits:
        """Float32 logits over the whole vocabulary: [rows, vocab]."""
