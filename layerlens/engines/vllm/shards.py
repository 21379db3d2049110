"""A head whose vocabulary is spread over tensor-parallel ranks. A rank has the logits of its own tokens. What ranks
exchange about a state is three sums for its entropy, two numbers for its first token, and, for the chosen layer alone,
its logits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.axes import Logits, TokenIds
from layerlens.decode.criteria import Criterion, shannon
from layerlens.decode.readouts import Readouts
from layerlens.lens.sums import Sums, arg_max


class Shards:
    """The ranks' parts of the vocabulary.

    Args:
        local_logits_of: this rank's logits of normed states, padding of its part included: [rows, width].
        gather: from a tensor of this rank to those of all ranks, in their order: [...] -> [ranks, ...].
        n_vocab: number of entries of the whole vocabulary.
        rank: of this process in the tensor-parallel group.
        width: columns of each rank, the last of which can be padding.
    """

    def __init__(
        self,
        local_logits_of: Callable[[Tensor], Tensor],
        gather: Callable[[Tensor], Tensor],
        n_vocab: int,
        rank: int,
        width: int,
    ) -> None:
        self._local_logits_of = local_logits_of
        self._gather = gather
        self._n_vocab = n_vocab
        self._first = rank * width
        self.width = width
        self._n_own = min(width, max(0, n_vocab - self._first))

    def logits_of(self, normed: Tensor) -> Tensor:
        """This rank's logits of normed states: [rows, width]; those of padding are minus infinity."""
        logits = self._local_logits_of(normed).float()
        logits[:, self._n_own :] = -torch.inf
        return logits

    def entropy(self, logits: Logits) -> Float[Tensor, " rows"]:
        """Entropy in nats of whole rows, of each of which this rank has a part: of finite logits as from whole ones."""
        own = logits[:, : self._n_own]
        sums = Sums.of_rows(own.contiguous()) if self._n_own else _no_sums(logits)
        return Sums.joined(self._gather(torch.stack(sums)).transpose(0, 1)).entropy(self._n_vocab)

    def first_choice(self, logits: Logits) -> TokenIds:
        """The token with the greatest logit of each row; the first of equal ones."""
        top = arg_max(logits)
        greatest = logits.gather(1, top.unsqueeze(1))[:, 0]
        # in one exchange, of float32: some ways between ranks take no integers, and it holds every id up to 2^24
        values, ids = self._gather(torch.stack([greatest, (top + self._first).float()])).unbind(1)
        best = values.argmax(0, keepdim=True)  # a NaN counts as the greatest
        return ids.gather(0, best)[0].long()

    def whole(self, logits: Logits) -> Logits:
        """The logits of the whole vocabulary, [rows, vocab], of rows of which this rank has a part."""
        parts = self._gather(logits)
        return parts.transpose(0, 1).flatten(1)[:, : self._n_vocab]


def _no_sums(logits: Tensor) -> Sums:
    nothing = logits.new_zeros(len(logits))
    return Sums(torch.full_like(nothing, -torch.inf), nothing, nothing)


class ShardReadouts(Readouts):
    """Readouts whose logits are this rank's part, for strategies that are content with that."""

    def __init__(self, shards: Shards, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._shards = shards

    def measured(
        self, layers: Sequence[int], criterion: Criterion, rows: Tensor | None = None
    ) -> tuple[Float[Tensor, "some layers vocab"], Float[Tensor, "some layers"]]:
        """This rank's part of the logits, and the entropies of whole rows."""
        assert criterion is shannon, "a strategy with another criterion is not `by_shards`"
        logits = self.logits(layers, rows)
        return logits, self._shards.entropy(logits.flatten(0, 1)).view(logits.shape[:2])

    def first_choice(self, logits: Logits) -> TokenIds:
        """The token of the whole vocabulary with the greatest logit."""
        return self._shards.first_choice(logits)
