"""Tests of paired answers: whether one arm of an evaluation wins more items than another."""

from collections.abc import Sequence
from math import comb

import numpy as np


def mcnemar(won: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): that of `won` and `lost` if both were equally likely.

    It is twice the smaller tail of the binomial distribution of won + lost throws of a fair coin, and 1 at most.
    """
    n, least = won + lost, min(won, lost)
    tail: int = sum(comb(n, k) for k in range(least + 1))
    return float(min(1.0, 2 * tail / 2**n))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by the rule of Holm (1979); NaN stays NaN and is not counted."""
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in adjusted]
