"""Tokens that the last layer makes less certain, and the others."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Sample, groups, sample
from layerlens.analysis.uncertainty import Floats, mean_interval, ratio, share_interval
from layerlens.analysis.valleys import valley_layers
from layerlens.errors import RunError

if TYPE_CHECKING:
    from layerlens.run import Run


def partition(run: "Run") -> pd.DataFrame:
    """Three rows: perturbed tokens, those with H(L) > H(L-1), the unperturbed ones, and all.

    Columns: group; n_tokens; n_prompts that have such tokens; share of all tokens (0..1); entropy_change, the mean of
    H(L) - H(L-1); entropy_before, the mean of H(L-1); entropy_last, of H(L); valley_layer, V* of the perturbed tokens,
    the same in every row (see `valleys`), NA where there is none; entropy_valley, the mean entropy there. Entropies are
    in nats; share and every mean have `_low` and `_high` (95 %, prompts resampled). A group without tokens has NaN.

    Raises:
        RunError: no token of the run can be counted, or the model has a single layer.
    """
    if run.n_layers < 2:
        raise RunError(f"{run.path} traces a single layer, and perturbed compares two: trace a model with more layers")
    tokens = sample(run)
    entropy = tokens.of(run.layers("entropy"))
    members = groups(run, tokens)
    valley = _valley(tokens, entropy, members["perturbed"])
    rows = [_row(tokens, group, among, entropy, valley) for group, among in members.items()]
    return tokens.frame(rows, layers=("valley_layer",))


def _valley(tokens: Sample, entropy: Floats, among: Bools) -> int | None:
    sums, counts = tokens.sums_and_counts(entropy, among)
    layer = float(valley_layers(ratio(sums.sum(axis=0), counts.sum(axis=0))))
    return None if np.isnan(layer) else int(layer)


def _row(tokens: Sample, group: str, among: Bools, entropy: Floats, valley: int | None) -> dict[str, Any]:
    at_valley = np.full(len(entropy), np.nan) if valley is None else entropy[:, valley - 1]
    measures = {
        "entropy_change": entropy[:, -1] - entropy[:, -2],
        "entropy_before": entropy[:, -2],
        "entropy_last": entropy[:, -1],
        "entropy_valley": at_valley,
    }
    sums, counts = tokens.sums_and_counts(np.stack(list(measures.values()), axis=1), among)
    estimated = mean_interval if group == "all" else share_interval  # all are all, without doubt
    share = estimated(tokens.by_prompt(among), tokens.by_prompt(np.ones_like(among)), tokens.weights)
    means = np.stack(mean_interval(sums, counts, tokens.weights), axis=1)
    row: dict[str, Any] = {"group": group, "n_tokens": int(among.sum()), "n_prompts": tokens.n_prompts_with(among)}
    row |= _named("share", share) | {"valley_layer": pd.NA if valley is None else valley}
    for name, values in zip(measures, means, strict=True):
        row |= _named(name, values)
    return row


def _named(name: str, values: Any) -> dict[str, float]:
    """A mean with its interval as three entries of a row."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
