"""What every door of the toolkit has to do with what it is given: a result, or one sentence, in a moment."""

import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import layerlens.cli
from tests.thorough import IS_HARD

LONGEST = 10.0
"""Seconds after which a door counts as hanging."""


def cases(quick: int, hard: int) -> int:
    """How many cases a test tries: few in `scripts/test`, many in `scripts/test-hard`."""
    return hard if IS_HARD else quick


def knock(*arguments: object) -> str:
    """Run the command line within this process and return its sentence, "" where it did what was asked.

    AssertionError where it said more or less than one sentence, ended with another status than 0 or 2, printed control
    characters, or took too long. Exceptions come through as they are.
    """
    out, err = StringIO(), StringIO()
    began = time.perf_counter()
    with redirect_stdout(out), redirect_stderr(err):
        code = layerlens.cli.run([str(argument) for argument in arguments])
    assert time.perf_counter() - began < LONGEST, f"{arguments} took {time.perf_counter() - began:.1f} s"
    said = err.getvalue()
    # a generated text that is piped on stays as it is
    assert_printable(said if arguments[0] == "generate" else out.getvalue() + said)
    if code == 0:
        return ""
    assert code == 2, (code, said)
    lines = [line for line in said.splitlines() if line and not line.startswith("layerlens: note: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith("layerlens: "), said
    assert len(lines[0]) < 2000, lines[0][:2000]
    return lines[0]


def assert_printable(text: str) -> None:
    """Nothing in a text moves the cursor, changes colours or reverses the direction of reading."""
    bad = set(text) & _MOVES
    assert not bad, ascii(bad)


_MOVES = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_MOVES -= set("\t\n")


def refused_or_done(call: Callable[[], object]) -> None:
    """Call a function of Python: it returns, or raises a LayerlensError of one line, in a moment."""
    from layerlens.errors import LayerlensError

    began = time.perf_counter()
    said = "done"
    try:
        call()
    except LayerlensError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    assert time.perf_counter() - began < LONGEST


def result_or_sentence(call: Callable[[], object]) -> tuple[object, str]:
    """What a function of Python returns and "", or None and the one line of the LayerlensError that it raises."""
    from layerlens.errors import LayerlensError

    said = ""
    try:
        return call(), said
    except LayerlensError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None, said
