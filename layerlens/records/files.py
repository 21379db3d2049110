"""Files that appear whole or not at all, and a lock against two writers."""

import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from layerlens.errors import OptionError, RunError, first_sentence, spelled
from layerlens.paths import expanded

if TYPE_CHECKING:
    from typing_extensions import Self


class DamagedFile(RunError):
    """A table exists but does not hold what it should."""

    @classmethod
    def at(cls, path: Path, problem: str) -> "DamagedFile":
        """The error for the table at a path, with what is wrong with it."""
        if path.name == "answers.parquet":  # of an evaluation, which goes on without being told
            again = "repeat the command that wrote it, which makes it again"
        else:
            again = f"repeat the command that wrote it with {spelled('resume', True)}"
            again += ", which sets the file aside and makes it again"
        return cls(f"{path} {problem}", again, given=path)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of a schema in a parquet file, in that order; RunError where it cannot be read, or lacks one."""
    with _opened(path, schema) as parquet:
        # a run has many small parts: read_table and threads within a part take twice as long as the reading
        table = parquet.read(columns=schema.names, use_threads=False)
        if any(pa.types.is_string(kind) for kind in schema.types):
            table.validate(full=True)  # that texts are UTF-8, which a frame would find where a text is first used
    return table


def read_batches(path: Path, schema: pa.Schema, n_rows: int) -> Iterator[pa.Table]:
    """As `read_table`, `n_rows` at a time."""
    with _opened(path, schema) as parquet:
        for batch in parquet.iter_batches(n_rows, columns=schema.names, use_threads=False):
            yield pa.Table.from_batches([batch]).select(schema.names)


def n_rows_in(path: Path) -> int:
    """How many rows a parquet file has; RunError where it cannot be read."""
    with _opened(path, pa.schema([])) as parquet:
        return int(parquet.metadata.num_rows)


@contextlib.contextmanager
def _opened(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """A parquet file that has the columns of a schema; RunError where it has not, or where reading it fails inside."""
    try:
        with path.open("rb") as handle:  # pyarrow takes a path for an address, and can read fewer names than the system
            parquet = pq.ParquetFile(handle, page_checksum_verification=True)
            found = parquet.schema_arrow
            lacking = sorted(set(schema.names) - set(found.names))
            if lacking:
                raise DamagedFile.at(path, f"lacks the columns {', '.join(lacking)}")
            for field in schema:
                if found.field(field.name).type != field.type:
                    other = found.field(field.name).type
                    raise DamagedFile.at(path, f"has a column {field.name} of {other} and not of {field.type}")
            yield parquet
    except FileNotFoundError as error:
        advice = f"repeat the command that wrote it with {spelled('resume', True)} to make it again"
        raise RunError(f"{path} is missing", advice, given=path) from error
    except MemoryError:  # which pyarrow derives from its own errors: the file is as it should be
        raise
    except (OSError, pa.ArrowException, ValueError) as error:  # the last for names of columns that are not UTF-8
        problem = f"cannot be read ({first_sentence(error)})"
        if getattr(error, "errno", None) is not None:  # of the system, not of what the file holds
            raise RunError(f"{path} {problem}", "make it readable", given=path) from error
        raise DamagedFile.at(path, problem) from error


def set_aside_damaged(folder: Path, tables: Mapping[Path, pa.Schema]) -> None:
    """Move files that cannot be read, or that lack a column, to `folder`/damaged, so that they are made again.

    Missing files are passed over.
    """
    for path, schema in tables.items():
        try:
            if path.exists():
                read_table(path, schema)
        except DamagedFile:
            set_aside(folder, path)


def set_aside(folder: Path, path: Path) -> None:
    """Move a file of the folder to `folder`/damaged."""
    (folder / "damaged").mkdir(exist_ok=True)
    path.replace(folder / "damaged" / "-".join(path.relative_to(folder).parts))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Where writing fails inside, a RunError says how to continue."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{folder} cannot be written ({reason})",
            f"what is complete is kept: make room or mend the path, then continue with {spelled('resume', True)}",
            option="out",
            given=folder,
        ) from error


def refuse_both(*, resume: bool, overwrite: bool) -> None:
    """OptionError where both `resume` and `overwrite` are given."""
    if resume and overwrite:
        what = f"contradicts {spelled('resume', True)}"
        raise OptionError.about("overwrite", True, what, "give one of them")


@contextlib.contextmanager
def not_replaced(folder: Path) -> Iterator[None]:
    """Where what is read inside is not what belongs to the folder, the RunError says to write into another one."""
    try:
        yield
    except RunError as error:
        raise RunError(error.problem, "give a new directory", option="out", given=folder) from error


def exists(path: Path) -> bool:
    """Whether there is such a file; False where no file can have that name."""
    try:
        return path.exists()
    except OSError:  # such as a name that is too long, which the check of the folder reports
        return False


def refuse_foreign(folder: Path, entries: re.Pattern[str]) -> None:
    """RunError where a folder that is to be replaced holds anything that does not belong to it."""
    for path in sorted(folder.rglob("*")):
        if not _belongs(path, folder, entries):
            what = f"also holds {path.relative_to(folder)}, which is not part of it"
            raise RunError.about("out", folder, what, "move that elsewhere, or give a new directory")


def _belongs(path: Path, folder: Path, entries: re.Pattern[str]) -> bool:
    within = path.relative_to(folder).as_posix() + ("/" if path.is_dir() else "")
    return not path.is_symlink() and entries.fullmatch(within) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed writer left behind, in the folder and below."""
    for unfinished in folder.rglob("*.partial"):
        unfinished.unlink()


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file. Until all of it is on the disk, `path` stays as it was."""
    partial = path.with_name(path.name + ".partial")
    # hardly a float occurs twice: a dictionary of them would take longer to write and to read, and more room
    repeating = [_path(field) for field in table.schema if not _holds_floats(field.type)]
    with partial.open("wb") as handle:
        # without the checksums, a bit that flips on a disk can become another number in silence
        pq.write_table(table, handle, compression="zstd", use_dictionary=repeating, write_page_checksum=True)
    _publish(partial, path)


def _path(field: pa.Field) -> str:
    """What parquet calls the column."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def _holds_floats(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind.value_type if pa.types.is_list(kind) else kind))


@contextlib.contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file to write. Until all of it is written, `path` stays as it was."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as handle:
            yield handle
        _publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file. Until all of it is on the disk, `path` stays as it was."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _publish(partial, path)


def _publish(partial: Path, path: Path) -> None:
    with partial.open("rb+") as handle:
        os.fsync(handle.fileno())
    partial.replace(path)


class FolderWriter(ABC):
    """Writes a folder of records, which only one process can write at a time; use as a context manager.

    Args:
        folder: made if missing.
        manifest: describes what is about to be run.
        resume: continue what is there.
        overwrite: remove what is there. Every file must be one that such a writer writes.

    Raises:
        OptionError: both resume and overwrite are given.
        RunError: the folder holds something else, another process writes it, or it cannot be written.
    """

    entries: ClassVar[re.Pattern[str]]
    """Matches the path, within the folder, of everything that belongs to it. Paths of folders end with "/"."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        manifest: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder = expanded(folder)
        self.manifest = manifest
        self._refuse_unless_free(resume=resume, overwrite=overwrite)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder)
            try:
                if overwrite:
                    self._clear()
                self._open()
            except BaseException:
                self._lock.close()
                raise

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _clear(self) -> None:
        """Remove what belongs to such a folder, except the manifest and the lock, which are replaced later."""
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what a folder holds before the folder
            if path.name in ("manifest.json", ".lock") or not _belongs(path, self.folder, self.entries):
                continue
            path.rmdir() if path.is_dir() else path.unlink()

    @abstractmethod
    def _refuse_unless_free(self, *, resume: bool, overwrite: bool) -> None:
        """RunError where the folder holds something else."""

    @abstractmethod
    def _open(self) -> None:
        """Begin, or find out what is there. The folder exists and is locked."""


def _lock(folder: Path) -> Any:
    """A handle that keeps other processes from writing the folder until it is closed; RunError where one writes it."""
    handle = (folder / ".lock").open("w")
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: the user must not start two writers
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        advice = f"wait for it, or give another directory as {spelled('out')}"
        raise RunError(f"another process is writing {folder}", advice, option="out", given=folder) from error
    return handle
