"""What `layerlens eval` and `layerlens ablate` share: their options, how they ask, and how they show scores."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.cli.printable import echo, note, printable
from layerlens.errors import OptionError, spelled

if TYPE_CHECKING:
    import pandas as pd

    from layerlens.evaluation.asked import Asked

Out = Annotated[Path, typer.Option(help="Directory to write, to continue, or to show.")]
Model = Annotated[
    str | None,
    typer.Option(help="A hub id, a folder, a .gguf file, or a built-in model. Without it, what --out holds is shown."),
]
BatchSize = Annotated[int, typer.Option(help="How many items are decoded together.")]


@dataclass(frozen=True)
class Items:
    """What is asked."""

    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks, separated by commas; docs/evaluation.md lists them.")
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="N or TASK=N", help="Use only the first N items of each benchmark, or of one."),
    ] = None
    epochs: Annotated[
        int, typer.Option(help="How often each item is answered where something is drawn or a judge scores.")
    ] = 1
    data_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=FILE",
            help="Local copy of a benchmark, as .json, .jsonl, .csv or .parquet; a single task needs no TASK=.",
        ),
    ] = None

    def names(self) -> list[str]:
        """The benchmarks; OptionError where there are none, or one is unknown or given twice."""
        from layerlens.evaluation.benchmarks import NAMES, refuse_unknown

        names = listed(self.tasks or "")
        if not names:
            advice = f"give one or more of {', '.join(NAMES)}"
            if self.tasks is None:
                raise OptionError(f"no {spelled('tasks')} given", advice, option="tasks")
            raise OptionError.about("tasks", self.tasks, "names no benchmark", advice)
        for name in names:
            refuse_unknown(name)
            if names.count(name) > 1:
                raise OptionError.about("tasks", self.tasks, f"names {name} twice", "give it once")
        return names

    def given(self) -> dict[str, Any]:
        """Arguments of `asked_of`."""
        names = self.names()
        limit = _limits(self.limit or [], names)
        return {
            "limit": limit,
            "epochs": self.epochs,
            "data_files": _by_task(self.data_file or [], "data_file", names),
        }


@dataclass(frozen=True)
class Answering:
    """How answers are generated; None where a benchmark's own setting holds."""

    max_new_tokens: Annotated[
        int | None, typer.Option(help="Generate at most this many tokens for each item. [default: the benchmark's]")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of sampling; 0 means greedy. [default: the benchmark's]")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the smallest set of tokens with this much probability.")
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Sample from this many most probable tokens.")] = None
    seed: Annotated[int, typer.Option(help="Seed for what is drawn, and for shuffling answer options.")] = 0
    stop_strings: Annotated[
        list[str] | None, typer.Option(help="Text before which an answer ends; can be given several times.")
    ] = None


@dataclass(frozen=True)
class Scoring:
    """How answers are scored where a benchmark needs more than a comparison of texts."""

    judge: Annotated[
        str | None,
        typer.Option(help="Model of inspect that scores answers where a benchmark needs it, such as openai/gpt-5."),
    ] = None
    judge_url: Annotated[str | None, typer.Option(help="Address of a server of the judge.")] = None
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution", help="Run code that the model writes, where a benchmark needs it, with limits."
        ),
    ] = False


def answered(
    out: Path, model: str, asked: "Asked", loading: options.Loading, lens: str | None, **answering: Any
) -> bool:
    """Answer what is asked with a model; whether that came to an end, and was not interrupted.

    Raises:
        OptionError, PromptError, ModelError, RunError: as `layerlens.evaluation.evaluate.answer`.
    """
    from layerlens.decode.registry import asked_strategy
    from layerlens.evaluation.evaluate import answer

    loading.refuse_unfit(model, *(asked_strategy(arm.options) for arm in asked.arms))
    options.refuse_no_lens(lens)
    try:
        answer(loading.load(model), asked, out, lens=lens, **answering)
    except KeyboardInterrupt:
        echo(f"layerlens: interrupted; the answers so far are in {out}; repeat to continue", err=True)
        return False
    return True


def refuse_no_model(*groups: Any, **alone: tuple[Any, Any]) -> None:
    """OptionError where something is given that has no effect without a model to answer with.

    Args:
        groups: groups of options.
        alone: by their names, the values of other options and what they are where nothing is given.
    """
    for group in groups:
        alone |= {field.name: (getattr(group, field.name), field.default) for field in fields(group)}
    for option, (value, default) in alone.items():
        if (value or None) != (default or None):
            given = value[0] if isinstance(value, list | tuple) else value
            raise OptionError.about(option, given, "has no effect without a model", "give a model, or leave it out")


def _by_task(words: Sequence[str], option: str, names: Sequence[str]) -> dict[str, str]:
    """Values by the task, from texts such as "gsm8k=FILE"; a text without a task is for the only task."""
    from layerlens.evaluation.benchmarks import NAMES

    values: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in NAMES and name not in names:
            raise OptionError.about(option, word, f"is for {name}, which is not among the tasks", "leave it out")
        if not sign or name not in names:
            if len(names) > 1:
                advice = f"write it like {names[0]}=..., with one of {', '.join(names)}"
                raise OptionError.about(option, word, "does not say which of the tasks it is for", advice)
            name, value = names[0], word
        if name in values:
            raise OptionError.about(option, word, f"is the second for {name}", "give one of them")
        values[name] = value
    return values


def _limits(words: Sequence[str], names: Sequence[str]) -> "int | dict[str, int] | None":
    """The number of items of each task, or of all."""
    if not words:
        return None
    if len(words) == 1 and "=" not in words[0]:
        return _whole(words[0])
    return {name: _whole(value) for name, value in _by_task(words, "limit", names).items()}


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise OptionError.about("limit", text, "is not a number of items", "give a whole number from 1")
    return int(text)


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def head(table: "pd.DataFrame") -> str:
    """The model and how many items of which tasks were asked."""
    counts = ", ".join(f"{n:,} items of {name}" for name, n in table.attrs["n_items"].items())
    return f"{table.attrs['model']}: {counts}"


def tell_again(out: Path) -> None:
    """Tell what the logs of an evaluation have, if it was killed; one that is being written is shown as it is."""
    from importlib.util import find_spec

    from layerlens.errors import RunError
    from layerlens.records.evaluation import read_manifest

    if find_spec("inspect_ai") is None or read_manifest(out).get("totals") is not None:
        return
    from layerlens.evaluation.evaluate import tell_again as tell_logs_again

    with contextlib.suppress(RunError):
        tell_logs_again(out)


def say_unfinished(table: "pd.DataFrame") -> None:
    """Say on standard error that answers are missing, or did not fit into the model's context."""
    for task, n in table.attrs["too_long"].items():
        total = table.loc[table["task"] == task, "n_answers"].sum()
        what = "the model's context had no room for them, or not to their end"
        note(f"{n:,} of {total:,} answers to {task} are cut short or empty: {what}")
    if not table.attrs["is_complete"]:
        note("the evaluation is not complete; repeat its command to continue it")


def show(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Column, Table

    from layerlens.cli.grids import print_table

    rows = [[printable(cell) for cell in row] for row in rows]
    filled = [place for place in range(len(heads)) if not rows or any(row[place] for row in rows)]
    heads, rows = [heads[place] for place in filled], [[row[place] for place in filled] for row in rows]
    shown = Table(*(Column(head, no_wrap=True) for head in heads), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        shown.add_row(*row)
    print_table(shown)


def probability(p: float) -> str:
    return "" if p != p else "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(row: "Mapping[Any, Any]", name: str, digits: str) -> str:
    return interval({key: 100 * row[key] for key in (name, f"{name}_low", f"{name}_high")}, name, digits)


def interval(row: "Mapping[Any, Any]", name: str, digits: str) -> str:
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if mean != mean:
        return ""
    return f"{mean:{digits}}" + ("" if low != low else f" [{low:{digits}}, {high:{digits}}]")
