"""How much a mean over tokens would differ if other prompts had been asked.

Tokens of one prompt resemble each other. So prompts are resampled, never tokens. Every resample draws as many prompts
as there are, with replacement, and recomputes the mean as a ratio of sums. All analyses of a run use the same
resamples, so that rules (where a phase ends, where a valley lies) can be applied to each of them.

The interval is the expanded percentile interval (Hesterberg 2015, "What teachers should know about the bootstrap"): the
percentile levels are widened as a t interval widens a normal one, because plain percentiles are too narrow for few
prompts. Where prompts differ in length, a mean over tokens rests on fewer of them than there are, so the levels are
those of Kish's effective number, (sum of counts)^2 / sum of counts^2, rounded down.

How often the interval holds the true value, simulated with tokens that resemble each other within a prompt and lengths
of log-sd 0.5 (tests/analysis/test_coverage.py): 94-96 % for rates and means of 8 to 50 prompts. No percentile of n
prompts lies beyond their extremes, so few prompts cover less whatever the level: about 74 % for three, 87 % for four,
91 % for five, 93 % for six. Twenty prompts cover only 90-92 % where a handful of them have nearly all that is counted,
and where long answers differ systematically from short ones.

Where too few prompts are divided, shares have a rule of their own: see `shares`.
"""

from functools import lru_cache
from math import atan, pi, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Sums = tuple[Floats, Floats]
"""Per-prompt sums and counts, [prompts, ...] each."""

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0


@lru_cache(maxsize=4)
def resample(n_prompts: int, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """How often each prompt is drawn in each resample, [resamples, n_prompts], read-only; rows add up to n_prompts."""
    chances = np.full(n_prompts, 1 / n_prompts)
    drawn = np.random.default_rng(seed).multinomial(n_prompts, chances, size=resamples).astype(np.float64)
    drawn.flags.writeable = False  # every analysis gets the same array
    return drawn


def ratio(sums: Floats, counts: Floats) -> Floats:
    """sums / counts, elementwise with broadcasting; NaN where nothing was counted."""
    sums, counts = np.broadcast_arrays(sums, counts)
    quotient = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=quotient, where=counts > 0)
    return quotient


def resampled_means(sums: Floats, counts: Floats, weights: Floats) -> Floats:
    """The mean of every column in every resample, [resamples, ...], from sums and counts by prompt, [prompts, ...]."""
    return ratio(np.tensordot(weights, sums, axes=1), np.tensordot(weights, counts, axes=1))


def interval(draws: Floats, n_prompts: Any) -> tuple[Floats, Floats]:
    """The 95 % expanded percentile interval of each column.

    Args:
        draws: a statistic in every resample, [resamples, ...]; resamples in which it is NaN are left out.
        n_prompts: how many prompts count for each column, a number or [...].

    Returns:
        low and high, [...]; NaN where fewer than two prompts count for a column, or no resample has a value.
    """
    shape = draws.shape[1:]
    columns = draws.reshape(len(draws), -1)
    n = np.broadcast_to(np.asarray(n_prompts), shape).reshape(-1)
    low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    defined = ~np.isnan(columns).all(axis=0)
    for count in np.unique(n[(n >= 2) & defined]):
        chosen = (n == count) & defined
        levels = np.array([tail_level(int(count)), 1 - tail_level(int(count))])
        low[chosen], high[chosen] = np.nanquantile(columns[:, chosen], levels, axis=0)
    return low.reshape(shape), high.reshape(shape)


def mean_interval(sums: Floats, counts: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, low and high of every column, [...], from per-prompt sums and counts [prompts, ...].

    The width of the interval is that for the effective number of prompts. Where rounding or a skewed statistic would
    leave the mean outside, the interval is widened to hold it.
    """
    mean = ratio(sums.sum(axis=0), counts.sum(axis=0))
    return mean, *holding(mean, *interval(resampled_means(sums, counts, weights), effective_prompts(counts)))


def holding(estimate: Any, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The interval, widened where rounding or a skewed statistic would leave the estimate outside of it."""
    return np.minimum(low, estimate), np.maximum(high, estimate)


def mean_difference(ours: Sums, theirs: Sums, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Their mean less ours, low and high of every column, [...]; prompts are resampled in pairs, each [prompts, ...].

    What the two have in common in a prompt cancels.
    """
    ends = [ratio(sums.sum(axis=0), counts.sum(axis=0)) for sums, counts in (ours, theirs)]
    left, right = (resampled_means(*sums, weights) for sums in (ours, theirs))
    n_prompts = np.minimum(effective_prompts(ours[1]), effective_prompts(theirs[1]))
    difference = ends[1] - ends[0]
    return difference, *holding(difference, *interval(right - left, n_prompts))


def effective_prompts(counts: Floats) -> Ints:
    """How many prompts of equal length would give an equally precise mean over tokens, [...], by counts [prompts, ...].

    Kish's (sum of counts)^2 / sum of counts^2, rounded down; 2 or more where two prompts are counted, else 0 or 1.
    """
    squares = np.square(counts).sum(axis=0)
    effective = np.floor(ratio(np.square(counts.sum(axis=0)), squares) + 1e-9)  # rounding must not lose a prompt
    n_prompts = (counts > 0).sum(axis=0)
    return np.asarray(np.where(n_prompts < 2, n_prompts, np.maximum(np.nan_to_num(effective), 2)), dtype=np.int64)


@lru_cache
def tail_level(n_prompts: int) -> float:
    """The lower percentile level, between 0 and 0.025, of the expanded interval for n >= 2 prompts."""
    widened = sqrt(n_prompts / (n_prompts - 1)) * t_quantile((1 + CONFIDENCE) / 2, n_prompts - 1)
    return NormalDist().cdf(-widened)


def t_quantile(level: float, df: int) -> float:
    """The quantile of Student's t at a level in (0.5, 1) for a whole number of degrees of freedom; within 1e-9."""
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < level else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, df: int) -> float:
    """Student's distribution function at t >= 0: the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    cos2 = df / (df + t * t)
    sin = t / sqrt(df + t * t)
    odd = df % 2
    k = np.arange(1, (df - odd) // 2)
    terms = 1 + float(np.cumprod(cos2 * (2 * k - 1 + odd) / (2 * k + odd)).sum())
    if not odd:
        return 0.5 + sin * terms / 2
    return 0.5 + (atan(t / sqrt(df)) + (sin * sqrt(cos2) * terms if df > 1 else 0.0)) / pi
