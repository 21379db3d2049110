"""Where reading in ends and writing out begins: three phases of layers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from layerlens.analysis.layers import layer_sums
from layerlens.analysis.sample import Gathered
from layerlens.analysis.uncertainty import Floats, interval, mean_interval, resampled_means
from layerlens.errors import OptionError

if TYPE_CHECKING:
    from layerlens.run import Run

MARGIN = 1.2
MIN_LAYERS = 8
MIN_QUARTER = 4

Ints = np.ndarray[Any, np.dtype[np.int64]]


def phases(run: "Run", rule: str = "plateau") -> pd.DataFrame:
    """Three rows, phases I, II and III, with their layers, mean norm ratio and mean I/O cosine.

    Two rules divide the layers 1..L:

    - "plateau" reads the phases off the mean curves. The *height* of some layers, in a measure, is the largest value
      among them once the largest tenth of their values, and at least one, is left out, so that one uneven layer decides
      nothing. A layer *stands out* of some layers when its mean norm ratio exceeds their height by a fifth and its turn
      angle, arccos of the mean I/O cosine, does so too. Both are asked for because a ratio alone may only stretch the
      stream. At first each measure is compared with the least height of any quarter of the layers in a row (rounded
      down, at least four layers): phase I is the longest run of layers from layer 1 on that stand out of it, phase III
      the longest that ends at layer L. Then both are cut back until their layers stand out of all the layers between
      them. Either may be absent. With fewer than 8 layers a quarter says nothing: all three phases are then absent and
      `attrs["note"]` says why.
    - "paper": I up to 0.15 L (rounded down), III from 0.95 L (rounded up), as in the text of arXiv 2606.21906; for
      fewer than 7 layers there is no phase I.

    Columns: phase; first and last layer, NA where the phase is absent; first_low and first_high, the 95 % interval of
    the boundary over resamples of prompts in which the phase exists; share, of the resamples in which it exists;
    norm_ratio and io_cosine, means over tokens and the phase's layers, each with `_low` and `_high`; n_tokens;
    n_prompts. `attrs["rule"]` names the rule.

    Raises:
        OptionError: no rule of that name.
        RunError: no token of the run can be counted.
    """
    if rule not in _RULES:
        raise OptionError(f"there is no rule {rule!r} for phases; choose from {', '.join(_RULES)}")
    found = layer_sums(run, "norm_ratio", "io_cosine")
    ratios, cosines = ((found[measure].sums, found[measure].counts) for measure in ("norm_ratio", "io_cosine"))
    every = np.ones((1, found.n_prompts))
    bounds = _RULES[rule](*(resampled_means(*measure, every) for measure in (ratios, cosines)))[0]
    drawn = _RULES[rule](*(resampled_means(*measure, found.weights) for measure in (ratios, cosines)))
    rows = [_row(found, index, bounds, drawn, {"norm_ratio": ratios, "io_cosine": cosines}) for index in range(3)]
    table = found.frame(rows, layers=("first", "last", "first_low", "first_high"))
    table.attrs |= {"rule": rule}
    if table["first"].isna().all():
        table.attrs |= {
            "note": f"{run.n_layers} layers are too few to tell a plateau: at least {MIN_LAYERS} are needed"
        }
    return table


def plateau_bounds(ratios: Floats, cosines: Floats) -> Ints:
    """Bounds of the phases by the rule "plateau", [..., 4], from mean curves [..., L]; see `phases`.

    Phase k (from 0) is the layers bounds[k] + 1 .. bounds[k + 1]; it is absent where the two are equal.
    """
    layers = ratios.shape[-1]
    if layers < MIN_LAYERS:
        return np.zeros((*ratios.shape[:-1], 4), np.int64)
    measures = np.stack([ratios, np.arccos(np.clip(cosines, -1, 1))])
    quarters = sliding_window_view(measures, max(MIN_QUARTER, layers // 4), axis=-1)
    heights = _height(quarters, np.asarray(quarters.shape[-1])).min(axis=-1, keepdims=True)
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
        heights = _height(np.where(between, measures, -np.inf), last - first)[..., None]


def paper_bounds(ratios: Floats, cosines: Floats) -> Ints:
    """Bounds of the phases by the rule "paper", [..., 4] as in `plateau_bounds`; only the number of layers counts."""
    layers = ratios.shape[-1]
    last_of_one, first_of_three = 15 * layers // 100, -(-95 * layers // 100)
    bounds = np.array([0, last_of_one, first_of_three - 1, layers])
    return np.broadcast_to(bounds, (*ratios.shape[:-1], 4))


def _height(values: Floats, n_layers: Ints) -> Floats:
    """The largest of the n layers' values, [...] from [..., layers], less a tenth of them and at least one.

    Values of layers that are not among the n are minus infinity.
    """
    left_out = np.maximum(1, n_layers // 10)[..., None]
    at = np.broadcast_to(values.shape[-1] - 1 - left_out, (*values.shape[:-1], 1))
    return np.asarray(np.take_along_axis(np.sort(values, axis=-1), at, axis=-1)[..., 0])


def _row(found: Gathered, index: int, bounds: Ints, drawn: Ints, measures: dict[str, Any]) -> dict[str, Any]:
    before, last = int(bounds[index]), int(bounds[index + 1])
    there = drawn[:, index] < drawn[:, index + 1]
    exists = before < last
    low, high = interval(np.where(there, drawn[:, index] + 1.0, np.nan), found.n_prompts if exists else 0)
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
        mean, below, above = mean_interval(inside[0], inside[1], found.weights)
        row |= {name: float(mean), f"{name}_low": float(below), f"{name}_high": float(above)}
    return row | {"n_tokens": found.n_tokens, "n_prompts": found.n_prompts}


def _whole(value: Any) -> Any:
    return pd.NA if np.isnan(value) else int(value)


_RULES: dict[str, Callable[[Floats, Floats], Ints]] = {"plateau": plateau_bounds, "paper": paper_bounds}
