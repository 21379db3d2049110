"""One look for every figure: colours that differ for the colour-blind and in grey, and text legible in print."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from layerlens.errors import OptionError, did_you_mean

# Okabe and Ito's palette. Where two colours are alike in grey, line style or position tells them apart.
BAR = "#9CCFEF"  # a lighter tint of the palette's sky blue: the step lines over it must show in grey
TREND = "#000000"
ATTENTION = "#D55E00"
MLP = "#009E73"
PERTURBED = "#D55E00"
UNPERTURBED = "#0072B2"
PHASE_TINTS = {"I": "#56B4E9", "III": "#E69F00"}
GREY = "0.4"
FULL_ATTENTION = "0.88"

LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "black", "marker": "o"},
    {"color": "#0072B2", "marker": "D"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "v"},
    {"color": "#E69F00", "marker": "P"},
    {"color": "#56B4E9", "marker": "X"},
)
"""Colour and marker of the first, second, ... of things that stand beside each other in one panel."""

WIDTHS = {"one": 3.3, "two": 6.9}
"""Inches across one and two columns of a printed page. Figures are drawn at the size in which they are printed."""
LEAST_POINTS = 6.0
"""No text of a figure is smaller, at the width that it is drawn for."""
SCREEN_DPI = 150

_LOOK: dict[str, Any] = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 0.9,
    "legend.handletextpad": 0.5,
    "legend.borderaxespad": 0.2,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.1,
    "figure.dpi": SCREEN_DPI,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
}


def inches(width: str) -> float:
    """The inches of a width by its name, one of `WIDTHS`.

    Raises:
        OptionError: there is no such width.
    """
    if width not in WIDTHS:
        advice = did_you_mean(width, WIDTHS, f"choose from {', '.join(WIDTHS)}")
        raise OptionError.about("width", width, "is not a width of a figure", advice)
    return WIDTHS[width]


def page(width: str, n_panels: int, height: float, across: int | None = None) -> tuple[Figure, list[Axes]]:
    """A page and its panels, above each other in one column and side by side in two; each is `height` inches high.

    Args:
        width: "one" or "two" columns.
        n_panels: how many there are.
        height: of each, in inches.
        across: how many stand side by side at most; None: all.

    Raises:
        OptionError: there is no such width.
    """
    columns = 1 if width == "one" else min(n_panels, across or n_panels)
    rows = -(-n_panels // columns)
    figure = Figure(figsize=(inches(width), rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[n_panels:]:
        unused.remove()
    return figure, axes[:n_panels]


def value_axis(ax: Axes, top: float, limit: float) -> None:
    """A vertical axis from 0 to limit. Its ticks end at top, the largest value drawn; labels go into the room above."""
    ax.set_ylim(0, limit)
    ax.set_yticks(
        [tick for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top) if tick <= 1.001 * top]
    )


def look() -> AbstractContextManager[None]:
    """A context in which figures are made and saved with this look. The user's own settings return after it."""
    return mpl.rc_context(_LOOK)  # type: ignore[arg-type]


def name_lens(figure: Figure, *lenses: str) -> None:
    """Write at the lower right of a page through which lenses its runs were read, as `Records.lens` says.

    Where there are two runs, they stand above each other. Nothing is written if all were read through the logit lens.
    """
    kinds = [lens.partition(":")[0] for lens in lenses]
    if set(kinds) == {"logit"}:
        return
    text = f"read through the {kinds[0]} lens"
    if len(set(kinds)) > 1:
        text = f"above {text}, below through the {kinds[1]} lens"
    right = 1 - 0.06 / figure.get_figwidth()
    figure.supxlabel(text, x=right, ha="right", fontsize=6, color=GREY)


def letter_titles(*panels: Axes) -> None:
    """Put (a), (b), ... before the titles of a figure's panels."""
    for letter, ax in zip(ascii_lowercase, panels, strict=False):
        ax.set_title(f"({letter}) {ax.get_title(loc='left')}", loc="left")


def layer_axis(ax: Axes, n_layers: int) -> None:
    """Ticks at round layers, the first and the last among them, and half a layer of room on either side."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200) if n_layers / step <= 10)
    ticks = [1, *range(step, n_layers + 1, step)] if step > 1 else list(range(1, n_layers + 1))
    if n_layers - ticks[-1] >= step / 2:
        ticks.append(n_layers)
    elif ticks[-1] != n_layers:
        ticks[-1] = n_layers
    ax.set_xticks(ticks)
    ax.set_xlim(0.4, n_layers + 0.6)
    ax.set_xlabel("layer")


def band_full_attention(ax: Axes, kinds: Sequence[str]) -> None:
    """Grey vertical bands on full-attention layers, if the model mixes them with others."""
    if not mixes_kinds(kinds):
        return
    for layer, kind in enumerate(kinds, start=1):
        if kind == "full":
            ax.axvspan(layer - 0.5, layer + 0.5, color=FULL_ATTENTION, linewidth=0, zorder=0)


def mixes_kinds(kinds: Sequence[str]) -> bool:
    """Whether only some of the layers have full attention."""
    return "full" in kinds and len(set(kinds)) > 1


def full_attention_key() -> Patch:
    """The legend's entry for the grey bands."""
    return Patch(color=FULL_ATTENTION, label="full attention")
