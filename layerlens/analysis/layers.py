"""What each layer does to the stream, averaged over tokens."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Sample, groups, sample
from layerlens.analysis.uncertainty import Floats, mean_interval, ratio

if TYPE_CHECKING:
    from layerlens.run import Run

MEASURES = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")


def by_layer(run: "Run") -> pd.DataFrame:
    """One row per layer 1..L with the mean of every measure over tokens.

    Columns: layer; kind (as in the manifest: full, sliding, linear, ...); for each of norm_ratio, io_cosine,
    attn_ratio, mlp_ratio (unit 1) and entropy (nats): the mean, `_low` and `_high` (95 %, prompts resampled) and `_sd`
    (standard deviation over tokens); n_tokens; n_prompts. A part that a block does not have is NaN. Means are over
    tokens of the per-token value. Prompts with states that were not finite are left out;
    `attrs["n_prompts_left_out"]` counts them.

    Raises:
        RunError: no token of the run can be counted.
    """
    tokens = sample(run)
    columns: dict[str, Any] = {"layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    for measure in MEASURES:
        columns |= _summary(tokens, measure, run.layers(measure)[tokens.rows])
    return tokens.frame(columns | {"n_tokens": len(tokens.rows), "n_prompts": tokens.n_prompts})


def entropy_curves(run: "Run") -> pd.DataFrame:
    """One row per group (perturbed, unperturbed, all) and layer 1..L with the group's mean entropy in nats.

    Columns: group; layer; kind; entropy with `_low`, `_high` (95 %, prompts resampled) and `_sd` (over tokens);
    n_tokens and n_prompts of the group. A group without tokens has NaN.

    Raises:
        RunError: no token of the run can be counted.
    """
    tokens = sample(run)
    values = run.layers("entropy")[tokens.rows]
    frames = []
    for group, among in groups(run, tokens).items():
        columns: dict[str, Any] = {"group": group, "layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
        columns |= _summary(tokens, "entropy", values, among)
        columns |= {"n_tokens": int(among.sum()), "n_prompts": tokens.n_prompts_with(among)}
        frames.append(pd.DataFrame(columns))
    return tokens.frame(pd.concat(frames, ignore_index=True))


def layer_kinds(run: "Run") -> list[str]:
    """The kind of each layer 1..L; "full" throughout where the manifest names none."""
    return list(run.manifest["model"].get("layer_kinds") or ["full"] * run.n_layers)


def spread(values: np.ndarray[Any, Any]) -> Floats:
    """Standard deviation of every column over the tokens that have a value, [L] from [tokens, L]; NaN without any."""
    counted = ~np.isnan(values)
    n = counted.sum(axis=0)
    mean = ratio(np.where(counted, values, 0).sum(axis=0, dtype=np.float64), n)
    deviations = np.where(counted, values - mean.astype(values.dtype), 0)  # kept in the values' own width: large runs
    return np.sqrt(ratio(np.square(deviations).sum(axis=0, dtype=np.float64), n))


def _summary(
    tokens: Sample, measure: str, values: np.ndarray[Any, Any], among: Bools | None = None
) -> dict[str, Floats]:
    mean, low, high = mean_interval(*tokens.sums_and_counts(values, among), tokens.weights)
    sd = spread(values if among is None else values[among])
    return {measure: mean, f"{measure}_low": low, f"{measure}_high": high, f"{measure}_sd": sd}
