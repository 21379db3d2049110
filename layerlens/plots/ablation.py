"""From which layer tokens should come, and how often (Figure 3 of arXiv 2606.21906)."""

import os
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis.ablation import ablation_table
from layerlens.errors import RunError, spelled_command
from layerlens.plots import style

PANELS = (("last", "last-1", "last-2", "last-4", "valley"), ("valley-2", "valley-1", "valley+1", "valley+2", "valley"))
"""The arms of the two panels. Others that were run follow: shifted valleys in the second, the rest in the first."""

_LABEL_SPACE = 0.12  # of p, between two boxes: nearer ones would cover each other
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


def figure3(folder: str | os.PathLike[str], width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """Scores against p of earlier layers and of shifted valleys, and the table drawn; see `ablation_table`.

    Only arms with answers of their own are drawn. An arm is the last layer at p = 0 and its own layer at p = 1. Each
    task has its own panels. A panel is left out where none of its arms beside the last layer and the valley was run.
    The titles say so where the evaluation is not complete.

    Args:
        folder: of the evaluation.
        width: "one" or "two" columns of a page.

    Raises:
        RunError: there is no evaluation at `folder`, it holds no answer yet, or it has no arm beside the last layer.
        OptionError: there is no such width.
    """
    table = ablation_table(folder)
    if (table["arm"] == "last").all():
        advice = f"continue it with {spelled_command('ablate')}, or with further strategies"
        raise RunError(f"{folder} has answers of the last layer alone", advice, given=folder)
    panels = []
    for _, of_task in table.groupby("task", sort=False):
        named = zip(panel_arms(of_task), _NAMES, strict=True)
        mine = [(of_task, arms, name) for arms, name in named if set(arms) - {"valley"}]
        panels += mine or [(of_task, ["valley"], _NAMES[0])]
    with style.look():
        figure, axes = style.page(width, len(panels), 2.4, across=2)
        for (of_task, arms, name), ax in zip(panels, axes, strict=True):
            draw_ablation(of_task, arms, ax)
            ax.set_title(f"{name}: {ax.get_title(loc='left')}", loc="left")
        if len(panels) > 1:
            style.letter_titles(*axes)
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
    """The axes with scores in percent against p for some arms, each with its 95 % interval.

    Intervals are bars, drawn side by side at each p; the last layer, which does not depend on p, has a band. The valley
    is dashed and black, with its values in boxes at the top.

    Args:
        table: of one task, from `ablation_table`.
        arms: those drawn.
        ax: to draw on.
    """
    shown = table[table["arm"].isin(arms)]
    ax.set_title(_title(table, shown), loc="left")
    ax.set_xlabel("probability p of the arm's layer")
    ax.set_ylabel("score (%)")
    ax.set_xlim(-0.06, 1.1)
    ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    more = iter(_MORE_LOOKS * len(arms))
    moving = [arm for arm in arms if arm != "last"]
    apart = _spread(shown) / max(1, len(moving))
    handles = []
    for arm in arms:
        shift = 0.0 if arm == "last" else apart * (moving.index(arm) - (len(moving) - 1) / 2)
        handles.append(_curve(shown[shown["arm"] == arm], shift, ax, _LOOKS.get(arm) or next(more)))
    top = max(_LEAST_TOP, 100 * float(shown["score_high"].fillna(shown["score"]).max()))
    boxed = "valley" in arms
    style.value_axis(ax, top, 1.2 * top if boxed else 1.05 * top)
    if boxed:
        _box_values(shown[shown["arm"] == "valley"], ax)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.47, -0.2)}
    names = ["valley (in boxes)" if arm == "valley" else arm for arm in arms]
    ax.legend(handles, names, ncols=len(handles) if len(handles) <= 3 else 3, handlelength=2.1, **place)
    return ax


_NAMES = ("earlier layers", "shifted valleys")


def _title(table: pd.DataFrame, shown: pd.DataFrame) -> str:
    task = table["task"].iloc[0]
    n_items = table.attrs["n_items"][task]
    text = f"{n_items:,} item{'' if n_items == 1 else 's'} of {task}"
    if not table.attrs["is_complete"]:
        text += ",\nnot complete"
    if not shown.empty and shown["n_items"].min() < n_items:
        text += f", sometimes only {shown['n_items'].min():,}"
    return text + (", bars: 95 %" if (shown["score_high"] > shown["score_low"]).any() else "")


def _spread(shown: pd.DataFrame) -> float:
    """The width over which the bars at one p are spread: a part of the distance between two p."""
    p = np.unique(shown["p"])
    return 0.6 * float(np.diff(p).min()) if len(p) > 1 else 0.1


def _curve(rows: pd.DataFrame, shift: float, ax: Axes, look: dict[str, Any]) -> Any:
    percent = 100 * rows.set_index("p")[["score", "score_low", "score_high"]]
    is_last = rows["arm"].iloc[0] == "last"
    drawn: dict[str, Any] = {"markersize": 3, "clip_on": False, "zorder": 4 if look["color"] == "black" else 3}
    at = np.where(percent.index > 0, percent.index + shift, percent.index)  # at p = 0 every arm is the last layer
    (line,) = ax.plot(at, percent["score"], label=rows["arm"].iloc[0], **drawn, **look)
    low, value, high = (percent[f"score{end}"].to_numpy() for end in ("_low", "", "_high"))
    wide = high > low
    if is_last and wide.any():
        ax.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0, zorder=1)
    wide &= percent.index > 0
    if not is_last and wide.any():
        ends = [(value - low)[wide], (high - value)[wide]]
        bars: dict[str, Any] = {"ecolor": look["color"], "elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8}
        ax.errorbar(at[wide], value[wide], yerr=ends, fmt="none", zorder=2, **bars)
    return line


def _box_values(rows: pd.DataFrame, ax: Axes) -> None:
    boxed = -1.0
    for p, score in zip(rows["p"], rows["score"], strict=True):
        if p - boxed < _LABEL_SPACE:
            continue
        boxed = p
        ax.text(
            p,
            0.98,
            f"{100 * score:.1f}",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=6,
            zorder=5,
            bbox={"boxstyle": "square,pad=0.18", "facecolor": "white", "edgecolor": "black", "linewidth": 0.5},
        )
