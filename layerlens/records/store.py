"""Writing and reading a run directory, so that nothing complete is ever lost.

A batch of prompts becomes part of the run in two renames: first its token rows, then its prompt rows, whose
presence marks the batch as complete. A batch that is interrupted in between is done again. When every batch is there,
the prompt parts are joined into prompts.parquet.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerlens.errors import OptionError, RunError, did_you_mean, spelled
from layerlens.paths import expanded
from layerlens.records.files import (
    FolderWriter,
    n_rows_in,
    not_replaced,
    read_table,
    refuse_both,
    refuse_foreign,
    remove_unfinished,
    set_aside_damaged,
    write_json,
    write_table,
    writing,
)
from layerlens.records.manifest import read_manifest, refuse_disagreement
from layerlens.records.schema import (
    CONFIDENCE,
    HALF_ENTROPY,
    NEXT_LOG_PROB,
    ON_REQUEST,
    PROMPTS,
    VOCAB_CONFIDENCE,
    WORDS,
    Column,
    all_token_columns,
    arrow_schema,
    token_columns,
)

Columns = dict[str, Any]

_NOTHING = -1  # in place of a whole number
_CAN_LACK = (
    *("attn_ratio", "mlp_ratio"),
    *(column.name for column in (NEXT_LOG_PROB, HALF_ENTROPY, CONFIDENCE, VOCAB_CONFIDENCE)),
)
_READERS = 2  # unpacking keeps a core busy; more threads than cores would only wait


class RunWriter(FolderWriter):
    """Appends batches to a run directory; use as a context manager.

    Args:
        folder: the run directory; made if missing.
        manifest: what is about to be run. `manifest["batches"]` lists the prompt ids of each batch.
        resume: continue the run that is there, refusing one whose manifest disagrees.
        overwrite: replace the run that is there, and nothing but a run.

    Raises:
        OptionError: both resume and overwrite are given.
        RunError: the folder holds another run or other files, or cannot be written.
    """

    entries = re.compile(
        r"(manifest\.json|(prompts|words)\.parquet|(tokens|prompts)/part-\d+\.parquet|damaged/[\w-]+\.parquet)(\.partial)?"
        r"|tokens/|prompts/|damaged/|report\.html(\.partial)?|\.lock"
    )

    def pending(self) -> list[int]:
        """Indices of the batches that are not complete, in order."""
        joined = (self.folder / "prompts.parquet").exists()
        return [
            index
            for index in range(len(self.manifest["batches"]))
            if not token_part(self.folder, index).exists() or not (joined or self._prompt_part(index).exists())
        ]

    def write(self, index: int, tokens: Columns, prompts: Columns) -> None:
        """Add batch `index`. Readers see all of it at once.

        Args:
            index: place of the batch in `manifest["batches"]`.
            tokens: one array per declared column of tokens; [rows] or, per layer, [rows, L], or [rows, L, K].
            prompts: one list per declared column of prompts.
        """
        with writing(self.folder):
            write_table(token_part(self.folder, index), to_table(token_columns(self.manifest), tokens))
            write_table(self._prompt_part(index), to_table(PROMPTS, prompts))

    def finish(self, totals: dict[str, Any], words: dict[int, str]) -> None:
        """Join the prompt parts, in the order of the batches, and write the totals into the manifest.

        Args:
            totals: of the whole run.
            words: the text of every token id that occurs in it.
        """
        with writing(self.folder):
            named = to_table(WORDS, {"token_id": list(words), "text": list(words.values())})
            write_table(self.folder / "words.parquet", named)
            parts = [self._prompt_part(index) for index in range(len(self.manifest["batches"]))]
            schema = arrow_schema(PROMPTS)
            if not (self.folder / "prompts.parquet").exists():
                write_table(
                    self.folder / "prompts.parquet", pa.concat_tables([read_table(part, schema) for part in parts])
                )
            write_json(self.folder / "manifest.json", self.manifest | {"totals": totals})
            for part in parts:
                part.unlink(missing_ok=True)
            if parts[0].parent.exists():
                parts[0].parent.rmdir()

    def _refuse_unless_free(self, *, resume: bool, overwrite: bool) -> None:
        refuse_unless_free(self.folder, resume=resume, overwrite=overwrite)

    def _open(self) -> None:
        if _has_begun(self.folder):
            refuse_disagreement(self.folder, self.manifest, read_manifest(self.folder))
            set_aside_damaged(self.folder, self._tables())
        else:
            write_json(self.folder / "manifest.json", self.manifest)
        for name in ("tokens", "prompts"):
            (self.folder / name).mkdir(exist_ok=True)
        remove_unfinished(self.folder)

    def _tables(self) -> dict[Path, pa.Schema]:
        """Every table that the run may have, and its schema."""
        indices = range(len(self.manifest["batches"]))
        tokens, prompts = arrow_schema(token_columns(self.manifest)), arrow_schema(PROMPTS)
        return {
            self.folder / "prompts.parquet": prompts,
            **{self._prompt_part(index): prompts for index in indices},
            **{token_part(self.folder, index): tokens for index in indices},
        }

    def _prompt_part(self, index: int) -> Path:
        return self.folder / "prompts" / f"part-{index:05d}.parquet"


def refuse_unless_free(folder: Path, *, resume: bool, overwrite: bool = False) -> None:
    """RunError where the folder holds another run, or files that are not a run's; OptionError where both
    `resume` and `overwrite` are given."""
    refuse_both(resume=resume, overwrite=overwrite)
    folder = expanded(folder)
    try:
        is_file = folder.exists() and not folder.is_dir()
        present = {path.name for path in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
    except OSError as error:
        what = f"cannot be used ({error.strerror})"
        raise RunError.about("out", folder, what, "give another directory") from error
    if is_file:
        raise RunError.about("out", folder, "is a file", "give a directory")
    advice = "give a new directory"
    for path in (folder, *folder.parents):  # none of which is a folder up to the first that exists
        if path.is_symlink() and not path.exists():
            lost = "a link to a directory that does not exist"
            what = f"is {lost}" if path == folder else f"lies in {path}, which is {lost}"
            raise RunError.about("out", folder, what, f"make that directory, or {advice}")
        if path.is_file():
            raise RunError.about("out", folder, f"cannot be made: {path} is a file", advice)
        if path.exists():
            break
    if "manifest.json" in present:
        with not_replaced(folder):
            read_manifest(folder)
        if overwrite:
            refuse_foreign(folder, RunWriter.entries)
        elif not resume and _has_begun(folder):
            advice += f", {spelled('resume', True)} to continue the run, or {spelled('overwrite', True)} to replace it"
            raise RunError.about("out", folder, "already holds a run", advice)
    elif present - {"manifest.json.partial"}:
        raise RunError.about("out", folder, "is not empty and is not a run", advice)


def _has_begun(folder: Path) -> bool:
    """Whether anything was recorded; a run that failed before that may be begun anew with other options."""
    return any(any(folder.glob(pattern)) for pattern in ("prompts.parquet", "prompts/part-*", "tokens/part-*"))


def token_part(folder: Path, index: int) -> Path:
    """Where the token rows of a batch lie."""
    return folder / "tokens" / f"part-{index:05d}.parquet"


def read_prompts_table(folder: Path) -> pa.Table:
    """All prompts that are complete, in the order of the batches."""
    schema = arrow_schema(PROMPTS)
    joined = folder / "prompts.parquet"
    parts = [joined] if joined.exists() else sorted((folder / "prompts").glob("part-*.parquet"))
    return pa.concat_tables([schema.empty_table(), *(read_table(part, schema) for part in parts)])


def read_words_table(folder: Path) -> pa.Table:
    """The texts of the run's token ids; empty for a run that is not complete."""
    schema, path = arrow_schema(WORDS), folder / "words.parquet"
    return read_table(path, schema) if path.exists() else schema.empty_table()


def read_tokens_table(folder: Path, columns: list[str] | None = None, parts: Sequence[Path] | None = None) -> pa.Table:
    """The token rows of every complete batch, or of some parts, in the order of the batches; some columns, or all."""
    schema = _token_schema(folder, columns or [])
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    tables = [read_table(part, wanted) for part in token_parts(folder, parts)]
    return pa.concat_tables([wanted.empty_table(), *tables])


def read_layers(
    folder: Path, columns: Sequence[str], n_layers: int, parts: Sequence[Path] | None = None
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Per-layer columns of the rows of `read_tokens_table`: [rows, n_layers] each, or [rows, n_layers, K]. A null
    is NaN, or −1 among whole numbers."""

    _token_schema(folder, columns)
    declared = {column.name: column for column in all_token_columns()}
    flat = [name for name in columns if not declared[name].per_layer]
    if flat:
        known = ", ".join(column.name for column in declared.values() if column.per_layer)
        problem = f"column {flat[0]!r} holds no value per layer"
        raise OptionError(
            problem, f"see run.positions, or choose a column per layer: {known}", option="column", given=flat[0]
        )
    n_tops = read_manifest(folder).get("options", {}).get("top") or 0

    def shape(column: Column) -> tuple[int, ...]:
        return (n_layers, n_tops) if column.is_nested else (n_layers,)

    schema = arrow_schema(tuple(declared[name] for name in columns))

    def of_part(path: Path) -> list[np.ndarray[Any, np.dtype[Any]]]:
        table = read_table(path, schema)
        return [_per_layer(table.column(name), declared[name], shape(declared[name])) for name in columns]

    with ThreadPoolExecutor(_READERS) as readers:
        read = list(readers.map(of_part, token_parts(folder, parts)))
    empty = [np.empty((0, *shape(declared[name])), declared[name].value_type.to_pandas_dtype()) for name in columns]
    return {name: np.concatenate([empty[k], *(part[k] for part in read)]) for k, name in enumerate(columns)}


def _token_schema(folder: Path, columns: Sequence[str]) -> pa.Schema:
    """The schema of the run's token parts; OptionError where a column does not exist, RunError where the run was traced
    without it."""
    known = [column.name for column in all_token_columns()]
    unknown = [name for name in columns if name not in known]
    if unknown:
        problem = f"there is no column {unknown[0]!r}"
        advice = did_you_mean(unknown[0], known, f"there are {', '.join(known)}")
        raise OptionError(problem, advice, option="column", given=unknown[0])
    schema = arrow_schema(token_columns(read_manifest(folder)))
    for option, on_request in ON_REQUEST.items():
        lacking = [column.name for column in on_request if column.name in columns and column.name not in schema.names]
        if lacking:
            asked = spelled(option, 5 if option == "top" else True)
            advice = f"trace the prompts again with {asked}"
            raise RunError(f"{folder} holds no column {lacking[0]}", advice, given=folder)
    return schema


def _per_layer(column: pa.ChunkedArray, declared: Column, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    flat = column.combine_chunks().flatten()
    if declared.is_nested:
        flat = flat.flatten()
    if flat.null_count and pa.types.is_integer(flat.type):
        flat = flat.fill_null(_NOTHING)
    values: np.ndarray[Any, np.dtype[Any]] = flat.to_numpy(zero_copy_only=False)
    if len(values) != len(column) * prod(shape):
        of_each = " x ".join(map(str, shape))
        problem = f"a per-layer column holds {len(values)} values for {len(column)} rows of {of_each} values"
        raise RunError(problem, "restore the run, or trace again", given=len(values))
    return values.reshape(len(column), *shape)


def to_table(declared: tuple[Column, ...], columns: Columns) -> pa.Table:
    """An arrow table with exactly the declared columns, in order. An absent value becomes null: NaN in columns that can
    lack a value, and −1 in columns of whole numbers of each layer."""
    undeclared = columns.keys() ^ {column.name for column in declared}
    assert not undeclared, f"columns do not match the declaration: {sorted(undeclared)}"
    arrays = [_list_array(c, columns[c.name]) if c.per_layer else pa.array(columns[c.name], c.type) for c in declared]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(declared))


def _list_array(column: Column, values: np.ndarray[Any, np.dtype[Any]]) -> pa.ListArray:
    absent = None
    if pa.types.is_integer(column.value_type):
        absent = (values < 0).ravel()
    elif column.name in _CAN_LACK:
        absent = np.isnan(values).ravel()
    array = pa.array(values.ravel(), column.value_type, mask=absent)
    for size in values.shape[:0:-1]:  # from the innermost list outwards
        array = pa.ListArray.from_arrays(pa.array(np.arange(len(array) // size + 1) * size, pa.int32()), array)
    return array


def token_groups(folder: Path, most_rows: int) -> list[list[Path]]:
    """The parts of the complete batches in groups of about `most_rows` rows, in order. A part is never divided."""
    groups: list[list[Path]] = [[]]
    rows = 0
    for part in token_parts(folder):
        rows += n_rows_in(part) if part.exists() else 0
        groups[-1].append(part)
        if rows >= most_rows:
            groups.append([])
            rows = 0
    return [group for group in groups if group] or [[]]


def token_parts(folder: Path, parts: Sequence[Path] | None = None) -> Sequence[Path]:
    """The parts of the complete batches, or those given."""
    return _complete_token_parts(folder) if parts is None else parts


def _complete_token_parts(folder: Path) -> list[Path]:
    parts = [token_part(folder, index) for index in range(len(read_manifest(folder)["batches"]))]
    if (folder / "prompts.parquet").exists():
        return parts
    return [part for part in parts if (folder / "prompts" / part.name).exists()]
