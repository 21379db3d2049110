"""How much each layer writes into the stream, and how far it turns it (Figures 2 and 5 of arXiv 2606.21906)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerlens.analysis import by_layer, phases
from layerlens.plots import style

if TYPE_CHECKING:
    from layerlens.run import Run

DWARFS = 1.5

Floats = np.ndarray[Any, np.dtype[np.float64]]


def contributions_table(run: "Run") -> pd.DataFrame:
    """One row per layer 1..L with everything Figure 2 draws.

    Columns: layer; kind; phase (I, II, III by the rule "plateau", NA where it finds none); norm_ratio and
    io_cosine with `_low`, `_high` and `_trend`; norm_ratio_clipped, whether the bar is cut off; attn_ratio;
    mlp_ratio; n_tokens; n_prompts. The trend is `trend` of the means, over the layers that are not cut off.
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


def phase_of_layers(run: "Run") -> list[str | None]:
    """The phase of each layer 1..L by the rule "plateau"; None throughout where there are too few layers for it."""
    found: list[str | None] = [None] * run.n_layers
    for phase in phases(run).dropna(subset="first").itertuples():
        for layer in range(int(phase.first), int(phase.last) + 1):
            found[layer - 1] = str(phase.phase)
    return found


def trend(values: Floats) -> Floats:
    """A running mean over layers, [L], weighted by a normal curve of sd max(1, L/30) layers; NaN stays NaN."""
    layers = np.arange(len(values))
    weights = np.exp(-0.5 * ((layers[:, None] - layers) / max(1, len(values) / 30)) ** 2)
    known = ~np.isnan(values)
    smooth = weights[:, known] @ values[known] / np.maximum(weights[:, known].sum(axis=1), 1e-12)
    return np.where(known, smooth, np.nan)


def dwarfing(values: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the first layers, [L], are so tall that they would flatten the bars after them.

    The longest run from layer 1 of values above 1.5 times all that follow; never the whole.
    """
    following = np.maximum.accumulate(values[::-1])[::-1]
    dwarfs = np.append(values[:-1] > DWARFS * following[1:], False)
    return np.logical_and.accumulate(dwarfs)


def draw_contributions(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with norm ratios as bars, their trend, the sub-layers' parts as steps, and the phases."""
    x, shown = table["layer"], ~table["norm_ratio_clipped"]
    parts = table[["attn_ratio", "mlp_ratio"]].where(shown)
    top = float(np.nanmax([table["norm_ratio_high"][shown].max(), table["norm_ratio"][shown].max(), *parts.max()]))
    top = top if top > 0 else 1.0
    heights = table["norm_ratio"].where(shown, 1.14 * top)
    style.band_full_attention(ax, list(table["kind"]))
    bars = _bars(table, "norm_ratio", heights, "total", ax)
    handles: list[Any] = [bars, *ax.plot(x, table["norm_ratio_trend"], color=style.TREND, label="trend")]
    for name, colour, dashes, label in _PARTS:
        if parts[name].notna().any():
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 0.9, "label": label}
            handles += ax.plot(x, parts[name], drawstyle="steps-mid", **look)
    style.value_axis(ax, top, 1.45 * top)
    _mark_clipped(table, 1.14 * top, ax)
    drawn = [table["norm_ratio"].where(shown), table["norm_ratio_high"].where(shown), parts]
    tallest = pd.concat(drawn, axis=1).max(axis=1).fillna(0).to_numpy()
    return _finish(table, "norm_ratio", tallest, "norm ratio", handles, ax)


def draw_io_cosine(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with I/O cosines as bars, their trend, and the phases."""
    style.band_full_attention(ax, list(table["kind"]))
    bars = _bars(table, "io_cosine", table["io_cosine"], "mean", ax)
    handles = [bars, *ax.plot(table["layer"], table["io_cosine_trend"], color=style.TREND, label="trend")]
    lowest = float(np.nanmin([0.0, table["io_cosine"].min(), table["io_cosine_low"].min()]))
    ax.set_yticks(np.arange(math.floor(lowest * 4) / 4, 1.01, 0.25))
    ax.set_ylim(1.1 * lowest, 1.35)
    tallest = table[["io_cosine", "io_cosine_high"]].max(axis=1).to_numpy()
    return _finish(table, "io_cosine", tallest, "I/O cosine", handles, ax)


_PARTS = (
    ("attn_ratio", style.ATTENTION, "-", "attention"),
    ("mlp_ratio", style.MLP, (0, (3, 1.2)), "MLP"),
)


def _bars(table: pd.DataFrame, measure: str, heights: "pd.Series[float]", label: str, ax: Axes) -> Any:
    bars = ax.bar(table["layer"], heights, width=0.75, color=style.BAR, label=label, zorder=1)
    known = table[f"{measure}_low"].notna() & (heights == table[measure])
    low, value, high = (table[f"{measure}{part}"][known] for part in ("_low", "", "_high"))
    if known.any():
        ax.errorbar(
            table["layer"][known], value, yerr=[value - low, high - value], fmt="none", ecolor="0.25", elinewidth=0.6
        )
    return bars


def _mark_clipped(table: pd.DataFrame, height: float, ax: Axes) -> None:
    clipped = table[table["norm_ratio_clipped"]]
    if clipped.empty:
        return
    for layer in clipped["layer"]:
        ax.plot([layer - 0.55, layer + 0.55], [0.9 * height, 0.94 * height], color="white", linewidth=2, zorder=2)
    text = ", ".join(f"{value:.3g}" for value in clipped["norm_ratio"])
    ax.text(0.5, 1.02 * height, text, ha="left", va="bottom", fontsize=6.5)


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
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=len(handles))
    return ax


def name_phases(of_layers: Sequence[str | None], ax: Axes) -> None:
    """The phases' names in grey at the top of the axes, each over the middle of its layers."""
    for name in ("I", "II", "III"):
        inside = [layer for layer, phase in enumerate(of_layers, start=1) if phase == name]
        if inside:
            place = {"x": sum(inside) / len(inside), "y": 0.985, "transform": ax.get_xaxis_transform()}
            ax.text(s=name, ha="center", va="top", color=style.GREY, fontsize=7.5, **place)  # type: ignore[arg-type]
