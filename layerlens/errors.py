"""Errors a user can cause and mend. Each message repeats what was given and says what to do.

    LayerlensError
    ├── ModelError          the model cannot be found, loaded or read out
    ├── PromptError         a dataset or a file of prompts cannot be used
    ├── OptionError         an option is out of range, or two options contradict each other
    └── RunError            a run directory is missing, foreign, damaged, or cannot be written

The command line prints the message on standard error and exits with status 2; from Python they are ordinary
exceptions. Anything else that escapes is a fault of layerlens.

A message spells options and commands as its reader types them: `spelled("window", 12)` is "window 12" in Python and
"--window 12" on the command line. The command line sets this with `spelling` while a command runs.
"""

import errno
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, TypeVar

Error = TypeVar("Error", bound="LayerlensError")

_LEAST_LIKENESS = 0.7  # of a name that can have been meant; 1 is the same


class LayerlensError(Exception):
    """Root of the errors that a user can cause and mend.

    Attributes:
        problem: what is wrong, with what was given.
        advice: what to do; "" where the error was raised with one text.
        option: the option or argument it is about, as Python calls it, such as "max_new_tokens"; None where it is not
            about an option.
        given: the value of that option, or another thing that was given and cannot be used.
    """

    def __init__(self, problem: str = "", advice: str = "", *, option: str | None = None, given: object = None) -> None:
        # ids, keys and names can hold line breaks, and a message is one line
        self.problem, self.advice = (" ".join(text.splitlines()) for text in (problem, advice))
        super().__init__(f"{self.problem}; {self.advice}" if advice else self.problem)
        self.option = option
        self.given = given

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its fields, whatever a subclass is made from; `given` as its repr where it cannot be pickled."""
        state = dict(vars(self))
        try:
            pickle.dumps(state["given"])
        except Exception:  # which one depends on the object
            state["given"] = repr(state["given"])
        return _restored, (type(self), self.args, state)

    @classmethod
    def about(cls: "type[Error]", option: str, given: object, what: str, advice: str) -> "Error":
        """An option with its value, what is wrong with it, and what to do: "window 12 does not fit ...; give 1..8"."""
        return cls(f"{spelled(option, given)} {what}", advice, option=option, given=given)


def _restored(kind: type[Error], args: tuple[Any, ...], state: dict[str, Any]) -> Error:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ModelError(LayerlensError):
    """The model cannot be found, loaded, shown in the adapter's shape, or read out."""


class PromptError(LayerlensError):
    """A dataset or a file of prompts is missing, malformed or does not fit the model."""


class OptionError(LayerlensError):
    """An option is out of range, or two options contradict each other."""


class RunError(LayerlensError):
    """A run directory is missing, foreign, damaged, or cannot be written."""


class Notice(UserWarning):
    """What a user should know about a result that is still made. The command line prints it on standard error."""


class Spelling:
    """How messages write options and commands: here as in Python."""

    def name(self, option: str) -> str:
        """An option without a value: window."""
        return option

    def with_value(self, option: str, value: object) -> str:
        """An option as it was given: window 12, resume=True."""
        if value is None or isinstance(value, bool):
            return f"{option}={value}"
        return f"{option} {fspath(value) if isinstance(value, PathLike) else repr(value)}"

    def command(self, name: str) -> str:
        """A function of layerlens: ll.trace."""
        return f"ll.{name}"


_spelling = Spelling()
_ALONE = object()


def spelled(option: str, value: object = _ALONE) -> str:
    """An option, alone or with its value, as the caller writes it: "window 12" in Python."""
    return _spelling.name(option) if value is _ALONE else _spelling.with_value(option, value)


def spelled_command(name: str) -> str:
    """A function of `layerlens` as the caller writes it: "ll.trace" in Python."""
    return _spelling.command(name)


@contextmanager
def spelling(other: Spelling) -> Iterator[None]:
    """While open, messages of the whole process are spelled in another way."""
    global _spelling
    before, _spelling = _spelling, other
    try:
        yield
    finally:
        _spelling = before


def did_you_mean(given: object, known: Iterable[object], otherwise: str) -> str:
    """The advice for an unknown name: the known names that are most like it, or else `otherwise`."""
    from difflib import SequenceMatcher  # here, because few calls have a mistake in them

    names = {str(name).lower(): str(name) for name in known}
    typed = str(given).lower()
    likeness = {name: SequenceMatcher(None, name, typed).ratio() for name in names}
    least = max(_LEAST_LIKENESS, max(likeness.values(), default=0) - 0.1)
    alike = sorted((name for name in names if likeness[name] >= least), key=lambda name: -likeness[name])[:2]
    begun = [name for name in names if len(typed) > 3 and name.startswith(typed)][:3]
    meant = [typed] if typed in names else begun or alike
    return f"did you mean {' or '.join(names[name] for name in meant)}?" if meant else otherwise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, of the system or of torch says that no memory is left, here or on a device."""
    by_kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    by_number = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return by_kind or by_number or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def first_sentence(error: BaseException | str) -> str:
    """The first sentence of somebody else's error, or of its text, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    sentence = text.split(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 160 else f"{sentence[:157]}..."


def is_number(value: object) -> bool:
    """Whether a value is a number, of Python or numpy. True is not one, although Python counts it as 1."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or numpy. True is not one, although Python counts it as 1."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; half of a surrogate pair, or a byte that was no UTF-8, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def excerpt(text: str) -> str:
    """The first place of a text that is not UTF-8, with what is around it, as Python writes it."""
    place = next(place for place, character in enumerate(text) if not is_utf8(character))
    return ascii(text[max(0, place - 10) : place + 10])
