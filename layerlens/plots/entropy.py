"""How sure the model would be after each layer, perturbed tokens or not (Figures 4 and 6 of arXiv 2606.21906)."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerlens.analysis import entropy_curves, half_step_curves, partition, valleys
from layerlens.analysis.valleys import marks_shown
from layerlens.plots import style
from layerlens.plots.dynamics import name_phases, phase_of_layers
from layerlens.records.reader import Records
from layerlens.records.schema import HALF_ENTROPY

GROUPS = ("perturbed", "unperturbed")
ZOOM_LAYERS = 5
HEADROOM = 1.38

Place = tuple[float, float, float, float]

_COLOURS = {"perturbed": style.PERTURBED, "unperturbed": style.UNPERTURBED}
_SIGNS = {"V_onset": (r"$V_\mathrm{onset}$", ""), "V*": ("$V^*$", ", lowest of the final rise")}


def entropy_table(run: Records, half_steps: bool = False) -> pd.DataFrame:
    """One row per group (perturbed, unperturbed) and layer 1..L with everything Figure 4 draws.

    Columns: group; layer; kind; entropy in nats with `_low`, `_high` and `_sd`; n_tokens; n_prompts; phase (NA
    where the rule "plateau" finds none); mark, "V_onset", "V*" (the lowest layer of the final rise) or, where another
    layer is lower, "lowest", at the layer of the group's own curve that has it, else NA; share of all tokens in the
    group with share_low and share_high. With half steps also half_entropy, the mean between attention and MLP of the
    layer in nats, with `_low` and `_high`; NaN where the layer has no such state.

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

    Drawn: the mean, its 95 % interval and one standard deviation over tokens (cut at 0), V_onset and V* where there
    are any and a word where there are none, the lowest layer where that is not V*, phases, full-attention layers, and
    the last five layers enlarged. Where the table has half steps, circles half a layer before each layer, and a thin
    line from step to step.
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
    zooms = len(table) > ZOOM_LAYERS + 2
    place, room = _free_place(table, HEADROOM * top) if zooms else (None, HEADROOM * top)
    style.value_axis(ax, top, room)
    if place:
        _zoom(table, ax, place)
    _tint_phases(table, ax)
    name_phases(table["phase"].tolist(), ax)
    _draw_marks(table, ax)
    handles += _draw_lowest(table, ax)
    if style.mixes_kinds(kinds):
        handles.append(style.full_attention_key())
    columns = 3 if HALF_ENTROPY.name in table and len(handles) > 4 else len(handles)  # more are wider than the page
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.47, -0.2), ncols=columns)
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
    """Circles between attention and MLP of each layer, and a line through them and the layers; none without any."""
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


def _draw_marks(table: pd.DataFrame, ax: Axes) -> None:
    across, missing = ax.get_xaxis_transform(), []
    for (mark, (sign, meaning)), height in zip(_SIGNS.items(), (0.79, 0.87), strict=True):
        layers = _marked(table, mark)["layer"]
        if layers.empty:
            missing.append((sign, height))
            continue
        at = int(layers.iloc[0])
        side = "right" if at > 0.55 * len(table) else "left"
        ax.plot([at, at], [0, height + 0.03], transform=across, color="black", linestyle=(0, (2, 1.5)), linewidth=0.8)
        ax.annotate(
            f"{sign} = {at}{meaning}",
            (at, height + 0.05),
            xycoords=across,
            xytext=(-2 if side == "right" else 2, 0),
            textcoords="offset points",
            ha=side,
            va="top",
            fontsize=7,
        )
    if missing:
        text, height = "no " + ", no ".join(sign for sign, _ in missing), missing[0][1]
        ax.text(0.02, height + 0.05, text, transform=ax.transAxes, va="top", color=style.GREY, fontsize=6.5)


def _draw_lowest(table: pd.DataFrame, ax: Axes) -> list[Any]:
    """A ring at the lowest layer where that is not V*."""
    look: dict[str, Any] = {"markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black", "zorder": 4}
    marked = _marked(table, "lowest")
    places = zip(marked["layer"], marked["entropy"], strict=True)
    return [ax.plot(layer, entropy, "o", label=f"lowest: layer {layer}", **look)[0] for layer, entropy in places]


def _marked(table: pd.DataFrame, mark: str) -> pd.DataFrame:
    marked: pd.DataFrame = table[table["mark"].fillna("").str.split(" ").map(lambda here: mark in here)]
    return marked


def _zoom(table: pd.DataFrame, ax: Axes, place: Place) -> None:
    last = table.tail(ZOOM_LAYERS)
    inset = ax.inset_axes(place, zorder=5)
    _curve(last, inset, with_sd=False)  # which would flatten what the inset is there to show
    low, high = (last[f"entropy{end}"].fillna(last["entropy"]) for end in ("_low", "_high"))
    if HALF_ENTROPY.name in last:
        low, high = (pd.concat([end, last[HALF_ENTROPY.name]]) for end in (low, high))
    room = 0.08 * float(high.max() - low.min()) or 0.1
    inset.set_ylim(max(0.0, float(low.min()) - room), float(high.max()) + room)
    inset.set_xticks([int(last["layer"].iloc[0]), int(last["layer"].iloc[-1])])
    inset.tick_params(labelsize=6, pad=1.5, length=2)
    inset.locator_params(axis="y", nbins=3)
    inset.set_title("last five layers", fontsize=6, pad=2, color=style.GREY)
    for mark in _SIGNS:
        for at in _marked(last, mark)["layer"]:
            inset.axvline(at, color="black", linestyle=(0, (2, 1.5)), linewidth=0.8)
    _draw_lowest(last, inset)


def _free_place(table: pd.DataFrame, limit: float) -> tuple[Place, float]:
    """Where the inset hides neither curve nor band nor mark, and the upper limit of the axis that makes it so.

    The place is (x, y, width, height) as shares of the axes: under the curve where it is high enough above 0, else over
    the lowest stretch of it, for which the limit is raised where needed.
    """
    width, height, bottom = 0.34, 0.24, 0.47  # its title ends below the lowest label
    below = (table["entropy"] - table["entropy_sd"]).clip(lower=0)
    above = table["entropy"] + table["entropy_sd"]
    if HALF_ENTROPY.name in table:
        half = table[HALF_ENTROPY.name]
        below, above = below.where(~(half < below), half), above.where(~(half > above), half)
    limits = {}
    for left in (0.12, 0.2, 0.3, 0.4, 0.5):
        reached = (table["layer"] - 0.5).between((left - 0.1) * len(table), (left + width + 0.02) * len(table))
        if table["mark"][reached].notna().any():
            continue
        if below[reached].min() > (height + 0.17) * limit:
            return (left, 0.1, width, height), limit
        limits[left] = max(limit, float(above[reached].max()) / (bottom - 0.09))
    left = min(limits, key=lambda place: limits[place], default=0.3)
    return (left, bottom, width, height), limits.get(left, limit)
