"""Which layer a walk back from the last one chooses."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.formulas import steps_back


def valley_layers(entropy: Float[Tensor, "rows layers"], window: int) -> Int[Tensor, " rows"]:
    """The layer 1..L reached by walking back from L while entropy strictly decreases. Eq. 7 of arXiv 2606.21906.

    Args:
        entropy: nats, of layers 1..L.
        window: number of candidates, 1..L, the last layer included; so a walk has at most window - 1 steps.

    A tie or a NaN ends the walk; without a lower neighbour the answer is L.
    """
    n_layers = entropy.shape[1]
    return n_layers - steps_back(entropy[:, n_layers - window :])


def perturbed(entropy: Float[Tensor, "rows layers"]) -> Tensor:
    """Whether the last layer raised the entropy, H(L) > H(L-1): bool [rows]; false with a single layer."""
    if entropy.shape[1] == 1:
        return torch.zeros(len(entropy), dtype=torch.bool)
    return entropy[:, -1] > entropy[:, -2]
