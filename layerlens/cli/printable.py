"""Texts on a terminal. Names, templates and files can hold characters that it would obey; they are shown as escapes."""

import re

import typer

# all but tabs and line feeds, and what reverses the direction in which the text after it is read
_MOVES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with such characters as escapes: \\x1b."""
    return _MOVES.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line on standard output, or on standard error."""
    typer.echo(printable(str(text)), err=err)


def note(text: str) -> None:
    """Print on standard error what is worth knowing about a result that is still made, as `Notice`s are printed."""
    echo(f"layerlens: note: {text}", err=True)
