"""SWIFT (arXiv 2410.06916): a random search for attention modules and MLPs that a draft can do without."""

from dataclasses import dataclass
from random import Random

from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.policy import Round, Search, SkipPolicy, candidates, n_of, number, whole
from layerlens.decode.speculative.skipping import parts_of
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.models import Model


@dataclass(frozen=True)
class Swift(SkipPolicy):
    """Tries a random set in each round, and keeps it where it predicts more of the last verified tokens."""

    skip_ratio: float = 0.45
    """The share of attention modules and MLPs to leave out; of whole blocks, where a family's have no such parts."""
    context_window: int = 32
    """How many of the last verified tokens a set is tried on."""
    good_score: float = 0.95
    """The search ends with a set that predicts more than this share of the tokens,"""
    max_without_gain: int = 300
    """after so many sets that were no better,"""
    max_proposals: int = 1000
    """and after so many sets in all."""
    seed: int = 0
    """Of the random sets."""

    def check(self) -> None:
        """As for every policy, and the search's own options."""
        super().check()
        number("skip_ratio", self.skip_ratio, 0, 1)
        number("good_score", self.good_score, 0, 1)
        for name in ("context_window", "max_without_gain", "max_proposals"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)

    def search(self, model: Model) -> "RandomSearch":
        """A search that has tried nothing yet."""
        return RandomSearch(self, model)


class RandomSearch(Search):
    """The search of `Swift`.

    Attributes:
        score: of the set that is used, 0..1; below 0 before the first.
    """

    def __init__(self, policy: Swift, model: Model) -> None:
        super().__init__()
        able = candidates(model)
        self._parts = [(block, "block") for block in able]
        if parts_of(model) is not None:
            self._parts = [(block, part) for block in able for part in ("attention", "mlp")]
        self._n_skipped = n_of(policy.skip_ratio, len(self._parts))
        self._policy = policy
        self._random = Random(policy.seed)
        self._n_without_gain = 0
        self._is_stale = False
        self.n_back = policy.context_window
        self.score = -1.0

    def begin(self) -> None:
        """The set is tried again on the new prompts before another can replace it."""
        self._is_stale = True

    def after(self, last: Round, lab: Lab) -> None:
        """Try one more set."""
        n_tokens = self._policy.context_window
        if lab.n_known < n_tokens:
            return
        if self._is_stale and self.skips:
            self.score = lab.agreement(self.skips, n_tokens)
        self._is_stale = False
        skips = self._drawn()
        score = lab.agreement(skips, n_tokens)
        self.n_proposals += 1
        self._n_without_gain += 1
        if score > self.score:
            self.skips, self.score, self._n_without_gain = skips, score, 0
        policy = self._policy
        self.is_over = (
            self.score > policy.good_score
            or self._n_without_gain >= policy.max_without_gain
            or self.n_proposals >= policy.max_proposals
        )

    def _drawn(self) -> SkipSet:
        chosen = self._random.sample(self._parts, self._n_skipped)
        attention = frozenset(block for block, part in chosen if part != "mlp")
        mlp = frozenset(block for block, part in chosen if part != "attention")
        return SkipSet(attention, mlp, {"policy": "swift", "seed": self._policy.seed, "tried": self.n_proposals + 1})
