"""Where the mean entropy curve leaves its plateau, where its final rise begins, and where it is lowest."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.layers import entropy_by_group
from layerlens.analysis.sample import Prompts
from layerlens.analysis.uncertainty import Floats, interval, mean_interval, resampled_means
from layerlens.records.reader import Records

CLIMB = 0.01
BAND = 0.1
BUMP = 0.05
MIN_LAYERS = 8


def valleys(run: Records) -> pd.DataFrame:
    """Nine rows: V_onset, V* and the lowest layer of the mean entropy curves of perturbed, unperturbed and all tokens.

    The paper names these layers without a formula. The rules here, on a mean curve m(1..L):

    - V* is the lowest layer of the final rise. The rise is followed from layer L backwards, for as long as the curve
      does not climb by more than 1 % of its range above the lowest value met so far. Where that lowest value is m(L)
      itself there is no V*. A layer before the final rise can be lower still. It is called "lowest": the layer of the
      curve's least value, or the last of several that have it. Perturbed tokens are *selected* for m(L) > m(L-1), so it
      says nothing that they have a V*. Where it lies says something.
    - V_onset is the corner between a high plateau and the descent to V* (to L where there is no V*). The drop is the
      highest value up to the end of the descent, less the value at that end. The plateau is the last unbroken run of
      layers that are within a tenth of the drop below the highest value. The corner is the layer that lies farthest
      above the straight line from the first layer of the plateau to the end of the descent. There is a V_onset only
      where all of this holds: L is at least 8; the plateau has at least a quarter of the L layers; its highest value is
      at least half of ln V; the drop is at least a quarter of ln V; and from the corner on, the curve never climbs by
      more than a twentieth of the drop above its lowest value so far.

    Columns: group; mark ("V_onset", "V*" or "lowest"); layer, NA where there is none; layer_low and layer_high, the
    95 % interval over the resamples of prompts that have it; share, of the resamples that have it; entropy there (nats)
    with entropy_low and entropy_high; n_tokens and n_prompts of the group.

    Raises:
        RunError: no token of the run can be counted.
    """
    totals = entropy_by_group(run)
    ceiling = float(np.log(run.manifest["model"]["n_vocab"]))
    rows = []
    for group, per_prompt in totals.by_name.items():
        rows += _rows(totals, group, per_prompt.sums, per_prompt.counts, ceiling)
    return totals.frame(rows, layers=("layer", "layer_low", "layer_high"))


def marks_shown(valleys: pd.DataFrame) -> pd.DataFrame:
    """The rows of `valleys` to print: "lowest" only where the group has a V* at another layer."""
    of_group = valleys[valleys["mark"] == "V*"].set_index("group")["layer"]
    rise = valleys["group"].map(of_group)
    other = (rise != valleys["layer"]).fillna(False).astype(bool)
    shown: pd.DataFrame = valleys[(valleys["mark"] != "lowest") | other]
    return shown


def valley_layers(curves: Floats) -> Floats:
    """V* of each mean curve, [...] from [..., L]: a layer in 1..L-1, or NaN where there is none; see `valleys`."""
    back = curves[..., ::-1]
    allowed = CLIMB * np.ptp(curves, axis=-1, keepdims=True)
    lowest = np.minimum.accumulate(back, axis=-1)
    rising = np.logical_and.accumulate(back <= lowest + allowed, axis=-1)
    steps = np.argmin(np.where(rising, back, np.inf), axis=-1)
    return np.asarray(np.where(steps > 0, curves.shape[-1] - steps, np.nan))


def lowest_layers(curves: Floats) -> Floats:
    """The layer of each mean curve's least value, [...] from [..., L], the last of equals; NaN where one is NaN."""
    lowest = curves.shape[-1] - np.argmin(curves[..., ::-1], axis=-1)
    return np.asarray(np.where(np.isnan(curves).any(axis=-1), np.nan, lowest))


def onset_layers(curves: Floats, ceiling: float) -> Floats:
    """V_onset of each mean curve, [...] from [..., L], or NaN where there is none; ceiling is ln V. See `valleys`."""
    flat = curves.reshape(-1, curves.shape[-1])
    ends = np.nan_to_num(valley_layers(flat), nan=flat.shape[1]).astype(int)
    corners = [_onset(curve[:end], ceiling, len(curve)) for curve, end in zip(flat, ends, strict=True)]
    onsets: Floats = np.asarray(corners, dtype=np.float64).reshape(curves.shape[:-1])
    return onsets


def _onset(curve: Floats, ceiling: float, n_layers: int) -> float:
    """V_onset of a curve that is cut off after the end of its descent; NaN where there is none."""
    highest = curve.max()
    drop = highest - curve[-1]
    if n_layers < MIN_LAYERS or not (highest >= ceiling / 2 and drop >= ceiling / 4):
        return np.nan
    on_plateau = curve >= highest - BAND * drop
    last = int(np.flatnonzero(on_plateau)[-1])
    length = int(np.logical_and.accumulate(on_plateau[last::-1]).sum())
    first = last - length + 1
    line = np.linspace(curve[first], curve[-1], len(curve) - first)
    corner = first + int(np.argmax(curve[first:] - line))
    descent = curve[corner:]
    climbs = bool((descent > np.minimum.accumulate(descent) + BUMP * drop).any())
    return np.nan if climbs or length < n_layers / 4 else corner + 1.0


def _rows(prompts: Prompts, group: str, sums: Floats, counts: Floats, ceiling: float) -> list[dict[str, Any]]:
    curve = resampled_means(sums, counts, np.ones((1, prompts.n_prompts)))
    drawn = resampled_means(sums, counts, prompts.weights)
    n_prompts = int((counts[:, 0] > 0).sum())
    estimates = {"V_onset": (onset_layers(curve, ceiling), onset_layers(drawn, ceiling))}
    estimates |= {"V*": (valley_layers(curve), valley_layers(drawn))}
    estimates |= {"lowest": (lowest_layers(curve), lowest_layers(drawn))}
    rows = []
    for mark, (estimate, draws) in estimates.items():
        exists = not np.isnan(estimate[0])
        low, high = interval(draws, n_prompts if exists else 0)
        at = int(estimate[0]) - 1 if exists else 0
        entropy = [
            float(value) if exists else np.nan for value in mean_interval(sums[:, at], counts[:, at], prompts.weights)
        ]
        rows.append(
            {
                "group": group,
                "mark": mark,
                "layer": at + 1 if exists else pd.NA,
                "layer_low": pd.NA if np.isnan(low) else int(np.floor(low)),
                "layer_high": pd.NA if np.isnan(high) else int(np.ceil(high)),
                "share": float(np.mean(~np.isnan(draws))),
                **dict(zip(("entropy", "entropy_low", "entropy_high"), entropy, strict=True)),
                "n_tokens": int(counts[:, 0].sum()),
                "n_prompts": n_prompts,
            }
        )
    return rows
