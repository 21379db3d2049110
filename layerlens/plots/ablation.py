"""Which layer should speak, and how often (Figure 3 of arXiv 2606.21906)."""

import os
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis.ablation import ablation_table
from layerlens.plots import style

PANELS = (("last", "last-1", "last-2", "last-4", "valley"), ("valley-2", "valley-1", "valley+1", "valley+2", "valley"))
"""The arms of the two panels. Others that were run follow: shifted valleys in the second, the rest in the first."""

_LABEL_SPACE = 0.085  # of p, between two boxes: narrower ones would cover each other
_LEAST_TOP = 5.0  # percent, where nothing is right

_LOOKS: dict[str, dict[str, Any]] = {
    "last": {"color": "#0072B2", "linestyle": "-", "marker": ""},
    "last-1": {"color": "#E69F00", "linestyle": "-", "marker": "o"},
    "last-2": {"color": "#009E73", "linestyle": (0, (4, 1.2)), "marker": "s"},
    "last-4": {"color": "#CC79A7", "linestyle": (0, (1.2, 1)), "marker": "^"},
    "valley-2": {"color": "#D55E00", "linestyle": (0, (1.2, 1)), "marker": "v"},
    "valley-1": {"color": "#E69F00", "linestyle": (0, (4, 1.2)), "marker": "o"},
    "valley+1": {"color": "#009E73", "linestyle": "-", "marker": "s"},
    "valley+2": {"color": "#56B4E9", "linestyle": "-", "marker": "^"},
    "valley": {"color": "black", "linestyle": "--", "marker": "D"},
}
_MORE_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "0.45", "linestyle": "-.", "marker": "P"},
    {"color": "0.6", "linestyle": ":", "marker": "X"},
    {"color": "#A05A00", "linestyle": "-.", "marker": "*"},
)


def figure3(folder: str | os.PathLike[str]) -> tuple[Figure, pd.DataFrame]:
    """Accuracy against p of earlier layers (a) and of shifted valleys (b), and the table drawn; see `ablation_table`.

    Only arms with answers of their own are drawn. An arm is the last layer at p = 0 and its own layer at p = 1. The
    titles say so where the ablation is not complete.

    Raises:
        RunError: there is no ablation at `folder`, or it holds no answer yet.
    """
    table = ablation_table(folder)
    with style.look():
        figure = Figure(figsize=(style.COLUMN_INCHES, 4.8), layout="constrained")
        names = ("(a) earlier layers", "(b) shifted valleys")
        for arms, ax, name in zip(panel_arms(table), figure.subplots(2, 1), names, strict=True):
            draw_ablation(table, arms, ax)
            ax.set_title(f"{name}: {ax.get_title(loc='left')}", loc="left")
        style.name_lens(figure, table.attrs["lens"])
    return figure, table


def panel_arms(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The arms of each panel with answers of their own, in the order of `PANELS`, the valley last."""
    own = (table["arm"] == "last") | (table["p"] > 0)  # at p = 0 the answers are those of the last layer
    there = list(dict.fromkeys(table["arm"][own]))
    panels: tuple[list[str], list[str]] = ([], [])
    for arms, panel, shifted in zip(PANELS, panels, (False, True), strict=True):
        more = [arm for arm in there if arm not in _LOOKS and (arm.startswith(("valley-", "valley+")) == shifted)]
        panel += [arm for arm in (*arms[:-1], *more, arms[-1]) if arm in there]
    return panels


def draw_ablation(table: pd.DataFrame, arms: list[str], ax: Axes) -> Axes:
    """The axes with accuracy in percent against p for some arms, each with its 95 % interval, from `ablation_table`.

    The valley is dashed and black, its values in boxes.
    """
    shown = table[table["arm"].isin(arms)]
    ax.set_title(_title(table, shown), loc="left")
    ax.set_xlabel("probability p of the arm's layer")
    ax.set_ylabel("accuracy (%)")
    ax.set_xlim(-0.06, 1.06)
    ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    more = iter(_MORE_LOOKS * len(arms))
    handles = [_curve(shown[shown["arm"] == arm], ax, _LOOKS.get(arm) or next(more)) for arm in arms]
    if not handles:
        ax.set_yticks([])
        text = f"no such arm was run{'' if table.attrs['is_complete'] else ' yet'}"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=style.GREY)
        return ax
    top = max(_LEAST_TOP, 100 * float(shown["accuracy_high"].fillna(shown["accuracy"]).max()))
    style.value_axis(ax, top, 1.16 * top)
    _box_values(shown[shown["arm"] == "valley"], ax)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.47, -0.2)}
    columns = len(handles) if len(handles) <= 5 else min(4, -(-len(handles) // 2))
    ax.legend(handles=handles, ncols=columns, handlelength=2.1, **place)
    return ax


def _title(table: pd.DataFrame, shown: pd.DataFrame) -> str:
    n_items = table.attrs["n_items"]
    text = f"{n_items:,} item{'' if n_items == 1 else 's'} of {table.attrs['dataset']}"
    if not table.attrs["is_complete"]:
        text += ",\nnot complete"
    if not shown.empty and shown["n_items"].min() < n_items:
        text += f", sometimes only {shown['n_items'].min():,}"
    return text + (", bands: 95 %" if (shown["accuracy_high"] > shown["accuracy_low"]).any() else "")


def _curve(rows: pd.DataFrame, ax: Axes, look: dict[str, Any]) -> Any:
    percent = 100 * rows.set_index("p")[["accuracy", "accuracy_low", "accuracy_high"]]
    drawn: dict[str, Any] = {"markersize": 3, "clip_on": False, "zorder": 4 if look["color"] == "black" else 3}
    (line,) = ax.plot(percent["accuracy"], label=rows["arm"].iloc[0], **drawn, **look)
    if (percent["accuracy_high"] > percent["accuracy_low"]).any():
        low, high = percent["accuracy_low"], percent["accuracy_high"]
        ax.fill_between(percent.index, low, high, color=look["color"], alpha=0.13, linewidth=0, zorder=1)
    return line


def _box_values(rows: pd.DataFrame, ax: Axes) -> None:
    boxed = -1.0
    for p, accuracy in zip(rows["p"], rows["accuracy"], strict=True):
        if p - boxed < _LABEL_SPACE:
            continue
        boxed = p
        ax.annotate(
            f"{100 * accuracy:.1f}",
            (p, 100 * accuracy),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6,
            zorder=5,
            bbox={"boxstyle": "square,pad=0.18", "facecolor": "white", "edgecolor": "black", "linewidth": 0.5},
        )
