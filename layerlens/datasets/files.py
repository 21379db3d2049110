"""Read the files that a user names, as bytes, text, lines or rows. A PromptError says why a file cannot be read."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError, first_sentence
from layerlens.parsing import json_of


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; a PromptError where it is missing, empty or cannot be read."""
    if path.is_dir():
        raise PromptError(f"{path} is a directory", "give a file", given=path)
    try:
        if path.exists() and not path.is_file():  # a device may never end, and a pipe never begin
            raise PromptError(f"{path} is not a regular file", "write its contents into one, and give that", given=path)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise PromptError(f"there is no file {path}", "check the path", given=path) from error
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror})"
        raise PromptError(reason, "check that it is a file you may read", given=path) from error
    if not content:
        raise PromptError(f"{path} is empty", "give a file with something in it", given=path)
    return content


def sha256(content: bytes) -> str:
    """The SHA-256 digest of a file's bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes, path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark; a PromptError names the first line that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}, line {line}: not UTF-8 text", "save the file as UTF-8", given=path) from error


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of every line that is not blank."""
    # str.splitlines would also split at U+2028 and its like, which may stand inside a JSON string.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield number, line


def json_object(line: str, where: str) -> dict[str, object]:
    """The JSON object that a line holds; a PromptError that starts with `where` if it holds anything else."""
    try:
        value = _parsed(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise PromptError(f"{where}: not JSON ({reason})", "write one JSON object per line") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: this JSON cannot be used ({error})", "write it as UTF-8 text") from error
    if not isinstance(value, dict):
        raise PromptError(f"{where}: JSON, but not an object", "write one JSON object per line", given=value)
    return value


def _parsed(text: str) -> Any:
    """The value of a JSON text; ValueError also for half a surrogate pair, which would fail only at the tokenizer."""
    value = json_of(text, _with_each_key_once)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key is there twice, because nobody can tell which value is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {_twice([key for key, _ in pairs])!r} is there twice in one object")
    return found


def _twice(names: Sequence[str]) -> str | None:
    """The first name that is there more than once; names that are empty do not count."""
    seen = Counter(names)
    return next((name for name in names if name and seen[name] > 1), None)


def read_rows(content: bytes, path: Path) -> list[dict[str, object]]:
    """The rows of a table in JSON (a list of objects), JSON lines, CSV or Parquet; the suffix of the file decides."""
    if path.suffix.lower() not in _READERS:
        known = ", ".join(_READERS)
        raise PromptError(f"{path} ends with {path.suffix!r}", f"give a file that ends with {known}", given=path)
    rows = _READERS[path.suffix.lower()](content, path)
    if not rows:
        raise PromptError(f"{path} has no rows", "give a file with at least one", given=path)
    return rows


def _json_rows(content: bytes, path: Path) -> list[dict[str, object]]:
    try:
        rows = _parsed(decode(content, path))
    except (ValueError, RecursionError) as error:
        advice = "give a list of objects, or name a file of JSON lines .jsonl"
        raise PromptError(f"{path}: not JSON ({error})", advice, given=path) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PromptError(
            f"{path}: JSON, but not a list of objects", "give one object per row, in one list", given=path
        )
    return rows


def _jsonl_rows(content: bytes, path: Path) -> list[dict[str, object]]:
    return [json_object(line, f"{path}, line {number}") for number, line in numbered_lines(decode(content, path))]


def _csv_rows(content: bytes, path: Path) -> list[dict[str, object]]:
    # pandas would turn "007" into 7 and "None" into nothing; every column read here is a text.
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(io.StringIO(decode(content, path), newline=""), strict=True)
    rows = []
    try:
        _refuse_twice(reader.fieldnames or (), path)
        for row in reader:
            if None in row:
                problem = f"{path}, line {reader.line_num}: more cells than the header has columns"
                raise PromptError(problem, "put quotes around texts with commas in them", given=path)
            rows.append(dict(row))
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        raise PromptError(f"{where}: not CSV ({error})", "write it with a header row", given=path) from error
    return rows


def _refuse_twice(columns: Sequence[str], path: Path) -> None:
    """PromptError where two columns have one name, because nobody can tell which is meant."""
    name = _twice(columns)
    if name is not None:
        raise PromptError(f"{path} has two columns {name!r}", "give each column a name of its own", given=path)


def _parquet_rows(content: bytes, path: Path) -> list[dict[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        _refuse_twice(table.column_names, path)
        rows: list[dict[str, object]] = table.to_pylist()
    except (MemoryError, PromptError):  # the former pyarrow derives from its own errors
        raise
    except Exception as error:  # of whatever turns values into those of Python, such as dates beyond the year 9999
        reason = f"{path}: not Parquet ({first_sentence(error)})"
        raise PromptError(reason, "give the file as it was released", given=path) from error
    return rows


_LONGEST_FIELD = 2**31 - 1  # the library's own limit is smaller than the contexts of some datasets
_READERS: dict[str, Callable[[bytes, Path], list[dict[str, object]]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
