"""Tokens that the valley chose and those of the last layer, over the entropy curve (Figure 1 of arXiv 2606.21906)."""

from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis.sample import Gathered, PerPrompt, Sample, gathered, generated
from layerlens.analysis.substitutions import METHODS, Substituted, choices_among, substituted
from layerlens.analysis.valleys import lowest_layers, valley_layers
from layerlens.analysis.word_shares import refuse_without_texts
from layerlens.analysis.words import word_class
from layerlens.plots import style
from layerlens.plots.boxes import FONT, as_share, ink_box, label
from layerlens.records.reader import Records

MOST_LABELS = 60
SEED = 0
BLUE, RED, DARK, PALE = "#0072B2", "#D55E00", "0.2", "0.58"

_CLOUD = (3.2, 1.9)  # inches
_PIXELS = 100  # an inch of the canvas on which labels are placed
_GAP = (5, 3)  # of these pixels, across and down, between two labels: so that nobody reads them as one
_SMALLEST = 6.5  # points
_LARGEST = (34.0, 28.0, 23.0, 19.0, 16.0, 13.0)  # points of the most frequent label, the first at which all have room
_LONGEST = 24  # characters of a label


def figure1(run: Records, width: str = "two") -> tuple[Figure, pd.DataFrame]:
    """Two clouds of substituted tokens over the entropy by layer, and the table drawn; see `clouds_table`.

    The first cloud, in blue, has the tokens that the valley ranks first at the substitutions. The second has those that
    the last layer ranks first, coloured by `word_class`: function words and punctuation in red, content words nearly
    black, numbers, signs and special tokens in pale grey. A label is the larger, the more substitutions it has, as far
    as there is room. A cloud has at most 60 labels, each of at most 24 characters. Below is the mean entropy by layer
    of the substituted tokens with its 95 % interval, and that of all generated tokens. The legend gives V* of the
    substituted tokens' curve (by the rule of `valleys` the lowest layer of the final rise), the lowest layer of the
    curve where that is not V*, and the last layer. V* of the perturbed tokens, which `valleys` and Figure 4 give, can
    be another layer, because most perturbed tokens are not substituted. The curve of substituted tokens rises at the
    last layer by selection: they are among the tokens for which the last layer is less sure than the layer before.

    Args:
        run: what was traced.
        width: "one" or "two" columns of a page; in one column the clouds stand above each other.

    Raises:
        RunError: no token was generated, none is a substitution, or the run does not hold the texts of its tokens.
        OptionError: there is no such width.
    """
    across = style.inches(width)
    table = clouds_table(run)
    one = width == "one"
    height = 6.6 if one else 4.15
    with style.look():
        figure = Figure(figsize=(across, height))
        first, second = ((0.06, 0.22), (0.06, 2.42)) if one else ((0.06, 0.22), (across - _CLOUD[0] - 0.06, 0.22))
        for (left, down), method in zip((first, second), ("confident", "last"), strict=True):
            axes = figure.add_axes(as_share((left, height - down - _CLOUD[1], *_CLOUD), across, height))
            draw_cloud(table[table["part"] == method], axes)
        curves = (0.45, 0.42, across - 0.5, 1.15)
        draw_depth(table, figure.add_axes(as_share(curves, across, height)), columns=2 if one else 3)
        style.name_lens(figure, run.lens)
    return figure, table


def clouds_table(run: Records) -> pd.DataFrame:
    """Everything Figure 1 draws, one row per label of a cloud and per point of a curve.

    Columns: part ("confident" and "last", the clouds; "substituted" and "generated", the curves); label, what is
    drawn for a token: texts that differ only in spaces around them share one; word_class of the label's most frequent
    token; count, its substitutions; share of all substitutions (0..1); layer; entropy, the mean at that layer in nats;
    mark, "trough" (V*), "lowest" (where it is not V*) and "last layer" of the curve "substituted"; share_low,
    share_high, entropy_low and entropy_high (95 %, prompts resampled); n_tokens on which the row rests; n_prompts that
    have any of them; n_labels, how many labels the cloud could have: the 60 most frequent are given, ties in the
    order of their characters. A value that does not apply is NA.

    Raises:
        RunError: no token was generated, none is a substitution, or the run does not hold the texts of its tokens.
    """
    pairs = substituted(run)
    refuse_without_texts(run)
    frames = [_labels(run, pairs, method) for method in reversed(METHODS)]
    totals = gathered(run, _entropies, generated)
    frames += [_curve(totals, part, run.n_layers) for part in ("substituted", "generated")]
    table = pd.concat(frames, ignore_index=True)
    return pairs.frame(table.reindex(columns=list(_COLUMNS)), layers=("count", "layer", "n_labels"))


def draw_cloud(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with one cloud; `table` holds its rows of `clouds_table`. Labels are placed for 3.2 x 1.9 inches."""
    method = str(table["part"].iloc[0])
    width, height = (round(_PIXELS * inches) for inches in _CLOUD)
    counts = dict(zip(table["label"], table["count"].astype(float), strict=True))
    placed = _place(counts, width, height)
    kinds = dict(zip(table["label"], table["word_class"], strict=True))
    for text, points, x, y in placed:
        colour = BLUE if method == "confident" else _CLASS_COLOURS[kinds[text]]
        left, top = ink_box(text)[:2]
        look: dict[str, Any] = {"color": colour, "fontsize": points, "family": FONT, "parse_math": False}
        size = points * _PIXELS / 72
        ax.text(x - left * size, y - top * size, text, ha="left", va="baseline", clip_on=True, **look)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(_heading(method, len(placed), table), loc="left", pad=3)
    if method == "last":
        for x, colour, text in _KEY:
            ax.text(x, -0.01, text, transform=ax.transAxes, va="top", color=colour, fontsize=6.5)
    return ax


def draw_depth(table: pd.DataFrame, ax: Axes, columns: int = 3) -> Axes:
    """The axes with the two entropy curves of `clouds_table` by layer; V*, the lowest and the last layer are marked.

    Args:
        table: of `clouds_table`.
        ax: to draw on.
        columns: of the legend, which says what the marks are and at which layers and entropies they stand.
    """
    curve, every = (table[table["part"] == part] for part in ("substituted", "generated"))
    n_layers = len(curve)
    look: dict[str, Any] = {"color": "black", "zorder": 3}
    of = "substituted tokens" if columns > 2 else "substituted"
    handles: list[Any] = ax.plot(curve["layer"], curve["entropy"], label=f"{of} ({_n(curve)})", **look)
    if (curve["entropy_high"] > curve["entropy_low"]).any():
        ends = (curve["entropy_low"].astype(float), curve["entropy_high"].astype(float))
        band: dict[str, Any] = {"color": "0.75", "linewidth": 0, "label": "95 % interval", "zorder": 1}
        handles.append(ax.fill_between(curve["layer"].astype(int), *ends, **band))
    dashes: Any = (0, (4, 1.5))
    label = f"all generated ({_n(every)})"
    handles += ax.plot(every["layer"], every["entropy"], color=style.GREY, linestyle=dashes, label=label)
    top = float(np.nanmax([curve["entropy_high"].max(), curve["entropy"].max(), every["entropy"].max()])) or 1.0
    style.layer_axis(ax, n_layers)
    style.value_axis(ax, top, 1.08 * top)
    ax.set_ylabel("entropy (nats)")
    for mark, (name, sign) in _MARKS.items():
        for point in curve[curve["mark"] == mark].itertuples():
            label = f"{name.format(of)}: {int(point.layer)}, {point.entropy:.2f} nats"
            drawn: dict[str, Any] = {"linestyle": "", "markersize": 4.5, "zorder": 4, "clip_on": False}
            handles += ax.plot(int(point.layer), float(point.entropy), label=label, **drawn, **sign)
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02 if columns > 2 else -0.14, 1.0), ncols=columns)
    return ax


_CLASS_COLOURS = {"function": RED, "punctuation": RED, "content": DARK, "other": PALE}
_KEY = (
    (0.0, RED, "function words, punctuation"),
    (0.44, DARK, "content words"),
    (0.67, PALE, "other, special tokens"),
)
_MARKS: dict[str, tuple[str, dict[str, Any]]] = {
    "trough": ("V* of {}", {"marker": "v", "color": BLUE}),
    "last layer": ("last layer", {"marker": "s", "color": RED}),
    "lowest": ("lowest layer", {"marker": "o", "color": BLUE, "markerfacecolor": "white"}),
}
_COLUMNS = (
    *("part", "label", "word_class", "count", "share", "share_low", "share_high"),
    *("layer", "entropy", "entropy_low", "entropy_high", "mark", "n_tokens", "n_prompts", "n_labels"),
)


def _labels(run: Records, pairs: Substituted, method: str) -> pd.DataFrame:
    distinct, which, counts = np.unique(getattr(pairs, method), return_inverse=True, return_counts=True)
    texts = run.text_of(distinct)
    tokens = pd.DataFrame({"label": [_short(label(text)) for text in texts], "text": texts, "count": counts})
    ranked = tokens.sort_values(["count", "text"], ascending=[False, True]).groupby("label", sort=False)
    table = ranked.agg(count=("count", "sum"), text=("text", "first")).reset_index()
    table = table.sort_values(["count", "label"], ascending=[False, True], ignore_index=True)
    n_labels, table = len(table), table.head(MOST_LABELS)
    codes = tokens["label"].map({text: code for code, text in enumerate(table["label"])}).fillna(len(table))
    shares = pairs.shares(codes.to_numpy(dtype=np.int64)[which], len(table) + 1)
    columns: dict[str, Any] = {"part": method, "label": table["label"], "word_class": table["text"].map(word_class)}
    columns |= {"count": table["count"]} | {name: values[: len(table)] for name, values in shares.items()}
    columns |= {"n_tokens": len(pairs.prompt), "n_labels": n_labels}
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def _entropies(run: Records, tokens: Sample) -> dict[str, PerPrompt]:
    entropy = tokens.of(run.layers("entropy"))
    among = choices_among(run, tokens).substituted
    return {"substituted": tokens.per_prompt(entropy, among), "generated": tokens.per_prompt(entropy)}


def _curve(totals: Gathered, part: str, n_layers: int) -> pd.DataFrame:
    per_prompt = totals[part]
    mean, low, high = totals.estimate(per_prompt)
    columns: dict[str, Any] = {"part": part, "layer": np.arange(1, n_layers + 1), "entropy": mean}
    columns |= {"entropy_low": low, "entropy_high": high, "n_tokens": per_prompt.n_tokens}
    frame: pd.DataFrame = pd.DataFrame(columns | {"n_prompts": per_prompt.n_prompts})
    if part == "substituted":
        marks = {n_layers: "last layer"}
        if not np.isnan(trough := float(valley_layers(mean))):
            marks |= {int(lowest_layers(mean)): "lowest", int(trough): "trough"}
        frame["mark"] = [marks.get(layer, "") for layer in frame["layer"]]
    return frame


def _place(counts: dict[str, float], width: int, height: int) -> list[tuple[str, float, float, float]]:
    """The labels for which there is room: label, size in points, left and upper edge of its ink, in pixels of a canvas.

    No rectangle around a label's ink comes nearer to another than the gap. Libraries for word clouds do not promise
    that, because they place small words in the free corners of large ones.
    """
    layouts = [_placed(counts, largest, width, height) for largest in _LARGEST[:1]]
    for largest in _LARGEST[1:]:
        if len(layouts[-1]) == len(counts):
            break
        layouts.append(_placed(counts, largest, width, height))
    return max(layouts, key=len)


def _placed(counts: dict[str, float], largest: float, width: int, height: int) -> list[tuple[str, float, float, float]]:
    """The labels for which there is room, in their order, if the first has a size of `largest` points."""
    random = np.random.default_rng(SEED)
    taken = np.zeros((height, width), dtype=np.int32)
    layout: list[tuple[str, float, float, float]] = []
    size, most = largest, max(counts.values())
    for text, count in counts.items():
        left, upper, right, lower = ink_box(text)
        wanted = min(size, max(_SMALLEST, largest * (count / most) ** 0.5))
        for points in (*np.arange(wanted, _SMALLEST, -1.0), _SMALLEST):
            pixels = points * _PIXELS / 72
            across, down = ceil(pixels * (right - left)) + _GAP[0], ceil(pixels * (lower - upper)) + _GAP[1]
            free = _free(taken, across, down)
            if not len(free):
                continue
            y, x = free[random.integers(len(free))].tolist()
            taken[y : y + down, x : x + across] = 1
            layout.append((text, float(points), x + _GAP[0] / 2, y + _GAP[1] / 2))
            size = float(points)
            break
    return layout


def _free(taken: Any, across: int, down: int) -> Any:
    """Left upper corners (y, x) of all free rectangles of a size, [n, 2], on a canvas of 0 where it is free."""
    height, width = taken.shape
    if across > width or down > height:
        return np.empty((0, 2), dtype=np.int64)
    sums = np.zeros((height + 1, width + 1), dtype=np.int32)
    sums[1:, 1:] = taken.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    inside = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    return np.argwhere(inside == 0)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _heading(method: str, n_drawn: int, table: pd.DataFrame) -> str:
    n_labels = int(table["n_labels"].iloc[0])
    noun = "substitution" if table["n_tokens"].iloc[0] == 1 else "substitutions"
    labels = f"{n_labels:,}" if n_drawn == n_labels else f"{n_drawn} of {n_labels:,}"
    name = {"confident": "(a) At the valley", "last": "(b) At the last layer"}[method]
    kinds = "label" if n_labels == 1 else "labels"
    return f"{name}: {labels} {kinds}, {table['n_tokens'].iloc[0]:,} {noun}"


def _n(curve: pd.DataFrame) -> str:
    return f"{int(curve['n_tokens'].iloc[0]):,}"
