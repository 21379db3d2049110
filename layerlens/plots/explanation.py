"""How well measures inside the model tell right answers from wrong ones."""

import os
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis.explanation import BASELINES, FEWEST, explanation_table
from layerlens.errors import RunError
from layerlens.plots import style

_NAMES = {
    "n_generated_tokens": "length",
    "final_entropy": "entropy of layer L",
    "valley_rate": "valleys",
    "valley_depth": "valley depth",
    "substituted": "replaced tokens",
    "mean_depth": "chosen depth",
    "projections": "states read out",
    "perturbed_share": "perturbed tokens",
    "norm_ratio": "norm ratio, layer L",
    "settling_depth": "settling depth",
}
"""The measures in the order in which they are drawn; the baselines come first."""
_MEASURE_INCHES = 0.21
_FRAME_INCHES = 0.95  # of the title, the axis and the legend


def figure_explanation(folder: str | os.PathLike[str], width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """The AUROC of every measure with its 95 % interval, a panel for each task, and the table drawn.

    See `explanation_table`. The dashed line is 0.5, where a measure says nothing. The two baselines stand above the
    grey line: the length of an answer, and the entropy of the last layer.

    Args:
        folder: of the evaluation.
        width: "one" or "two" columns of a page.

    Raises:
        RunError: there is no evaluation at `folder`, it holds no answer yet, or no arm has enough right and wrong
            answers.
        OptionError: there is no such width.
    """
    table = explanation_table(folder)
    if table.empty:
        problem = f"no arm of {folder} has {FEWEST} right and {FEWEST} wrong answers to a task"
        raise RunError(problem, "answer more items", given=folder)
    tasks = list(table["task"].unique())
    arms = list(table["arm"].unique())
    n_measures = max(table[table["task"] == task]["measure"].nunique() for task in tasks)
    with style.look():
        height = _FRAME_INCHES + n_measures * _MEASURE_INCHES * max(1.0, 0.5 * len(arms))
        figure, axes = style.page(width, len(tasks), height, across=2)
        for task, ax in zip(tasks, axes, strict=True):
            draw_explanation(table[table["task"] == task], arms, ax)
        if len(tasks) > 1:
            style.letter_titles(*axes)
        handles, names = axes[0].get_legend_handles_labels()
        for ax in axes[1:]:
            for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
                if name not in names:
                    handles, names = [*handles, handle], [*names, name]
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), handletextpad=0.1)
    return figure, table


def draw_explanation(table: pd.DataFrame, arms: list[str], ax: Axes) -> Axes:
    """The axes with the AUROC of the measures of one task, one below the other, and the arms of each.

    Args:
        table: of the task, from `explanation_table`.
        arms: all arms, in the order of their looks.
        ax: to draw on.
    """
    measures = [name for name in _NAMES if name in set(table["measure"])]
    apart = 0.6 / max(1, len(arms))
    for number, arm in enumerate(arms):
        of_arm = table[table["arm"] == arm].set_index("measure")
        if of_arm.empty:
            continue
        of_arm = of_arm.loc[[name for name in measures if name in of_arm.index]]
        places = [measures.index(name) + apart * (number - (len(arms) - 1) / 2) for name in of_arm.index]
        ends = [(of_arm["auroc"] - of_arm["low"]).to_numpy(), (of_arm["high"] - of_arm["auroc"]).to_numpy()]
        look: dict[str, Any] = {
            **style.LOOKS[number % len(style.LOOKS)],
            "markersize": 3,
            "elinewidth": 0.9,
            "zorder": 3,
        }
        ax.errorbar(of_arm["auroc"], places, xerr=ends, linestyle="none", label=arm, **look)
    ax.axvline(0.5, color="0.4", linestyle="--", linewidth=0.8, zorder=1)
    n_baselines = sum(name in measures for name in BASELINES)
    if 0 < n_baselines < len(measures):
        ax.axhline(n_baselines - 0.5, color="0.8", linewidth=0.8, zorder=1)
    ax.set_yticks(range(len(measures)), [_NAMES[name] for name in measures])
    ax.set_ylim(len(measures) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("AUROC, with 95 % intervals")
    right, wrong = table.groupby("arm")[["n_right", "n_wrong"]].max().sum()
    ax.set_title(f"{table['task'].iloc[0]}: {right:,} right, {wrong:,} wrong", loc="left")
    return ax
