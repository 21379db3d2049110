"""From a residual-stream state to logits by the model's own path, a slice of the vocabulary at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerlens.axes import Logits, States
from layerlens.compat import onednn_multiplies, onednn_product
from layerlens.formulas import finished
from layerlens.native import products

_TILE = 8192


@dataclass(frozen=True, eq=False)
class Unembed:
    """The model's head: final norm, unembedding matrix, bias, logit scale, soft-cap.

    Attributes:
        tail: what the model applies between its last block and the unembedding (final norm; in some models a
            projection).
        weight: [vocab, d_head], in the model's dtype.
        bias: [vocab], or None.
        scale: factor on the logits.
        softcap: c in c·tanh(logits / c), applied after the scale; None where the model has none.
        packed: the quantised unembedding that `weight` was made from; None where `weight` is the model's own.
        fused: whether the kernel of `lens/kernels.py` reads it out on a GPU that has room for it. It is off until a
            measurement on a GPU shows that it pays.
    """

    tail: Sequence[nn.Module]
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    packed: nn.Module | None = None
    fused: bool = False

    @property
    def whole(self) -> "Unembed":
        """Itself, because all of the unembedding is here."""
        return self

    @property
    def device(self) -> torch.device:
        """The device of the unembedding."""
        return self.weight.device

    @property
    def bans_words(self) -> bool:
        """Whether a logit can be minus infinity, because of a bias."""
        return self.bias is not None

    @property
    def n_vocab(self) -> int:
        """Number of vocabulary entries in the readout."""
        return self.weight.shape[0]

    def normed(self, states: States, *, norm: bool = True) -> Tensor:
        """The states as the unembedding sees them: [rows, d_head], norm statistics recomputed for each state.

        The result is on the device of the weight, wherever the states come from. Without `norm`, only a change of width
        is applied (OPT's projection), as DoLa needs for early layers.
        """
        states = states.to(self.weight.device)
        for module in self.tail:
            if norm or isinstance(module, nn.Linear):
                states = module(states)
        return states

    def operand(self, normed: Tensor) -> Tensor:
        """States in the type in which the unembedding multiplies: on a GPU that of its weight, elsewhere float32."""
        return normed.to(self.weight.dtype) if self.weight.is_cuda else normed.float()

    def logits_tile(self, normed: Tensor, start: int, stop: int) -> Logits:
        """Float32 logits of the tokens start..stop-1: [rows, stop - start]."""
        words = slice(start, stop)
        return self.finished(product(self.operand(normed), self.weight[words]), words)

    def logits(self, states: States, *, norm: bool = True) -> Logits:
        """Float32 logits over the whole vocabulary: [rows, vocab]. For few rows; `lens.read` needs no such tensor."""
        normed = self.normed(states, norm=norm)
        few = products(self.operand(normed), self.weight)
        if few is not None:
            return self.finished(few, slice(None))
        if self.weight.dtype == torch.float32 or normed.device.type != "cpu":
            return self.logits_tile(normed, 0, self.n_vocab)
        logits = normed.new_empty(len(normed), self.n_vocab, dtype=torch.float32)
        for start in range(0, self.n_vocab, _TILE):  # of a float32 copy of the weight
            stop = min(start + _TILE, self.n_vocab)
            logits[:, start:stop] = self.logits_tile(normed, start, stop)
        return logits

    def finished(self, products: Tensor, words: slice | Tensor) -> Logits:
        """Turn products with some tokens into logits, in place: bias, scale and soft-cap; `words` indexes the bias."""
        return finished(products, None if self.bias is None else self.bias[words], self.scale, self.softcap)


def product(states: Tensor, weight: Tensor) -> Tensor:
    """states [rows, d] times weight [tokens, d] transposed: [rows, tokens], added up in float32.

    On a GPU the result is in float32, on a CPU in the type of the states. On a CPU a few states are multiplied by our
    own loop, and many by oneDNN. Torch itself uses oneDNN for float32 only where MKL is missing. With unembeddings it
    was measured at 2.1 to 2.4 times MKL's speed on an AMD processor of 2024, and at 1.1 to 1.4 times on one of 2022.
    """
    few = products(states, weight)
    if few is not None:
        return few
    if weight.is_cuda and weight.dtype != torch.float32:
        return torch.mm(states, weight.t(), out_dtype=torch.float32)
    if weight.device.type == "cpu" and onednn_multiplies(states.dtype):
        return onednn_product(states, weight.to(states.dtype))
    return torch.mm(states, weight.to(states.dtype).t())
