"""What the scripts beside this one take on the command line, refused before anything is measured."""

import argparse
from pathlib import Path


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def out_file(text: str) -> Path:
    """A file that can be written in a folder that exists."""
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; give a file in a folder that exists")
    return path
