"""Tokens that the last layer makes less certain, and the others."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.layers import entropy_by_group
from layerlens.analysis.sample import Gathered
from layerlens.analysis.shares import share_interval
from layerlens.analysis.uncertainty import mean_interval, resampled_means
from layerlens.analysis.valleys import valley_layers
from layerlens.errors import RunError
from layerlens.records.reader import Records


def partition(run: Records) -> pd.DataFrame:
    """Three rows: perturbed tokens, those with H(L) > H(L-1), the unperturbed ones, and all.

    Columns: group; n_tokens; n_prompts that have such tokens; share of all tokens (0..1); entropy_change, the mean of
    H(L) - H(L-1); entropy_before, the mean of H(L-1); entropy_last, of H(L); valley_layer, V* of the perturbed tokens:
    the lowest layer of the final rise of their mean curve (see `valleys`). It is the same in every row, and NA where
    there is none; entropy_valley, the mean entropy there. Entropies are in nats; share and every mean have `_low` and
    `_high` (95 %, prompts resampled). A group without tokens has NaN.

    Raises:
        RunError: no token of the run can be counted, or the model has a single layer.
    """
    if run.n_layers < 2:
        raise RunError(
            f"{run.path} has a single layer, and perturbed tokens are found by comparing two",
            "trace a model with more layers",
            given=run.path,
        )
    totals = entropy_by_group(run)
    curve = resampled_means(totals["perturbed"].sums, totals["perturbed"].counts, np.ones((1, totals.n_prompts)))[0]
    layer = float(valley_layers(curve))
    valley = None if np.isnan(layer) else int(layer)
    rows = [_row(totals, group, valley) for group in totals.by_name]
    return totals.frame(rows, layers=("valley_layer",))


def _row(totals: Gathered, group: str, valley: int | None) -> dict[str, Any]:
    per_prompt, every = totals[group], totals["all"]
    last, before = per_prompt.sums[:, -1], per_prompt.sums[:, -2]
    measures = {
        "entropy_change": last - before,
        "entropy_before": before,
        "entropy_last": last,
        "entropy_valley": np.full(len(last), np.nan) if valley is None else per_prompt.sums[:, valley - 1],
    }
    estimated = mean_interval if group == "all" else share_interval  # all are all, without doubt
    row: dict[str, Any] = {"group": group, "n_tokens": per_prompt.n_tokens, "n_prompts": per_prompt.n_prompts}
    row |= _named("share", estimated(per_prompt.members, every.members, totals.weights))
    row |= {"valley_layer": pd.NA if valley is None else valley}
    for name, values in measures.items():
        row |= _named(name, mean_interval(values, per_prompt.members, totals.weights))
    return row


def _named(name: str, values: Any) -> dict[str, float]:
    """A mean with its interval as three entries of a row."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
