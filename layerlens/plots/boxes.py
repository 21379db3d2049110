"""Boxes with a token's text in them, coloured by a number: what grids are drawn of."""

from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.font_manager import findfont, get_font
from matplotlib.transforms import Bbox, TransformedBbox
from PIL import ImageFont

from layerlens.plots.labels import visible

FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same

_LARGEST, _SMALLEST = 6.5, 4.5  # points
_ROOM = 0.86  # of a box's width may be text


def label(text: str) -> str:
    """What is drawn for a token: `visible`, with the code of every character that the font lacks."""
    return visible(text, lambda character: ord(character) in _characters())


def fitted(label: str, inches: float) -> tuple[str, float]:
    """A label and its size in points so that it is no wider than that: first smaller, then cut and ended with …"""
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


def boxes(corners: list[tuple[int, int]], inset: tuple[float, float] = (0, 0), **look: Any) -> PolyCollection:
    """Boxes of width and height 1 by their left upper corners, smaller by the inset on each side.

    One artist for all of them: hundreds take matplotlib longer to place than the texts to draw.
    """
    across, up = inset
    sides = np.array([(across, up), (1 - across, up), (1 - across, 1 - up), (across, 1 - up)])
    return PolyCollection([np.add(corner, sides) for corner in corners], joinstyle="miter", **look)


def write(text: str, corner: tuple[float, float], colour: Any, ax: Axes, inches: float) -> None:
    """A token's label in a box of a colour that is so many inches wide, beyond which nothing of it shows."""
    column, row = corner
    shown, size = fitted(text, _ROOM * inches)
    ink = "white" if _luminance(colour) < 0.18 else "black"
    look: dict[str, Any] = {"fontsize": size, "color": ink, "family": FONT, "parse_math": False}
    drawn = ax.text(column + 0.5, row + 0.5, shown, ha="center", va="center_baseline", clip_on=True, **look)
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
