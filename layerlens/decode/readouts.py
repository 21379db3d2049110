"""What a strategy sees of one step: for each token about to be emitted the states of layers, which can be read as
logits."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerlens.axes import Logits, Scalars, States, TokenIds
from layerlens.decode.criteria import Criterion, shannon
from layerlens.errors import OptionError
from layerlens.lens.head import Head
from layerlens.lens.sums import arg_max
from layerlens.lens.tiled import fused
from layerlens.lens.transport import IDENTITY, Transport, at_head
from layerlens.models.unembed import Unembed
from layerlens.native.compiled import processor

# How many states one product reads out in about the time it takes to read the weight once. Accelerators: the ratio of
# 16-bit
# arithmetic to memory bandwidth, 150 to 250 on the chips of today. CPUs: measured by oneDNN, where eight prompts with
# ten candidates each are decoded 12 % faster at once than layer by layer.
_ROWS_AT_BALANCE = {"cpu": 80}
_ROWS_AT_BALANCE_ELSEWHERE = 192
# Logits that a criterion reads at once. Its temporaries are as large; on a CPU they must stay in a core's cache.
_CRITERION_AT_ONCE = {"cpu": 2**16}
_CRITERION_AT_ONCE_ELSEWHERE = 2**24


class Readouts:
    """The candidate states of one decoding step.

    Args:
        head: reads them out.
        states: the states of the layers that the strategy's `layers` named, [rows, d_model] each.
        n_layers: L.
        uniform: a number 0 <= u < 1 for each row, or a function that draws them.
        transport: that of the lens; it maps states to states that the head can read.
        tied, may_branch, alive: see the attributes.

    Attributes:
        n_layers: L.
        tied: whether the unembedding is the embedding.
        may_branch: whether the host may look at values to decide what to read next. It may not while a graph is
            captured.
        alive: bool [rows], which rows still emit tokens; None where all do.
    """

    def __init__(
        self,
        head: Head,
        states: Mapping[int, States],
        n_layers: int,
        uniform: Scalars | Callable[[], Scalars],
        *,
        transport: Transport = IDENTITY,
        tied: bool = False,
        may_branch: bool = True,
        alive: Bool[Tensor, " rows"] | None = None,
    ) -> None:
        self._head = head
        self._states = states
        self._transport = transport
        self.n_layers = n_layers
        self.tied = tied
        self._uniform = uniform
        self.may_branch = may_branch
        self.alive = alive
        self._n_rows = len(next(iter(states.values())))
        self._of_each = 0  # projections of every row, and the further ones of some rows
        self._of_some: Int[Tensor, " rows"] | None = None

    def __len__(self) -> int:
        return self._n_rows

    @property
    def uniform(self) -> Scalars:
        """A number 0 <= u < 1 for each row, for acting with a probability; drawn when it is first asked for."""
        if not isinstance(self._uniform, Tensor):
            self._uniform = self._uniform()
        return self._uniform

    @property
    def projections(self) -> Int[Tensor, " rows"]:
        """How many states of each row went through the unembedding so far, in int32."""
        if self._of_some is None:
            return torch.full((len(self),), self._of_each, dtype=torch.int32, device=self._device)
        return self._of_some + self._of_each

    @property
    def rows_at_balance(self) -> int:
        """How many states one product reads out in about the time it takes to read the weight once."""
        return _ROWS_AT_BALANCE.get(self._device.type, _ROWS_AT_BALANCE_ELSEWHERE)

    def logits(
        self, layers: Sequence[int], rows: Int[Tensor, " some"] | None = None, *, norm: bool = True
    ) -> Float[Tensor, "some layers vocab"]:
        """Float32 logits of some layers in one product: the logits that the model would have if it stopped there.

        Args:
            layers: 1..L, or 0 for the embeddings; only layers that the strategy's `layers` named.
            rows: indices of the rows wanted; None for all.
            norm: whether the final norm is applied. DoLa and SLED read early layers without it.
        """
        stack = self._stacked(layers, rows)
        logits: Tensor = self._head.logits(stack.flatten(0, 1), norm=norm)
        return logits.view(*stack.shape[:2], self._head.n_vocab)

    def measured(
        self, layers: Sequence[int], criterion: Criterion, rows: Int[Tensor, " some"] | None = None
    ) -> tuple[Float[Tensor, "some layers vocab"], Float[Tensor, "some layers"]]:
        """`logits`, and the criterion of each. Where the readout is fused, one launch computes the entropies too."""
        if not self.measures_itself(criterion):
            logits = self.logits(layers, rows)
            rows = logits.flatten(0, 1)
            at_once = _CRITERION_AT_ONCE.get(self._device.type, _CRITERION_AT_ONCE_ELSEWHERE)
            if rows.numel() <= at_once or (criterion is shannon and processor() is not None):
                return logits, criterion(rows).view(logits.shape[:2])
            pieces = rows.split(max(1, at_once // self._head.n_vocab))
            return logits, torch.cat([criterion(piece) for piece in pieces]).view(logits.shape[:2])
        from layerlens.lens.kernels import read_fused

        stack = self._stacked(layers, rows)
        logits = stack.new_empty(*stack.shape[:2], self._head.n_vocab, dtype=torch.float32)
        reading = read_fused(stack.flatten(0, 1), self._fused(), logits=logits.flatten(0, 1))
        return logits, reading.entropy.view(stack.shape[:2])

    def measures_itself(self, criterion: Criterion) -> bool:
        """Whether the criterion comes with the readout, so that `entropies` can be asked."""
        return criterion is shannon and fused(self._head) is not None

    def entropies(self, layers: Sequence[int], wanted: Bool[Tensor, " rows"]) -> Float[Tensor, "rows layers"]:
        """Entropies of the wanted rows; NaN for the others, which cost nothing. The host need not know which."""
        from layerlens.lens.kernels import read_fused

        order = wanted.long().argsort(descending=True, stable=True)
        stack = self._stacked(layers)[order]
        self._some().sub_(len(layers) * (~wanted).int())
        reading = read_fused(stack.flatten(0, 1), self._fused(), n_live=wanted.sum() * len(layers))
        entropies = reading.entropy.view(stack.shape[:2])
        return torch.empty_like(entropies).index_copy_(0, order, entropies)

    def first_choice(self, logits: Logits) -> TokenIds:
        """The token with the greatest logit of each row of what `logits`, `measured` or `logits_at` gave."""
        return arg_max(logits)

    def logits_at(self, layer: Int[Tensor, " rows"]) -> Logits:
        """Float32 logits of one layer per row; each layer must be one that the strategy's `layers` named."""
        known = sorted(self._states)
        stack = torch.stack([self._at_head(number) for number in known])
        index = torch.zeros_like(layer)  # by comparisons: a table of layers would be copied from the host
        for number in known[1:]:
            index += layer >= number
        self._of_each += 1
        return self._head.logits(stack[index, torch.arange(len(self), device=self._device)])

    def split(self, rows: int) -> list["Readouts"]:
        """The same in parts of at most so many rows; each part counts its own projections."""
        return [
            Readouts(
                self._head,
                {layer: states[start : start + rows] for layer, states in self._states.items()},
                self.n_layers,
                lambda start=start: self.uniform[start : start + rows],  # type: ignore[misc]
                transport=self._transport,
                tied=self.tied,
                may_branch=self.may_branch,
                alive=None if self.alive is None else self.alive[start : start + rows],
            )
            for start in range(0, len(self), rows)
        ]

    def _stacked(
        self, layers: Sequence[int], rows: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "some layers d_model"]:
        """The states that are to be read out now."""
        unasked = [layer for layer in layers if layer not in self._states]
        if unasked:
            problem = f"layer {unasked[0]} was not asked for"
            raise OptionError(problem, "return it from the strategy's `layers`", option="strategy", given=unasked[0])
        stack = torch.stack([self._at_head(layer, rows) for layer in layers], dim=1)
        if rows is None:
            self._of_each += len(layers)
        else:
            self._some().index_add_(0, rows, torch.full_like(rows, len(layers), dtype=torch.int32))
        return stack

    def _at_head(self, layer: int, rows: Int[Tensor, " some"] | None = None) -> States:
        """The states of a layer as the head reads them, on the head's device."""
        states = self._states[layer].to(self._device)
        return at_head(self._transport, states if rows is None else states[rows], layer, self.n_layers)

    def _some(self) -> Int[Tensor, " rows"]:
        if self._of_some is None:
            self._of_some = torch.zeros(len(self), dtype=torch.int32, device=self._device)
        return self._of_some

    def _fused(self) -> Unembed:
        unembed = fused(self._head)
        assert unembed is not None, "asked only where `measures_itself`"
        return unembed

    @property
    def _device(self) -> torch.device:
        return self._head.device
