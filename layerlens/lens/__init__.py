"""A lens: a pure function from a residual-stream state to a few numbers."""

from layerlens.lens.criterion import perturbed, valley_layers
from layerlens.lens.divergence import kl_from_last
from layerlens.lens.readout import Reading, read

__all__ = ["Reading", "kl_from_last", "perturbed", "read", "valley_layers"]
