"""The options of a fit."""

from dataclasses import dataclass
from typing import ClassVar

from layerlens.decode.options import whole
from layerlens.errors import OptionError


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
        whole("steps", self.steps, 1)
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
