"""Which blocks a draft leaves out. A policy names its options; its search looks at what the whole model computed for
tokens that it has verified, and says what to leave out next."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

from layerlens.decode.speculative.skipset import SkipSet
from layerlens.errors import OptionError

if TYPE_CHECKING:
    from layerlens.decode.speculative.lab import Lab
    from layerlens.models import Model


@dataclass(frozen=True)
class Round:
    """What became of one draft: the rows of a batch that were still being decoded.

    Attributes:
        n_emitted: tokens emitted so far for the longest of these texts.
        drafted: for each row, how many tokens were drafted.
        accepted: for each row, how many of them were emitted, siblings included.
        siblings: for each row, how many of these were siblings: 0 or 1.
        emitted: for each row, how many tokens were emitted, the whole model's own included.
        read: for each row, which tokens of the verifying pass belong to the text now, 0-based.
        skips: what the draft left out.
    """

    n_emitted: int
    drafted: Sequence[int]
    accepted: Sequence[int]
    siblings: Sequence[int]
    emitted: Sequence[int]
    read: Sequence[Sequence[int]]
    skips: SkipSet


class Search(ABC):
    """What a policy has found for one model. It is kept from prompt to prompt.

    Attributes:
        skips: what drafts leave out now; where it is empty, nothing is drafted.
        is_over: whether `skips` stays as it is.
        n_proposals: how many sets were tried.
        length: the most tokens to draft; None: the policy's.
        n_back: how many of the last tokens of a text `after` reads again, at most.
    """

    def __init__(self, skips: SkipSet | None = None, *, is_over: bool = False) -> None:
        self.skips = skips or SkipSet()
        self.is_over = is_over
        self.n_proposals = 0
        self.length: int | None = None
        self.n_back = 0

    def watching(self, n_tokens: int) -> AbstractContextManager[None]:
        """Open around each pass of the whole model until the search is over; look at the model's states here.

        Args:
            n_tokens: how many tokens of each row the pass reads: the last emitted one, and those that were drafted.
        """
        return nullcontext()

    def begin(self) -> None:  # noqa: B027 -- most searches need not know
        """Other prompts begin."""

    @abstractmethod
    def after(self, last: Round, lab: "Lab") -> None:
        """Called after each round until the search is over: change `skips`, or leave them.

        Args:
            last: the round; nothing was drafted in it where `skips` was empty.
            lab: for passes that leave nothing behind.
        """


class Settled(Search):
    """A set that was known before."""

    def __init__(self, skips: SkipSet) -> None:
        super().__init__(skips, is_over=True)

    def after(self, last: Round, lab: "Lab") -> None:
        """Nothing: the search was over from the start."""


@dataclass(frozen=True, kw_only=True)
class SkipPolicy(ABC):
    """Base class of every policy. Subclass it as a frozen dataclass, then use `register_skip_policy`."""

    length: int = 25
    """The most tokens to draft before the whole model checks them."""
    threshold: float = 0.8
    """A draft stops after a token whose probability is below this; 0 never stops it, 1 always."""
    tree: bool = False
    """Whether a draft also holds the next best tokens at each place: the more of them, the less sure it is."""
    patience: int | None = 100
    """Plain decoding goes on for good once this many rounds were slower than it, once as much time was lost as this
    many plain passes take, or once the search found nothing to leave out in this many rounds. None: never."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """OptionError where an option is out of range; subclasses check theirs too."""
        whole("length", self.length, 1, 1000)
        number("threshold", self.threshold, 0, 1)
        if not isinstance(self.tree, bool):
            raise OptionError.about("tree", self.tree, "is neither True nor False", "give one of them")
        if self.patience is not None:
            whole("patience", self.patience, 1)

    @abstractmethod
    def search(self, model: "Model") -> Search:
        """A new search for this model.

        Raises:
            OptionError: an option does not fit the model.
            ModelError: the policy cannot work with the model.
        """


def candidates(model: "Model") -> list[int]:
    """The blocks that a search may leave out: all but the first, the last, and those that no pass can do without."""
    from layerlens.decode.speculative.skipping import indispensable

    kept = indispensable(model) | {0, model.n_layers - 1}
    found = [number for number in range(model.n_layers) if number not in kept]
    if not found:
        what = f"has {model.n_layers} layers, none of which a draft can leave out"
        raise OptionError.about("model", model.source, what, "decode it without drafts")
    return found


def n_of(ratio: float, n: int) -> int:
    """The share of n things in whole things; at least one, unless the share is 0."""
    return max(1, round(ratio * n)) if ratio > 0 else 0


def number(name: str, value: object, least: float, most: float) -> None:
    """OptionError unless the value is a number from `least` to `most`."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise OptionError.about(name, value, "is not a number", f"give one from {least:g} to {most:g}")
    if not least <= float(value) <= most:
        raise OptionError.about(name, value, "is out of range", f"give a number from {least:g} to {most:g}")


def whole(name: str, value: object, least: int, most: int = 2**31) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise OptionError.about(name, value, "is not a whole number", f"give one from {least}")
    if not least <= int(value) <= most:
        raise OptionError.about(name, value, "is out of range", f"give {least}..{most}")
