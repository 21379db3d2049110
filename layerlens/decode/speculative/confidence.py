"""The confidence of a layer, and which layers ConfLayers leaves out by it. Formulas of arXiv 2604.14612 and of its
release, where the two differ."""

import math

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

ALPHA = 5
"""How fast windows widen from the first candidate to the last."""
LAMBDA_STEP = 0.05
_ROUNDING = 1e-9  # of z, which is about 1
SLACK = 0.25
"""How far above the wanted share a proposal may be before lambda rises."""


def confidence(logits: Float[Tensor, "tokens width"]) -> Float[Tensor, " tokens"]:
    """1 − H(softmax(x)) / ln(width) of each row, 0..1: 0 where all entries are equal, 1 where one stands out.

    The release takes the entries of a hidden state for logits.
    """
    log_probs = logits.float().log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).nan_to_num(nan=0.0).sum(-1)
    return 1 - entropy / math.log(logits.shape[-1])


def windows(confidences: Float[ndarray, " layers"]) -> Int[ndarray, " layers"]:
    """How many neighbours of each candidate count, int64: wider where the confidence bends, and further back.

    w_i = 2 + int(5 g_i (i + 1) / N), where g is the second gradient, scaled to 0..1, moved to a mean of 0.5, clipped.
    """
    n = len(confidences)
    z = (confidences - confidences.mean()) / (confidences.std() + 1e-6)
    bend = np.gradient(np.gradient(z)) if n > 1 else np.zeros(n)
    spread = bend.max() - bend.min() if n else 0.0
    scaled = (bend - bend.min()) / spread if spread > _ROUNDING else np.full(n, 0.5)
    weight = np.clip(scaled - scaled.mean() + 0.5, 0.0, 1.0)
    widths: ndarray = 2 + (ALPHA * weight * (np.arange(n) + 1) / n).astype(np.int64)
    return widths


def local_means(confidences: Float[ndarray, " layers"]) -> tuple[ndarray, ndarray]:
    """Mean and standard deviation of each candidate's neighbours i ± w // 2, without itself."""
    n = len(confidences)
    means, deviations = np.full(n, np.nan), np.full(n, np.nan)
    for index, width in enumerate(windows(confidences)):
        reach = int(width) // 2
        near = [other for other in range(index - reach, index + reach + 1) if other != index and 0 <= other < n]
        if near:
            means[index], deviations[index] = confidences[near].mean(), confidences[near].std()
    return means, deviations


def below_neighbours(confidences: Float[ndarray, " layers"], lam: float) -> list[int]:
    """The candidates to leave out: c_i < mean − lambda · deviation of their neighbours."""
    means, deviations = local_means(confidences)
    return [int(index) for index in np.flatnonzero(confidences < means - lam * deviations)]


def next_lambda(lam: float, share: float, skip_ratio: float) -> float:
    """Lambda for the next proposal: higher where too many candidates were left out, lower where too few were.

    Args:
        lam: of the last proposal.
        share: the share of the candidates that it left out, 0..1.
        skip_ratio: the least share that is wanted.
    """
    if share > skip_ratio + SLACK:
        return lam + LAMBDA_STEP
    return lam - LAMBDA_STEP if share < skip_ratio else lam
