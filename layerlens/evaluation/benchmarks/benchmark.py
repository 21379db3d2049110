"""What a benchmark is: where its rows are, what is asked for each row, and how an answer is scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.datasets import files, hub
from layerlens.datasets.source import Release
from layerlens.errors import LayerlensError, PromptError, first_sentence, spelled
from layerlens.paths import expanded

if TYPE_CHECKING:
    from inspect_ai import Task

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What a task needs to know beside its rows."""

    seed: int = 0
    """Orders the options of multiple-choice questions."""
    context: int | None = None
    """Tokens that fit into the model's context; None: unknown."""
    fit: Callable[[str, int], str] | None = None
    """(text, tokens) -> the text without its middle, so that it has so many tokens; None: texts are not cut."""
    length: Callable[[str], int] = len
    """How many tokens a text has."""
    max_new_tokens: int = 0
    """Tokens of the context that are left for the answer."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark that layerlens can run."""

    name: str
    """What it is called on the command line."""
    title: str
    """One line."""
    release: Release | None
    """Where its rows are on the hub; None where they must be given as a file, or are shipped in a package."""
    columns: tuple[str, ...]
    """The columns that are read; there may be others."""
    task: "Callable[[Rows, Setting], Task]"
    """The task of inspect, with its samples, solver and scorer."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of generation unless others are given, by inspect's names."""
    revision: str | None = None
    """Commit of the release on the hub."""
    shipped: Callable[[], Path] | None = None
    """A file of the rows that comes with a package."""
    rows: Callable[[str | None, int | None], Rows] | None = None
    """(revision, limit) -> rows, where one configuration of the release does not have all that is needed."""
    advice: str = ""
    """How to get the rows where they are neither on the hub nor shipped."""
    tables: Callable[[Path], Rows] = lambda path: files.read_rows(files.read_bytes(path), path)
    """Reads the rows of a file."""
    judged: bool = False
    """Whether a judge scores its answers."""
    runs_code: bool = False
    """Whether its scorer runs code that the model wrote."""
    best: float = 1.0
    """The best score that its scorer gives; scores are told as shares of it."""


def read(benchmark: Benchmark, data_file: str | PathLike[str] | None, limit: int | None) -> tuple[Rows, str]:
    """The first rows of a benchmark, and where they come from.

    Args:
        benchmark: which.
        data_file: a local copy with the columns of the release; None: the hub, or what a package ships.
        limit: how many rows; None: all.

    Raises:
        PromptError: the rows cannot be read, or lack a column.
    """
    path = expanded(data_file) if data_file is not None else None
    if path is None and benchmark.shipped is not None:
        path = benchmark.shipped()
    rows: Rows
    if path is not None:
        rows, origin = list(benchmark.tables(path))[:limit], str(path)
    elif benchmark.release is not None and benchmark.rows is not None:
        rows, origin = benchmark.rows(benchmark.revision, limit), benchmark.release.hub_id
    elif benchmark.release is not None:
        rows, origin = hub.read_rows(benchmark.release, benchmark.revision, limit), benchmark.release.hub_id
    else:
        raise PromptError(
            f"the rows of {benchmark.name} are not on the hub",
            f"{benchmark.advice} with {spelled('data_file')}",
            option="data_file",
        )
    for number, row in enumerate(rows, start=1):
        if missing := [column for column in benchmark.columns if column not in row]:
            where = f"{origin}, row {number}"
            has = ", ".join(map(repr, row))
            problem = f"{where}: no column {', '.join(map(repr, missing))} among {has}"
            raise PromptError(problem, f"give a file with the columns of {benchmark.name}", given=list(row))
    return rows, origin


def text(row: Mapping[str, Any], column: str) -> str:
    """The text in a column of a row, or its number as a text; ValueError where there is none."""
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value or not str(value).strip():
        raise ValueError(f"its column {column!r} is empty or no text")
    return str(value)


def task_of(benchmark: Benchmark, rows: Rows, origin: str, setting: Setting) -> "Task":
    """The task of these rows; PromptError where one of them cannot be used, or two have one id."""
    try:
        task = benchmark.task(rows, setting)
    except LayerlensError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # what reading a malformed row raises
        for number, row in enumerate(rows, start=1):
            try:
                benchmark.task([row], setting)
            except (KeyError, TypeError, ValueError, AttributeError) as of_row:
                problem = f"{origin}, row {number}: it is not a row of {benchmark.name} ({first_sentence(of_row)})"
                raise PromptError(problem, "give the file as it was released", given=row) from error
        raise
    seen: dict[Any, int] = {}
    for number, sample in enumerate(task.dataset, start=1):
        if sample.id in seen:
            problem = f"{origin}, rows {seen[sample.id]} and {number} have the same id {sample.id!r}"
            raise PromptError(problem, "give each item once", given=sample.id)
        seen[sample.id] = number
    return task
