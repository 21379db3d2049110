"""What each layer does to the stream, averaged over tokens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Gathered, PerPrompt, Prompts, Sample, gathered, groups
from layerlens.analysis.uncertainty import Floats
from layerlens.records.reader import Records

MEASURES = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")


def by_layer(run: Records) -> pd.DataFrame:
    """One row per layer 1..L with the mean of every measure over tokens.

    Columns: layer; kind (as in the manifest: full, sliding, linear, ...); for each of norm_ratio, io_cosine,
    attn_ratio, mlp_ratio (unit 1) and entropy (nats): the mean, `_low` and `_high` (95 %, prompts resampled) and `_sd`
    (standard deviation over tokens); n_tokens; n_prompts. The ratio of a part that a block does not have is NaN. Values
    are computed for each token and then averaged over tokens. Prompts with states that were not finite are left out;
    `attrs["n_prompts_left_out"]` counts them.

    Raises:
        RunError: no token of the run can be counted.
    """
    totals = layer_sums(run, *MEASURES)
    columns: dict[str, Any] = {"layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    for measure in MEASURES:
        columns |= _summary(totals, measure, totals[measure])
    return totals.frame(columns | {"n_tokens": totals.n_tokens, "n_prompts": totals.n_prompts})


def entropy_curves(run: Records) -> pd.DataFrame:
    """One row per group (perturbed, unperturbed, all) and layer 1..L with the group's mean entropy in nats.

    Columns: group; layer; kind; entropy with `_low`, `_high` (95 %, prompts resampled) and `_sd` (over tokens);
    n_tokens and n_prompts of the group. A group without tokens has NaN.

    Raises:
        RunError: no token of the run can be counted.
    """
    totals = entropy_by_group(run)
    frames = []
    for group, per_prompt in totals.by_name.items():
        columns: dict[str, Any] = {"group": group, "layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
        columns |= _summary(totals, "entropy", per_prompt)
        columns |= {"n_tokens": per_prompt.n_tokens, "n_prompts": per_prompt.n_prompts}
        frames.append(pd.DataFrame(columns))
    return totals.frame(pd.concat(frames, ignore_index=True))


def layer_kinds(run: Records) -> list[str]:
    """The kind of each layer 1..L; "full" for all of them where the manifest names none."""
    return list(run.manifest["model"].get("layer_kinds") or ["full"] * run.n_layers)


def layer_sums(run: Records, *measures: str) -> Gathered:
    """Sums of per-layer measures over all tokens, [prompts, L] each; computed once for a run."""
    missing = [measure for measure in measures if measure not in run.sums]

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        piece.read_layers(*missing)
        return {measure: tokens.per_prompt(tokens.of(piece.layers(measure))) for measure in missing}

    if missing:
        totals = gathered(run, sums_of)
        run.sums |= {measure: replace(totals, by_name={measure: totals[measure]}) for measure in missing}
    first: Gathered = run.sums[measures[0]]
    return replace(first, by_name={measure: run.sums[measure][measure] for measure in measures})


def entropy_by_group(run: Records) -> Gathered:
    """Sums of the entropy over perturbed, unperturbed and all tokens, [prompts, L] each; computed once for a run."""

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        values = tokens.of(piece.layers("entropy"))
        return {group: tokens.per_prompt(values, among) for group, among in groups(piece, tokens).items()}

    if "groups" not in run.sums:
        run.sums["groups"] = gathered(run, sums_of)
    totals: Gathered = run.sums["groups"]
    return totals


def _summary(prompts: Prompts, measure: str, per_prompt: PerPrompt) -> dict[str, Floats]:
    mean, low, high = prompts.estimate(per_prompt)
    return {measure: mean, f"{measure}_low": low, f"{measure}_high": high, f"{measure}_sd": per_prompt.spread}
