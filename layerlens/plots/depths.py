"""From which depth on the emitted token is known: shares by layer, of all tokens and of each class of words."""

from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis import THRESHOLDS, onset, onset_by_layer, settling, settling_by_layer
from layerlens.analysis.depths import ALL
from layerlens.plots import style
from layerlens.records.reader import Records

_CLASSES: dict[str, dict[str, Any]] = {
    "content": {"color": "#0072B2", "linestyle": "-"},
    "function": {"color": "#E69F00", "linestyle": (0, (4, 1.2))},
    "punctuation": {"color": "#009E73", "linestyle": (0, (1.2, 1))},
    "other": {"color": "#CC79A7", "linestyle": (0, (4, 1, 1, 1))},
}
"""How each class of words is drawn; dashes tell them apart in grey."""

_DASHES = tuple(
    (0, dashes)
    for dashes in ((1.2, 1), (4, 1.2), (4, 1, 1, 1), (4, 1, 1, 1, 1, 1), (8, 1.5), (8, 1.5, 2, 1.5), (2.5, 2.5))
)
"""The curves of thresholds, from the smallest on; the chosen one is solid."""


def onset_table(run: Records, rank: int = 1) -> pd.DataFrame:
    """One row per class of words and layer with everything the figure of onsets draws.

    Columns: those of `analysis.onset_by_layer`; rank; and onset_median, at_last and outside of `analysis.onset`, which
    are the same in every row of a class.

    Raises:
        OptionError, RunError: as `analysis.onset`.
    """
    marks = onset(run, rank)[["words", "onset_median", "at_last", "outside"]]
    table: pd.DataFrame = onset_by_layer(run, rank).merge(marks, on="words", how="left").assign(rank=rank)
    return table


def draw_onset(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the share of tokens whose onset is at a layer or before it. That of all has a 95 % interval.

    At the last layer the share is below 1 by the tokens that this layer does not rank so high itself. A dashed line
    marks the layer by which half of the tokens with an onset have reached it.
    """
    last = table[table["words"] == ALL].iloc[-1]
    ranked = "ranked first" if last["rank"] == 1 else f"among the first {last['rank']:,}"
    ax.set_title(
        f"{last['n_tokens']:,} emitted tokens, {100 * last['outside']:.1f} % not {ranked} at layer {last['layer']}",
        loc="left",
    )
    style.layer_axis(ax, int(last["layer"]))
    _share_axis(ax)
    handles = _curves(table, "layer", "share", ax)
    ax.set_ylabel(f"share {ranked} from here on")
    if pd.notna(last["onset_median"]):
        _upright(ax, last["onset_median"], f"half by layer {last['onset_median']:.0f}", last["layer"])
    _legend(ax, handles)
    return ax


def figure_onset(run: Records, width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """From which layer on the emitted token is ranked first, and the table drawn; see `onset_table`.

    The width is "one" or "two" columns of a page.
    """
    table = onset_table(run)
    with style.look():
        figure, (ax,) = style.page(width, 1, 2.7)
        draw_onset(table, ax)
        style.name_lens(figure, run.lens)
    return figure, table


def settling_table(run: Records, g: float = 0.5, rho: float = 0.85) -> pd.DataFrame:
    """One row per threshold, class of words and layer with everything the figure of settling draws.

    The thresholds are `analysis.THRESHOLDS` and g, in bits. Columns: those of `analysis.settling_by_layer`;
    settling_depth, deep_from and deep_thinking_ratio with `_low` and `_high` of `analysis.settling`, which are the same
    in every row of a threshold and class; chosen, whether the threshold is g.

    Raises:
        OptionError, RunError: as `analysis.settling`.
    """
    thresholds = [*(one for one in THRESHOLDS if one != g), g]
    ratio = [f"deep_thinking_ratio{end}" for end in ("", "_low", "_high")]
    depths = settling(run, thresholds, rho)[["g", "words", "settling_depth", "deep_from", *ratio]]
    table: pd.DataFrame = settling_by_layer(run, thresholds).merge(depths, on=["g", "words"], how="left")
    table["chosen"] = table["g"] == float(g)
    ordered: pd.DataFrame = table.sort_values("g", kind="stable", ignore_index=True)
    return ordered


def draw_settled(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the share of all tokens settled by each layer, a curve for each threshold.

    The chosen threshold is black, with its 95 % interval; the deep-thinking regime is grey.
    """
    every = table[table["words"] == ALL]
    n_layers = int(every["layer"].max())
    style.layer_axis(ax, n_layers)
    _share_axis(ax)
    ax.axvspan(every["deep_from"].iloc[0] - 0.5, n_layers + 0.6, color=style.FULL_ATTENTION, linewidth=0, zorder=0)
    thresholds = every["g"].unique()
    colours, dashes = mpl.colormaps["viridis"](np.linspace(0.9, 0.1, len(thresholds))), cycle(_DASHES)
    lines: list[Any] = []
    bands: list[Any] = []
    for colour, (g, rows) in zip(colours, every.groupby("g"), strict=True):
        if rows["chosen"].all():
            line, *bands = _curve_of_all(rows, "layer", "share", ax, f"{g:g}")
            lines.append(line)
        else:
            look = {"label": f"{g:g}", "linewidth": 0.9, "color": colour, "linestyle": next(dashes)}
            lines += ax.plot(rows["layer"], rows["share"], **look)
    ax.set_ylabel("share settled by this layer")
    ax.set_title(f"{every['n_tokens'].iloc[0]:,} emitted tokens; grey: deep-thinking regime", loc="left")
    ax.legend(handles=lines + bands, title="g (bits)", loc="upper center", bbox_to_anchor=(0.47, -0.2), ncols=4)
    return ax


def draw_deep_thinking(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the deep-thinking ratio by threshold, of all tokens with a 95 % interval, and of each class."""
    ratios = table[table["layer"] == 1].rename(columns=lambda name: name.replace("deep_thinking_ratio", "ratio"))
    handles = _curves(ratios, "g", "ratio", ax)
    chosen = ratios[ratios["chosen"] & (ratios["words"] == ALL)].iloc[0]
    ax.axvline(chosen["g"], color="black", linestyle=(0, (2, 1.5)), linewidth=0.8)
    ax.set_title(f"g = {chosen['g']:g} bits: ratio {chosen['ratio']:.3f}{_between(chosen)}", loc="left")
    _share_axis(ax)
    ax.set_xlim(0, 1)
    ax.set_xlabel("threshold g (bits)")
    ax.set_ylabel("deep-thinking ratio")
    _legend(ax, handles)
    return ax


def figure_settling(run: Records, width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """By which layer tokens settle (a), and the deep-thinking ratio by threshold (b); see `settling_table`.

    The width is "one" or "two" columns of a page.
    """
    table = settling_table(run)
    with style.look():
        figure, panels = style.page(width, 2, 2.6)
        draw_settled(table, panels[0])
        draw_deep_thinking(table, panels[1])
        style.letter_titles(*panels)
        style.name_lens(figure, run.lens)
    return figure, table


def _between(row: Any) -> str:
    if not row["ratio_low"] < row["ratio_high"]:  # a single prompt
        return ""
    return f" (95 %: {row['ratio_low']:.3f}–{row['ratio_high']:.3f})"


def _curves(table: pd.DataFrame, across: str, share: str, ax: Axes) -> list[Any]:
    """Draw a curve for each class of words, and a black one with its interval for all; returns legend entries."""
    handles: list[Any] = []
    for words, rows in table.groupby("words", sort=False):
        if words != ALL and rows["n_tokens"].iloc[0]:
            handles += ax.plot(rows[across], rows[share], label=words, linewidth=0.9, **_CLASSES[str(words)])
    return handles + _curve_of_all(table[table["words"] == ALL], across, share, ax)


def _curve_of_all(rows: pd.DataFrame, across: str, share: str, ax: Axes, label: str = "all") -> list[Any]:
    handles: list[Any] = ax.plot(rows[across], rows[share], label=label, color="black", zorder=3)
    low, high = rows[f"{share}_low"], rows[f"{share}_high"]
    if (high > low).any():
        band: dict[str, Any] = {"color": "black", "alpha": 0.18, "linewidth": 0, "zorder": 1}
        handles.append(ax.fill_between(rows[across], low, high, label="95 % interval", **band))
    return handles


def _share_axis(ax: Axes) -> None:
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])


def _upright(ax: Axes, at: float, text: str, n_layers: int) -> None:
    """Draw a dashed line at a layer, with its name at the top on the side that has more room."""
    ax.axvline(at, color="black", linestyle=(0, (2, 1.5)), linewidth=0.8)
    rightwards = at < 0.55 * n_layers
    ax.annotate(
        text,
        (at, 0.98),
        xycoords=ax.get_xaxis_transform(),
        xytext=(2 if rightwards else -2, 0),
        textcoords="offset points",
        ha="left" if rightwards else "right",
        va="top",
        fontsize=6.5,
    )


def _legend(ax: Axes, handles: list[Any]) -> None:
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.47, -0.2), ncols=3)
