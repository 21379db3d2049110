"""Figures drawn from a run. Each function reads a table, draws on matplotlib axes and returns the axes.

Pages that are made here name the lens at their lower right, unless it is the logit lens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.plots import style
from layerlens.plots.ablation import figure3
from layerlens.plots.agreement import agreement_table, draw_agreement
from layerlens.plots.clouds import figure1
from layerlens.plots.depths import draw_deep_thinking, draw_onset, draw_settled, onset_table, settling_table
from layerlens.plots.dynamics import contributions_table, draw_contributions, draw_io_cosine
from layerlens.plots.entropy import GROUPS, draw_entropy, entropy_table
from layerlens.plots.explanation import figure_explanation
from layerlens.plots.figures import (
    DISTINCT,
    FIGURES,
    GRIDS,
    KNOWN,
    NAMED,
    NUMBERS,
    OF_EVALUATIONS,
    draw,
    figure2,
    figure4,
    named_for,
)
from layerlens.plots.grids import figure_grid
from layerlens.plots.layer_grid import draw_page, lens_grid_table, page_inches
from layerlens.plots.parts import draw_last_parts, draw_parts_by_layer, parts_table
from layerlens.plots.save import save
from layerlens.records.reader import Records

__all__ = [
    "DISTINCT",
    "FIGURES",
    "GRIDS",
    "KNOWN",
    "NAMED",
    "NUMBERS",
    "OF_EVALUATIONS",
    "agreement",
    "contributions",
    "draw",
    "entropy_partition",
    "figure1",
    "figure2",
    "figure3",
    "figure4",
    "figure_explanation",
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
        half_steps: whether the entropy between attention and MLP of each layer is drawn too, which needs a run traced
            with `sublayers`.
    """
    table = entropy_table(run, half_steps)
    drawn_on = np.asarray(_new_axes(2, run.lens) if axes is None else axes).reshape(2)
    with style.look():
        for group, ax in zip(GROUPS, drawn_on, strict=True):
            draw_entropy(table[table["group"] == group], ax)
    return drawn_on


def agreement(run: Records, ax: Axes | None = None) -> Axes:
    """The axes with the share of tokens for which each layer has the last one's first choice, alone and for good."""
    table = agreement_table(run)
    drawn_on = _new_axes(1, run.lens)[0] if ax is None else ax
    with style.look():
        return draw_agreement(table, drawn_on)


def onset(run: Records, ax: Axes | None = None, rank: int = 1) -> Axes:
    """The axes with the share of emitted tokens that are among the first `rank` vocabulary entries from each layer on.

    Args:
        run: what was traced with `targets`.
        ax: what to draw on; new axes where none are given.
        rank: how many first entries count, 1 or more.
    """
    table = onset_table(run, rank)
    drawn_on = _new_axes(1, run.lens)[0] if ax is None else ax
    with style.look():
        return draw_onset(table, drawn_on)


def settling(run: Records, axes: Any = None, g: float = 0.5, rho: float = 0.85) -> np.ndarray[Any, Any]:
    """Two axes as an array: the share of tokens settled by each layer, and the deep-thinking ratio by threshold.

    Args:
        run: what was traced with `js`.
        axes: two axes to draw on; new ones, one above the other, where none are given.
        g: the threshold that is set off from the sweep, in bits.
        rho: where the deep-thinking regime begins, as a share of the depth.
    """
    table = settling_table(run, g, rho)
    above, below = drawn_on = np.asarray(_new_axes(2, run.lens) if axes is None else axes).reshape(2)
    with style.look():
        draw_settled(table, above)
        draw_deep_thinking(table, below)
    return drawn_on


def perturbation_parts(run: Records, axes: Any = None) -> np.ndarray[Any, Any]:
    """Two axes as an array: what attention and MLP do to the entropy layer by layer, and in the last layer.

    Args:
        run: what was traced with `sublayers`.
        axes: two axes to draw on; new ones, one above the other, where none are given.
    """
    table = parts_table(run)
    above, below = drawn_on = np.asarray(_new_axes(2, run.lens) if axes is None else axes).reshape(2)
    with style.look():
        draw_parts_by_layer(table, above)
        draw_last_parts(table, below)
    return drawn_on


def lens_grid(
    run: Records,
    prompt_id: str | None = None,
    *,
    first: int | None = None,
    last: int | None = None,
    layers: Sequence[int] | None = None,
    colour: str = "entropy",
    width: str = "two",
) -> Axes:
    """The axes with the top token of every layer (rows, L on top) for tokens of one prompt (columns).

    The axes are on a page of their own, as large as the grid, because the texts are for cells half an inch wide. A
    column belongs to the state that predicted a token. The token that followed stands above it, and the token that was
    read stands below. A strong colour means less sure: a greater entropy, a less probable top token, a worse rank, or a
    larger divergence. A frame marks the cells whose top token is the one that followed. It shows at which layer the
    model first knew it.

    Args:
        run: what was traced.
        prompt_id: the prompt to draw; by default the run's first.
        first, last: the first and the last of the prompt's traced tokens to draw, counted from 1; at most 96 tokens. By
            default as many as the width has room for (5 or 13), from the first generated token on, or from the first.
        layers: the layers to draw, 1..L. By default all of them, or L and every k-th below it in models of more than
            40.
        colour: "entropy" in nats; "probability" of the layer's top token (runs traced with `top`); "rank" of the token
            that followed, which is the number of vocabulary entries before it, on a logarithmic scale (`targets`);
            "divergence" of the layer's readout from the last layer's, in nats: Jensen-Shannon (`js`) or else KL(L ‖ l)
            (`kl`).
        width: "one" or "two" columns of a printed page, 3.3 or 6.9 inches. The page is wider if more tokens are asked
            for than it has room for.

    Raises:
        OptionError: no such prompt, colour, layer, tokens or width.
        RunError: the run holds no complete prompt, or was not traced with what the colour needs.
    """
    table = lens_grid_table(run, prompt_id, first=first, last=last, layers=layers, colour=colour, width=width)
    figure = _new_page(page_inches(table, width))
    with style.look():
        style.name_lens(figure, run.lens)
        return draw_page(table, figure)


def _new_axes(rows: int, lens: str = "logit") -> np.ndarray[Any, Any]:
    figure = _new_page((style.inches("one"), 2.3 * rows), layout="constrained")
    with style.look():
        style.name_lens(figure, lens)
        axes = figure.subplots(rows, 1, squeeze=False)
    return np.asarray(axes)[:, 0]


def _new_page(inches: tuple[float, float], **layout: Any) -> Figure:
    from matplotlib import pyplot  # here, so that drawing on given axes or into files starts no window system

    # before the look: a notebook's backend makes settings with its first figure, which leaving the look would undo
    return pyplot.figure(figsize=inches, dpi=style.SCREEN_DPI, **layout)
