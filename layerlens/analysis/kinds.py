"""Whether the entropy jumps where one kind of layer follows another: the type noise of Appendix E."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.layers import layer_kinds
from layerlens.analysis.phases import phases
from layerlens.analysis.sample import Bools, Gathered, PerPrompt, Sample, gathered
from layerlens.analysis.uncertainty import Floats, effective_prompts, holding, interval, resampled_means
from layerlens.analysis.valleys import onset_layers
from layerlens.errors import RunError
from layerlens.records.reader import Records


def kind_jumps(run: Records) -> pd.DataFrame:
    """Three rows per stretch of layers: how much the entropy jumps between kinds, within a kind, and the difference.

    A transition l-1 -> l lies *between kinds* where the manifest's layer_kinds of the two differ. Only transitions
    whose two layers both lie in the stretch count, so that the first and last layers do not matter. The stretch is
    "phase II", the plateau of `phases`, or "all layers" where `phases` finds no plateau. Where the mean curve of all
    tokens has a V_onset inside that stretch (see `valleys`), there is a second stretch, "plateau". It ends at V_onset,
    because the entropy changes at every layer of the descent after it. All traced tokens count.

    Columns: stretch, with its first and last layer; transitions ("between kinds", "within a kind" or "difference", the
    first less the second); n_transitions of the sort, of both for the difference; jump_of_means, |mean H(l) - mean
    H(l-1)| averaged over the transitions; mean_jump, |H(l) - H(l-1)| averaged over tokens and transitions; both in nats
    with `_low` and `_high` (95 %, prompts resampled), NaN where there is no such transition; n_tokens; n_prompts. Noise
    increases an absolute value. So jumps of few tokens come out too large, but their difference hardly does.

    Raises:
        RunError: no token of the run can be counted, or all layers of the model are of one kind.
    """
    kinds = np.array(layer_kinds(run))
    if len(set(kinds)) < 2:
        raise RunError(
            f"every layer of {run.path} is of the kind {str(kinds[0])!r}",
            "trace a model that mixes two, such as qwen3_5 (linear and full attention) or gemma3 (sliding and full)",
            given=run.path,
        )
    totals = gathered(run, _entropies_and_jumps)
    levels, steps = ((totals[name].sums, totals[name].counts) for name in ("levels", "steps"))
    rows = []
    for stretch, (first, last) in _stretches(run, totals, levels).items():
        place = {"stretch": stretch, "first": first, "last": last}
        inside = (np.arange(1, run.n_layers) >= first) & (np.arange(1, run.n_layers) < last)
        rows += [place | row for row in _rows(totals, levels, steps, kinds[1:] != kinds[:-1], inside)]
    return totals.frame(rows)


Sums = tuple[Floats, Floats]


def _entropies_and_jumps(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
    entropy = tokens.of(piece.layers("entropy"))
    return {"levels": tokens.per_prompt(entropy), "steps": tokens.per_prompt(np.abs(np.diff(entropy, axis=1)))}


def _stretches(run: Records, totals: Gathered, levels: Sums) -> dict[str, tuple[int, int]]:
    """First and last layer of each stretch, by name."""
    middle = phases(run).set_index("phase").loc["II"]
    name, bounds = "all layers", (1, run.n_layers)
    if not pd.isna(middle["first"]):
        name, bounds = "phase II", (int(middle["first"]), int(middle["last"]))
    curve = resampled_means(*levels, np.ones((1, totals.n_prompts)))[0]
    onset = float(onset_layers(curve, float(np.log(run.manifest["model"]["n_vocab"]))))
    if bounds[0] < onset < bounds[1]:
        return {name: bounds, "plateau": (bounds[0], int(onset))}
    return {name: bounds}


def _rows(totals: Gathered, levels: Sums, steps: Sums, changes: Bools, inside: Bools) -> list[dict[str, Any]]:
    weights = np.concatenate([np.ones((1, totals.n_prompts)), totals.weights])  # the first is the estimate
    jumps = {
        "jump_of_means": np.abs(np.diff(resampled_means(*levels, weights), axis=1)),
        "mean_jump": resampled_means(*steps, weights),
    }
    sorts = {"between kinds": inside & changes, "within a kind": inside & ~changes}
    drawn = {
        sort: {name: _mean_of(values[:, chosen]) for name, values in jumps.items()} for sort, chosen in sorts.items()
    }
    between, within = drawn.values()
    drawn["difference"] = {name: between[name] - within[name] for name in jumps}
    n_prompts = int(effective_prompts(levels[1]).min())
    rows = []
    for sort, measures in drawn.items():
        row: dict[str, Any] = {"transitions": sort, "n_transitions": int(sorts.get(sort, inside).sum())}
        for name, values in measures.items():
            low, high = holding(values[0], *interval(values[1:], n_prompts))
            row |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row | {"n_tokens": totals.n_tokens, "n_prompts": totals.n_prompts})
    return rows


def _mean_of(values: Floats) -> Floats:
    """The mean of each row, [resamples]; NaN where rows are empty."""
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)
