"""The cells of grids: boxes with a token's text, coloured by a number."""

from collections.abc import Sequence
from functools import cache
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.font_manager import findfont, get_font
from matplotlib.transforms import Bbox, TransformedBbox
from PIL import ImageFont

from layerlens.plots import style
from layerlens.plots.labels import visible

FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same

_LARGEST, _SMALLEST = 6.5, style.LEAST_POINTS
_CHARACTERS = 20  # of a sentence of 6.5 points in an inch
_ROOM = 0.86  # of a box's width may be text


def label(text: str) -> str:
    """What is drawn for a token: `visible`, with the code of every character that the font lacks."""
    return visible(text, lambda character: ord(character) in _characters())


def label_beside(text: str, other: str) -> str:
    """A token's label, beside another token's: a space at its beginning is shown if the two look alike without it."""
    shown = label(text)
    return f"␣{shown}" if text.startswith(" ") and text != other and shown == label(other) else shown


def fitted(label: str, inches: float) -> tuple[str, float]:
    """A label, and its size in points so that it is at most so wide: first smaller, then cut and ended with …"""
    room = inches * 72
    if width(label) * _SMALLEST <= room:
        return label, min(_LARGEST, room / max(width(label), 1e-9))
    fits = max((n for n in range(len(label)) if width(f"{label[:n]}…") * _SMALLEST <= room), default=0)
    return f"{label[:fits]}…", _SMALLEST


def width(text: str) -> float:
    """How wide a text's ink is, in multiples of the font's size."""
    left, _, right, _ = ink_box(text)
    return right - left


def ink_box(text: str) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of a text's ink from where its baseline begins, y downwards, in font sizes."""
    left, upper, right, lower = (float(edge) / _MEASURED_AT for edge in _measure().getbbox(text, anchor="ls"))
    return left, upper, right, lower


@cache
def scale() -> Colormap:
    """Nearly white to dark blue: its lightness falls throughout, so that it reads the same in grey."""
    blues = mpl.colormaps["Blues"](np.linspace(0.03, 0.9, 256))
    return LinearSegmentedColormap.from_list("boxes", list(map(tuple, blues)))


def boxes(corners: list[tuple[int, int]], edges: tuple[float, float, float, float], **look: Any) -> PolyCollection:
    """Boxes within cells of width and height 1, by the cells' left upper corners.

    One artist for all of them: hundreds take matplotlib longer to place than the texts to draw.

    Args:
        corners: of the cells, x and y.
        edges: of the boxes within them: left, upper, right and lower, each 0..1.
        look: of the boxes, as of a collection.
    """
    left, upper, right, lower = edges
    sides = np.array([(left, upper), (right, upper), (right, lower), (left, lower)])
    return PolyCollection([np.add(corner, sides) for corner in corners], joinstyle="miter", **look)


def colour_cells(
    values: Any, norm: Normalize, colours: Colormap, ax: Axes, bar: Axes | None = None, **of_the_bar: Any
) -> Any:
    """The colours of a grid's cells, [rows, columns, 4], which are drawn from the left upper corner of the axes on.

    Args:
        values: a number for each cell, [rows, columns]. NaN has the scale's colour for missing values.
        norm, colours: the colour of each number.
        ax: to draw on.
        bar: other axes for a bar of the colours; none where not given.
        of_the_bar: what matplotlib's colour bar takes.
    """
    from seaborn import heatmap  # here, since it is slow to import

    ends = {"vmin": norm.vmin, "vmax": norm.vmax}  # or it looks for them, and warns where there is no number
    look: dict[str, Any] = {"norm": norm, "cmap": colours, "linewidths": 0.6, "linecolor": "white"}
    look |= {"xticklabels": False, "yticklabels": False, "cbar": bar is not None, "cbar_ax": bar}
    heatmap(values, ax=ax, cbar_kws={"orientation": "horizontal", **of_the_bar}, **ends, **look)
    if bar is not None:
        bar.spines["outline"].set_linewidth(0.4)
        bar.tick_params(labelsize=style.LEAST_POINTS, length=2, pad=1.5)
        bar.minorticks_off()
    return colours(norm(np.ma.masked_invalid(values)))


def say_beside(bar: Axes, lines: Sequence[str]) -> None:
    """Write what the colours and frames of a grid mean, to the right of the bar, in as many lines as it takes."""
    page = bar.figure.figure  # of a part of a page too; matplotlib before 3.10 has no get_figure(root=True)
    room = page.get_figwidth() * (1 - bar.get_position().x1) - 0.27
    text = "\n".join(fill(line, round(_CHARACTERS * room)) for line in lines)
    bar.annotate(
        text, (1, 1), xytext=(16, 3), textcoords="offset points", xycoords="axes fraction", va="top", fontsize=6.5
    )


def write(
    text: str,
    corner: tuple[float, float],
    colour: Any,
    ax: Axes,
    inches: float,
    of_the_box: tuple[float, float] = (0, 1),
    **more: Any,
) -> None:
    """Write a token's label into a box of a colour that is so many inches wide. Nothing of it shows outside of the box.

    The label has the part of the box between two shares of its height; by default the whole box.
    """
    column, row = corner
    above, below = of_the_box
    shown, size = fitted(text, _ROOM * inches)
    ink = "white" if _luminance(colour) < 0.18 else "black"
    look: dict[str, Any] = {"fontsize": size, "color": ink, "family": FONT, "parse_math": False} | more
    middle = row + (above + below) / 2
    drawn = ax.text(column + 0.5, middle, shown, ha="center", va="center_baseline", clip_on=True, **look)
    drawn.set_clip_path(None)  # the axes', which would be another clip beside that of the box
    drawn.set_clip_box(TransformedBbox(Bbox.from_bounds(column, row, 1, 1), ax.transData))


def as_share(inches: tuple[float, float, float, float], across: float, up: float) -> Any:
    """Left, lower edge, width and height on a page of so many inches, as matplotlib places axes."""
    x, y, wide, high = inches
    return x / across, y / up, wide / across, high / up


_MEASURED_AT = 100


@cache
def _measure() -> Any:
    return ImageFont.truetype(findfont(FONT), _MEASURED_AT)


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def _luminance(colour: Any) -> float:
    red, green, blue = (value**2.2 for value in colour[:3])
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)
