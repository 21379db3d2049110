"""The dynamic programme of CLaSp (arXiv 2505.24196) and KnapSpec (arXiv 2602.20217)."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity


class Programme:
    """The best state for each weight that was left out so far, module after module.

    The state after a module with weight u left out is the better of two: the module applied to the state before it with
    u left out, or the state before it with u less the module's weight left out, as it is. The better one has the
    greater cosine to the whole model's state, on average over the rows.

    Args:
        most: the greatest weight that can be left out; states have a place for each of 0..most.
    """

    def __init__(self, most: int) -> None:
        self._reachable = torch.zeros(most + 1, dtype=torch.bool)
        self._reachable[0] = True
        self._cosines = torch.ones(most + 1)
        self._left_out: list[tuple[Any, int, Bool[Tensor, " weights"]]] = []

    def apply(
        self, wanted: Float[Tensor, "rows d_model"], applied: Float[Tensor, "rows weights d_model"]
    ) -> Float[Tensor, "rows weights d_model"]:
        """The states after a module that is never left out."""
        self._cosines = self._of(wanted, applied)
        return applied

    def choose(
        self,
        module: Any,
        weight: int,
        wanted: Float[Tensor, "rows d_model"],
        before: Float[Tensor, "rows weights d_model"],
        applied: Float[Tensor, "rows weights d_model"],
    ) -> Float[Tensor, "rows weights d_model"]:
        """The states after a module that can be left out.

        Args:
            module: what `left_out` calls it.
            weight: of leaving it out, at least 1.
            wanted: the whole model's state after it.
            before: the states before it.
            applied: what it made of them.
        """
        handed_on = before.roll(weight, dims=1)
        own, others = self._of(wanted, applied), self._of(wanted, handed_on)
        reached = self._reachable.roll(weight)
        reached[:weight] = False
        skip = reached & (~self._reachable | (others > own))
        self._left_out.append((module, weight, skip))
        self._reachable = self._reachable | reached
        self._cosines = torch.where(skip, others, own)
        return torch.where(skip[:, None].to(before.device), handed_on, applied)

    def nearest(self, weight: int) -> int:
        """The greatest weight up to this one that some set of modules has."""
        return int(self._reachable[: weight + 1].nonzero().max())

    def cosine(self, weight: int) -> float:
        """Of the last state with this weight left out to the whole model's."""
        return float(self._cosines[weight])

    def left_out(self, weight: int) -> list[Any]:
        """The modules that the last state with this weight left out went without."""
        found = []
        for module, own, skip in reversed(self._left_out):
            if skip[weight]:
                found.append(module)
                weight -= own
        assert weight == 0, "it is a weight that was reached"
        return found[::-1]

    def _of(self, wanted: Tensor, states: Tensor) -> Tensor:
        cosines = cosine_similarity(states.float(), wanted.float().to(states.device).unsqueeze(1), dim=-1)
        return cosines.mean(0).cpu()
