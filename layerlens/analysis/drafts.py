"""How far measures of a block agree about what a draft can do without."""

from typing import NamedTuple

import numpy as np

from layerlens.analysis.uncertainty import Floats, holding, interval, ratio, resampled_means


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation over blocks, −1..1, with its interval over prompts."""

    rho: float
    low: float
    high: float
    n_blocks: int
    n_prompts: int


def rank_correlation(left: Floats, right: Floats, counts: Floats, weights: Floats) -> RankCorrelation:
    """Of the means of two measures, over blocks.

    Args:
        left: sums over the tokens of each prompt, [prompts, blocks].
        right: the same of the other measure.
        counts: tokens of each prompt, [prompts, 1].
        weights: from `resample`.
    """
    counts = np.broadcast_to(counts, left.shape)
    rho = spearman(ratio(left.sum(0), counts.sum(0)), ratio(right.sum(0), counts.sum(0)))
    pairs = zip(resampled_means(left, counts, weights), resampled_means(right, counts, weights), strict=True)
    draws = np.array([spearman(one, other) for one, other in pairs])
    low, high = holding(rho, *interval(draws[:, np.newaxis], len(left)))
    return RankCorrelation(rho, float(low[0]), float(high[0]), left.shape[1], len(left))


def spearman(left: Floats, right: Floats) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks. NaN where one side has one value."""
    ranks = [_ranks(values) for values in (left, right)]
    if any(np.ptp(one) == 0 for one in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Floats) -> Floats:
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") + 1) / 2
