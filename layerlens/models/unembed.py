"""From a residual-stream state to logits by the model's own path, a slice of the vocabulary at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerlens.axes import Logits, States

# A skinny product in blocks of this many words keeps a block of the weight in a core's cache for all rows: on a CPU
# ten rows then cost as much as the one of a matrix-vector product, a third of what one large product takes.
_BLOCK = 256
_SKINNY = 256
_TILE = 8192


@dataclass(frozen=True, eq=False)
class Unembed:
    """The model's head: final norm, unembedding matrix, bias, logit scale, soft-cap.

    Attributes:
        tail: what the model applies between its last block and the unembedding (final norm, for some a projection).
        weight: [vocab, d_head], in the model's dtype.
        bias: [vocab], or None.
        scale: factor on the logits.
        softcap: c in c·tanh(logits / c), applied after the scale; None where the model has none.
        packed: the quantised unembedding that `weight` was made from; None where `weight` is the model's own.
    """

    tail: Sequence[nn.Module]
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    packed: nn.Module | None = None

    @property
    def n_vocab(self) -> int:
        """Number of words in the readout."""
        return self.weight.shape[0]

    def normed(self, states: States, *, norm: bool = True) -> Tensor:
        """The states as the unembedding sees them: [rows, d_head], norm statistics recomputed for each state.

        On the device of the weight, wherever the states come from. Without `norm` they only go through what changes
        their width (OPT's projection), as DoLa reads early layers.
        """
        states = states.to(self.weight.device)
        for module in self.tail:
            if norm or isinstance(module, nn.Linear):
                states = module(states)
        return states

    def operand(self, normed: Tensor) -> Tensor:
        """What the unembedding multiplies: on a GPU in the type of its weight, elsewhere in float32."""
        return normed.to(self.weight.dtype) if self.weight.is_cuda else normed.float()

    def logits_tile(self, normed: Tensor, start: int, stop: int, out: Tensor | None = None) -> Logits:
        """Float32 logits of the words start..stop-1: [rows, stop - start], written into `out` where it is given."""
        weight = self.weight[start:stop].t()
        if weight.is_cuda and weight.dtype != torch.float32:
            logits = torch.mm(self.operand(normed), weight, out_dtype=torch.float32)
        else:
            logits = torch.mm(self.operand(normed), weight.float(), out=out)
        self._finish(logits, start, stop)
        return logits

    def logits(self, states: States, *, norm: bool = True) -> Logits:
        """Float32 logits over the whole vocabulary: [rows, vocab]. For few rows; `lens.read` needs no such tensor."""
        normed = self.normed(states, norm=norm)
        if normed.device.type != "cpu":
            return self.logits_tile(normed, 0, self.n_vocab)
        logits = normed.new_empty(len(normed), self.n_vocab, dtype=torch.float32)
        done = 0
        if self.weight.dtype == torch.float32 and len(normed) <= _SKINNY and self.weight.is_contiguous():
            done = self.n_vocab - self.n_vocab % _BLOCK
            blocks = self.weight[:done].view(-1, _BLOCK, self.weight.shape[1]).transpose(1, 2)
            product = torch.bmm(normed.float().expand(len(blocks), -1, -1), blocks)  # blocks, rows, words
            logits[:, :done].unflatten(1, (-1, _BLOCK)).copy_(product.transpose(0, 1))
            self._finish(logits[:, :done], 0, done)
        for start in range(done, self.n_vocab, _TILE):
            stop = min(start + _TILE, self.n_vocab)
            logits[:, start:stop] = self.logits_tile(normed, start, stop)
        return logits

    def _finish(self, logits: Tensor, start: int, stop: int) -> None:
        """Bias, scale and soft-cap, in place."""
        if self.bias is not None:
            logits += self.bias[start:stop]
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
