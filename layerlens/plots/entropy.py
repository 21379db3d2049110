"""How sure the model would be after each layer, by group of tokens (Figures 4 and 6 of arXiv 2606.21906)."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory

from layerlens.analysis import entropy_curves, half_step_curves, partition, valleys
from layerlens.analysis.valleys import marks_shown
from layerlens.plots import style
from layerlens.plots.dynamics import name_phases, phase_of_layers
from layerlens.records.reader import Records
from layerlens.records.schema import HALF_ENTROPY

GROUPS = ("perturbed", "unperturbed")
ZOOM_LAYERS = 5

_HEADROOM = 1.14  # for the names of phases
_ZOOM = (0.38, 0.0, 0.6, 0.88)  # enlarged layers: inches to their left and across; lower edge and height as shares

_COLOURS = {"perturbed": style.PERTURBED, "unperturbed": style.UNPERTURBED}
_DASHES: dict[str, Any] = {"V_onset": (0, (1, 1.2)), "V*": (0, (3, 1.5))}


def entropy_table(run: Records, half_steps: bool = False) -> pd.DataFrame:
    """One row per group (perturbed, unperturbed) and layer 1..L with everything Figure 4 draws.

    Columns: group; layer; kind; entropy in nats with `_low`, `_high` and `_sd`; n_tokens; n_prompts; phase (NA where
    the rule "plateau" finds none); mark, which is "V_onset", "V*" (the lowest layer of the final rise) or, where
    another layer is lower, "lowest", at that layer of the group's own curve, and NA elsewhere; share of all tokens in
    the group with share_low and share_high. With half steps also half_entropy, the mean between attention and MLP of
    the layer in nats, with `_low` and `_high`; NaN where the layer has no such state.

    Raises:
        RunError: no token can be counted, the model has a single layer, or half steps are asked for and the run has
            none.
    """
    shares = partition(run)[["group", "share", "share_low", "share_high"]]
    marks = marks_shown(valleys(run)).dropna(subset="layer")[["group", "layer", "mark"]]
    marks = marks.groupby(["group", "layer"], as_index=False).agg({"mark": " ".join})
    curves = entropy_curves(run)
    curves = curves[curves["group"].isin(GROUPS)]
    phase = pd.DataFrame({"layer": range(1, run.n_layers + 1), "phase": phase_of_layers(run)})
    table = curves.merge(phase, on="layer", how="left").merge(marks, on=["group", "layer"], how="left")
    drawn: pd.DataFrame = table.merge(shares, on="group", how="left")
    return drawn.merge(half_step_curves(run), on=["group", "layer"], how="left") if half_steps else drawn


def draw_entropy(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with one group's mean entropy against layer; `table` holds the rows of that group only.

    It draws the mean, its 95 % interval, one standard deviation over tokens (cut at 0), V_onset, V*, the lowest layer
    (where it is not V*), phases and full-attention layers. The legend gives the layers of the marks, and says which
    marks the curve lacks. In models of more than seven layers, the last five are enlarged to the right of the axes. If
    the table has half steps, they are circles half a layer before each layer, joined by a thin line.
    """
    first = table.iloc[0]
    kinds = list(table["kind"])
    ax.set_title(_title(first), loc="left")
    style.layer_axis(ax, len(table))
    style.band_full_attention(ax, kinds)
    ax.set_ylabel("entropy (nats)")
    if not first["n_tokens"]:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no such token", transform=ax.transAxes, ha="center", va="center", color=style.GREY)
        return ax
    handles = _curve(table, ax)
    highest = [table["entropy"] + table["entropy_sd"], table["entropy_high"]]
    highest += [table[HALF_ENTROPY.name]] if HALF_ENTROPY.name in table else []
    top = float(pd.concat(highest).max()) or 1.0
    style.value_axis(ax, top, _HEADROOM * top)
    if len(table) > ZOOM_LAYERS + 2:
        _zoom(table, ax)
    _tint_phases(table, ax)
    name_phases(table["phase"].tolist(), ax)
    if style.mixes_kinds(kinds):
        handles.append(style.full_attention_key())
    handles += _draw_marks(table, ax)
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.06, -0.24), ncols=2)
    return ax


def _title(row: Any) -> str:
    noun = "token" if row["n_tokens"] == 1 else "tokens"
    text = f"{row['group'].capitalize()}: {row['n_tokens']:,} {noun}, {100 * row['share']:.1f} %"
    if not row["share_low"] < row["share_high"]:  # a single prompt, or all tokens
        return text
    return f"{text} (95 %: {100 * row['share_low']:.1f}–{100 * row['share_high']:.1f})"


def _curve(table: pd.DataFrame, ax: Axes, *, with_sd: bool = True) -> list[Any]:
    x, mean, sd = table["layer"], table["entropy"], table["entropy_sd"]
    look: dict[str, Any] = {"color": _COLOURS[str(table["group"].iloc[0])]}
    handles: list[Any] = ax.plot(x, mean, label="mean", zorder=3, **look)
    look["linewidth"] = 0
    if with_sd and (sd > 0).any():
        below, above = (mean - sd).clip(lower=0), mean + sd
        handles.append(ax.fill_between(x, below, above, alpha=0.18, label="± 1 sd", zorder=1, **look))
    low, high = table["entropy_low"], table["entropy_high"]
    if (high > low).any():
        handles.append(ax.fill_between(x, low, high, alpha=0.45, label="95 % interval", zorder=2, **look))
    return handles + _half_steps(table, ax)


def _half_steps(table: pd.DataFrame, ax: Axes) -> list[Any]:
    """Circles between attention and MLP of each layer, and a line through them and the layers, if there are any."""
    if HALF_ENTROPY.name not in table or table[HALF_ENTROPY.name].isna().all():
        return []
    steps = np.column_stack([table["layer"] - 0.5, table[HALF_ENTROPY.name], table["layer"], table["entropy"]])
    look: dict[str, Any] = {"color": "0.25", "linewidth": 0.5, "marker": "o", "markevery": 2, "markersize": 2}
    look |= {"markerfacecolor": "white", "markeredgewidth": 0.5, "zorder": 3.5}
    handles: list[Any] = ax.plot(*steps.reshape(-1, 2).T, label="half steps", **look)
    return handles


def _tint_phases(table: pd.DataFrame, ax: Axes) -> None:
    for name, tint in style.PHASE_TINTS.items():
        inside = table["layer"][table["phase"] == name]
        if len(inside):
            ax.axvspan(inside.min() - 0.5, inside.max() + 0.5, color=tint, alpha=0.25, linewidth=0, zorder=0.5)


def _draw_marks(table: pd.DataFrame, ax: Axes) -> list[Any]:
    """Draw upright lines at V_onset and V*, and a ring at the lowest layer if it is not V*; returns legend entries."""
    group, handles = table["group"].iloc[0], list[Any]()
    for mark, dashes in _DASHES.items():
        layers = _marked(table, mark)["layer"]
        look: dict[str, Any] = {"color": "black", "linestyle": dashes, "linewidth": 0.8}
        if layers.empty:
            handles += ax.plot([], [], linestyle="", label=f"no {mark} of {group} tokens")
        else:
            label = f"{mark} of {group} tokens: {layers.iloc[0]}"
            handles.append(ax.axvline(int(layers.iloc[0]), label=label, **look))
    return handles + _draw_lowest(table, ax)


def _draw_lowest(table: pd.DataFrame, ax: Axes) -> list[Any]:
    """Draw a ring at the lowest layer if it is not V*."""
    look: dict[str, Any] = {"markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black", "zorder": 4}
    marked = _marked(table, "lowest")
    places = zip(marked["layer"], marked["entropy"], strict=True)
    return [ax.plot(layer, entropy, "o", label=f"lowest layer: {layer}", **look)[0] for layer, entropy in places]


def _marked(table: pd.DataFrame, mark: str) -> pd.DataFrame:
    marked: pd.DataFrame = table[table["mark"].fillna("").str.split(" ").map(lambda here: mark in here)]
    return marked


def _zoom(table: pd.DataFrame, ax: Axes) -> None:
    last = table.tail(ZOOM_LAYERS)
    inset = ax.inset_axes(_ZOOM, transform=_right_of(ax))
    _curve(last, inset, with_sd=False)  # which would flatten what is enlarged
    low, high = (last[f"entropy{end}"].fillna(last["entropy"]) for end in ("_low", "_high"))
    if HALF_ENTROPY.name in last:
        low, high = (pd.concat([end, last[HALF_ENTROPY.name]]) for end in (low, high))
    room = 0.08 * float(high.max() - low.min()) or 0.1
    inset.set_ylim(max(0.0, float(low.min()) - room), float(high.max()) + room)
    inset.set_xticks([int(last["layer"].iloc[0]), int(last["layer"].iloc[-1])])
    inset.tick_params(labelsize=6.5, pad=1.5, length=2)
    inset.locator_params(axis="y", nbins=5)
    inset.set_title("last layers", fontsize=6.5, pad=2, color=style.GREY)
    for mark, dashes in _DASHES.items():
        for at in _marked(last, mark)["layer"]:
            inset.axvline(at, color="black", linestyle=dashes, linewidth=0.8)
    _draw_lowest(last, inset)


def _right_of(ax: Axes) -> Transform:
    """A transform with inches from the right edge across, and shares of the axes upwards.

    What is placed with it has a width before the axes have one. A layout that makes room for it needs to know this.
    """
    edge = ScaledTranslation(1, 0, ax.transAxes)  # type: ignore[arg-type]  # as matplotlib's own examples do
    return blended_transform_factory(ax.figure.dpi_scale_trans + edge, ax.transAxes)
