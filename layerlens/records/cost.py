"""What one generated token costs, for the manifest of a run and for tables of costs."""

from dataclasses import dataclass
from typing import NamedTuple


class FlopsRow(NamedTuple):
    """One line of what a token costs."""

    name: str
    """A short name."""
    what: str
    """A description."""
    multiply_adds: float
    """Per generated token of one row of the batch."""
    percent_of_forward: float
    """Percent of the forward pass without unembedding, by which the paper's Table 5 divides."""
    percent_of_last: float
    """Percent of the cost of a token from the last layer: the forward pass and one unembedding."""

    @property
    def flops(self) -> float:
        """Floating-point operations: a multiply-add is two."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class DecodingFlops:
    """What one generated token costs, in multiply-adds; FLOPs are twice as many.

    Products with parameters are counted: linear layers, convolutions, routers, and the active ones of routed experts.
    Looking up an embedding costs nothing. Norms and activations are left out. So is what attention does with the cache,
    and linear attention with its state: it has no parameters, and over a cache it grows with the context.

    Attributes:
        forward: of the forward pass without unembedding.
        unembedding: of one state through the unembedding.
        window: K, the candidate layers, the last one included.
        mean_depth: layers a walk goes back from the last one, on average over tokens; None where not known.
        mean_read: layers that a lazy walk reads beside the last one, on average over tokens; None where not known.
    """

    forward: int
    unembedding: int
    window: int
    mean_depth: float | None = None
    mean_read: float | None = None

    @property
    def worst(self) -> int:
        """Multiply-adds of the K − 1 unembeddings beside the model's own, where the whole window is read out."""
        return (self.window - 1) * self.unembedding

    @property
    def lazy(self) -> float | None:
        """Multiply-adds of reading one layer after the other; see `analysis.overhead.layers_read`.

        Where only the mean depth is known, this is an upper bound: 1 + depth layers, at most K − 1. Walks that end at
        the window's end read less.
        """
        if self.mean_read is not None:
            return self.mean_read * self.unembedding
        if self.mean_depth is None:
            return None
        return min(1 + self.mean_depth, self.window - 1) * self.unembedding

    @property
    def depth(self) -> float | None:
        """Multiply-adds by the paper's count: the depth of the walk, without the layer that ended it."""
        return None if self.mean_depth is None else self.mean_depth * self.unembedding

    def rows(self) -> list[FlopsRow]:
        """All costs as lines of a table. Lines that need the mean depth are left out where it is not known."""
        lines = [
            ("forward", "forward pass", self.forward),
            ("unembedding", "one unembedding", self.unembedding),
            ("worst", f"whole window, K - 1 = {self.window - 1}", self.worst),
            ("lazy", "lazily, 1 + depth, at most K - 1", self.lazy),
            ("depth", "depth alone", self.depth),
        ]
        last = self.forward + self.unembedding
        return [
            FlopsRow(name, what, count, 100 * count / self.forward, 100 * count / last)
            for name, what, count in lines
            if count is not None
        ]
