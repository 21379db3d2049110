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
