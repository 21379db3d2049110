"""From a residual-stream state to logits by the model's own path, a slice of the vocabulary at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerlens.axes import Logits, States


@dataclass(frozen=True, eq=False)
class Unembed:
    """The model's head: final norm, unembedding matrix, bias, logit scale, soft-cap.

    Attributes:
        tail: what the model applies between its last block and the unembedding (final norm, for some a projection).
        weight: [vocab, d_head], in the model's dtype.
        bias: [vocab], or None.
        scale: factor on the logits.
        softcap: c in c·tanh(logits / c), applied after the scale; None where the model has none.
    """

    tail: Sequence[nn.Module]
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def n_vocab(self) -> int:
        """Number of words in the readout."""
        return self.weight.shape[0]

    def normed(self, states: States) -> Tensor:
        """The states as the unembedding sees them: [rows, d_head], norm statistics recomputed for each state."""
        for module in self.tail:
            states = module(states)
        return states

    def logits_tile(self, normed: Tensor, start: int, stop: int, out: Tensor | None = None) -> Logits:
        """Float32 logits of the words start..stop-1: [rows, stop - start], written into `out` where it is given."""
        weight = self.weight[start:stop].t()
        if weight.dtype == torch.float32:
            logits = torch.mm(normed.float(), weight, out=out)
        elif weight.is_cuda:
            logits = torch.mm(normed.to(weight.dtype), weight, out_dtype=torch.float32)
        else:
            logits = torch.mm(normed.float(), weight.float(), out=out)
        if self.bias is not None:
            logits += self.bias[start:stop]
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def logits(self, states: States) -> Logits:
        """Float32 logits over the whole vocabulary: [rows, vocab]. For a few rows; `lens.read` needs no such tensor."""
        return self.logits_tile(self.normed(states), 0, self.n_vocab)
