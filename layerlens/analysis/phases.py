"""Where reading in ends and writing out begins: three phases of layers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from layerlens.analysis.layers import layer_sums
from layerlens.analysis.sample import Gathered
from layerlens.analysis.uncertainty import Floats, interval, mean_interval, resampled_means
from layerlens.errors import OptionError, did_you_mean
from layerlens.records.reader import Records

MARGIN = 1.2
MIN_LAYERS = 8
MIN_QUARTER = 4
TENTH, QUARTER = 0.1, 0.25
"""Which share of the layers may be uneven: by the rule, and in the search for uneven layers that hide a phase."""

Ints = np.ndarray[Any, np.dtype[np.int64]]


def phases(run: Records, rule: str = "plateau") -> pd.DataFrame:
    """Three rows, phases I, II and III, with their layers, mean norm ratio and mean I/O cosine.

    Two rules divide the layers 1..L:

    - "plateau" reads the phases off the mean curves. The *height* of some layers, in a measure, is the largest value
      among them after the largest tenth of their values, at least one value, is left out. So one uneven layer decides
      nothing. A layer *stands out* of some layers when its mean norm ratio exceeds their height by a fifth, and its
      turn angle, arccos of the mean I/O cosine, does too. Both are needed, because a layer with a large ratio may only
      stretch the stream. First each measure is compared with the least height of any quarter of the layers in a row
      (rounded down, at least four layers). Phase I is the longest run of layers, from layer 1 on, that stand out of it.
      Phase III is the longest such run that ends at layer L. Then both are cut back until their layers stand out of all
      the layers between them. Either may be absent. With fewer than 8 layers a quarter of them is too few to compare
      with: all three phases are then absent, and `attrs["note"]` says why. Where a tenth to a quarter of the layers are
      uneven, such as layers with another kind of attention, they can hide a phase that stands out of all others.
      `attrs["note"]` then names these layers, and says which phases the rule finds without them.
    - "paper": I up to 0.15 L (rounded down), III from 0.95 L (rounded up), as in the text of arXiv 2606.21906; for
      fewer than 7 layers there is no phase I.

    Columns: phase; first and last layer, NA where the phase is absent; first_low and first_high, the 95 % interval of
    the first layer over those resamples of prompts in which the phase exists; share, the share of the resamples in
    which it exists; norm_ratio and io_cosine, means over tokens and the phase's layers, each with `_low` and `_high`;
    n_tokens; n_prompts. `attrs["rule"]` names the rule.

    Raises:
        OptionError: there is no rule of that name.
        RunError: no token of the run can be counted.
    """
    if rule not in _RULES:
        advice = did_you_mean(rule, _RULES, f"choose from {', '.join(_RULES)}")
        raise OptionError(f"there is no rule {rule!r} for phases", advice, option="rule", given=rule)
    totals = layer_sums(run, "norm_ratio", "io_cosine")
    ratios, cosines = ((totals[measure].sums, totals[measure].counts) for measure in ("norm_ratio", "io_cosine"))
    every = np.ones((1, totals.n_prompts))
    bounds = _RULES[rule](*(resampled_means(*measure, every) for measure in (ratios, cosines)))[0]
    drawn = _RULES[rule](*(resampled_means(*measure, totals.weights) for measure in (ratios, cosines)))
    rows = [_row(totals, index, bounds, drawn, {"norm_ratio": ratios, "io_cosine": cosines}) for index in range(3)]
    table = totals.frame(rows, layers=("first", "last", "first_low", "first_high"))
    table.attrs |= {"rule": rule}
    if table["first"].isna().all():
        table.attrs["note"] = (
            f"no phases: {run.n_layers} layers are too few to find a plateau; at least {MIN_LAYERS} are needed"
        )
    elif rule == "plateau":
        curves = (resampled_means(*measure, every)[0] for measure in (ratios, cosines))
        uneven, without = hidden_phases(*curves)
        if uneven:
            table.attrs["note"] = _hidden(uneven, without)
    return table


def hidden_phases(ratios: Floats, cosines: Floats) -> tuple[list[int], list[int]]:
    """The uneven layers that hide layers of phase I or III in mean curves, [L], and the bounds, [4], without them.

    A layer of the middle is uneven where it stands out once the largest quarter of the middle, in place of the largest
    tenth, is left out. More than a quarter of the layers cannot be uneven, because the middle consists of them. Both
    lists are empty where the phases without these layers are no longer than with them.
    """
    bounds, among = plateau_bounds(ratios, cosines), plateau_bounds(ratios, cosines, QUARTER)
    middle = slice(among[1], among[2])
    measures = _measures(ratios, cosines)[:, middle]
    heights = _height(measures, np.asarray(measures.shape[-1]), QUARTER)
    uneven = among[1] + np.flatnonzero((measures > MARGIN * heights[:, None]).all(axis=0))
    kept = np.setdiff1d(np.arange(len(ratios)), uneven)
    if len(kept) < MIN_LAYERS or len(kept) == len(ratios):
        return [], []
    _, first, last, _ = plateau_bounds(ratios[kept], cosines[kept])
    first, last = (kept[first - 1] + 1 if first else 0), (kept[last] if last < len(kept) else len(ratios))
    if first <= bounds[1] and last >= bounds[2]:
        return [], []
    return [int(layer) + 1 for layer in uneven], [0, int(first), int(last), len(ratios)]


def plateau_bounds(ratios: Floats, cosines: Floats, left_out: float = TENTH) -> Ints:
    """Bounds of the phases by the rule "plateau", [..., 4], from mean curves [..., L]; see `phases`.

    Phase k (from 0) is the layers bounds[k] + 1 .. bounds[k + 1]; it is absent where the two are equal. `left_out` is
    the share of layers that may be uneven.
    """
    layers = ratios.shape[-1]
    if layers < MIN_LAYERS:
        return np.zeros((*ratios.shape[:-1], 4), np.int64)
    measures = _measures(ratios, cosines)
    quarters = sliding_window_view(measures, max(MIN_QUARTER, layers // 4), axis=-1)
    heights = _height(quarters, np.asarray(quarters.shape[-1]), left_out).min(axis=-1, keepdims=True)
    first, last = np.full(ratios.shape[:-1], layers), np.zeros(ratios.shape[:-1], np.int64)
    while True:
        out = (measures > MARGIN * heights).all(axis=0)
        shorter = np.minimum(first, np.cumprod(out, axis=-1).sum(axis=-1))
        later = np.maximum(last, layers - np.cumprod(out[..., ::-1], axis=-1).sum(axis=-1))
        if (shorter == first).all() and (later == last).all():
            return np.stack([np.zeros_like(first), first, last, np.full_like(first, layers)], axis=-1)
        first, last = shorter, later
        at = np.arange(layers)
        between = (at >= first[..., None]) & (at < last[..., None])
        heights = _height(np.where(between, measures, -np.inf), last - first, left_out)[..., None]


def paper_bounds(ratios: Floats, cosines: Floats) -> Ints:
    """Bounds of the phases by the rule "paper", [..., 4] as in `plateau_bounds`; only the number of layers counts."""
    layers = ratios.shape[-1]
    last_of_one, first_of_three = 15 * layers // 100, -(-95 * layers // 100)
    bounds = np.array([0, last_of_one, first_of_three - 1, layers])
    return np.broadcast_to(bounds, (*ratios.shape[:-1], 4))


def _measures(ratios: Floats, cosines: Floats) -> Floats:
    """Norm ratio and turn angle, [2, ..., L]."""
    return np.stack([ratios, np.arccos(np.clip(cosines, -1, 1))])


def _height(values: Floats, n_layers: Ints, left_out: float) -> Floats:
    """The largest value of n layers, [...] from [..., layers], once the largest share, at least one, is left out.

    Values of layers that are not among the n are minus infinity.
    """
    n_out = np.maximum(1, (n_layers * left_out).astype(np.int64))[..., None]
    at = np.broadcast_to(values.shape[-1] - 1 - n_out, (*values.shape[:-1], 1))
    return np.asarray(np.take_along_axis(np.sort(values, axis=-1), at, axis=-1)[..., 0])


def _row(totals: Gathered, index: int, bounds: Ints, drawn: Ints, measures: dict[str, Any]) -> dict[str, Any]:
    before, last = int(bounds[index]), int(bounds[index + 1])
    there = drawn[:, index] < drawn[:, index + 1]
    exists = before < last
    low, high = interval(np.where(there, drawn[:, index] + 1.0, np.nan), totals.n_prompts if exists else 0)
    row: dict[str, Any] = {
        "phase": ("I", "II", "III")[index],
        "first": before + 1 if exists else pd.NA,
        "last": last if exists else pd.NA,
        "first_low": _whole(np.floor(low)),
        "first_high": _whole(np.ceil(high)),
        "share": float(there.mean()),
    }
    for name, (sums, counts) in measures.items():
        inside = [part[:, before:last].sum(axis=1) for part in (sums, counts)]
        mean, below, above = mean_interval(inside[0], inside[1], totals.weights)
        row |= {name: float(mean), f"{name}_low": float(below), f"{name}_high": float(above)}
    return row | {"n_tokens": totals.n_tokens, "n_prompts": totals.n_prompts}


def _hidden(uneven: list[int], without: list[int]) -> str:
    """The note of `phases` on uneven layers."""
    spans = []
    for phase, before, last in zip(("I", "II", "III"), without, without[1:], strict=False):
        if before < last:
            spans.append(f"{phase} {f'layers {before + 1}–{last}' if before + 1 < last else f'layer {last}'}")
    names = ", ".join(map(str, uneven))
    those = (
        f"layers {names} stand out of the middle and hide a phase"
        if uneven[1:]
        else f"layer {names} stands out of the middle and hides a phase"
    )
    return f"{those}; without {'these layers' if uneven[1:] else 'it'} the rule finds {', '.join(spans)}"


def _whole(value: Any) -> Any:
    return pd.NA if np.isnan(value) else int(value)


_RULES: dict[str, Callable[[Floats, Floats], Ints]] = {"plateau": plateau_bounds, "paper": paper_bounds}
