"""A lens: a pure function from a residual-stream state to a few numbers."""

from layerlens.lens.coarse import CoarseHead, refuse_without_bfloat16
from layerlens.lens.criterion import perturbed, valley_layers
from layerlens.lens.divergence import kl_from_last
from layerlens.lens.lens import Lens, Reading
from layerlens.lens.logit_lens import LogitLens, read

__all__ = [
    "CoarseHead",
    "Lens",
    "LogitLens",
    "Reading",
    "kl_from_last",
    "perturbed",
    "read",
    "refuse_without_bfloat16",
    "valley_layers",
]
