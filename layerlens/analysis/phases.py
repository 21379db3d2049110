"""Where reading in ends and writing out begins: three phases of layers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.layers import layer_sums
from layerlens.analysis.sample import Gathered
from layerlens.analysis.uncertainty import Floats, interval, mean_interval, resampled_means
from layerlens.errors import OptionError

if TYPE_CHECKING:
    from layerlens.run import Run

MARGIN = 1.2
MIN_LAYERS = 8

Ints = np.ndarray[Any, np.dtype[np.int64]]


def phases(run: "Run", rule: str = "plateau") -> pd.DataFrame:
    """Three rows, phases I, II and III, with their layers, mean norm ratio and mean I/O cosine.

    Two rules divide the layers 1..L:

    - "plateau" reads the phases off the mean curves. The middle half of the layers, those with
      L/4 < l <= L - L/4 (rounded down), is the plateau. A layer is *off* the plateau when its mean norm ratio exceeds
      the largest of the middle half by a fifth and its turn angle, arccos of the mean I/O cosine, does so too. Both are
      asked for because a ratio alone may only stretch the stream. Phase I is the longest run of layers off the plateau
      from layer 1 on, phase III the longest that ends at layer L; either may be absent, and neither reaches into the
      middle half. With fewer than 8 layers that half says nothing: all three phases are then absent and
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
    turns = np.arccos(np.clip(cosines, -1, 1))
    off = _beyond_middle(ratios) & _beyond_middle(turns)
    first = np.cumprod(off, axis=-1).sum(axis=-1)
    last = layers - np.cumprod(off[..., ::-1], axis=-1).sum(axis=-1)
    return np.stack([np.zeros_like(first), first, last, np.full_like(first, layers)], axis=-1)


def paper_bounds(ratios: Floats, cosines: Floats) -> Ints:
    """Bounds of the phases by the rule "paper", [..., 4] as in `plateau_bounds`; only the number of layers counts."""
    layers = ratios.shape[-1]
    last_of_one, first_of_three = 15 * layers // 100, -(-95 * layers // 100)
    bounds = np.array([0, last_of_one, first_of_three - 1, layers])
    return np.broadcast_to(bounds, (*ratios.shape[:-1], 4))


def _beyond_middle(values: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    quarter = values.shape[-1] // 4
    middle = values[..., quarter : values.shape[-1] - quarter]
    return np.asarray(values > MARGIN * middle.max(axis=-1, keepdims=True))


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
