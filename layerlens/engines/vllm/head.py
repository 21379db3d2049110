"""vLLM's own head."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from layerlens.axes import Logits, States
from layerlens.engines.vllm.shards import Shards
from layerlens.lens import IDENTITY, Transport
from layerlens.models.unembed import Unembed


class Reads(NamedTuple):
    """What the logits of states are made with.

    Attributes:
        norm: the model's final norm.
        logits_of: the model's own logits of normed states.
        n_vocab: number of vocabulary entries.
        shards: the ranks' parts of the vocabulary; None where this process has all of it.
        transport: that of the lens, which maps states of layers before L to states that the head can read.
    """

    norm: Callable[[Tensor], Tensor]
    logits_of: Callable[[Tensor], Tensor]
    n_vocab: int
    shards: Shards | None = None
    transport: Transport = IDENTITY

    def at_head(self, raw: States, layer: int) -> States:
        """The states of a layer before L as `StockHead` reads them."""
        return before_head(self.transport(raw.contiguous(), layer), self.norm)


class StockHead:
    """A `Head` whose logits are made by the model's own code, with its scale, soft-cap, quantisation and shards.

    Its states are those on both sides of the final norm, [rows, 2 d_model]: vLLM hands over the last layer's after the
    norm and the other layers' before it. `before_head` puts the two together.

    Args:
        logits_of: the model's own logits of normed states.
        n_vocab: number of vocabulary entries.
        device: of the states.
    """

    bans_words = True
    whole: Unembed | None = None

    def __init__(self, logits_of: Callable[[Tensor], Tensor], n_vocab: int, device: torch.device) -> None:
        self._logits_of = logits_of
        self.n_vocab = n_vocab
        self.device = device

    def normed(self, states: States, *, norm: bool = True) -> Tensor:
        """The half behind the final norm, or with `norm` False the half before it."""
        raw, normed = states.chunk(2, dim=1)
        return (normed if norm else raw).contiguous()

    def logits(self, states: States, *, norm: bool = True) -> Logits:
        """Float32 logits over the whole vocabulary: [rows, vocab]."""
        return self._logits_of(self.normed(states, norm=norm)).float()

    def logits_tile(self, normed: Tensor, start: int, stop: int) -> Logits:
        """Float32 logits of the tokens start..stop−1; vLLM makes all of them."""
        return self._logits_of(normed.contiguous())[:, start:stop].float()


def before_head(raw: States, norm: Callable[[Tensor], Tensor]) -> States:
    """The states of a layer before L on both sides of the final norm."""
    raw = raw.contiguous()
    return torch.cat([raw, norm(raw.clone())], dim=1)  # a copy, because some kernels of norms work in place


def behind_norm(normed: States) -> States:
    """The states of L; those before the norm are not known."""
    return torch.cat([torch.full_like(normed, torch.nan), normed], dim=1)
