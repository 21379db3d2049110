"""Datasets by name: from the hub, from a local copy, or shipped with layerlens."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from layerlens.datasets import files, hub
from layerlens.datasets.prompt import Dataset, Prompt, check_limit, check_unique, kind
from layerlens.datasets.registry import find
from layerlens.datasets.source import Source
from layerlens.errors import OptionError, PromptError, spelled
from layerlens.paths import expanded
from layerlens.sources.shipped import shipped_file


def dataset(
    name: str,
    *,
    limit: int | None = None,
    data_file: str | PathLike[str] | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> Dataset:
    """The first `limit` prompts (all by default) of a dataset that `names()` lists.

    They come from the hub, at the revision asked for, or from `data_file`: a local copy with the columns of the hub
    release, as .json (a list of objects), .jsonl, .csv or .parquet. The seed orders the options of multiple-choice
    questions. A PromptError or OptionError is raised if there is no such dataset, or if its rows cannot be read or lack
    what they need.
    """
    check_limit(limit)
    source = find(name)
    local = _local_file(source, data_file, revision)
    if local is None:
        assert source.release is not None
        sha256, rows, origin = None, hub.read_rows(source.release, revision, limit), str(source.card.hub_id)
    else:
        content = files.read_bytes(local)
        sha256, rows, origin = files.sha256(content), files.read_rows(content, local)[:limit], str(local)
    places = [f"{origin}, row {number}" for number in range(1, len(rows) + 1)]
    prompts = [_prompt(source, row, i, seed, where) for i, (row, where) in enumerate(zip(rows, places, strict=True))]
    check_unique(prompts, places)
    return Dataset(name, source.config, source.split, revision, sha256, tuple(prompts))


def _local_file(source: Source, data_file: str | PathLike[str] | None, revision: str | None) -> Path | None:
    """The file to read; None where the dataset is read from the hub."""
    on_hub = source.card.hub_id is not None and data_file is None
    if revision is not None and not on_hub:
        it = spelled("data_file") if data_file is not None else f"the dataset {source.card.name}"
        what = f"has no meaning for {it}, which is not read from the hub"
        raise OptionError.about("revision", revision, what, "drop it")
    if on_hub:
        return None
    return shipped_file("sample.jsonl") if data_file is None else expanded(data_file)


def _prompt(source: Source, row: Mapping[str, object], number: int, seed: int, where: str) -> Prompt:
    expected = f"give a copy with the columns of {source.card.hub_id or 'the shipped file'}"
    missing = [column for column in source.columns if column not in row]
    if missing:
        raise PromptError(f"{where}: no column {_listed(missing)} among {_listed(row)}", expected, given=list(row))
    try:
        return source.to_prompt({column: _text(row, column) for column in source.columns}, number, seed)
    except ValueError as error:
        raise PromptError(f"{where}: {error}", expected) from error


def _text(row: Mapping[str, object], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"its {column} is {kind(value)} where a text is expected")
    if not value.strip():
        raise ValueError(f"its {column} is empty")
    return value


def _listed(columns: list[str] | Mapping[str, object]) -> str:
    return ", ".join(map(repr, columns))
