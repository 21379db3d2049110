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
