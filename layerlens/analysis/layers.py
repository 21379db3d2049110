"""What each layer does to the stream, averaged over tokens."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Sample, groups, sample
from layerlens.analysis.uncertainty import Floats, mean_interval, ratio

if TYPE_CHECKING:
    from layerlens.run import Run

_ROWS = 4096  # a block and what is computed from it stay within a processor's cache
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
    run.read_layers(*MEASURES)
    columns: dict[str, Any] = {"layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    for measure in MEASURES:
        columns |= _summary(tokens, measure, tokens.of(run.layers(measure)))
    return tokens.frame(columns | {"n_tokens": len(tokens.rows), "n_prompts": tokens.n_prompts})


def entropy_curves(run: "Run") -> pd.DataFrame:
    """One row per group (perturbed, unperturbed, all) and layer 1..L with the group's mean entropy in nats.

    Columns: group; layer; kind; entropy with `_low`, `_high` (95 %, prompts resampled) and `_sd` (over tokens);
    n_tokens and n_prompts of the group. A group without tokens has NaN.

    Raises:
        RunError: no token of the run can be counted.
    """
    tokens = sample(run)
    values = tokens.of(run.layers("entropy"))
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
    blocks = [values[start : start + _ROWS] for start in range(0, len(values), _ROWS)]
    n = len(values) - sum((np.isnan(block).sum(axis=0) for block in blocks), np.zeros(values.shape[1]))
    mean = ratio(sum((_sum(block) for block in blocks), np.zeros(n.shape)), n)
    squares = sum((_sum(np.square(block - mean.astype(block.dtype))) for block in blocks), np.zeros(n.shape))
    return np.sqrt(ratio(squares, n))


def _sum(block: np.ndarray[Any, Any]) -> Floats:
    """Of every column, NaN passed over."""
    total: Floats = block.sum(axis=0, dtype=np.float64)
    return np.nansum(block, axis=0, dtype=np.float64) if np.isnan(total).any() else total


def _summary(
    tokens: Sample, measure: str, values: np.ndarray[Any, Any], among: Bools | None = None
) -> dict[str, Floats]:
    mean, low, high = mean_interval(*tokens.sums_and_counts(values, among), tokens.weights)
    sd = spread(values if among is None else values[among])
    return {measure: mean, f"{measure}_low": low, f"{measure}_high": high, f"{measure}_sd": sd}
