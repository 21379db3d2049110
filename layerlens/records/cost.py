"""What one generated token costs, as a run's manifest and the tables of costs have it."""

from dataclasses import dataclass
from typing import NamedTuple


class FlopsRow(NamedTuple):
    """One line of what a token costs."""

    name: str
    """A short name."""
    what: str
    """In words."""
    multiply_adds: float
    """Per generated token of one row of the batch."""
    percent_of_forward: float
    """Of the forward pass without unembedding, which is what the paper's Table 5 divides by."""
    percent_of_last: float
    """Of what a token from the last layer costs: the forward pass and one unembedding."""

    @property
    def flops(self) -> float:
        """Floating-point operations: a multiply-add is two."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class DecodingFlops:
    """What one generated token costs, in multiply-adds; FLOPs are twice as many.

    Counted are products with parameters: linear layers, convolutions, routers, and of routed experts the active ones.
    Looking up an embedding costs nothing, norms and activations are left out. So is what attention does with the
    cache (and linear attention with its state): that has no parameters, and over a cache it grows with the context.

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
        """Of the K − 1 unembeddings beside the model's own: the whole window is read out."""
        return (self.window - 1) * self.unembedding

    @property
    def lazy(self) -> float | None:
        """Of reading one layer after the other; see `analysis.overhead.layers_read`. Where only the mean depth is known
        this is the most that walks of that depth can read, 1 + depth or K − 1: those to the window's end read less."""
        if self.mean_read is not None:
            return self.mean_read * self.unembedding
        if self.mean_depth is None:
            return None
        return min(1 + self.mean_depth, self.window - 1) * self.unembedding

    @property
    def depth(self) -> float | None:
        """The paper's count: the depth of the walk without the layer that ended it."""
        return None if self.mean_depth is None else self.mean_depth * self.unembedding

    def rows(self) -> list[FlopsRow]:
        """Everything as lines of a table; those that need the mean depth only where it is known."""
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
