"""A run as one long table with a row for each token and layer, for tools that know nothing of runs.

It is written piece by piece, so that the memory it takes does not grow with the run.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from layerlens.errors import OptionError, RunError
from layerlens.paths import expanded
from layerlens.records import store
from layerlens.records.files import published, read_batches
from layerlens.records.places import refuse_inside, refuse_no_folder, refuse_other_suffix
from layerlens.records.reader import Records
from layerlens.records.schema import TOP_K_PROBS, TOP_K_TOKEN_IDS, Column, arrow_schema, token_columns
from layerlens.sheets import without_formulas

_ROWS = 200_000  # of the long table at a time


def write_tidy(run: Records, path: str | os.PathLike[str], kind: str | None = None) -> Path:
    """Write a run with one row per traced token and layer, in the order of `run.positions`, layer 1 first.

    Columns: those of `records.TOKENS` and what the run was asked for, with "layer" before those that have a value per
    layer. Each id is followed by its text: token, next_token, top_token. The K first tokens of a run traced with `top`
    are top_1_token_id, top_1_token, top_1_prob, top_2_token_id, ... A value that is absent is null; in csv, nothing
    stands between the commas. Texts in csv are in
    double quotes, and those that a spreadsheet would take for a formula begin with an apostrophe.

    Args:
        run: what was traced. Of an incomplete run, the complete prompts are written, with "#123" for texts.
        path: the file to write. An existing file is replaced when all rows are written.
        kind: "csv" or "parquet"; by default what the name of the file ends with.

    Returns:
        the path.

    Raises:
        OptionError: the name has another ending, the file lies in the directory of a run, or no file can be written
            there.
        RunError: the run cannot be read.
    """
    place = expanded(path)
    write = _WRITERS[refuse_unless_tidy(run.path, place, kind)]
    try:
        with published(place) as handle:
            write(handle, _pieces(run), _schema(run))
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise OptionError.about("out", place, what, "give a file in a folder that exists") from error
    return place


def refuse_unless_tidy(run: Path, place: Path, kind: str | None = None) -> str:
    """The kind that a file's name stands for; OptionError where it is not `kind`, or where the file cannot be there."""
    refuse_other_suffix(place, [f".{one}" for one in ([kind] if kind else _WRITERS)])
    refuse_inside(place, run)
    refuse_no_folder(expanded(place))
    return place.suffix.lower().removeprefix(".")


def _schema(run: Records) -> pa.Schema:
    return _long(run, store.read_tokens_table(run.path, parts=[])).schema


def _pieces(run: Records) -> Iterator[pa.Table]:
    schema = arrow_schema(token_columns(run.manifest))
    for part in store.token_parts(run.path):
        for rows in read_batches(part, schema, max(1, _ROWS // run.n_layers)):
            yield _long(run, rows)


def _long(run: Records, rows: pa.Table) -> pa.Table:
    """A table with a row per token and layer, from a table with a row per token."""
    n_layers = run.n_layers
    declared = token_columns(run.manifest)
    repeated = pa.array(np.repeat(np.arange(len(rows)), n_layers))
    flat = {one.name: rows.column(one.name).combine_chunks() for one in declared if not one.per_layer}
    found: dict[str, Any] = {}
    for name, values in flat.items():
        found |= {one: column.take(repeated) for one, column in _with_text(run, name, values).items()}
    found["layer"] = pa.array(np.tile(np.arange(1, n_layers + 1, dtype=np.int16), len(rows)))
    for one in declared:
        if one.per_layer:
            found |= _of_layers(run, one, rows.column(one.name).combine_chunks())
    return pa.table(found)


def _of_layers(run: Records, column: Column, lists: Any) -> dict[str, Any]:
    values = lists.flatten()
    if len(values) != len(lists) * run.n_layers:
        problem = (
            f"{column.name} of {run.path} holds {len(values)} values for {len(lists)} rows of {run.n_layers} layers"
        )
        raise RunError(problem, "restore the run, or trace again", given=run.path)
    if not column.is_nested:
        return _with_text(run, column.name, values)
    n_tops = int(run.manifest["options"]["top"])
    name = {TOP_K_TOKEN_IDS.name: "top_{}_token_id", TOP_K_PROBS.name: "top_{}_prob"}[column.name]
    ranked = [values.flatten().take(pa.array(np.arange(k, len(values) * n_tops, n_tops))) for k in range(n_tops)]
    found: dict[str, Any] = {}
    for k, of_rank in enumerate(ranked, start=1):
        found |= _with_text(run, name.format(k), of_rank)
    return found


def _with_text(run: Records, name: str, values: Any) -> dict[str, Any]:
    """A column, and a column of its texts where it holds ids."""
    if not name.endswith("token_id"):
        return {name: values}
    known = pa.array(run.words.index.to_numpy(), pa.int32())
    texts = pa.array(run.words.to_numpy(), pa.string()).take(pc.index_in(values, value_set=known))
    numbers = pc.binary_join_element_wise("#", pc.cast(values, pa.string()), "")
    return {name: values, name.removesuffix("_id"): pc.coalesce(texts, numbers)}


def _write_csv(handle: Any, pieces: Iterator[pa.Table], schema: pa.Schema) -> None:
    with pyarrow.csv.CSVWriter(handle, schema) as writer:
        for piece in pieces:
            writer.write_table(without_formulas(piece))


def _write_parquet(handle: Any, pieces: Iterator[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(handle, schema, compression="zstd") as writer:
        for piece in pieces:
            writer.write_table(piece)


_WRITERS: dict[str, Callable[[Any, Iterator[pa.Table], pa.Schema], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
}
