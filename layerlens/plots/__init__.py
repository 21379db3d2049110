"""Figures drawn from a run. Each function reads a table, draws on matplotlib axes and hands the axes back."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from layerlens.plots import style
from layerlens.plots.ablation import figure3
from layerlens.plots.clouds import figure1
from layerlens.plots.depths import draw_deep_thinking, draw_onset, draw_settled, onset_table, settling_table
from layerlens.plots.dynamics import contributions_table, draw_contributions, draw_io_cosine
from layerlens.plots.entropy import GROUPS, draw_entropy, entropy_table
from layerlens.plots.figures import DISTINCT, FIGURES, GRIDS, NAMED, NUMBERS, draw, figure2, figure4, named_for
from layerlens.plots.grids import figure_grid
from layerlens.plots.layer_grid import lens_grid
from layerlens.plots.parts import draw_last_parts, draw_parts_by_layer, parts_table
from layerlens.plots.save import save
from layerlens.records.reader import Records

__all__ = [
    "DISTINCT",
    "FIGURES",
    "GRIDS",
    "NAMED",
    "NUMBERS",
    "contributions",
    "draw",
    "entropy_partition",
    "figure1",
    "figure2",
    "figure3",
    "figure4",
    "figure_grid",
    "io_cosine",
    "lens_grid",
    "named_for",
    "onset",
    "perturbation_parts",
    "save",
    "settling",
]


def contributions(run: Records, ax: Axes | None = None) -> Axes:
    """The axes with the mean norm ratio of every layer as bars (Figure 2a); new ones where none are given."""
    table = contributions_table(run)
    drawn_on = _new_axes(1)[0] if ax is None else ax
    with style.look():
        return draw_contributions(table, drawn_on)


def io_cosine(run: Records, ax: Axes | None = None) -> Axes:
    """The axes with the mean I/O cosine of every layer as bars (Figure 2b); new ones where none are given."""
    table = contributions_table(run)
    drawn_on = _new_axes(1)[0] if ax is None else ax
    with style.look():
        return draw_io_cosine(table, drawn_on)


def entropy_partition(run: Records, axes: Any = None, half_steps: bool = False) -> np.ndarray[Any, Any]:
    """Two axes with the mean entropy by layer of perturbed and of unperturbed tokens (Figure 4), as an array.

    Args:
        run: what was traced.
        axes: two axes to draw on; new ones, one above the other, where none are given.
        half_steps: whether the entropy between attention and MLP of each layer is drawn too; of a run traced with
            --sublayers.
    """
    table = entropy_table(run, half_steps)
    drawn_on = np.asarray(_new_axes(2) if axes is None else axes).reshape(2)
    with style.look():
        for group, ax in zip(GROUPS, drawn_on, strict=True):
            draw_entropy(table[table["group"] == group], ax)
    return drawn_on


def onset(run: Records, ax: Axes | None = None, rank: int = 1) -> Axes:
    """The axes with the share of emitted tokens that are among the first `rank` words from each layer on.

    Args:
        run: what was traced with --targets.
        ax: what to draw on; new axes where none are given.
        rank: how many first words, 1 or more.
    """
    table = onset_table(run, rank)
    drawn_on = _new_axes(1)[0] if ax is None else ax
    with style.look():
        return draw_onset(table, drawn_on)


def settling(run: Records, axes: Any = None, g: float = 0.5, rho: float = 0.85) -> np.ndarray[Any, Any]:
    """Two axes as an array: the share of tokens settled by each layer, and the deep-thinking ratio by threshold.

    Args:
        run: what was traced with --js.
        axes: two axes to draw on; new ones, one above the other, where none are given.
        g: the threshold that is set off from the sweep, in bits.
        rho: where the deep-thinking regime begins, as a share of the depth.
    """
    table = settling_table(run, g, rho)
    above, below = drawn_on = np.asarray(_new_axes(2) if axes is None else axes).reshape(2)
    with style.look():
        draw_settled(table, above)
        draw_deep_thinking(table, below)
    return drawn_on


def perturbation_parts(run: Records, axes: Any = None) -> np.ndarray[Any, Any]:
    """Two axes as an array: what attention and MLP do to the entropy layer by layer, and in the last layer.

    Args:
        run: what was traced with --sublayers.
        axes: two axes to draw on; new ones, one above the other, where none are given.
    """
    table = parts_table(run)
    above, below = drawn_on = np.asarray(_new_axes(2) if axes is None else axes).reshape(2)
    with style.look():
        draw_parts_by_layer(table, above)
        draw_last_parts(table, below)
    return drawn_on


def _new_axes(rows: int) -> np.ndarray[Any, Any]:
    from matplotlib import pyplot  # here, so that drawing on given axes or into files never starts a window system

    # before the look: a notebook's backend makes settings with its first figure, which leaving the look would undo
    size = (style.COLUMN_INCHES, 2.3 * rows)
    figure = pyplot.figure(figsize=size, dpi=style.SCREEN_DPI, layout="constrained")
    with style.look():
        axes = figure.subplots(rows, 1, squeeze=False)
    return np.asarray(axes)[:, 0]
