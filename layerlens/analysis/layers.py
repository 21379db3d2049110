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
    (standard deviation over tokens); n_tokens; n_prompts. A part that a block does not have is NaN. Means are over
    tokens of the per-token value. Prompts with states that were not finite are left out;
    `attrs["n_prompts_left_out"]` counts them.

    Raises:
        RunError: no token of the run can be counted.
    """
    sums = layer_sums(run, *MEASURES)
    columns: dict[str, Any] = {"layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    for measure in MEASURES:
        columns |= _summary(sums, measure, sums[measure])
    return sums.frame(columns | {"n_tokens": sums.n_tokens, "n_prompts": sums.n_prompts})


def entropy_curves(run: Records) -> pd.DataFrame:
    """One row per group (perturbed, unperturbed, all) and layer 1..L with the group's mean entropy in nats.

    Columns: group; layer; kind; entropy with `_low`, `_high` (95 %, prompts resampled) and `_sd` (over tokens);
    n_tokens and n_prompts of the group. A group without tokens has NaN.

    Raises:
        RunError: no token of the run can be counted.
    """
    sums = entropy_by_group(run)
    frames = []
    for group, found in sums.found.items():
        columns: dict[str, Any] = {"group": group, "layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
        columns |= _summary(sums, "entropy", found)
        columns |= {"n_tokens": found.n_tokens, "n_prompts": found.n_prompts}
        frames.append(pd.DataFrame(columns))
    return sums.frame(pd.concat(frames, ignore_index=True))


def layer_kinds(run: Records) -> list[str]:
    """The kind of each layer 1..L; "full" throughout where the manifest names none."""
    return list(run.manifest["model"].get("layer_kinds") or ["full"] * run.n_layers)


def layer_sums(run: Records, *measures: str) -> Gathered:
    """Of per-layer measures over all tokens, [prompts, L] each; summed up once for a run."""
    missing = [measure for measure in measures if measure not in run.sums]

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        piece.read_layers(*missing)
        return {measure: tokens.per_prompt(tokens.of(piece.layers(measure))) for measure in missing}

    if missing:
        found = gathered(run, sums_of)
        run.sums |= {measure: replace(found, found={measure: found[measure]}) for measure in missing}
    first: Gathered = run.sums[measures[0]]
    return replace(first, found={measure: run.sums[measure][measure] for measure in measures})


def entropy_by_group(run: Records) -> Gathered:
    """Of the entropy of perturbed, unperturbed and all tokens, [prompts, L] each; summed up once for a run."""

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        values = tokens.of(piece.layers("entropy"))
        return {group: tokens.per_prompt(values, among) for group, among in groups(piece, tokens).items()}

    if "groups" not in run.sums:
        run.sums["groups"] = gathered(run, sums_of)
    found: Gathered = run.sums["groups"]
    return found


def _summary(prompts: Prompts, measure: str, found: PerPrompt) -> dict[str, Floats]:
    mean, low, high = prompts.estimate(found)
    return {measure: mean, f"{measure}_low": low, f"{measure}_high": high, f"{measure}_sd": found.spread}
