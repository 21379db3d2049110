"""How many items an evaluation needs to tell a difference of a given size from zero."""

import os
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.evaluation import EQUAL
from layerlens.analysis.shares import binomial_cdf, clopper_pearson
from layerlens.analysis.uncertainty import CONFIDENCE
from layerlens.errors import OptionError, RunError
from layerlens.paths import expanded
from layerlens.records.evaluation import read_answers, read_manifest

POWER = 0.8
"""The chance with which a difference of that size is found."""


def power_table(folder: str | os.PathLike[str], difference: float) -> pd.DataFrame:
    """One row per task and arm of the evaluation at `folder`: how many items show a difference to the last layer.

    Columns: task; arm; n_items, those that were answered under both; correlation, of the scores of items under the arm
    and under the last layer; changed, the share of items that the arm wins or loses; needed, how many items the exact
    test of McNemar needs to find the difference at the 5 % level in 80 of 100 evaluations, if that share stays;
    needed_low and needed_high, the same at the ends of the 95 % interval of the share; detectable, the least difference
    that n_items find. NaN stands where a difference is larger than the share of items that change, which cannot be, and
    where n_items find none. An item that has several epochs is won where its mean score is higher.

    Args:
        folder: of the evaluation. Only tasks whose answers are right or wrong are told.
        difference: of the shares of items won and lost, above 0 and below 1.

    Raises:
        OptionError: the difference is out of range.
        RunError: there is no evaluation, or it has no arm beside the last layer with answers that are right or wrong.
    """
    if not 0 < difference < 1:
        raise OptionError.about("power", difference, "is not a difference", "give a share above 0 and below 1")
    folder = expanded(folder)
    manifest = read_manifest(folder)
    answers = read_answers(folder).to_pandas()
    rows: list[dict[str, Any]] = []
    for task, arm in manifest["evaluation"]["asked"]:
        of_task = answers[(answers["task"] == task) & answers["score"].notna()]
        if arm == "last" or not of_task["score"].isin((0.0, 1.0)).all():
            continue
        by_arm = of_task.pivot_table(index="item", columns="arm", values="score", aggfunc="mean")
        if arm in by_arm and "last" in by_arm:
            pairs = by_arm[["last", arm]].dropna().to_numpy(dtype=float)
            rows += [{"task": task, "arm": arm} | _row(pairs, difference)] if len(pairs) else []
    if not rows:
        problem = f"{folder} has no answers that are right or wrong under another arm than the last layer"
        raise RunError(problem, "evaluate another strategy beside it", given=folder)
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def needed(changed: float, difference: float) -> float:
    """The least number of items with which the exact test of McNemar finds a difference at the 5 % level with a power
    of 80 %; NaN where the difference is larger than the share of items that change.

    Args:
        changed: the share of items that are won or lost.
        difference: of the shares of items won and lost, above 0.
    """
    if difference > changed:
        return float("nan")
    # the normal approximation of Connor (1987), which is a few percent too low
    normal = NormalDist()
    at_level, at_power = normal.inv_cdf((1 + CONFIDENCE) / 2), normal.inv_cdf(POWER)
    spread = at_level * sqrt(changed) + at_power * sqrt(changed - difference**2)
    low = high = max(1, int(0.9 * (spread / difference) ** 2))
    while power(high, changed, difference) < POWER:
        low, high = high, high + max(1, high // 50)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, changed, difference) >= POWER else (middle, high)
    return float(high)


def power(n: int, changed: float, difference: float) -> float:
    """The chance that the exact test of McNemar finds a difference with so many items at the 5 % level.

    The number of items that change is drawn from a binomial distribution, and so is how many of them are won. The
    chance is summed over all numbers within eight standard deviations.
    """
    spread = 8 * sqrt(n * changed * (1 - changed)) + 1
    moved = np.arange(max(0, int(n * changed - spread)), min(n, int(n * changed + spread)) + 1, dtype=float)
    tail = (1 - CONFIDENCE) / 2
    # the largest number of losses, or of wins, at which the test rejects: -1 where none does
    about = np.floor((moved - NormalDist().inv_cdf(1 - tail) * np.sqrt(moved)) / 2)
    most = np.full(len(moved), -1.0)
    for place in (about + offset for offset in range(-2, 3)):
        most = np.where((place >= 0) & (binomial_cdf(place, moved, 0.5) <= tail), place, most)
    won = (1 + difference / changed) / 2
    if won == 1:
        rejects = (most >= 0).astype(float)
    else:
        rejects = binomial_cdf(most, moved, won) + binomial_cdf(most, moved, 1 - won)
    below = binomial_cdf(moved, np.full(len(moved), float(n)), changed) if changed < 1 else (moved >= n).astype(float)
    chances = np.diff(below, prepend=0.0)
    return float((chances * rejects).sum())


def _row(pairs: Any, difference: float) -> dict[str, Any]:
    n = len(pairs)
    changed = float((np.abs(pairs[:, 0] - pairs[:, 1]) > EQUAL).mean())
    low, high = (float(end) for end in clopper_pearson(np.array(changed), np.array(n)))
    varies = bool((pairs.std(axis=0) > 0).all())
    return {
        "n_items": n,
        "correlation": float(np.corrcoef(pairs.T)[0, 1]) if varies else np.nan,
        "changed": changed,
        "needed": needed(changed, difference),
        "needed_low": needed(low, difference),
        "needed_high": needed(high, difference),
        "detectable": _detectable(changed, n),
    }


def _detectable(changed: float, n: int) -> float:
    """The least difference that so many items find, up to a ten-thousandth; NaN where they find none."""
    if changed == 0 or power(n, changed, changed) < POWER:
        return float("nan")
    low, high = 0.0, changed
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power(n, changed, middle) >= POWER else (middle, high)
    return high
