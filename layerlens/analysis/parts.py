"""What attention and MLP of a layer do to the entropy, each by itself.

The stream between the two is h(l-1) + what attention adds. It is read as every layer is, and H(l-1/2) is its entropy.
So the change H(l) - H(l-1) is the sum of attention's part, H(l-1/2) - H(l-1), and the MLP's part, H(l) - H(l-1/2).
"""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.layers import layer_kinds
from layerlens.analysis.sample import Gathered, PerPrompt, Sample, gathered, groups
from layerlens.analysis.shares import share_interval
from layerlens.errors import RunError
from layerlens.records.reader import Records
from layerlens.records.schema import HALF_ENTROPY

GROUPS = ("perturbed", "unperturbed", "all")
MEANS = ("change", "attention", "mlp")
RAISED_BY = ("attention_alone", "mlp_alone", "both", "neither")


def perturbation_parts(run: Records) -> pd.DataFrame:
    """Three rows, perturbed tokens (H(L) > H(L-1)), unperturbed ones and all: which half of the last layer does it.

    Columns: group; layer, which is L; and all other columns of `parts_by_layer`. All traced tokens count, as in
    `partition`.

    Raises:
        RunError: the run was traced without `sublayers`, its last layer has no half step, it has a single layer, or no
            token of it can be counted.
    """
    if run.n_layers < 2:
        raise RunError(
            f"{run.path} has a single layer, and perturbed tokens are found by comparing two",
            "trace a model with more layers",
            given=run.path,
        )
    table = parts_by_layer(run)
    last: pd.DataFrame = table[table["layer"] == run.n_layers].reset_index(drop=True)
    if not last["n_tokens"].any():
        raise _no_half_step(run, "its last layer")
    return last


def parts_by_layer(run: Records) -> pd.DataFrame:
    """One row per group (perturbed, unperturbed, all) and layer 1..L: what its attention and its MLP do to the entropy.

    Whether a token is perturbed is decided at the last layer, whichever layer the row is about.

    Columns: group; layer; kind; change, the mean of H(l) - H(l-1); attention, of H(l-1/2) - H(l-1); mlp, of H(l) -
    H(l-1/2), all three in nats; the shares of the group's tokens whose entropy rises in attention_alone (and not in the
    MLP), in mlp_alone, in both and in neither half of the layer, 0..1; each of these seven with `_low` and `_high` (95
    %, prompts resampled); n_tokens, the tokens whose two halves are known; n_prompts that have such tokens. A layer
    without a state between its parts has NaN and n_tokens 0. Its attention and MLP read the same state, or its parts
    cannot be told apart. Layer 1 has NaN too, because the embeddings are not read.

    Raises:
        RunError: the run was traced without `sublayers`, or no token of it can be counted.
    """

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        piece.read_layers("entropy", HALF_ENTROPY.name)
        measures = _measures(tokens.of(piece.layers("entropy")), tokens.of(piece.layers(HALF_ENTROPY.name)))
        return {
            f"{group} {name}": tokens.per_prompt(values, among)
            for group, among in groups(piece, tokens).items()
            for name, values in measures.items()
        }

    totals = gathered(run, sums_of)
    table: pd.DataFrame = pd.concat([_of_group(run, totals, group) for group in GROUPS], ignore_index=True)
    certain = (table["layer"] == run.n_layers) & (table["n_prompts"] > 1)
    for group, name in (("perturbed", "neither"), ("unperturbed", "both")):  # by what perturbed means
        table.loc[certain & (table["group"] == group), f"{name}_high"] = 0.0
    return totals.frame(table)


def half_step_curves(run: Records) -> pd.DataFrame:
    """One row per group (perturbed, unperturbed, all) and layer 1..L with the mean entropy between its two parts.

    Columns: group; layer; half_entropy, the mean of H(l-1/2) in nats, with `_low` and `_high` (95 %, prompts
    resampled). Layers without a state between their parts have NaN.

    Raises:
        RunError: the run was traced without `sublayers`, no layer has a half step, or no token can be counted.
    """

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        half = tokens.of(piece.layers(HALF_ENTROPY.name))
        return {group: tokens.per_prompt(half, among) for group, among in groups(piece, tokens).items()}

    totals = gathered(run, sums_of)
    if not totals["all"].counts.any():
        raise _no_half_step(run, "any layer")
    frames = []
    for group in GROUPS:
        names = (HALF_ENTROPY.name, f"{HALF_ENTROPY.name}_low", f"{HALF_ENTROPY.name}_high")
        columns: dict[str, Any] = {"group": group, "layer": np.arange(1, run.n_layers + 1)}
        frames.append(pd.DataFrame(columns | dict(zip(names, totals.estimate(totals[group]), strict=True))))
    return totals.frame(pd.concat(frames, ignore_index=True))


def _no_half_step(run: Records, where: str) -> RunError:
    return RunError(
        f"{run.path} has no half step in {where}: its blocks are parallel there, or their parts cannot be told apart",
        "trace a model whose blocks add attention and MLP one after the other",
        given=run.path,
    )


def _measures(entropy: Any, half: Any) -> dict[str, Any]:
    """The values of each token and layer that are averaged, [tokens, L]; NaN where the two halves are not known."""
    before = np.concatenate([np.full_like(entropy[:, :1], np.nan), entropy[:, :-1]], axis=1)
    known = ~(np.isnan(half) | np.isnan(before))
    in_attention, in_mlp = half > before, entropy > half
    measures = {"change": entropy - before, "attention": half - before, "mlp": entropy - half}
    flags = (in_attention & ~in_mlp, in_mlp & ~in_attention, in_attention & in_mlp, ~(in_attention | in_mlp))
    measures |= {name: flag.astype(np.float32) for name, flag in zip(RAISED_BY, flags, strict=True)}
    return {name: np.where(known, values, np.float32(np.nan)) for name, values in measures.items()}


def _of_group(run: Records, totals: Gathered, group: str) -> pd.DataFrame:
    columns: dict[str, Any] = {"group": group, "layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    for name in (*MEANS, *RAISED_BY):
        per_prompt = totals[f"{group} {name}"]
        if name in MEANS:
            estimate = totals.estimate(per_prompt)
        else:
            estimate = share_interval(per_prompt.sums, per_prompt.counts, totals.weights)
        columns |= dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
    counts = totals[f"{group} change"].counts
    columns |= {"n_tokens": counts.sum(axis=0).astype(np.int64), "n_prompts": (counts > 0).sum(axis=0)}
    table: pd.DataFrame = pd.DataFrame(columns)
    return table
