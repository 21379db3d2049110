"""A lens: a transport, which maps states to states that the model's head can read, and the reading of those."""

from layerlens.lens.coarse import CoarseHead, refuse_without_bfloat16
from layerlens.lens.criterion import perturbed, valley_layers
from layerlens.lens.divergence import kl_from_last, read_with_js
from layerlens.lens.reading import Reading
from layerlens.lens.tiled import read
from layerlens.lens.transport import IDENTITY, Affine, Transport

__all__ = [
    "IDENTITY",
    "Affine",
    "CoarseHead",
    "Reading",
    "Transport",
    "kl_from_last",
    "perturbed",
    "read",
    "read_with_js",
    "refuse_without_bfloat16",
    "valley_layers",
]
