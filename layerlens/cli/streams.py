"""Standard output that reports when it cannot be written, and standard error that ignores this.

A character that the encoding lacks is written as its escape, such as \\u2192 for an arrow in ASCII.
"""

import io
import os
from typing import Any, TextIO


class CannotPrintError(Exception):
    """Standard output is full, or nobody reads it any more. Its cause is the error of the system."""


class _Output(io.FileIO):
    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise CannotPrintError(error.strerror) from error


class _Notices(io.FileIO):
    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError:  # there is nowhere left to say so
            return len(content)


def output(stream: TextIO | None) -> TextIO | None:
    """A stream to the same place, in which a failure is a `CannotPrintError`; None where there is no stream."""
    return _over(_Output, stream)


def notices(stream: TextIO | None) -> TextIO | None:
    """A stream to the same place, in which a failure is ignored; None where there is no stream."""
    return _over(_Notices, stream)


def discard(stream: TextIO | None) -> None:
    """Drop what a stream holds, and all that is written to it from now on."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _over(kind: type[io.FileIO], stream: TextIO | None) -> TextIO | None:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    # escapes, because a terminal that knows only ASCII must not cost the summary
    if os.name == "nt":  # whose consoles are no files
        stream.reconfigure(errors="backslashreplace")
        return stream
    binary = io.BufferedWriter(kind(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(binary, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
