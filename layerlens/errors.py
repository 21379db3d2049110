"""Errors a user can cause and mend. Each message repeats what was given and says what to do.

    LayerlensError
    ├── ModelError          the model cannot be found, loaded or read out
    ├── PromptError         a dataset or a file of prompts cannot be used
    ├── OptionError         an option is out of range, or two options contradict each other
    └── RunError            a run directory is missing, foreign, damaged, or cannot be written

The command line prints the message on standard error and exits with status 2; from Python they are ordinary
exceptions. Anything else that escapes is a fault of layerlens.
"""


class LayerlensError(Exception):
    """Root of the errors that a user can cause and mend."""


class ModelError(LayerlensError):
    """The model cannot be found, loaded, shown in the adapter's shape, or read out."""


class PromptError(LayerlensError):
    """A dataset or a file of prompts is missing, malformed or does not fit the model."""


class OptionError(LayerlensError):
    """An option is out of range, or two options contradict each other."""


class RunError(LayerlensError):
    """A run directory is missing, foreign, damaged, or cannot be written."""


class Notice(UserWarning):
    """What a user should know of a result that is made all the same; the command line prints it on standard error."""


def first_sentence(error: BaseException) -> str:
    """The first sentence of somebody else's error, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    sentence = text.split(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 160 else f"{sentence[:157]}..."


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
