"""Tokens that the valley chose and those of the last layer, over the entropy curve (Figure 1 of arXiv 2606.21906)."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont

from layerlens.analysis.sample import Gathered, PerPrompt, Sample, gathered, generated
from layerlens.analysis.substitutions import METHODS, Substituted, choices_among, substituted
from layerlens.analysis.valleys import lowest_layers, valley_layers
from layerlens.analysis.word_shares import refuse_without_texts
from layerlens.analysis.words import word_class
from layerlens.plots import style
from layerlens.plots.boxes import FONT, ink_box, label
from layerlens.records.reader import Records

MOST_LABELS = 60
SEED = 0
BLUE, RED, DARK = "#0072B2", "#D55E00", "0.25"

_WIDTH, _HEIGHT = 2 * style.COLUMN_INCHES, 4.1  # inches
_CLOUD = (3.3, 1.95)  # inches
_PIXELS = 200  # an inch of the canvas on which labels are placed
_SMALLEST, _LARGEST = 5.0, 34.0  # points
_LONGEST = 24  # characters of a label


def figure1(run: Records) -> tuple[Figure, pd.DataFrame]:
    """Two clouds of substituted tokens over the entropy by layer, and the table drawn; see `clouds_table`.

    Left, in blue, what the valley ranks first at the substitutions; right what the last layer does, in red where that
    is a function word or punctuation by `word_class`, else in grey. The more substitutions, the larger a label, as far
    as there is room; at most 60 labels a cloud, each no longer than 24 characters. Below, the mean entropy by layer of
    the substituted tokens with its 95 % interval, V* (by the rule of `valleys` the lowest layer of the final rise), the
    lowest layer of the curve where that is not V*, and the last layer, and that of all generated tokens. Substituted
    tokens are among those whose last layer is less sure than the one before: that their curve rises there is what was
    selected for.

    Raises:
        RunError: no token was generated, none is a substitution, or the run does not hold what its tokens say.
    """
    table = clouds_table(run)
    with style.look():
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        for left, method in zip((0.1, 3.6), ("confident", "last"), strict=True):
            axes = _axes(figure, left, _HEIGHT - 0.22 - _CLOUD[1], *_CLOUD)
            draw_cloud(table[table["part"] == method], axes)
        draw_depth(table, _axes(figure, 0.55, 0.42, _WIDTH - 0.65, 1.2))
        style.name_lens(figure, run.lens)
    return figure, table


def clouds_table(run: Records) -> pd.DataFrame:
    """Everything Figure 1 draws, one row per label of a cloud and per point of a curve.

    Columns: part ("confident" and "last", the clouds; "substituted" and "generated", the curves); label, what is
    drawn for a token: texts that differ only in spaces around them share one; word_class of the label's most frequent
    token; count, its substitutions; share of all substitutions (0..1); layer; entropy, the mean at that layer in nats;
    mark, "trough" (V*), "lowest" (where that is not V*) and "last layer" of the curve "substituted"; share_low,
    share_high, entropy_low and entropy_high (95 %, prompts resampled); n_tokens on which the row rests; n_prompts that
    have any of them; n_labels, how many the cloud could have: the 60 most frequent are given, ties in the order of
    their characters. What does not apply is NA.

    Raises:
        RunError: no token was generated, none is a substitution, or the run does not hold what its tokens say.
    """
    pairs = substituted(run)
    refuse_without_texts(run)
    frames = [_labels(run, pairs, method) for method in reversed(METHODS)]
    totals = gathered(run, _entropies, generated)
    frames += [_curve(totals, part, run.n_layers) for part in ("substituted", "generated")]
    table = pd.concat(frames, ignore_index=True)
    return pairs.frame(table.reindex(columns=list(_COLUMNS)), layers=("count", "layer", "n_labels"))


def draw_cloud(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with one cloud; `table` holds its rows of `clouds_table`. Labels are placed for 3.3 x 1.95 inches."""
    method = str(table["part"].iloc[0])
    width, height = (round(_PIXELS * inches) for inches in _CLOUD)
    counts = dict(zip(table["label"], table["count"].astype(float), strict=True))
    placed = _place(counts, width, height)
    functional = set(table["label"][table["word_class"].isin(("function", "punctuation"))])
    for text, size, x, y in placed:
        colour = BLUE if method == "confident" else RED if text in functional else DARK
        left, top = ink_box(text)[:2]
        look: dict[str, Any] = {"color": colour, "fontsize": size * 72 / _PIXELS, "family": FONT, "parse_math": False}
        ax.text(x - left * size, y - top * size, text, ha="left", va="baseline", clip_on=True, **look)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(_heading(method, len(placed), table), loc="left", pad=3)
    if method == "last" and functional:
        for x, colour, text in ((0.0, RED, "function words, punctuation"), (0.52, DARK, "content words, other")):
            ax.text(x, -0.005, text, transform=ax.transAxes, va="top", color=colour, fontsize=6.5)
    return ax


def draw_depth(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the two entropy curves of `clouds_table` by layer; V*, the lowest and the last layer are marked."""
    curve, every = (table[table["part"] == part] for part in ("substituted", "generated"))
    n_layers = len(curve)
    look: dict[str, Any] = {"color": "black", "zorder": 3}
    ax.plot(curve["layer"], curve["entropy"], label=f"substituted tokens ({_n(curve)})", **look)
    if (curve["entropy_high"] > curve["entropy_low"]).any():
        ends = (curve["entropy_low"].astype(float), curve["entropy_high"].astype(float))
        ax.fill_between(curve["layer"].astype(int), *ends, color="0.75", linewidth=0, label="95 % interval", zorder=1)
    dashes: Any = (0, (4, 1.5))
    ax.plot(every["layer"], every["entropy"], color=style.GREY, linestyle=dashes, label=f"all generated ({_n(every)})")
    top = float(np.nanmax([curve["entropy_high"].max(), curve["entropy"].max(), every["entropy"].max()])) or 1.0
    style.layer_axis(ax, n_layers)
    style.value_axis(ax, top, 1.32 * top)
    ax.set_ylabel("entropy (nats)")
    for mark, colour, marker, height in (("trough", BLUE, "v", 0.84), ("last layer", RED, "s", 0.97)):
        for point in curve[curve["mark"] == mark].itertuples():
            layer, entropy = int(point.layer), float(point.entropy)
            ax.plot([layer, layer], [entropy, (height - 0.05) * 1.32 * top], color=colour, linewidth=0.8, zorder=2)
            ax.plot(layer, entropy, marker, color=colour, markersize=4.5, zorder=4)
            side, shift = ("right", -0.008) if layer > n_layers / 2 else ("left", 0.008)
            text = f"{_MARKS[mark]}: {layer}, {entropy:.2f} nats"
            place: dict[str, Any] = {"ha": side, "va": "top", "transform": ax.get_xaxis_transform(), "color": colour}
            ax.text(layer + shift * n_layers, height, text, fontsize=7, **place)
    for point in curve[curve["mark"] == "lowest"].itertuples():
        ring: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "white", "zorder": 4}
        name = f"lowest: {point.layer}, {point.entropy:.2f} nats"
        ax.plot(int(point.layer), float(point.entropy), "o", color=BLUE, label=name, **ring)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 0.98), ncols=4)
    return ax


_MARKS = {"trough": "$V^*$, lowest of the final rise", "last layer": "last layer"}
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
    """Label, size, and left and upper edge of its ink, in pixels of a canvas; those for which there is room."""
    from wordcloud import WordCloud  # type: ignore[import-untyped]  # here, since it is slow to import

    cloud = WordCloud(
        font_path=findfont(FONT),
        width=width,
        height=height,
        margin=4,
        prefer_horizontal=1,
        min_font_size=round(_SMALLEST * _PIXELS / 72),
        max_font_size=round(_LARGEST * _PIXELS / 72),
        color_func=lambda *_, **__: "black",
        random_state=SEED,
    ).generate_from_frequencies(counts)
    return [(text, size, float(x), float(y)) for (text, _), size, (y, x), _, _ in cloud.layout_]


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


def _axes(figure: Figure, *inches: float) -> Axes:
    x, y, wide, high = inches
    return figure.add_axes((x / _WIDTH, y / _HEIGHT, wide / _WIDTH, high / _HEIGHT))
