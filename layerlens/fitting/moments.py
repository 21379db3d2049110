"""The normal equations of all layers, summed in float64 while states are computed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layerlens.axes import States
from layerlens.fitting.workplace import Workplace

_MOST_IN_MEMORY = 2 * 2**30


class Moments:
    """Sums over positions of the states x of each layer 0..L−1 and y of layer L, about points near their means.

    The points are the means over the first states that are added. So no digits are lost when the sums are centred,
    although the mean of some components of a state can be a thousand times their spread.

    Attributes:
        gram: Σ x xᵀ, float64 [L, d_model, d_model].
        cross: Σ x yᵀ, the same.
        sums: Σ x of each layer and Σ y, [L + 1, d_model].
        points: [L + 1, d_model].
        n: how many positions, [1].
        on_disk: whether gram and cross are kept in files beside the lens, because they are large.
    """

    def __init__(self, n_layers: int, d_model: int, place: Workplace) -> None:
        self.on_disk = 2 * 8 * n_layers * d_model * d_model > _MOST_IN_MEMORY
        self.gram = place.zeros("gram", n_layers, d_model, d_model, on_disk=self.on_disk)
        self.cross = place.zeros("cross", n_layers, d_model, d_model, on_disk=self.on_disk)
        self.sums = torch.zeros(n_layers + 1, d_model, dtype=torch.float64)
        self.points = torch.zeros_like(self.sums)
        self.n = torch.zeros(1, dtype=torch.float64)

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, for a snapshot."""
        return [self.n, self.points, self.sums, self.gram, self.cross]

    def add(self, texts: Sequence[Sequence[States]]) -> None:
        """Add positions of texts, given the states of layers 0..L at them, [rows, d_model] each."""

        def of(layer: int) -> Tensor:
            return torch.cat([states[layer] for states in texts]).cpu().double()

        if self.n == 0:
            for layer, point in enumerate(self.points):
                point.copy_(of(layer).mean(0))
        last = of(-1) - self.points[-1]
        for layer in range(len(self.gram)):
            x = of(layer) - self.points[layer]
            self.gram[layer].addmm_(x.T, x)
            self.cross[layer].addmm_(x.T, last)
            self.sums[layer] += x.sum(0)
        self.sums[-1] += last.sum(0)
        self.n += len(last)

    def centre(self) -> Tensor:
        """Turn gram and cross, in place, into sums about the means; returns the means, [L + 1, d_model]."""
        shifts = self.sums / self.n
        for layer, shift in enumerate(shifts[:-1]):
            self.gram[layer].addr_(shift, shift, alpha=-float(self.n))
            self.cross[layer].addr_(shift, shifts[-1], alpha=-float(self.n))
        return self.points + shifts
