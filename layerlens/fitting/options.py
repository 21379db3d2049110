"""The options of a fit, and where its lens can be written. What cannot be is refused before torch is loaded."""

import os
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from layerlens.decode.options import whole
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.paths import expanded
from layerlens.records.files import refuse_both
from layerlens.records.places import refuse_no_folder


@dataclass(frozen=True)
class FitOptions:
    """Options of every fit. Values that are not possible are refused at once."""

    max_length: int = 512
    """Tokens of a text at most; what follows is left out."""
    skip_first: int = 1
    """Positions at the beginning of each text that are left out: the first is a sink of attention in most models, and
    its states are like no other's."""
    chat_template: bool = False
    """Wrap texts in the tokenizer's chat template, instead of taking them as they are."""
    seed: int = 0
    """Seed of the split of the texts, and of everything else that is drawn."""

    kind: ClassVar[str]
    suffix: ClassVar[str] = ".safetensors"
    chooses: ClassVar[bool] = True  # whether texts are held out to choose by
    least_positions: ClassVar[int] = 1  # of a text, after those that are left out

    def __post_init__(self) -> None:
        whole("max_length", self.max_length, 2)
        whole("skip_first", self.skip_first, 0)
        whole("seed", self.seed, 0)
        if self.skip_first >= self.max_length:
            what = f"leaves nothing of texts of {self.max_length} tokens"
            raise OptionError.about("skip_first", self.skip_first, what, "lower it")


@dataclass(frozen=True)
class LinearOptions(FitOptions):
    """Options of a linear lens."""

    kind: ClassVar[str] = "linear"


@dataclass(frozen=True)
class TunedOptions(FitOptions):
    """Options of a tuned lens."""

    start: str | None = None
    """The lens from which training starts, "linear:FILE". None: a linear lens is fitted to the same texts first."""
    steps: int = 250
    """Steps of training, each on states of one text."""
    states: int = 64
    """The most positions of the text that a step uses."""
    learning_rate: float = 3e-4
    """Learning rate of Adam at the first step; it falls linearly to zero."""

    kind: ClassVar[str] = "tuned"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, 1, 1_000_000)
        whole("states", self.states, 1)
        if not isinstance(self.learning_rate, int | float) or not 0 < self.learning_rate < float("inf"):
            raise OptionError.about("learning_rate", self.learning_rate, "is out of range", "give a number above 0")
        if self.start is not None and not str(self.start).startswith("linear:"):
            raise OptionError.about("start", self.start, "is not a linear lens", "give linear:FILE")


@dataclass(frozen=True)
class JacobianOptions(FitOptions):
    """Options of a Jacobian lens; the defaults are those of TransformerLens."""

    max_length: int = 128
    """Tokens of a text at most; what follows is left out."""
    skip_first: int = 16
    """Positions at the beginning of each text that are neither sources nor targets. The last position is neither,
    too."""
    dim_batch: int = 8
    """Components of the last state that one backward pass computes. Memory holds the text once for each of them."""
    most_texts: int = 100
    """The most texts to fit on. Each takes d_model / `dim_batch` backward passes."""

    kind: ClassVar[str] = "jacobian"
    suffix: ClassVar[str] = ".pt"
    chooses: ClassVar[bool] = False
    least_positions: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("dim_batch", self.dim_batch, 1)
        whole("most_texts", self.most_texts, 1)


KINDS: dict[str, type[FitOptions]] = {"linear": LinearOptions, "tuned": TunedOptions, "jacobian": JacobianOptions}


def options_of(kind: str, given: dict[str, Any]) -> FitOptions:
    """The options of a fit; OptionError where there is no such kind or option, or a value is not possible."""
    if kind not in KINDS:
        advice = did_you_mean(kind, KINDS, f"give {', '.join(KINDS)}")
        raise OptionError.about("kind", kind, "is not a kind of lens that can be fitted", advice)
    known = [field.name for field in fields(KINDS[kind])]
    for name, value in given.items():
        if name not in known:
            problem = f"a {kind} lens has no option {name!r}"
            advice = did_you_mean(name, known, f"there are {', '.join(known)}")
            raise OptionError(problem, advice, option=name, given=value)
    if kind == "jacobian" and find_spec("transformer_lens") is None:
        raise lacks_transformer_lens()
    return KINDS[kind](**given)


def lacks_transformer_lens() -> OptionError:
    """The error where TransformerLens is not installed."""
    advice = "get it with: pip install 'layerlens[backends]'"
    return OptionError.about("kind", "jacobian", "needs TransformerLens 4.3", advice)


def refuse_unless_free(
    out: str | os.PathLike[str], asked: FitOptions, *, resume: bool, overwrite: bool = False
) -> Path:
    """Where the lens is to be written; OptionError where it cannot be, or where there is a file already that is not to
    be replaced or was written by no fit."""
    refuse_both(resume=resume, overwrite=overwrite)
    path = expanded(out)
    if path.suffix != asked.suffix:
        what = f"ends with {path.suffix!r}, and a {asked.kind} lens is a {asked.suffix} file"
        raise OptionError.about("out", path, what, f"give {path.with_suffix(asked.suffix)}")
    refuse_no_folder(path)
    if path.exists() and not resume and not overwrite:
        others = f"give another file, or {spelled('overwrite', True)} to replace a lens"
        raise OptionError.about("out", path, "already exists", others)
    if path.exists() and overwrite and not _is_fitted(asked.kind, path):
        what = f"is no {asked.kind} lens that a fit of layerlens wrote"
        raise OptionError.about("out", path, what, "give another file")
    return path


def _is_fitted(kind: str, path: Path) -> bool:
    from layerlens.lens.files import read_lens  # here, because it needs torch

    try:
        return bool(read_lens(kind, path).fit)
    except OptionError:  # about another option, by which no lens was given
        return False
