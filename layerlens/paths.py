"""Paths as users write them."""

import errno
import os
from pathlib import Path

from layerlens.errors import OptionError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ~ or ~user written out; as it stands where there is no such user, as a shell does.

    Raises:
        OptionError: no file can have such a name.
    """
    if "\0" in os.fspath(path):  # Python says nothing, or raises a ValueError when the file is opened
        raise OptionError(f"{os.fspath(path)!r} is no name of a file", "give one without NUL", given=path)
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        found = Path(path)
    try:
        found.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            problem = f"{found} is no name of a file ({error.strerror})"
            raise OptionError(problem, "give a shorter one", given=path) from error
    return found
