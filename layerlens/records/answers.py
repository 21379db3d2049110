"""The records of an ablation: a manifest beside one table of scored answers per arm and p.

    DIR/manifest.json
    DIR/answers/valley-1_p0.2.parquet       all answers of a condition (an arm at a p)
    DIR/answers/valley_p0.2/part-*.parquet  a condition that is being answered, one part per batch

A batch becomes part of the ablation in one rename. A process that is killed at any moment loses only the batch that it
was working on. Nothing here needs a model.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerlens.errors import RunError, spelled
from layerlens.records import Column, Manifest, files, store
from layerlens.records.manifest import read_manifest_of, refuse_disagreement
from layerlens.records.schema import arrow_schema

ANSWERS = (
    Column("prompt_id", pa.string(), "", "", "the item"),
    Column("repeat", pa.int16(), "", ">= 0", "which of the condition's draws; 0 where nothing is drawn"),
    Column("reference", pa.string(), "", "", "the dataset's reference answer"),
    Column("output", pa.string(), "", "", "the generated text without special tokens"),
    Column("is_correct", pa.bool_(), "", "", "the output is right by the manifest's way of scoring"),
    Column("n_generated_tokens", pa.int32(), "tokens", ">= 1", "length of the output, end token included"),
    Column("finish_reason", pa.string(), "", "", "stop | length"),
    Column("seconds", pa.float64(), "s", ">= 0", "wall time of the item's batch over its number of items"),
)


def condition_name(arm: str, p: float) -> str:
    """The name of the files with the answers of an arm at a p. At p = 0 every arm is the last layer."""
    return f"{arm}_p{p!r}" if p and arm != "last" else "last"


class AnswersWriter(files.FolderWriter):
    """Adds batches of answers to the directory of an ablation; use as a context manager.

    Args:
        folder: the directory; made if missing.
        manifest: what is about to be run, with `ablation` in it (see `ablate`).
        resume: continue the ablation that is there, refusing one whose manifest disagrees.
        overwrite: replace the ablation that is there, and nothing but an ablation.

    Raises:
        OptionError: both resume and overwrite are given.
        RunError: the folder holds another ablation or other files, or cannot be written.
    """

    entries = re.compile(
        r"(manifest\.json|answers/[^/]+\.parquet|answers/[^/]+/part-\d+\.parquet|damaged/[^/]+\.parquet)(\.partial)?"
        r"|answers/([^/]+/)?|damaged/|\.lock"
    )

    def pending(self, condition: str, n_parts: int) -> list[int]:
        """The missing ones of a condition's parts 0..n_parts − 1, in order."""
        if _joined(self.folder, condition).exists():
            return []
        return [index for index in range(n_parts) if not _part(self.folder, condition, index).exists()]

    def write(self, condition: str, index: int, answers: dict[str, Any]) -> None:
        """Add a part of a condition, with one list per column of `ANSWERS`. Readers see all of it at once."""
        with files.writing(self.folder):
            part = _part(self.folder, condition, index)
            part.parent.mkdir(exist_ok=True)
            files.write_table(part, store.to_table(ANSWERS, answers))

    def join(self, condition: str) -> None:
        """Make one table of the parts of a condition that is complete."""
        with files.writing(self.folder):
            parts = _parts(self.folder, condition)
            if not _joined(self.folder, condition).exists():
                files.write_table(_joined(self.folder, condition), _read(parts))
            for part in parts:
                part.unlink()
            with contextlib.suppress(FileNotFoundError):
                _part(self.folder, condition, 0).parent.rmdir()

    def finish(self, totals: dict[str, Any]) -> None:
        """Write the totals into the manifest: the ablation is complete."""
        with files.writing(self.folder):
            files.write_json(self.folder / "manifest.json", self.manifest | {"totals": totals})

    def _refuse_unless_free(self, *, resume: bool, overwrite: bool) -> None:
        refuse_unless_free(self.folder, resume=resume, overwrite=overwrite)

    def _open(self) -> None:
        if _has_begun(self.folder):
            refuse_disagreement(self.folder, self.manifest, read_manifest(self.folder))
            tables = sorted((self.folder / "answers").rglob("*.parquet"))
            files.set_aside_damaged(self.folder, dict.fromkeys(tables, arrow_schema(ANSWERS).names))
        else:
            files.write_json(self.folder / "manifest.json", self.manifest)
        (self.folder / "answers").mkdir(exist_ok=True)
        files.remove_unfinished(self.folder)


def refuse_unless_free(folder: Path, *, resume: bool, overwrite: bool = False) -> None:
    """RunError where the folder holds another ablation, or files that are not an ablation's; OptionError
    where both `resume` and `overwrite` are given."""
    files.refuse_both(resume=resume, overwrite=overwrite)
    folder = folder.expanduser()
    if _exists(folder / "manifest.json"):
        with files.not_replaced(folder):
            read_manifest(folder)
        if overwrite:
            files.refuse_foreign(folder, AnswersWriter.entries)
        elif not resume and _has_begun(folder):
            continued, replaced = spelled("resume", True), spelled("overwrite", True)
            advice = f"give a new directory, {continued} to continue the ablation, or {replaced} to replace it"
            raise RunError.about("out", folder, "already holds an ablation", advice)
    else:
        store.refuse_unless_free(folder, resume=resume, overwrite=overwrite)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an ablation; RunError where the folder holds none, or one of another format."""
    return read_manifest_of(folder, "ablation", "an ablation", "ablate")


def read_answers(folder: Path, condition: str) -> pa.Table:
    """The answers of a condition that are there, in the order in which they were asked; columns as in `ANSWERS`.

    Raises:
        RunError: a file cannot be read.
    """
    joined = _joined(folder, condition)
    return _read([joined] if joined.exists() else _parts(folder, condition))


def _read(paths: list[Path]) -> pa.Table:
    schema = arrow_schema(ANSWERS)
    return pa.concat_tables([schema.empty_table(), *(files.read_table(path, schema.names) for path in paths)])


def _has_begun(folder: Path) -> bool:
    """Whether anything was answered; an ablation that failed before that may be begun anew with other options."""
    return any(any(folder.glob(f"answers/{pattern}.parquet")) for pattern in ("*", "*/part-*"))


def _joined(folder: Path, condition: str) -> Path:
    return folder / "answers" / f"{condition}.parquet"


def _part(folder: Path, condition: str, index: int) -> Path:
    return folder / "answers" / condition / f"part-{index:05d}.parquet"


def _parts(folder: Path, condition: str) -> list[Path]:
    return sorted((folder / "answers" / condition).glob("part-*.parquet"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long, which the check of the folder reports
        return False
