"""A generated text as a grid of token boxes coloured by entropy (Figures 7 to 12 of arXiv 2606.21906)."""

from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import zip_longest
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from layerlens.analysis.substitutions import Choices, choices
from layerlens.errors import OptionError, RunError, did_you_mean, spelled
from layerlens.plots import style
from layerlens.plots.boxes import as_share, boxes, colour_cells, label_beside, say_beside, scale, write
from layerlens.records.reader import Records

COLUMNS = {"one": 7, "two": 14}
"""Boxes in a row, by the width of the page."""
MOST_ROWS = 12
FRAME = "#D55E00"

_ROW, _TALL_ROW = 0.185, 0.3  # inches; tall ones hold two tokens above each other
_HEAD, _LINE, _FOOT, _BAR = 0.24, 0.12, 0.17, 0.62  # inches


def figure_grid(
    last_run: Records | None,
    valley_run: Records,
    prompt_id: str | None = None,
    choice: int = 1,
    most_tokens: int | None = None,
    rule: str = "substitution",
    width: str = "two",
) -> tuple[Figure, pd.DataFrame]:
    """One prompt's generated text as token boxes, standard decoding above, and the table drawn; see `grid_table`.

    A box's colour is the token's entropy at the layer whose logits were sampled, on one scale for both texts. Vermilion
    frames (#D55E00) mark tokens by a rule:

    - "substitution": what the decoding did. A token of `valley_run` is framed where the first choice of the layer whose
      logits were sampled is not that of the last layer, which read the same text so far. The last layer's first choice
      stands below it in italics. Strategies that contrast layers sample no layer's logits. For them, a token is framed
      that is not the last layer's first choice. Nothing is framed in `last_run`, because nothing was replaced in it. In
      a run that was decoded from the last layer and is drawn alone, the tokens are framed that the valley would
      replace, and the valley's first choice stands below them.
    - "alignment": tokens of two texts outside the blocks that both have in common, as difflib finds them.
    - "place": tokens for which the other text has another token at the same place, counted from the first generated
      token, or has ended. After the first difference two texts rarely meet again, so nearly all tokens are framed.

    Args:
        last_run: a run decoded from the last layer; None to draw the other run alone.
        valley_run: a run of the same prompts, decoded from the valley.
        prompt_id: the prompt to draw. By default the common prompt with the most substitutions in `valley_run`, ties by
            id.
        choice: 1 for the prompt with the most substitutions, 2 for the next and so on. Figure 7 is choice 1, Figure 12
            is choice 6.
        most_tokens: how many tokens of each text are drawn, by default 12 rows. A line below says how many are left
            out.
        rule: the rule by which tokens are framed: "substitution", "alignment" or "place".
        width: "one" or "two" columns of a page, with 7 or 14 tokens in a row.

    Raises:
        OptionError: choice or most_tokens is below 1, there is no such rule or width, or a rule that compares two texts
            was given with one run.
        RunError: a run generated nothing; the runs do not share the prompt, share fewer prompts than `choice`, or have
            different texts under its id; they are of two models, or `last_run` is not decoded from the last layer.
    """
    across = style.inches(width)
    table = grid_table(
        last_run,
        valley_run,
        prompt_id,
        choice,
        MOST_ROWS * COLUMNS[width] if most_tokens is None else most_tokens,
        rule,
    )
    parts = [part for _, part in table.groupby("text", sort=False)]
    titles = [
        fill(f"{letter}{_title(part, valley_run)}", round(17 * across), subsequent_indent="     ")
        for letter, part in zip(_letters(len(parts)), parts, strict=True)
    ]
    heads = [_HEAD + _LINE * title.count("\n") for title in titles]
    feet = [0.05 if part["shown"].all() else _FOOT for part in parts]
    grids = [_row_height(part) * _n_rows(part, COLUMNS[width]) for part in parts]
    height = sum(heads) + sum(grids) + sum(feet) + _BAR
    with style.look():
        figure = Figure(figsize=(across, height))
        top = float(table.loc[table["shown"], "entropy"].max())
        norm = Normalize(0, top if top > 0 else 1.0)
        lower, panels = height, []
        for title, head, grid, foot in zip(titles, heads, grids, feet, strict=True):
            lower -= head + grid + foot
            panels.append(figure.add_axes(as_share((0.04, lower + foot, across - 0.08, grid), across, height)))
            panels[-1].set_title(title, loc="left", pad=3)
        bar = figure.add_axes(as_share((0.12, _BAR - 0.24, 0.2 * across, 0.09), across, height))
        for part, panel in zip(parts, panels, strict=True):
            draw_grid(part, panel, norm, COLUMNS[width], bar if panel is panels[-1] else None)
        _say_colours(table, valley_run, bar)
        style.name_lens(figure, *(run.lens for run in (last_run, valley_run) if run is not None))
    return figure, table


def grid_table(
    last_run: Records | None,
    valley_run: Records,
    prompt_id: str | None = None,
    choice: int = 1,
    most_tokens: int = MOST_ROWS * COLUMNS["two"],
    rule: str = "substitution",
) -> pd.DataFrame:
    """One row per generated token of one prompt: everything `figure_grid` draws; arguments and errors as there.

    Columns: text (0 above, 1 below); decoding, the name of the run's strategy; prompt_id; place, from 0; token_id;
    token, its text; label, as it is drawn; selected_layer; entropy there, in nats; framed; other_token_id, the first
    choice that was replaced (in a run decoded from the last layer, the one that would replace the token), NA where the
    token is not a substitution; other_token, its text; other_label, as it is drawn, "" where it is not; shown, whether
    the token is drawn; rule, the rule by which tokens are framed: "substitution", "alignment" or "place".
    """
    for name, value in (("choice", choice), ("most_tokens", most_tokens)):
        if value < 1:
            raise OptionError.about(name, value, "is too small", "give a whole number from 1")
    if rule not in _RULES:
        problem = f"there is no rule {rule!r} by which tokens are framed"
        advice = did_you_mean(rule, _RULES, f"choose from {', '.join(_RULES)}")
        raise OptionError(problem, advice, option="rule", given=rule)
    if last_run is None and _RULES[rule] is not None:
        advice = f"give the run from the last layer too, or {spelled('rule', 'substitution')}"
        raise OptionError.about("rule", rule, "compares two texts", advice)
    runs = [run for run in (last_run, valley_run) if run is not None]
    choices_by_run = [_first_choices(run) for run in runs]
    chosen = _choose(runs, choices_by_run, choice) if prompt_id is None else _check(runs, choices_by_run, prompt_id)
    if last_run is not None:
        _refuse_unlike(last_run, valley_run)
        _refuse_other_prompts(runs, chosen)
    frames = [_tokens_of(run, first_choices, chosen) for run, first_choices in zip(runs, choices_by_run, strict=True)]
    compare = _RULES[rule]
    if len(frames) == 2:
        frames[0]["framed"] = False
    if compare is not None:
        above, below = (frame["token_id"].tolist() for frame in frames)
        for frame, framed in zip(frames, compare(above, below), strict=True):
            frame["framed"] = framed
    for index, frame in enumerate(frames):
        frame.insert(0, "text", index)
        frame["other_label"] = frame["other_label"].where(frame["framed"] & (compare is None), "")
        frame["shown"] = frame["place"] < most_tokens
        frame["rule"] = rule
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return table


def draw_grid(
    table: pd.DataFrame, ax: Axes, norm: Normalize, columns: int = COLUMNS["two"], bar: Axes | None = None
) -> Axes:
    """The axes with one text as boxes in rows, read from left to right; `table` holds the rows of that text only.

    Args:
        table: of `grid_table`.
        ax: to draw on; text sizes are for boxes half an inch wide.
        norm: the place of each entropy, in nats, on the colour scale.
        columns: boxes in a row.
        bar: other axes for a bar of the colours; by default there is no bar.
    """
    shown = table[table["shown"]]
    rows = _n_rows(table, columns)
    values = np.full(rows * columns, np.nan)
    values[: len(shown)] = shown["entropy"]
    colours = colour_cells(values.reshape(rows, columns), norm, scale(), ax, bar).reshape(-1, 4)
    corners = [divmod(place, columns)[::-1] for place in range(len(shown))]
    replaced = [corner for corner, other in zip(corners, shown["other_label"], strict=True) if other]
    ax.add_collection(boxes(replaced, _HALF, facecolors="white"), autolim=False)
    for text, other, corner, colour in zip(shown["label"], shown["other_label"], corners, colours, strict=False):
        write(str(text), corner, colour, ax, _BOX, (0.05, 0.49) if other else (0, 1))
        if other:
            write(str(other), corner, (1, 1, 1), ax, _BOX, (0.48, 0.91), style="italic")
    framed = [corner for corner, is_framed in zip(corners, shown["framed"], strict=True) if is_framed]
    twice = [corner for corner in framed for _ in range(2)]  # on white, so that it shows on dark boxes and in grey
    look: dict[str, Any] = {"facecolors": "none", "edgecolors": ["white", FRAME], "linewidths": [3.0, 1.3]}
    ax.add_collection(boxes(twice, (0.03, 0.06, 0.97, 0.94), zorder=3, **look), autolim=False)
    left_out = len(table) - len(shown)
    if left_out:
        noun = "token" if left_out == 1 else "tokens"
        under = rows + 0.02 / _row_height(table)
        ax.text(0, under, f"… {left_out:,} more {noun}", va="top", ha="left", fontsize=6.5, color=style.GREY)
    return ax


_BOX = 0.46  # inches
_HALF = (0.0, 0.5, 1.0, 0.98)  # the lower part of a box: left, upper, right and lower edge
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")  # of Figures 7 to 12
_STRATEGIES = {"last": "Standard decoding, last layer", "valley": "Confident decoding, valley"}


def _by_place(above: list[int], below: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each text differ from the token at the same place of the other text, or have none there."""
    differ = [one != other for one, other in zip_longest(above, below)]
    return differ[: len(above)], differ[: len(below)]


def _by_alignment(above: list[int], below: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each text are outside the blocks that both have in common, in order."""
    differ = [True] * len(above), [True] * len(below)
    for block in SequenceMatcher(None, above, below, autojunk=False).get_matching_blocks():
        for text, start in zip(differ, (block.a, block.b), strict=True):
            text[start : start + block.size] = [False] * block.size
    return differ


_RULES: dict[str, Callable[[list[int], list[int]], tuple[list[bool], list[bool]]] | None]
_RULES = {"substitution": None, "alignment": _by_alignment, "place": _by_place}
RULES = tuple(_RULES)


def _letters(n: int) -> list[str]:
    return ["(a) ", "(b) "] if n == 2 else [""]


def _n_rows(table: pd.DataFrame, columns: int) -> int:
    return -(-int(table["shown"].sum()) // columns)


def _row_height(part: pd.DataFrame) -> float:
    return _TALL_ROW if (part["other_label"][part["shown"]] != "").any() else _ROW


def _kind(run: Records) -> str:
    """The kind of a run's decoding: "selected" if some tokens were sampled from an earlier layer, "valley" if all were
    sampled from the last layer as it is, "contrast" if a strategy changed its logits."""
    layers = run.positions.loc[run.positions["is_generated"], "selected_layer"]
    if (layers < run.n_layers).any():
        return "selected"
    return "valley" if run.manifest["strategy"]["name"] == "last" else "contrast"


def _first_choices(run: Records) -> Choices:
    """The last layer's first choices, and beside them what was chosen instead, or what the valley would choose."""
    kind = _kind(run)
    if kind != "contrast":
        return choices(run, kind)
    found = choices(run)
    emitted = run.positions["next_token_id"].to_numpy(dtype=np.int64)[found.tokens.rows]
    return replace(found, confident=emitted)


def _title(part: pd.DataFrame, valley_run: Records) -> str:
    name = str(part["decoding"].iloc[0])
    n, framed = len(part), int(part["framed"].sum())
    text = f"{_STRATEGIES.get(name, f'Decoding {name}')}: {n:,} {'token' if n == 1 else 'tokens'}"
    if part["rule"].iloc[0] != "substitution":
        return f"{text}, {framed:,} {'differs' if framed == 1 else 'differ'} (framed)"
    if name == "last" and valley_run.manifest["strategy"]["name"] != "last":
        return text
    became = "would be substituted" if _kind(valley_run) == "valley" else "substituted"
    return f"{text}, {framed:,} {became} (framed)"


def _say_colours(table: pd.DataFrame, valley_run: Records, bar: Axes) -> None:
    """Write beside the bar what the colours mean, and what stands below a framed token."""
    said = ["entropy (nats) at the layer whose logits were sampled"]
    if (table["other_label"] != "").any():
        below = "first choice of the valley" if _kind(valley_run) == "valley" else "last layer's first choice"
        said.append(f"in italics below a framed token: {below}")
    say_beside(bar, said)


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
            known = sorted(_with_text([run], [first_choices]))
            problem = f"{run.path} generated nothing for prompt {prompt_id!r}"
            advice = did_you_mean(prompt_id, known, f"choose another, such as {', '.join(known[:4])}")
            raise RunError(problem, advice, option="prompt_id", given=prompt_id)
    return prompt_id


def _refuse_unlike(last_run: Records, valley_run: Records) -> None:
    strategy = last_run.manifest["strategy"]["name"]
    if strategy != "last":
        problem = f"{last_run.path} was decoded by {strategy}, and not from the last layer"
        raise RunError(problem, "give a run decoded from the last layer", option="last_run", given=last_run.path)
    ours, theirs = (run.manifest["model"].get("fingerprint") for run in (last_run, valley_run))
    if ours != theirs or last_run.n_layers != valley_run.n_layers:
        problem = f"{last_run.path} and {valley_run.path} are of two models"
        raise RunError(problem, "trace the same model in both", given=last_run.path)


def _refuse_other_prompts(runs: list[Records], prompt_id: str) -> None:
    first, second = (run.prompts.set_index("prompt_id")["prompt"][prompt_id] for run in runs)
    if first != second:
        problem = f"{runs[0].path} and {runs[1].path} have different prompts with the id {prompt_id!r}"
        raise RunError(problem, "trace the same prompts in both", option="prompt_id", given=prompt_id)


def _tokens_of(run: Records, first_choices: Choices, prompt_id: str) -> pd.DataFrame:
    among = (_ids(run, first_choices) == prompt_id).to_numpy()
    rows = first_choices.tokens.rows[among]
    positions = run.positions.iloc[rows]
    layers = positions["selected_layer"].to_numpy(dtype=np.int64)
    ids = positions["next_token_id"].to_numpy(dtype=np.int64)
    texts = run.text_of(ids)
    differ = first_choices.substituted[among]
    theirs = first_choices.confident if _kind(run) == "valley" else first_choices.last
    others = [int(one) if is_other else None for one, is_other in zip(theirs[among], differ, strict=True)]
    said = ["" if one is None else run.text_of([one])[0] for one in others]
    table: pd.DataFrame = pd.DataFrame(
        {
            "decoding": str(run.manifest["strategy"]["name"]),
            "prompt_id": prompt_id,
            "place": np.arange(len(rows)),
            "token_id": ids,
            "token": texts,
            "label": [label_beside(*pair) for pair in zip(texts, said, strict=True)],
            "selected_layer": layers,
            "entropy": run.layers("entropy")[rows, layers - 1].astype(np.float64),
            "framed": first_choices.substituted[among],
            "other_token_id": pd.array(others, "Int64"),
            "other_token": said,
            "other_label": [
                label_beside(theirs, ours) if is_other else ""
                for theirs, ours, is_other in zip(said, texts, differ, strict=True)
            ],
        }
    )
    return table
