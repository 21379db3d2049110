"""95 % intervals of a share, and of the difference of two shares in the same prompts.

Where every prompt gives one yes or no, the interval of a share is that of Clopper and Pearson (1934). Its limits are
quantiles of beta distributions. Enumerated for 8 to 200 prompts and shares of 0.01 to 0.99
(tests/analysis/test_shares.py), it holds the true share in at least 95.0 % of all draws, and in 96.6 % on average. It
is wider for 1 of n than for 0 of n, lies above 0 where something was seen, and holds the observed share.

The interval of a paired difference is that of Bonett and Price (2012). It adds one prompt that gains and one that
loses, so that a difference of 0 is not taken as certain where nothing changed. It is used here with Student's t of n
degrees of freedom. The normal quantile of the original covers too little where few prompts stay as they are. Enumerated
for 8 to 200 prompts, over all chances of a gain and a loss in steps of 0.005, finer near 0, it holds the true
difference in at least 92.5 % of all draws. The least is 92.58 %, for 16 prompts of which 57 % gain and 43 % lose; it is
92.95 % for 8 and 93.57 % for 60. On average over the chances it holds the difference in 95.2 % or more (98.6 % for 8
prompts, 95.8 % for 60).

A share of tokens has many tokens of each prompt. Tokens of one prompt resemble each other. Resampling prompts (see
`uncertainty`) takes account of that only where enough prompts are divided, that is, have both tokens that count and
tokens that do not. A rare kind of token that was seen in three prompts says little of a fourth, in which every token
may be of that kind. So the share is taken as if each prompt gave one yes or no where there are fewer than six prompts,
or where fewer than six of them, or fewer than half, are divided (by Kish's effective number). Tokens of one prompt
cannot be more alike than that, so the interval is rather too wide: it holds the true share in 91 % of simulations or
more, where resampling alone holds it in 20 to 90 %. Where a few prompts in a hundred have nearly all that counts,
resampling is still used and covers less, 87 to 92 %.
"""

from math import ceil, lgamma, sqrt
from typing import Any

import numpy as np

from layerlens.analysis.uncertainty import (
    CONFIDENCE,
    Floats,
    Sums,
    effective_prompts,
    mean_difference,
    mean_interval,
    ratio,
)

FEW = 6
"""With fewer prompts than this, or a lower effective number of divided prompts, a share is not resampled."""


def share_interval(sums: Floats, counts: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Share, low and high of every column, [...], from how many tokens have it, of how many, [prompts, ...] each.

    Low and high lie in 0..1 and hold the share; NaN where fewer than two prompts count for a column. See the module.
    """
    share, low, high = mean_interval(sums, counts, weights)
    n_prompts = np.broadcast_to(effective_prompts(counts), np.shape(share))
    few = _few(_divided(sums, counts), n_prompts) | _are_few(counts)
    exact = clopper_pearson(share[few], n_prompts[few])
    return share, *_replaced(few, (low, high), exact)


def share_difference(ours: Sums, theirs: Sums, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """As `mean_difference`, for shares: within −1..1, and with a width where nothing changed. See the module."""
    difference, low, high = mean_difference(ours, theirs, weights)
    n_prompts = np.minimum(effective_prompts(ours[1]), effective_prompts(theirs[1]))
    change = np.nan_to_num(np.abs(ratio(*theirs) - ratio(*ours)))  # of each prompt
    of_all = [ratio(counts, counts.sum(axis=0)) for _, counts in (ours, theirs)]
    moved = np.clip((change * (of_all[0] + of_all[1]) / 2).sum(axis=0), np.abs(difference), 1)
    few = _few(_divided(*ours) + _divided(*theirs), n_prompts) | _few(change > 0, n_prompts)
    few |= _are_few(ours[1]) | _are_few(theirs[1])
    exact = bonett_price(difference[few], moved[few], n_prompts[few])
    return difference, *_replaced(few, (low, high), exact)


def _divided(sums: Floats, counts: Floats) -> Floats:
    """How evenly each prompt is divided into tokens that count and tokens that do not: 0 where all are of one kind."""
    return np.nan_to_num(ratio(sums * (counts - sums), counts))


def _few(amounts: Any, n_prompts: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where too few of the prompts have an amount, [prompts, ...], above 0 for resampling to be trusted, [...]."""
    amounts = np.asarray(amounts, dtype=np.float64)
    effective = np.nan_to_num(ratio(np.square(amounts.sum(axis=0)), np.square(amounts).sum(axis=0)))
    return np.asarray((effective + 1e-9 < np.minimum(FEW, n_prompts / 2)) & (n_prompts >= 2))  # six alike are six


def _are_few(counts: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where too few prompts, [prompts, ...], have tokens to show how alike tokens of one prompt are, [...]."""
    n_prompts = (np.asarray(counts) > 0).sum(axis=0)
    return np.asarray((n_prompts >= 2) & (n_prompts < FEW))


def _replaced(few: Any, ends: Sums, exact: Sums) -> Sums:
    """Low and high, [...], replaced by others where there are few prompts."""
    replaced = np.array(ends[0]), np.array(ends[1])
    for end, values in zip(replaced, exact, strict=True):
        end[few] = values
    return replaced


def clopper_pearson(share: Floats, n: Any) -> tuple[Floats, Floats]:
    """Low and high, 0..1, of shares, [...], observed in n independent draws; a share need not be a multiple of 1/n."""
    seen, tail = share * n, (1 - CONFIDENCE) / 2
    unseen = n - seen
    low = beta_quantile(tail, np.where(seen > 0, seen, 1), unseen + 1)
    high = beta_quantile(1 - tail, seen + 1, np.where(unseen > 0, unseen, 1))
    return np.where(seen > 0, low, 0), np.where(unseen > 0, high, 1)


def bonett_price(difference: Floats, moved: Floats, n: Any) -> tuple[Floats, Floats]:
    """Low and high, −1..1, of the difference of two shares in n pairs, [...]; with Student's t, see the module.

    Args:
        difference: of the observed shares.
        moved: the share of pairs that differ, between |difference| and 1.
        n: pairs, at least 1.
    """
    centre = difference * n / (n + 2)  # one more pair gains, and one loses
    width = student(n) * np.sqrt(((moved * n + 2) / (n + 2) - centre**2) / (n + 2))
    return np.maximum(centre - width, -1), np.minimum(centre + width, 1)


def student(n: Any) -> Floats:
    """The bound that the size of Student's t with n ≥ 1 degrees of freedom, [...], exceeds in 5 % of all draws."""
    beyond = beta_quantile(CONFIDENCE, np.full(np.shape(n), 0.5), np.asarray(n) / 2)  # of t² / (n + t²)
    return np.asarray(np.sqrt(n * beyond / (1 - beyond)))


def beta_quantile(level: float, a: Floats, b: Floats) -> Floats:
    """The quantiles of beta distributions, [...] as a, b > 0, at a level in (0, 1); within 1e-11."""
    log_beta = _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)
    low, high = np.zeros(np.shape(a)), np.ones(np.shape(a))
    x = a / (a + b)
    for _ in range(60):  # Newton's method, with bisection where a step leaves the interval
        front = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta)
        beyond = _beta_cdf(x, a, b, front) - level
        low, high = np.where(beyond < 0, x, low), np.where(beyond < 0, high, x)
        step = x - beyond * x * (1 - x) / np.maximum(front, 1e-300)
        step = np.where((low < step) & (step < high), step, (low + high) / 2)
        moved = np.abs(step - x)
        x = np.clip(step, 1e-300, 1 - 2**-53)
        if (moved < 1e-12).all():
            break
    return np.asarray(x)


def binomial_cdf(k: Floats, n: Floats, p: float) -> Floats:
    """The chance of at most k of n draws that each succeed with chance p, 0 < p < 1; 0 for k < 0. [...] each."""
    inside = (k >= 0) & (k < n)
    a, b = np.where(inside, n - k, 1.0), np.where(inside, k + 1, 1.0)
    front = np.exp(a * np.log1p(-p) + b * np.log(p) - _log_gamma(a) - _log_gamma(b) + _log_gamma(a + b))
    return np.where(inside, _beta_cdf(np.full(np.shape(a), 1 - p), a, b, front), (k >= n).astype(float))


def _beta_cdf(x: Floats, a: Floats, b: Floats, front: Floats) -> Floats:
    """Beta distribution functions at 0 < x < 1, by the continued fraction 8.17.22 of the NIST's DLMF.

    `front` is x^a (1−x)^b / B(a, b).
    """
    mirrored = x > (a + 1) / (a + b + 2)  # where the fraction converges slowly
    x, a, b = np.where(mirrored, 1 - x, x), np.where(mirrored, b, a), np.where(mirrored, a, b)
    fraction = np.ones_like(x)
    for m in range(12 + ceil(2 * sqrt(max(a.max(initial=0), b.max(initial=0)))), 0, -1):  # from its end
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1 + even / (1 + odd / fraction)
    below = front / (a * (1 - (a + b) * x / ((a + 1) * fraction)))
    return np.asarray(np.where(mirrored, 1 - below, below))


_log_gamma = np.vectorize(lgamma, otypes=[float])
