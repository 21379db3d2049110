"""Where a file that is made of a run can be written, without harm to the records of any run."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from layerlens.errors import OptionError, spelled
from layerlens.paths import expanded

_TABLES = ("tokens", "answers.parquet")  # one of which every run and every evaluation has


def refuse_other_suffix(place: Path, suffixes: Sequence[str], option: str = "out") -> None:
    """OptionError where the name of the file has none of these endings, such as ".csv"."""
    if place.suffix.lower() not in suffixes:
        what = f"ends with {place.suffix!r}" if place.suffix else "has no ending"
        advice = f"give the name of a file that ends with {' or '.join(suffixes)}"
        raise OptionError.about(option, place, what, advice)


def refuse_no_folder(place: Path, option: str = "out") -> None:
    """OptionError where no file can be written there: it is a folder, or it lies in no folder."""
    if os.path.isdir(place):  # noqa: PTH112 - False also for a name that is too long
        raise OptionError.about(option, place, "is a folder", "give the name of a file")
    if not os.path.isdir(place.absolute().parent):  # noqa: PTH112
        what = f"cannot be written: there is no folder {place.parent}"
        raise OptionError.about(option, place, what, "give a file in a folder that exists")


def refuse_unwritable(folder: Path, option: str = "out") -> None:
    """Make a folder; OptionError where it cannot be made, or nothing can be written there."""
    try:
        expanded(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=expanded(folder)):
            pass
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise OptionError.about(option, folder, what, "give a folder that can be made or written") from error


def refuse_inside(place: Path, run: Path | None = None, option: str = "out") -> None:
    """OptionError for a file in the directory of a run or an evaluation, whose tables it could replace.

    Args:
        place: the file to be written.
        run: a directory that counts as one, whatever it holds.
        option: by which the file was given.
    """
    known = None if run is None else expanded(run).resolve()
    for folder in expanded(place).resolve().parents:
        if folder == known or _holds_records(folder):
            advice = f"give {spelled(option)} elsewhere"
            raise OptionError.about(option, place, f"lies in the run directory {folder}", advice)


def _holds_records(folder: Path) -> bool:
    """Whether a folder is that of a run or of an evaluation, be it damaged or not complete."""
    return (folder / "manifest.json").is_file() and any((folder / name).exists() for name in _TABLES)
