"""What a strategy sees of one step: the layers' states of the tokens about to be emitted, readable as logits."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Logits, Scalars, States
from layerlens.errors import OptionError
from layerlens.models.unembed import Unembed

# How many states one product reads out in about the time of reading the weight once. Accelerators: the ratio of 16-bit
# arithmetic to memory bandwidth, 150 to 250 on the chips of today. CPUs: measured by oneDNN, where eight prompts with
# ten candidates each are decoded 12 % faster at once than layer by layer.
_ROWS_AT_BALANCE = {"cpu": 80}
_ROWS_AT_BALANCE_ELSEWHERE = 192


class Readouts:
    """The candidate states of one decoding step.

    Attributes:
        n_layers: L.
        tied: whether the unembedding is the embedding.
        uniform: [rows], a number 0 <= u < 1 drawn for each row; for strategies that act with a probability.
        may_branch: whether the host may look at values to decide what to read next; not while a graph is captured.
        projections: int32 [rows], how many states of each row went through the unembedding so far.
    """

    def __init__(
        self,
        unembed: Unembed,
        states: Mapping[int, States],
        n_layers: int,
        uniform: Scalars,
        *,
        tied: bool = False,
        may_branch: bool = True,
    ) -> None:
        self._unembed = unembed
        self._states = states
        self.n_layers = n_layers
        self.tied = tied
        self.uniform = uniform
        self.may_branch = may_branch
        self.projections = torch.zeros(len(uniform), dtype=torch.int32, device=uniform.device)

    def __len__(self) -> int:
        return len(self.uniform)

    @property
    def rows_at_balance(self) -> int:
        """How many states one product reads out in about the time of reading the weight once."""
        return _ROWS_AT_BALANCE.get(self._device.type, _ROWS_AT_BALANCE_ELSEWHERE)

    def logits(
        self, layers: Sequence[int], rows: Int[Tensor, " some"] | None = None, *, norm: bool = True
    ) -> Float[Tensor, "some layers vocab"]:
        """Float32 logits of some layers in one product: what the model would give if it stopped there.

        Args:
            layers: 1..L, or 0 for the embeddings; only what the strategy's `layers` named.
            rows: indices of the rows wanted; None for all.
            norm: with the final norm. DoLa and SLED read early layers without it.
        """
        unasked = [layer for layer in layers if layer not in self._states]
        if unasked:
            raise OptionError(f"layer {unasked[0]} was not asked for; let the strategy's `layers` name it")
        stack = torch.stack([self._states[layer].to(self._device) for layer in layers], dim=1)
        if rows is None:
            self.projections += len(layers)
        else:
            stack = stack[rows]
            self.projections.index_add_(0, rows, torch.full_like(rows, len(layers), dtype=torch.int32))
        logits: Tensor = self._unembed.logits(stack.flatten(0, 1), norm=norm)
        return logits.view(len(stack), len(layers), self._unembed.n_vocab)

    def logits_at(self, layer: Int[Tensor, " rows"]) -> Logits:
        """Float32 logits of one layer per row, each one that the strategy's `layers` named."""
        known = sorted(self._states)
        stack = torch.stack([self._states[number].to(self._device) for number in known])
        index = torch.zeros_like(layer)  # by comparisons: a table of layers would be copied from the host
        for number in known[1:]:
            index += layer >= number
        self.projections += 1
        return self._unembed.logits(stack[index, torch.arange(len(self), device=self._device)])

    def split(self, rows: int) -> list["Readouts"]:
        """The same in parts of at most so many rows; each counts its own projections."""
        return [
            Readouts(
                self._unembed,
                {layer: states[start : start + rows] for layer, states in self._states.items()},
                self.n_layers,
                self.uniform[start : start + rows],
                tied=self.tied,
                may_branch=self.may_branch,
            )
            for start in range(0, len(self), rows)
        ]

    @property
    def _device(self) -> torch.device:
        return self._unembed.weight.device
