"""Arguments of the scripts in this folder, checked before anything is measured."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from layerlens.errors import LayerlensError


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status that it returns, or with 2 and one sentence where layerlens refuses an argument."""
    try:
        sys.exit(main())
    except LayerlensError as refusal:
        print(f"{Path(sys.argv[0]).name}: error: {refusal}", file=sys.stderr)
        sys.exit(2)


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def out_file(text: str) -> Path:
    """A file that can be written, in a folder that exists."""
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; give a file in a folder that exists")
    return path


def out_folder(text: str) -> Path:
    """A folder, which is made if it is missing."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be made or is no folder; give another") from None
    return path
