"""A generated text as a grid of token boxes coloured by entropy (Figures 7 to 12 of arXiv 2606.21906)."""

from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from layerlens.analysis.substitutions import Choices, choices
from layerlens.errors import OptionError, RunError
from layerlens.plots import style
from layerlens.plots.boxes import as_share, boxes, label, scale, write
from layerlens.records.reader import Records

COLUMNS = 14
MOST_TOKENS = 12 * COLUMNS
FRAME = "#D55E00"

_WIDTH, _ROW, _HEAD, _FOOT, _BAR = style.inches("two"), 0.185, 0.24, 0.17, 0.42  # inches


def figure_grid(
    last_run: Records | None,
    valley_run: Records,
    prompt_id: str | None = None,
    choice: int = 1,
    most_tokens: int = MOST_TOKENS,
    rule: str = "place",
) -> tuple[Figure, pd.DataFrame]:
    """One prompt's generated text as token boxes, standard decoding above, and the table drawn; see `grid_table`.

    A box's colour is the token's entropy at the layer whose logits were sampled, on one scale for both texts. Red
    frames mark tokens that differ. With two runs and the rule "place" those are the tokens for which the other text
    has another one at the same place, counted from the first generated token, or has ended: after the first difference
    the texts rarely meet again. By the rule "alignment" they are those outside the blocks that both texts have in
    common, as difflib finds them. With one run they are its substitutions, whatever the rule:
    those that the valley would make where the run was decoded from the last layer.

    Args:
        last_run: decoded from the last layer; None to draw the other run alone.
        valley_run: decoded from the valley, of the same prompts.
        prompt_id: the prompt to draw. By default that of the common prompts with the most substitutions in
            `valley_run`, ties by id.
        choice: 1 for the one with the most, 2 for the next and so on: Figure 7 is choice 1, Figure 12 choice 6.
        most_tokens: of each text are drawn; how many are left out is said under it.
        rule: by which tokens of two texts differ, "place" or "alignment".

    Raises:
        OptionError: choice or most_tokens is below 1, or there is no such rule.
        RunError: a run generated nothing, the runs share no (or not that) prompt, fewer prompts than `choice`, or
            another text under the same id; they are of two models, or `last_run` is not decoded from the last layer.
    """
    table = grid_table(last_run, valley_run, prompt_id, choice, most_tokens, rule)
    parts = [part for _, part in table.groupby("text", sort=False)]
    framed = "differ" if last_run is not None else _substituted(valley_run)
    feet = [0.05 if part["shown"].all() else _FOOT for part in parts]
    heights = [_HEAD + _ROW * _n_rows(part) + foot for part, foot in zip(parts, feet, strict=True)]
    height = sum(heights) + _BAR
    with style.look():
        figure = Figure(figsize=(_WIDTH, height))
        top = float(table.loc[table["shown"], "entropy"].max())
        norm = Normalize(0, top if top > 0 else 1.0)
        lower = height
        for part, letter, part_height, foot in zip(parts, _letters(len(parts)), heights, feet, strict=True):
            lower -= part_height
            inches = (0.04, lower + foot, _WIDTH - 0.08, part_height - _HEAD - foot)
            axes = figure.add_axes(as_share(inches, _WIDTH, height))
            draw_grid(part, axes, norm)
            axes.set_title(f"{letter}{_title(part, framed)}", loc="left", pad=3)
        _colour_bar(figure, norm, height)
        style.name_lens(figure, *(run.lens for run in (last_run, valley_run) if run is not None))
    return figure, table


def grid_table(
    last_run: Records | None,
    valley_run: Records,
    prompt_id: str | None = None,
    choice: int = 1,
    most_tokens: int = MOST_TOKENS,
    rule: str = "place",
) -> pd.DataFrame:
    """One row per generated token of one prompt: everything `figure_grid` draws; arguments and errors as there.

    Columns: text (0 above, 1 below); decoding, the name of the run's strategy; prompt_id; place, from 0; token_id;
    token, its text; label, as it is drawn; selected_layer; entropy there, in nats; differs; shown, whether it is drawn;
    rule, by which tokens differ: "place" or "alignment" (two runs), "substitution" (one).
    """
    for name, value in (("choice", choice), ("most_tokens", most_tokens)):
        if value < 1:
            raise OptionError.about(name, value, "is too small", "give a whole number from 1")
    if rule not in _RULES:
        problem = f"there is no rule {rule!r} by which tokens differ"
        raise OptionError(problem, f"choose from {', '.join(_RULES)}", option="rule", given=rule)
    runs = [run for run in (last_run, valley_run) if run is not None]
    choices_by_run = [choices(run) for run in runs]
    chosen = _choose(runs, choices_by_run, choice) if prompt_id is None else _check(runs, choices_by_run, prompt_id)
    if last_run is not None:
        _refuse_unlike(last_run, valley_run)
        _refuse_other_prompts(runs, chosen)
    frames = [_tokens_of(run, first_choices, chosen) for run, first_choices in zip(runs, choices_by_run, strict=True)]
    if len(frames) == 2:
        above, below = (frame["token_id"].tolist() for frame in frames)
        for frame, differs in zip(frames, _RULES[rule](above, below), strict=True):
            frame["differs"] = differs
    for index, frame in enumerate(frames):
        frame.insert(0, "text", index)
        frame["shown"] = frame["place"] < most_tokens
        frame["rule"] = rule if len(frames) == 2 else "substitution"
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return table


def draw_grid(table: pd.DataFrame, ax: Axes, norm: Normalize) -> Axes:
    """The axes with one text as boxes in rows of 14, read from left to right; `table` holds the rows of that text only.

    Args:
        table: of `grid_table`.
        ax: to draw on; text sizes are for a width of 7 inches.
        norm: which entropy, in nats, has which place on the colour scale.
    """
    shown = table[table["shown"]]
    colours = scale()(norm(shown["entropy"].to_numpy()))
    corners = [divmod(place, COLUMNS)[::-1] for place in range(len(shown))]
    ax.add_collection(boxes(corners, facecolors=colours, edgecolors="white", linewidths=0.6), autolim=False)
    for text, corner, colour in zip(shown["label"], corners, colours, strict=True):
        write(str(text), corner, colour, ax, (_WIDTH - 0.08) / COLUMNS)
    framed = [corner for corner, differs in zip(corners, shown["differs"], strict=True) if differs]
    twice = [corner for corner in framed for _ in range(2)]  # on white, so that it shows on dark boxes and in grey
    look: dict[str, Any] = {"facecolors": "none", "edgecolors": ["white", FRAME], "linewidths": [3.0, 1.3]}
    ax.add_collection(boxes(twice, (0.03, 0.06), zorder=3, **look), autolim=False)
    rows = _n_rows(table)
    ax.set(xlim=(0, COLUMNS), ylim=(rows, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    left_out = len(table) - len(shown)
    if left_out:
        noun = "token" if left_out == 1 else "tokens"
        ax.text(0, rows + 0.12, f"… {left_out:,} more {noun}", va="top", ha="left", fontsize=6.5, color=style.GREY)
    return ax


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")  # of Figures 7 to 12
_STRATEGIES = {"last": "Standard decoding, last layer", "valley": "Confident decoding, valley"}


def _by_place(above: list[int], below: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each text differ from the token at the same place of the other, or have none opposite."""
    differ = [one != other for one, other in zip_longest(above, below)]
    return differ[: len(above)], differ[: len(below)]


def _by_alignment(above: list[int], below: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each text are outside the blocks that both have in common, in order."""
    differ = [True] * len(above), [True] * len(below)
    for block in SequenceMatcher(None, above, below, autojunk=False).get_matching_blocks():
        for text, start in zip(differ, (block.a, block.b), strict=True):
            text[start : start + block.size] = [False] * block.size
    return differ


_RULES: dict[str, Callable[[list[int], list[int]], tuple[list[bool], list[bool]]]]
_RULES = {"place": _by_place, "alignment": _by_alignment}


def _letters(n: int) -> list[str]:
    return ["(a) ", "(b) "] if n == 2 else [""]


def _n_rows(table: pd.DataFrame) -> int:
    return -(-int(table["shown"].sum()) // COLUMNS)


def _substituted(run: Records) -> str:
    """What became of a run's substitutions: nothing where every token was sampled from the last layer."""
    layers = run.positions.loc[run.positions["is_generated"], "selected_layer"]
    return "would be substituted" if (layers == run.n_layers).all() else "substituted"


def _title(part: pd.DataFrame, framed: str) -> str:
    name = str(part["decoding"].iloc[0])
    n, differ = len(part), int(part["differs"].sum())
    noun = "token" if n == 1 else "tokens"
    return f"{_STRATEGIES.get(name, f'Decoding {name}')}: {n:,} {noun}, {differ:,} {framed} (framed)"


def _colour_bar(figure: Figure, norm: Normalize, height: float) -> None:
    axes = figure.add_axes(as_share((0.12, 0.23, 2.2, 0.09), _WIDTH, height))
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, scale()), cax=axes, orientation="horizontal")
    bar.outline.set_linewidth(0.4)
    axes.tick_params(labelsize=6, length=2, pad=1.5)
    place: dict[str, Any] = {"va": "center", "transform": axes.transAxes, "fontsize": 6.5}
    axes.text(1.06, 0.5, "entropy (nats) at the layer whose logits were sampled", **place)


def _ids(run: Records, first_choices: Choices) -> "pd.Series[str]":
    """The prompt of every token of a sample, in its order."""
    return run.positions["prompt_id"].iloc[first_choices.tokens.rows].reset_index(drop=True)


def _with_text(runs: list[Records], choices_by_run: list[Choices]) -> set[str]:
    """Prompts for which every run generated something."""
    return set.intersection(
        *(set(_ids(run, first_choices).unique()) for run, first_choices in zip(runs, choices_by_run, strict=True))
    )


def _choose(runs: list[Records], choices_by_run: list[Choices], choice: int) -> str:
    common = _with_text(runs, choices_by_run)
    if not common:
        problem = f"{runs[0].path} and {runs[-1].path} share no prompt"
        raise RunError(problem, "trace the same prompts in both", given=runs[0].path)
    ids = _ids(runs[-1], choices_by_run[-1])
    counts = pd.Series(choices_by_run[-1].substituted, dtype=int).groupby(ids).sum()
    ranked = sorted(common, key=lambda prompt_id: (-int(counts[prompt_id]), prompt_id))
    if choice > len(ranked):
        problem = f"{_asked(choice)}, but {_holding(runs, len(ranked))}"
        raise RunError(problem, "trace more prompts", option="choice", given=choice)
    return ranked[choice - 1]


def _asked(choice: int) -> str:
    if choice > len(_ORDINALS):
        return f"choice is {choice}"
    return f"figure {choice + 6} shows the {_ORDINALS[choice - 1]} text"


def _holding(runs: list[Records], n_texts: int) -> str:
    """How many prompts with a generated text a run has, or two have in common."""
    verb = "has" if len(runs) == 1 else "have"
    shared = "" if len(runs) == 1 else " in common"
    where = " and ".join(str(run.path) for run in runs)
    return f"{where} {verb} {n_texts} {'prompt' if n_texts == 1 else 'prompts'}{shared}"


def _check(runs: list[Records], choices_by_run: list[Choices], prompt_id: str) -> str:
    for run, first_choices in zip(runs, choices_by_run, strict=True):
        if prompt_id not in _with_text([run], [first_choices]):
            few = ", ".join(sorted(_with_text([run], [first_choices]))[:4])
            problem = f"{run.path} generated nothing for prompt {prompt_id!r}"
            raise RunError(problem, f"choose another, such as {few}", option="prompt_id", given=prompt_id)
    return prompt_id


def _refuse_unlike(last_run: Records, valley_run: Records) -> None:
    strategy = last_run.manifest["strategy"]["name"]
    if strategy != "last":
        problem = f"{last_run.path} was decoded by {strategy}, and standard decoding is drawn beside it"
        raise RunError(problem, "give a run from the last layer", option="last_run", given=last_run.path)
    ours, theirs = (run.manifest["model"].get("fingerprint") for run in (last_run, valley_run))
    if ours != theirs or last_run.n_layers != valley_run.n_layers:
        problem = f"{last_run.path} and {valley_run.path} are of two models"
        raise RunError(problem, "trace the same one in both", given=last_run.path)


def _refuse_other_prompts(runs: list[Records], prompt_id: str) -> None:
    first, second = (run.prompts.set_index("prompt_id")["prompt"][prompt_id] for run in runs)
    if first != second:
        problem = f"{runs[0].path} and {runs[1].path} asked different things as {prompt_id!r}"
        raise RunError(problem, "trace the same prompts in both", option="prompt_id", given=prompt_id)


def _tokens_of(run: Records, first_choices: Choices, prompt_id: str) -> pd.DataFrame:
    among = (_ids(run, first_choices) == prompt_id).to_numpy()
    rows = first_choices.tokens.rows[among]
    positions = run.positions.iloc[rows]
    layers = positions["selected_layer"].to_numpy(dtype=np.int64)
    ids = positions["next_token_id"].to_numpy(dtype=np.int64)
    texts = run.text_of(ids)
    table: pd.DataFrame = pd.DataFrame(
        {
            "decoding": str(run.manifest["strategy"]["name"]),
            "prompt_id": prompt_id,
            "place": np.arange(len(rows)),
            "token_id": ids,
            "token": texts,
            "label": [label(text) for text in texts],
            "selected_layer": layers,
            "entropy": run.layers("entropy")[rows, layers - 1].astype(np.float64),
            "differs": first_choices.substituted[among],
        }
    )
    return table
