"""Whole figures, each with the table that it draws. Those of the paper have numbers, others have names."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from layerlens.errors import OptionError, did_you_mean, spelled, spelled_command
from layerlens.plots import style
from layerlens.plots.ablation import figure3
from layerlens.plots.agreement import figure_agreement
from layerlens.plots.clouds import figure1
from layerlens.plots.depths import figure_onset, figure_settling
from layerlens.plots.dynamics import contributions_table, draw_contributions, draw_io_cosine
from layerlens.plots.entropy import GROUPS, draw_entropy, entropy_table
from layerlens.plots.explanation import figure_explanation
from layerlens.plots.grids import figure_grid
from layerlens.plots.layer_grid import figure_lens_grid
from layerlens.plots.parts import figure_parts
from layerlens.plots.save import save
from layerlens.records import token_columns
from layerlens.records.reader import Records
from layerlens.records.schema import ON_REQUEST


def figure2(run: Records, width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """Norm ratio (a) and I/O cosine (b) of every layer, and the table drawn; see `contributions_table`.

    Args:
        run: what was traced.
        width: "one" or "two" columns of a page.
    """
    table = contributions_table(run)
    with style.look():
        figure, (left, right) = style.page(width, 2, 2.1)
        draw_contributions(table, left)
        draw_io_cosine(table, right)
        for ax, letter in ((left, "(a)"), (right, "(b)")):
            ax.set_ylabel(f"{letter} {ax.get_ylabel()}")
    return figure, table


def figure4(run: Records, half_steps: bool = False, width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """Mean entropy by layer of perturbed (a) and unperturbed (b) tokens, and the table drawn; see `entropy_table`.

    Args:
        run: what was traced.
        half_steps: whether the entropy between attention and MLP of each layer is drawn too.
        width: "one" or "two" columns of a page.
    """
    table = entropy_table(run, half_steps)
    with style.look():
        figure, panels = style.page(width, 2, 2.3)
        for group, ax in zip(GROUPS, panels, strict=True):
            draw_entropy(table[table["group"] == group], ax)
        style.letter_titles(*panels)
        style.name_lens(figure, run.lens)
    return figure, table


def draw(
    number: int | str,
    run: Records | None,
    out_dir: Path,
    *,
    beside: Records | None = None,
    evaluation: str | os.PathLike[str] | None = None,
    half_steps: bool = False,
    width: str | None = None,
    **of_the_figure: Any,
) -> list[Path]:
    """The files of a figure, by the paper's number or by its name: PNG, PDF, and the csv that they draw.

    Figures 5 and 6 are Figures 2 and 4 of another model. Figures 7 to 12 show the prompts with the most substitutions,
    one prompt each.

    Args:
        number: of the figure, 1 to 12, or its name, one of `NAMED` or `OF_EVALUATIONS`.
        run: what was traced; not needed for figures of an evaluation.
        out_dir: where the files go.
        beside: for Figures 7 to 12, a run of the same prompts decoded from the last layer; it is drawn above.
        evaluation: for the figures `OF_EVALUATIONS`, the directory that `layerlens ablate` or `layerlens eval` wrote.
        half_steps: whether Figures 4 and 6 show the entropy between attention and MLP of each layer too.
        width: "one" or "two" columns of a page, 3.3 or 6.9 inches; by default two for Figures 1 and 7 to 12 and for the
            grid, one for the others.
        of_the_figure: further options of the figure, such as the colour of `lens_grid`.

    Raises:
        OptionError: there is no such figure, what it is drawn from is missing, or the directory cannot be written.
        RunError: the run lacks what the figure shows.
    """
    if number not in KNOWN:
        advice = did_you_mean(number, [*NAMED, "explanation"], f"choose from {', '.join(map(str, KNOWN))}")
        raise OptionError(f"there is no figure {number}", advice, option="number", given=number)
    of_the_page: dict[str, Any] = {} if width is None else {"width": width}
    if number in OF_EVALUATIONS:
        if evaluation is None:
            writers = f"{spelled_command('ablate')} or {spelled_command('evaluate')}"
            advice = f"give {spelled('evaluation')}, a directory that {writers} wrote"
            raise OptionError(f"figure {number} shows scored answers", advice, option="evaluation")
        figure, table = OF_EVALUATIONS[number](evaluation, **of_the_page)
    elif run is None:
        advice = f"give {spelled('run')}, a directory that {spelled_command('trace')} wrote"
        raise OptionError(f"figure {number} shows a run", advice, option="run")
    elif isinstance(number, str):
        figure, table = NAMED[number].drawn(run, **of_the_figure, **of_the_page)
    elif number in GRIDS:
        figure, table = figure_grid(beside, run, choice=number - GRIDS[0] + 1, **of_the_figure, **of_the_page)
    elif number in (4, 6):
        figure, table = figure4(run, half_steps, **of_the_page)
    else:
        figure, table = FIGURES[number](run, **of_the_page)
    stem = number if isinstance(number, str) else f"figure{number}"
    return save(figure, table, Path(out_dir), stem)


def named_for(run: Records) -> list[str]:
    """The names of the figures whose columns were asked for in the trace, in the order of `NAMED`."""
    there = token_columns(run.manifest)
    return [name for name, one in NAMED.items() if one.option and set(ON_REQUEST[one.option]) <= set(there)]


@dataclass(frozen=True)
class Named:
    """A figure with a name: the function that draws it, and the option of a trace that records what it shows (None if
    every run has that)."""

    drawn: Callable[..., tuple[Figure, pd.DataFrame]]
    option: str | None


GRIDS = (7, 8, 9, 10, 11, 12)
FIGURES: dict[int, Callable[..., tuple[Figure, pd.DataFrame]]] = {
    1: figure1,
    2: figure2,
    4: figure4,
    5: figure2,
    6: figure4,
}
NUMBERS = (1, 2, 3, 4, 5, 6, *GRIDS)
OF_EVALUATIONS: dict[int | str, Callable[..., tuple[Figure, pd.DataFrame]]] = {
    3: figure3,
    "explanation": figure_explanation,
}
"""Figures of scored answers."""
DISTINCT = (1, 2, 4, *GRIDS)
"""Figures of a run, each drawn once: 5 and 6 are 2 and 4 of another model."""

NAMED = {
    "agreement": Named(figure_agreement, None),
    "onset": Named(figure_onset, "targets"),
    "settling": Named(figure_settling, "js"),
    "parts": Named(figure_parts, "sublayers"),
    "grid": Named(figure_lens_grid, None),
}
KNOWN = tuple(dict.fromkeys([*NUMBERS, *NAMED, *OF_EVALUATIONS]))
"""Every number and name."""
