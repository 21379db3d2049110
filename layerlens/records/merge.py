"""From runs of parts of a dataset to one run of all of it."""

import shutil
from collections.abc import Sequence
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerlens.errors import OptionError, RunError, spelled
from layerlens.paths import expanded
from layerlens.records.disagreement import disagreement
from layerlens.records.files import read_table, refuse_foreign, write_json, write_table
from layerlens.records.manifest import Manifest, circumstances, digest, read_manifest
from layerlens.records.schema import PROMPTS, WORDS, arrow_schema
from layerlens.records.store import RunWriter, read_prompts_table, refuse_unless_free, token_part

_OF_A_PART = ("shard", "rows", "prompts_sha256")
"""Entries in which the manifests of parts differ, because they describe the part's own prompts."""

Batch = tuple[Path, int]
"""A run, and the place of the batch in it."""


def merge_runs(runs: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> Path:
    """Write one run with the prompts of several runs, and return its path. If it is killed, nothing is left at `out`.

    All shards of a dataset must be there, in any order. Their batches take turns, in the order in which they were dealt
    out. With one prompt per batch, the rows and their order are those of a run of the whole dataset. Runs that are not
    shards follow one another.

    Args:
        runs: complete runs that were traced with the same model, dataset and options.
        out: a new directory.

    Raises:
        OptionError: there is nothing to merge.
        RunError: a run is not complete, does not belong to the others, shares a prompt with one of them, or a shard is
            missing; or `out` holds something already, or cannot be written.
    """
    folders, out = [expanded(run) for run in runs], expanded(out)
    if len(folders) < 2:
        raise OptionError(f"{len(folders)} run given to merge", "give two or more", option="runs", given=folders)
    manifests = {folder: _complete(folder) for folder in folders}
    if len(manifests) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise OptionError(f"{twice} is given twice to merge", "give each run once", option="runs", given=twice)
    for folder in folders[1:]:
        _refuse_stranger(folder, manifests[folder], folders[0], manifests[folders[0]])
    batches = _in_turn(manifests)
    _refuse_shared_prompts(manifests)
    refuse_unless_free(out, resume=False)
    unfinished = out.with_name(f"{out.name}.partial")
    refuse_foreign(unfinished, RunWriter.entries)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(unfinished, batches, manifests)
        unfinished.replace(out)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise RunError.about("out", out, what, "make room, or give another directory") from error
    return out


def _complete(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest["totals"] is None:
        advice = f"continue it with {spelled('resume', True)} before it is merged"
        raise RunError(f"{folder} is not complete", advice, option="runs", given=folder)
    return manifest


def _refuse_stranger(folder: Path, manifest: Manifest, first: Path, of_first: Manifest) -> None:
    difference = disagreement(_without_part(of_first), _without_part(manifest))
    if difference is not None:
        problem = f"{folder} was traced with {difference} as {first}"
        raise RunError(problem, "merge runs of one model, dataset and options", option="runs", given=folder)


def _without_part(manifest: Manifest) -> Manifest:
    dataset = {name: value for name, value in manifest["dataset"].items() if name not in _OF_A_PART}
    return {name: value for name, value in manifest.items() if name != "batches"} | {"dataset": dataset}


def _in_turn(manifests: dict[Path, Manifest]) -> list[Batch]:
    """Every batch, in the order in which the whole dataset would have them."""
    shards = {folder: manifest["dataset"].get("shard") for folder, manifest in manifests.items()}
    if any(shards.values()):
        whole = next(folder for folder, shard in shards.items() if shard is not None)
        of = int(shards[whole].split("/")[1])
        places = {shard: folder for folder, shard in shards.items()}
        missing = [f"{number}/{of}" for number in range(1, of + 1) if f"{number}/{of}" not in places]
        if missing or len(shards) != of:
            lacking = f"lacks the shards {', '.join(missing)}" if missing else "has a shard twice"
            advice = "give every shard of the dataset once"
            raise RunError(f"the list of runs {lacking}", advice, option="runs", given=list(shards))
        ordered = [places[f"{number}/{of}"] for number in range(1, of + 1)]
        rounds = zip_longest(*(_batches(folder, manifests) for folder in ordered))
        return [batch for batches in rounds for batch in batches if batch is not None]
    return [batch for folder in manifests for batch in _batches(folder, manifests)]


def _batches(folder: Path, manifests: dict[Path, Manifest]) -> list[Batch]:
    return [(folder, index) for index in range(len(manifests[folder]["batches"]))]


def _refuse_shared_prompts(manifests: dict[Path, Manifest]) -> None:
    owner: dict[str, Path] = {}
    for folder, manifest in manifests.items():
        for prompt_id in (prompt_id for batch in manifest["batches"] for prompt_id in batch):
            if prompt_id in owner:
                problem = f"prompt {prompt_id!r} is in {owner[prompt_id]} and in {folder}"
                raise RunError(problem, "merge runs that share no prompt", option="runs", given=folder)
            owner[prompt_id] = folder


def _write(out: Path, batches: Sequence[Batch], manifests: dict[Path, Manifest]) -> None:
    (out / "tokens").mkdir(parents=True)
    for index, (folder, part) in enumerate(batches):
        shutil.copyfile(token_part(folder, part), token_part(out, index))
    of_batches = [manifests[folder]["batches"][part] for folder, part in batches]
    prompts = pa.concat_tables([read_prompts_table(folder) for folder in manifests])
    place = {prompt_id: row for row, prompt_id in enumerate(prompts.column("prompt_id").to_pylist())}
    prompts = prompts.take([place[prompt_id] for batch in of_batches for prompt_id in batch]).combine_chunks()
    write_table(out / "prompts.parquet", prompts.cast(arrow_schema(PROMPTS)))
    write_table(out / "words.parquet", _words(list(manifests)))
    write_json(
        out / "manifest.json", _manifest(of_batches, prompts.column("prompt").to_pylist(), list(manifests.values()))
    )


def _words(folders: Sequence[Path]) -> pa.Table:
    schema = arrow_schema(WORDS)
    texts: dict[int, str] = {}
    for folder in folders:
        texts |= dict(zip(*read_table(folder / "words.parquet", schema).to_pydict().values(), strict=True))
    token_ids = sorted(texts)
    return pa.table({"token_id": token_ids, "text": [texts[token_id] for token_id in token_ids]}, schema=schema)


def _manifest(batches: list[list[str]], prompts: list[str], parts: Sequence[Manifest]) -> Manifest:
    """The manifest of the first part, in which the entries that differ between parts describe all of them."""
    dataset = {
        name: value for name, value in parts[0]["dataset"].items() if name not in ("shard", "all_rows", "ids_sha256")
    }
    dataset |= {"rows": len(prompts), "prompts_sha256": digest("\0".join(prompts))}
    numbers = [part["totals"] for part in parts]
    totals = {name: _total([of[name] for of in numbers if name in of]) for name in numbers[0]}
    said = {
        "dataset": dataset,
        "batches": batches,
        "totals": totals,
        "merged_from": [{name: part[name] for name in ("created", "command", "hardware", "totals")} for part in parts],
    }
    return parts[0] | circumstances() | said


def _total(values: Sequence[Any]) -> Any:
    """What an entry of the totals is for all parts: whether it holds for any, each text once, the sum of numbers."""
    if any(isinstance(value, str) for value in values):
        return ", ".join(dict.fromkeys(map(str, values)))
    if isinstance(values[0], bool):
        return any(values)
    return round(sum(values), 3)
