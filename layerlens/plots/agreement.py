"""From which layer on the last layer's first choice is there."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis import agreement, earliest_agreement
from layerlens.plots import style
from layerlens.records.reader import Records

_CURVES: dict[str, dict[str, Any]] = {
    "kept": {"color": "black", "linestyle": "-", "label": "from here on"},
    "agreement": {"color": "#0072B2", "linestyle": (0, (4, 1.2)), "label": "in this layer"},
}


def agreement_table(run: Records) -> pd.DataFrame:
    """One row per layer with everything the figure of agreement draws.

    Columns: those of `analysis.agreement`; and, the same in every row, half_layer with `_low` and `_high`, the first
    layer by which half of the tokens have the last layer's first choice and keep it.

    Raises:
        RunError: no token of the run can be counted.
    """
    table = agreement(run)
    kept = earliest_agreement(run).set_index("reading").loc["kept"]
    for end in ("", "_low", "_high"):
        table[f"half_layer{end}"] = kept[f"median{end}"]
    return table


def draw_agreement(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the share of tokens for which each layer has the last one's first choice, alone and for good.

    The grey band is the 95 % interval of the share for good. A dashed line stands at the layer by which half of the
    tokens have it for good, and the hatched area is the 95 % interval of that layer.
    """
    n_layers, half, intervals = int(table["layer"].max()), table.iloc[0], list[Any]()
    style.layer_axis(ax, n_layers)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_ylabel("share of tokens")
    curves = [ax.plot(table["layer"], table[name], zorder=3, **look)[0] for name, look in _CURVES.items()]
    if (table["kept_high"] > table["kept_low"]).any():
        band: dict[str, Any] = {"color": "black", "alpha": 0.18, "linewidth": 0, "zorder": 1}
        low, high = table["kept_low"], table["kept_high"]
        intervals.append(ax.fill_between(table["layer"], low, high, label="95 % interval of the share", **band))
    ax.axvline(half["half_layer"], color="black", linestyle=(0, (2, 1.5)), linewidth=0.8)
    if half["half_layer_low"] < half["half_layer_high"]:
        bounds = half["half_layer_low"], half["half_layer_high"]
        hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.72", "hatch": "/////", "linewidth": 0}
        intervals.append(ax.axvspan(*bounds, label="95 % interval of that layer", zorder=0, **hatched))
    ax.set_title(f"{half['n_tokens']:,} tokens, half of them from layer {half['half_layer']:.0f} on", loc="left")
    ax.legend(
        handles=[*curves, *intervals],
        title="the last layer's first choice is there",
        loc="upper center",
        bbox_to_anchor=(0.47, -0.2),
        ncols=2,
        columnspacing=1.0,
    )
    return ax


def figure_agreement(run: Records, width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """From which layer on the last layer's first choice is there, and the table drawn; see `agreement_table`.

    The width is "one" or "two" columns of a page.
    """
    table = agreement_table(run)
    with style.look():
        figure, (ax,) = style.page(width, 1, 2.7)
        draw_agreement(table, ax)
        style.name_lens(figure, run.lens)
    return figure, table
