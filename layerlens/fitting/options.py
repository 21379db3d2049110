"""What can be asked of a fit."""

from dataclasses import dataclass
from typing import ClassVar

from layerlens.decode.options import whole
from layerlens.errors import OptionError


@dataclass(frozen=True)
class FitOptions:
    """What every fit is asked for; values that cannot be are refused at once."""

    max_length: int = 512
    """Tokens of a text at most; what follows is left out."""
    skip_first: int = 1
    """Positions at the beginning of each text that are left out: the first is a sink of attention in most models, and
    its states are like no other's."""
    chat_template: bool = False
    """Wrap texts in the tokenizer's chat template, instead of taking them as they are."""
    seed: int = 0
    """Of the split of the texts, and of whatever else is drawn."""

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
    """The lens that it begins as, "linear:FILE"; None: a linear one is fitted to the same texts."""
    steps: int = 250
    """Steps of training, each on states of one text."""
    states: int = 64
    """Positions of the text that a step takes at most."""
    learning_rate: float = 3e-4
    """Of Adam at the first step; it falls linearly to zero."""

    kind: ClassVar[str] = "tuned"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, 1)
        whole("states", self.states, 1)
        if not isinstance(self.learning_rate, int | float) or not 0 < self.learning_rate < float("inf"):
            raise OptionError.about("learning_rate", self.learning_rate, "is out of range", "give a number above 0")
        if self.start is not None and not str(self.start).startswith("linear:"):
            raise OptionError.about("start", self.start, "is no linear lens", "give linear:FILE")


@dataclass(frozen=True)
class JacobianOptions(FitOptions):
    """Options of a Jacobian lens; the defaults are those of TransformerLens."""

    max_length: int = 128
    """Tokens of a text at most; what follows is left out."""
    skip_first: int = 16
    """Positions at the beginning of each text that are neither sources nor targets; the last one is none either."""
    dim_batch: int = 8
    """Components of the last state that one backward pass takes, for each of which the text is held once more."""
    most_texts: int = 100
    """Texts to fit on at most: each takes d_model / `dim_batch` backward passes."""

    kind: ClassVar[str] = "jacobian"
    suffix: ClassVar[str] = ".pt"
    chooses: ClassVar[bool] = False
    least_positions: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("dim_batch", self.dim_batch, 1)
        whole("most_texts", self.most_texts, 1)
