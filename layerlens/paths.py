"""Paths as users write them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ~ or ~user written out; as it stands where there is no such user, as a shell does."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
