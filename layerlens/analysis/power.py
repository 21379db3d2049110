"""How many items an evaluation needs to tell a difference of a given size from zero."""

import os
from math import ceil, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.shares import clopper_pearson
from layerlens.analysis.uncertainty import CONFIDENCE
from layerlens.errors import OptionError, RunError
from layerlens.records.evaluation import read_answers, read_manifest

POWER = 0.8
"""The chance with which a difference of that size is found."""


def power_table(folder: str | os.PathLike[str], difference: float) -> pd.DataFrame:
    """One row per task and arm of the evaluation at `folder`: how many items show a difference to the last layer.

    Columns: task; arm; n_items, those that were answered under both; correlation, of right answers under the arm and
    under the last layer (phi); changed, the share of items that only one of them answers right; needed, how many items
    the exact test of McNemar needs to find the difference at the 5 % level in 80 of 100 evaluations, if that share
    stays; needed_low and needed_high, the same at the ends of the 95 % interval of the share; detectable, the least
    difference that n_items find.

    Args:
        folder: of the evaluation. Only tasks whose answers are right or wrong are told.
        difference: of the shares of right answers, above 0 and below 1.

    Raises:
        OptionError: the difference is out of range.
        RunError: there is no evaluation, or it has no arm beside the last layer with answers that are right or wrong.
    """
    if not 0 < difference < 1:
        raise OptionError.about("power", difference, "is not a difference", "give a share above 0 and below 1")
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    answers = read_answers(folder).to_pandas()
    rows: list[dict[str, Any]] = []
    for task, arm in manifest["evaluation"]["asked"]:
        of_task = answers[(answers["task"] == task) & answers["score"].notna()]
        if arm == "last" or not of_task["score"].isin((0.0, 1.0)).all():
            continue
        by_arm = of_task.pivot_table(index=["item", "epoch"], columns="arm", values="score", aggfunc="first")
        if arm in by_arm and "last" in by_arm:
            pairs = by_arm[["last", arm]].dropna().to_numpy(dtype=float)
            rows += [{"task": task, "arm": arm} | _row(pairs, difference)] if len(pairs) else []
    if not rows:
        problem = f"{folder} has no answers that are right or wrong under another arm than the last layer"
        raise RunError(problem, "evaluate another strategy beside it", given=folder)
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def needed(changed: float, difference: float) -> int:
    """The number of items with which McNemar's test finds a difference of two shares at the 5 % level with a power of
    80 %, by the normal approximation of Connor (1987).

    Args:
        changed: the share of items that are right under one of the arms alone; at least the difference counts.
        difference: of the shares of right answers.
    """
    changed = max(changed, difference)
    normal = NormalDist()
    at_level, at_power = normal.inv_cdf((1 + CONFIDENCE) / 2), normal.inv_cdf(POWER)
    spread = at_level * sqrt(changed) + at_power * sqrt(changed - difference**2)
    return ceil((spread / difference) ** 2)


def _row(pairs: Any, difference: float) -> dict[str, Any]:
    n = len(pairs)
    changed = float((pairs[:, 0] != pairs[:, 1]).mean())
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
    """The least difference that so many items find, in steps of a thousandth; NaN where they find none."""
    for step in range(1, 1000):
        if step / 1000 <= max(changed, step / 1000) and needed(changed, step / 1000) <= n:
            return step / 1000
    return float("nan")
