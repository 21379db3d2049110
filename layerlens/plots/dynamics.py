"""What each layer writes into the stream, and how much of its direction it keeps; Figures 2, 5 of arXiv 2606.21906."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerlens.analysis import by_layer, phases
from layerlens.plots import style
from layerlens.records.reader import Records

DWARFS = 1.5
MOST_CLIPPED = 3
TREND_LAYERS = 8

Floats = np.ndarray[Any, np.dtype[np.float64]]


def contributions_table(run: Records) -> pd.DataFrame:
    """One row per layer 1..L with everything Figure 2 draws.

    Columns: layer; kind; phase (I, II, III by the rule "plateau", NA where it finds none); norm_ratio and
    io_cosine with `_low`, `_high` and `_trend`; norm_ratio_clipped, whether the bar is cut off; attn_ratio;
    mlp_ratio; n_tokens; n_prompts. The trend is `trend` of the means, over the layers that are not cut off. It is
    NA where there are too few of them.
    """
    layers = by_layer(run)
    clipped = dwarfing(layers["norm_ratio"].to_numpy())
    columns: dict[str, Any] = {name: layers[name] for name in ("layer", "kind")} | {"phase": phase_of_layers(run)}
    columns |= {f"norm_ratio{part}": layers[f"norm_ratio{part}"] for part in ("", "_low", "_high")}
    columns |= {
        "norm_ratio_trend": trend(layers["norm_ratio"].where(~clipped).to_numpy()),
        "norm_ratio_clipped": clipped,
    }
    columns |= {name: layers[name] for name in ("attn_ratio", "mlp_ratio")}
    columns |= {f"io_cosine{part}": layers[f"io_cosine{part}"] for part in ("", "_low", "_high")}
    columns |= {"io_cosine_trend": trend(layers["io_cosine"].to_numpy())}
    table: pd.DataFrame = pd.DataFrame(columns | {name: layers[name] for name in ("n_tokens", "n_prompts")})
    return table


def phase_of_layers(run: Records) -> list[str | None]:
    """The phase of each layer 1..L by the rule "plateau"; None throughout where there are too few layers for it."""
    phase_by_layer: list[str | None] = [None] * run.n_layers
    for phase in phases(run).dropna(subset="first").itertuples():
        for layer in range(int(phase.first), int(phase.last) + 1):
            phase_by_layer[layer - 1] = str(phase.phase)
    return phase_by_layer


def trend(values: Floats) -> Floats:
    """A running mean over layers, [L], weighted by a normal curve of sd max(1, L/30) layers.

    NaN stays NaN. Under 8 layers all is NaN, because such a mean is far from most of the values.
    """
    if len(values) < TREND_LAYERS:
        return np.full(len(values), np.nan)
    layers = np.arange(len(values))
    weights = np.exp(-0.5 * ((layers[:, None] - layers) / max(1, len(values) / 30)) ** 2)
    known = ~np.isnan(values)
    smooth = weights[:, known] @ values[known] / np.maximum(weights[:, known].sum(axis=1), 1e-12)
    return np.where(known, smooth, np.nan)


def dwarfing(values: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the first layers, [L], are so tall that they would flatten the bars after them.

    They are the longest run from layer 1 of values above 1.5 times all that follow: at most three layers, never all.
    """
    following = np.maximum.accumulate(values[::-1])[::-1]
    dwarfs = np.append(values[:-1] > DWARFS * following[1:], False)
    return np.logical_and.accumulate(dwarfs) & (np.arange(len(values)) < MOST_CLIPPED)


def draw_contributions(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with norm ratios as bars, their trend, the sub-layers' parts as steps, and the phases."""
    x, shown = table["layer"], ~table["norm_ratio_clipped"]
    parts = table[["attn_ratio", "mlp_ratio"]].where(shown)
    top = float(np.nanmax([table["norm_ratio_high"][shown].max(), table["norm_ratio"][shown].max(), *parts.max()]))
    top = top if top > 0 else 1.0
    limit = top / (0.77 - _ROW * _rows(table))
    cut = top + 0.1 * limit
    style.band_full_attention(ax, list(table["kind"]))
    handles = _bars(table, "norm_ratio", table["norm_ratio"].where(shown, cut), "total", ax)
    for name, colour, dashes, label in _PARTS:
        if parts[name].notna().any():
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 0.9, "label": label}
            handles += ax.plot(x, parts[name], drawstyle="steps-mid", **look)
    handles += _whiskers(table, "norm_ratio", ax)
    style.value_axis(ax, top, limit)
    _mark_clipped(table, cut, ax)
    drawn = [table["norm_ratio"].where(shown), table["norm_ratio_high"].where(shown), parts]
    tallest = pd.concat(drawn, axis=1).max(axis=1).fillna(0).to_numpy()
    return _finish(table, "norm_ratio", tallest, "norm ratio", handles, ax)


def draw_io_cosine(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with I/O cosines as bars, their trend, and the phases."""
    style.band_full_attention(ax, list(table["kind"]))
    handles = _bars(table, "io_cosine", table["io_cosine"], "cosine", ax) + _whiskers(table, "io_cosine", ax)
    lowest = float(np.nanmin([0.0, table["io_cosine"].min(), table["io_cosine_low"].min()]))
    ax.set_yticks(np.arange(math.floor(lowest * 4) / 4, 1.01, 0.25))
    ax.set_ylim(1.1 * lowest, 1.35)
    tallest = table[["io_cosine", "io_cosine_high"]].max(axis=1).to_numpy()
    return _finish(table, "io_cosine", tallest, "I/O cosine", handles, ax)


_PARTS = (
    ("attn_ratio", style.ATTENTION, "-", "attention"),
    ("mlp_ratio", style.MLP, (0, (3, 1.2)), "MLP"),
)


_ROW = 0.08  # of the axes' height: one line of the values over bars cut off


def _bars(table: pd.DataFrame, measure: str, heights: "pd.Series[float]", label: str, ax: Axes) -> list[Any]:
    bars = ax.bar(table["layer"], heights, width=0.75, color=style.BAR, label=label, zorder=1)
    trend_line = table[f"{measure}_trend"]
    if trend_line.isna().all():
        return [bars]
    return [bars, *ax.plot(table["layer"], trend_line, color=style.TREND, label="trend")]


def _whiskers(table: pd.DataFrame, measure: str, ax: Axes) -> list[Any]:
    wide = table[table[f"{measure}_high"] > table[f"{measure}_low"]]
    if measure == "norm_ratio":
        wide = wide[~wide["norm_ratio_clipped"]]
    if wide.empty:
        return []
    low, value, high = (wide[f"{measure}{part}"] for part in ("_low", "", "_high"))
    look: dict[str, Any] = {"fmt": "none", "ecolor": "0.25", "elinewidth": 0.6, "label": "95 % interval"}
    return [ax.errorbar(wide["layer"], value, yerr=[value - low, high - value], **look)]


def _clipped_values(table: pd.DataFrame) -> list[str]:
    return [f"{value:.3g}" for value in table["norm_ratio"][table["norm_ratio_clipped"]]]


def _fit_side_by_side(values: Sequence[str], n_layers: int) -> bool:
    return n_layers * max(map(len, values), default=0) <= 50  # about the characters of one line at column width


def _rows(table: pd.DataFrame) -> int:
    values = _clipped_values(table)
    return 1 if _fit_side_by_side(values, len(table)) else len(values)


def _mark_clipped(table: pd.DataFrame, height: float, ax: Axes) -> None:
    values, limit = _clipped_values(table), ax.get_ylim()[1]
    beside = _fit_side_by_side(values, len(table))
    for layer, value in enumerate(values, start=1):
        ax.plot([layer - 0.55, layer + 0.55], [0.9 * height, 0.94 * height], color="white", linewidth=2, zorder=2)
        foot = height + (0.015 + _ROW * (_rows(table) - layer) * (not beside)) * limit
        if not beside and layer < len(values):
            ax.plot([layer, layer], [height, foot], color=style.GREY, linewidth=0.5)
        at, side = (layer, "center") if beside else (layer - 0.5, "left")
        ax.text(at, foot, value, ha=side, va="bottom", fontsize=6.5)


def _finish(table: pd.DataFrame, measure: str, tallest: Floats, label: str, handles: list[Any], ax: Axes) -> Axes:
    style.layer_axis(ax, len(table))
    ax.set_ylabel(label)
    name_phases(table["phase"].tolist(), ax)
    previous = table["phase"].shift()
    changes = table["phase"].notna() & previous.notna() & (table["phase"] != previous)
    reach = math.ceil(0.17 * len(table))
    tallest = np.fmax(tallest, table[f"{measure}_trend"])
    for at in np.flatnonzero(changes):
        rightwards = at + reach < len(table)
        spanned = slice(at, at + reach + 1) if rightwards else slice(max(0, at - reach), at + 1)
        height = float(table[measure][at])
        ax.plot(at + 1, height, "o", markersize=3, color="black", zorder=4)
        ax.annotate(
            f"{previous[at]} → {table['phase'][at]}",
            (at + 1, max(height, tallest[spanned].max())),
            xytext=(1 if rightwards else 2, 3.5),
            textcoords="offset points",
            ha="left" if rightwards else "right",
            va="bottom",
            fontsize=6.5,
        )
    if style.mixes_kinds(list(table["kind"])):
        handles = [*handles, style.full_attention_key()]
    columns = len(handles) if len(handles) <= 4 else 3  # more would be wider than a column of text
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns)
    return ax


def name_phases(of_layers: Sequence[str | None], ax: Axes) -> None:
    """The phases' names in grey at the top of the axes, each over the middle of its layers."""
    for name in ("I", "II", "III"):
        inside = [layer for layer, phase in enumerate(of_layers, start=1) if phase == name]
        if inside:
            place = {"x": sum(inside) / len(inside), "y": 0.985, "transform": ax.get_xaxis_transform()}
            ax.text(s=name, ha="center", va="top", color=style.GREY, fontsize=7.5, **place)  # type: ignore[arg-type]
