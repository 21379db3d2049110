"""From which depth on the emitted token is known: shares of tokens by layer, for all words and for each class."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis import onset, onset_by_layer
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


def onset_table(run: Records, rank: int = 1) -> pd.DataFrame:
    """One row per class of words and layer with everything the figure of onsets draws.

    Columns: those of `analysis.onset_by_layer`; rank; and of the class, the same in every row, onset_median, at_last
    and outside of `analysis.onset`.

    Raises:
        OptionError, RunError: as `analysis.onset`.
    """
    marks = onset(run, rank)[["words", "onset_median", "at_last", "outside"]]
    table: pd.DataFrame = onset_by_layer(run, rank).merge(marks, on="words", how="left").assign(rank=rank)
    return table


def draw_onset(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the share of tokens whose onset is at a layer or before it, of all with the 95 % interval.

    What is missing to 1 at the last layer are the tokens that it does not have among its first words itself. A dashed
    line stands at the layer by which half of the tokens that have an onset have it.
    """
    last = table[table["words"] == ALL].iloc[-1]
    ranked = "ranked first" if last["rank"] == 1 else f"among the first {last['rank']:,}"
    ax.set_title(
        f"{last['n_tokens']:,} emitted tokens, {100 * last['outside']:.1f} % not {ranked} at layer {last['layer']}",
        loc="left",
    )
    handles = _shares_by_layer(table, ax)
    ax.set_ylabel(f"share {ranked} from here on")
    if pd.notna(last["onset_median"]):
        _upright(ax, last["onset_median"], f"half by layer {last['onset_median']:.0f}", last["layer"])
    _legend(ax, handles)
    return ax


def figure_onset(run: Records) -> tuple[Figure, pd.DataFrame]:
    """From which layer on the emitted token is ranked first, and the table drawn; see `onset_table`."""
    table = onset_table(run)
    with style.look():
        figure = Figure(figsize=(style.COLUMN_INCHES, 2.7), layout="constrained")
        draw_onset(table, figure.subplots())
    return figure, table


def _shares_by_layer(table: pd.DataFrame, ax: Axes) -> list[Any]:
    """A curve for each class of words, and for all in black with its interval; the legend's entries."""
    style.layer_axis(ax, int(table["layer"].max()))
    _share_axis(ax)
    handles: list[Any] = []
    for words, rows in table.groupby("words", sort=False):
        if words == ALL or not rows["n_tokens"].iloc[0]:
            continue
        handles += ax.plot(rows["layer"], rows["share"], label=words, linewidth=0.9, **_CLASSES[str(words)])
    every = table[table["words"] == ALL]
    handles += ax.plot(every["layer"], every["share"], label="all", color="black", zorder=3)
    if (every["share_high"] > every["share_low"]).any():
        band: dict[str, Any] = {"color": "black", "alpha": 0.18, "linewidth": 0, "zorder": 1}
        low, high = every["share_low"], every["share_high"]
        handles.append(ax.fill_between(every["layer"], low, high, label="95 % interval of all", **band))
    return handles


def _share_axis(ax: Axes) -> None:
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])


def _upright(ax: Axes, at: float, text: str, n_layers: int) -> None:
    """A dashed line at a layer, named at its top on the side that has more room."""
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
