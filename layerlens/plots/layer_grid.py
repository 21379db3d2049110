"""What every layer would have said at every token: layers by tokens, each cell the layer's top token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, FuncNorm, Normalize
from matplotlib.figure import Figure

from layerlens.errors import OptionError, RunError, did_you_mean, is_whole
from layerlens.plots import style
from layerlens.plots.boxes import as_share, boxes, colour_cells, label, label_beside, say_beside, scale, write
from layerlens.records.reader import Records
from layerlens.records.schema import JS, KL

COLUMNS = {"one": 5, "two": 13}
"""How many tokens are drawn by default, by the width of the page: as many as there is room for."""
MOST_COLUMNS = 96
MOST_ROWS = 40
KNOWN = "#E69F00"

_CELL, _ROW = 0.475, 0.185  # inches
_LEFT, _RIGHT, _HEAD, _FOOT, _BAR = 0.62, 0.06, 0.55, 0.96, 0.36


def figure_lens_grid(
    run: Records, prompt_id: str | None = None, *, width: str = "two", **options: Any
) -> tuple[Figure, pd.DataFrame]:
    """The page of `layerlens.plots.lens_grid`, and the table drawn. Arguments and errors are described there."""
    table = lens_grid_table(run, prompt_id, width=width, **options)
    with style.look():
        figure = Figure(figsize=page_inches(table, width))
        draw_page(table, figure)
        style.name_lens(figure, run.lens)
    return figure, table


def lens_grid_table(
    run: Records,
    prompt_id: str | None = None,
    *,
    first: int | None = None,
    last: int | None = None,
    layers: Sequence[int] | None = None,
    colour: str = "entropy",
    width: str = "two",
) -> pd.DataFrame:
    """One row per cell of `layerlens.plots.lens_grid`, token by token, the deepest layer first; arguments and errors as
    there.

    Columns: prompt_id; place of the token among those traced of the prompt, from 1; position; token_id and token, which
    was read; next_token_id and next_token, which followed (−1 and "" where nothing did); layer; top_token_id and
    top_token, the layer's; label, as it is drawn; is_next, whether the top token is the one that followed; colour;
    measure, the column of the run that the colour shows; value (NaN where the state was not finite or nothing
    followed); unit.
    """
    if colour not in COLOURS:
        advice = did_you_mean(colour, COLOURS, f"choose from {', '.join(COLOURS)}")
        raise OptionError(f"there is no colour {colour!r} of a lens grid", advice, option="colour", given=colour)
    name = _chosen(run, prompt_id)
    run = run.of_prompts([name])  # the states of a long run need more memory than there is
    rows = _rows_of(run, name)
    style.inches(width)  # refuses unknown widths
    n_columns = COLUMNS[width]
    places = _places(run.positions["is_generated"].to_numpy()[rows], first, last, n_columns)
    drawn = _layers(run.n_layers, layers)
    of_cells = np.ix_(rows[places - 1], drawn - 1)
    measure, values, unit = _COLOURS[colour](run)
    shown = run.positions.iloc[rows[places - 1]]
    followed = shown["next_token_id"].fillna(-1).to_numpy(np.int64)
    next_texts = ["" if one < 0 else text for one, text in zip(followed, run.text_of(followed), strict=True)]
    tops = run.layers("top_token_id")[of_cells]
    texts = run.text_of(tops.ravel())

    def over_layers(column: Any) -> Any:
        return np.repeat(np.asarray(column), len(drawn))

    table: pd.DataFrame = pd.DataFrame(
        {
            "prompt_id": name,
            "place": over_layers(places),
            "position": over_layers(shown["position"]),
            "token_id": over_layers(shown["token_id"]),
            "token": over_layers(run.text_of(shown["token_id"])),
            "next_token_id": over_layers(followed),
            "next_token": over_layers(next_texts),
            "layer": np.tile(drawn, len(places)),
            "top_token_id": tops.ravel(),
            "top_token": texts,
            "label": [label_beside(*pair) for pair in zip(texts, over_layers(next_texts), strict=True)],
            "is_next": (tops == followed[:, None]).ravel(),
            "colour": colour,
            "measure": measure,
            "value": values[of_cells].astype(np.float64).ravel(),
            "unit": unit,
        }
    )
    return table


def page_inches(table: pd.DataFrame, width: str = "two") -> tuple[float, float]:
    """Width and height of the page that `draw_page` fills: "one" or "two" columns of a printed page.

    Cells are as wide as six letters need, whatever their number: more tokens than there is room for widen the page.
    """
    cells = _LEFT + _CELL * table["place"].nunique() + _RIGHT
    return max(style.inches(width), cells), _HEAD + _ROW * table["layer"].nunique() + _FOOT


def draw_page(table: pd.DataFrame, figure: Figure) -> Axes:
    """The axes with the grid of a table of `lens_grid_table`, on a page of `page_inches`, with title and colour bar."""
    width, height = figure.get_size_inches()
    inches = (_LEFT, _FOOT, _CELL * table["place"].nunique(), _ROW * table["layer"].nunique())
    ax = figure.add_axes(as_share(inches, width, height))
    bar = figure.add_axes(as_share((_LEFT, _BAR, 0.22 * width, 0.09), width, height))
    shading = _shading(table)
    draw_lens_grid(table, ax, shading, bar)
    title = f"{table['prompt_id'].iloc[0]}, tokens {table['place'].min():,} to {table['place'].max():,}"
    figure.text(0.06 / width, 1 - 0.07 / height, label(title), va="top", fontsize=7, parse_math=False)
    say_beside(bar, [shading.title, "framed: the layer's top token is the one that followed"])
    return ax


@dataclass(frozen=True)
class Shading:
    """The colour of each value, and what the colour bar says about it."""

    norm: Normalize
    colours: Colormap
    ticks: list[float] | None
    title: str


def draw_lens_grid(table: pd.DataFrame, ax: Axes, shading: Shading, bar: Axes | None = None) -> Axes:
    """The axes with the cells of a table of `lens_grid_table`; text sizes are for cells half an inch wide.

    Where other axes are given, a bar of the colours is drawn on them.
    """
    drawn = table["layer"].unique()
    n_columns = table["place"].nunique()
    values = table["value"].to_numpy().reshape(n_columns, len(drawn)).T
    of_the_bar = {} if shading.ticks is None else {"ticks": shading.ticks, "format": "{x:,.0f}"}
    colours = colour_cells(values, shading.norm, shading.colours, ax, bar, **of_the_bar)
    corners = [(column, row) for column in range(n_columns) for row in range(len(drawn))]
    for text, (column, row) in zip(table["label"], corners, strict=True):
        write(str(text), (column, row), colours[row, column], ax, _CELL)
    known = [corner for corner, is_next in zip(corners, table["is_next"], strict=True) if is_next]
    twice = [corner for corner in known for _ in range(2)]  # on black, so that it shows on pale boxes and in grey
    look: dict[str, Any] = {"facecolors": "none", "edgecolors": ["black", KNOWN], "linewidths": [1.8, 1.1]}
    frames = boxes(twice, (0.035, 0.08, 0.965, 0.92), zorder=3, clip_on=False, **look)  # or the lowest lacks an edge
    ax.add_collection(frames, autolim=False)
    for column, (_, cells) in enumerate(table.groupby("place", sort=False)):
        read, followed = cells[["token", "next_token"]].iloc[0]
        alike = (top for top in cells["top_token"] if top != followed and label(top) == label(followed))
        for text, above in ((label_beside(followed, next(alike, followed)), -1.25), (label(read), len(drawn) + 0.15)):
            write(text, (column, above), (1, 1, 1), ax, _CELL)
    beside: dict[str, Any] = {"ha": "right", "va": "center_baseline", "fontsize": 6.5, "color": style.GREY}
    ax.text(-0.15, -0.75, "followed", **beside)
    ax.text(-0.15, len(drawn) + 0.65, "read", **beside)
    ax.set(xlim=(0, n_columns), ylim=(len(drawn), 0), xticks=[])
    ax.set_yticks(np.arange(len(drawn)) + 0.5, [str(layer) for layer in drawn])
    ax.tick_params(axis="y", length=0, pad=3)
    ax.set_ylabel("layer", labelpad=2)
    ax.spines[:].set_visible(False)
    return ax


def _entropy(run: Records) -> tuple[str, Any, str]:
    return "entropy", run.layers("entropy"), "nats"


def _probability(run: Records) -> tuple[str, Any, str]:
    return "top_k_probs", run.layers("top_k_probs")[:, :, 0], "1"


def _rank(run: Records) -> tuple[str, Any, str]:
    ranks = run.layers("next_rank")
    return "next_rank", np.where(ranks < 0, np.nan, ranks), "words"


def _divergence(run: Records) -> tuple[str, Any, str]:
    """The Jensen-Shannon divergence, or KL if the run has only that. A run with neither is told to ask for JS."""
    only_kl = run.has(KL.name) and not run.has(JS.name)
    measure = KL.name if only_kl else JS.name
    return measure, run.layers(measure), "nats"


_COLOURS = {"entropy": _entropy, "probability": _probability, "rank": _rank, "divergence": _divergence}
COLOURS = tuple(_COLOURS)


def _chosen(run: Records, prompt_id: str | None) -> str:
    """The id of the prompt that was asked for, or of the first."""
    if not run.lengths:
        advice = "continue it until a prompt is complete, or trace another"
        raise RunError(f"{run.path} holds no complete prompt", advice, given=run.path)
    name = next(iter(run.lengths)) if prompt_id is None else prompt_id
    if name not in run.lengths:
        known = [str(one) for one in run.prompts["prompt_id"]]
        advice = did_you_mean(name, known, f"choose another, such as {', '.join(known[:4])}")
        raise OptionError(f"{run.path} traced no prompt {name!r}", advice, option="prompt_id", given=prompt_id)
    return name


def _rows_of(run: Records, prompt_id: str) -> Any:
    """The rows of a prompt in `run.positions`, in the order of its positions."""
    rows = np.flatnonzero(run.positions["prompt_id"].to_numpy() == prompt_id)
    return rows[np.argsort(run.positions["position"].to_numpy()[rows], kind="stable")]


def _places(is_generated: Any, first: int | None, last: int | None, n_columns: int) -> Any:
    """The tokens that are drawn, counted from 1."""
    n_tokens = len(is_generated)
    for name, value in (("first", first), ("last", last)):
        if value is not None and not (is_whole(value) and 1 <= value <= n_tokens):
            raise OptionError.about(
                name, value, "is not a token of the prompt", f"give a whole number from 1 to {n_tokens}"
            )
    if first is None:
        generated = np.flatnonzero(is_generated)
        first = int(generated[0]) + 1 if len(generated) else 1
        first = first if last is None or first <= last else max(1, last - n_columns + 1)
    until = min(first + n_columns - 1, n_tokens) if last is None else last
    if until < first:
        raise OptionError.about("last", last, f"comes before token {first}", f"give a whole number from {first}")
    if until - first >= MOST_COLUMNS:
        problem = f"{until - first + 1:,} tokens do not fit into one figure"
        raise OptionError(problem, f"give at most {MOST_COLUMNS}", option="last", given=last)
    return np.arange(first, until + 1)


def _layers(n_layers: int, layers: Sequence[int] | None) -> Any:
    """The layers that are drawn, the deepest first."""
    if layers is None:
        return np.arange(n_layers, 0, -ceil(n_layers / MOST_ROWS))
    chosen = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    wrong = [layer for layer in chosen if not is_whole(layer) or not 1 <= layer <= n_layers]
    if wrong or not chosen:
        given = wrong[0] if wrong else chosen
        problem = f"there is no layer {given!r}" if wrong else "the list of layers is empty"
        raise OptionError(problem, f"give layers from 1 to {n_layers}", option="layers", given=given)
    return np.array(sorted(set(chosen), reverse=True))


def _shading(table: pd.DataFrame) -> Shading:
    """A strong colour where the model is less sure, or farther from what it predicts at the end."""
    colour = str(table["colour"].iloc[0])
    finite = table["value"].to_numpy()[np.isfinite(table["value"].to_numpy())]
    top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    colours = scale().reversed() if colour == "probability" else scale()
    colours = colours.with_extremes(bad="0.85")
    if colour == "probability":
        return Shading(Normalize(0, 1), colours, None, "probability of the layer's top token")
    if colour == "rank":
        norm = FuncNorm((np.log1p, np.expm1), vmin=0, vmax=top)
        ticks = [0.0, *(10.0**power for power in range(6) if 10**power <= top)]
        return Shading(norm, colours, ticks, "rank of the token that followed: entries before it (log scale)")
    return Shading(Normalize(0, top), colours, None, _TITLES[str(table["measure"].iloc[0])])


_TITLES = {
    "entropy": "entropy of the layer's readout (nats)",
    JS.name: "Jensen-Shannon divergence from the last layer's readout (nats)",
    KL.name: "KL(L ‖ l) of the last layer's readout from this one's (nats)",
}
