"""Whole figures of the paper, each with the table it draws, and the numbers they go by."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from layerlens.errors import OptionError
from layerlens.plots import style
from layerlens.plots.contributions import contributions_table, draw_contributions, draw_io_cosine
from layerlens.plots.entropy import GROUPS, draw_entropy, entropy_table
from layerlens.plots.save import save

if TYPE_CHECKING:
    from layerlens.run import Run


def figure2(run: "Run") -> tuple[Figure, pd.DataFrame]:
    """Norm ratio (a) and I/O cosine (b) of every layer, and the table drawn; see `contributions_table`."""
    table = contributions_table(run)
    with style.look():
        figure = Figure(figsize=(style.COLUMN_INCHES, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1)
        draw_contributions(table, above)
        draw_io_cosine(table, below)
        for ax, letter in ((above, "(a)"), (below, "(b)")):
            ax.set_ylabel(f"{letter} {ax.get_ylabel()}")
    return figure, table


def figure4(run: "Run") -> tuple[Figure, pd.DataFrame]:
    """Mean entropy by layer of perturbed (a) and unperturbed (b) tokens, and the table drawn; see `entropy_table`."""
    table = entropy_table(run)
    with style.look():
        figure = Figure(figsize=(style.COLUMN_INCHES, 4.8), layout="constrained")
        for group, ax, letter in zip(GROUPS, figure.subplots(2, 1), ("(a)", "(b)"), strict=True):
            draw_entropy(table[table["group"] == group], ax)
            ax.set_title(f"{letter} {ax.get_title(loc='left')}", loc="left")
    return figure, table


def draw(number: int, run: "Run", out_dir: Path) -> list[Path]:
    """The files of the paper's figure of that number, drawn from a run: PNG, PDF and the csv they draw.

    Figures 5 and 6 are 2 and 4 for another model.

    Raises:
        OptionError: no figure of that number is drawn from a run, or the directory cannot be written.
        RunError: the run lacks what the figure shows.
    """
    if number not in FIGURES:
        raise OptionError(f"there is no figure {number}; choose from {', '.join(map(str, FIGURES))}")
    figure, table = FIGURES[number](run)
    return save(figure, table, Path(out_dir), f"figure{number}")


DISTINCT = (2, 4)
FIGURES: dict[int, Callable[["Run"], tuple[Figure, pd.DataFrame]]] = {2: figure2, 4: figure4, 5: figure2, 6: figure4}
