"""A policy at work on one model: what its search found, and whether its drafts pay."""

import math
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import pandas as pd

from layerlens.decode.speculative.branching import refuse_recurrent, refuse_unbranched
from layerlens.decode.speculative.policy import Round, Search, SkipPolicy
from layerlens.decode.speculative.registry import named_skip_policy
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.errors import ModelError, Notice, OptionError
from layerlens.models import Model
from layerlens.models.use import loaded_model

_PLAIN_FIRST = 4  # rounds of plain decoding before the first draft of so many rows, to compare with
_PLAIN_EVERY = 32  # afterwards every so many rounds, because a longer text takes longer
_PLAIN_KEPT = 8
_COLUMNS = (
    *("n_rows", "set", "drafted", "accepted", "siblings", "emitted", "is_over"),
    *("draft_seconds", "verify_seconds", "search_seconds", "plain_seconds"),
)


@dataclass(frozen=True)
class Seconds:
    """What a round took.

    Attributes:
        draft: the passes that leave blocks out.
        verify: the pass of the whole model, and acceptance.
        search: what the policy did afterwards.
    """

    draft: float
    verify: float
    search: float


class Drafter:
    """Drafts for one model. What its search finds serves all prompts that it is given to.

    Args:
        model: from `load`, with its weights in this process.
        policy: which blocks are left out.

    Attributes:
        search: of the policy.
        pays: False once drafting was given up: it was slower than plain decoding, or the search found nothing to leave
            out.

    Raises:
        ModelError, OptionError: the policy cannot work with the model.
    """

    def __init__(self, model: Model, policy: SkipPolicy) -> None:
        loaded_model(model)
        if not isinstance(policy, SkipPolicy):
            advice = "give one such as ConfLayers(), or its name, such as 'conflayers'"
            raise OptionError.about("draft", policy, "is not a skip policy", advice)
        if not model.backend.is_here:
            raise ModelError(
                f"{model.source} is run by {model.backend.name}, which makes no drafts",
                "load it with its weights in this process, or decode without drafts",
                option="draft",
                given=model.backend.name,
            )
        refuse_recurrent(model)
        if policy.tree:
            refuse_unbranched(model)
        self.model, self.policy = model, policy
        self.search = policy.search(model)
        if not isinstance(self.search, Search):
            what = f"returns {type(self.search).__name__!r} from its search"
            raise OptionError.about("draft", type(policy).__name__, what, "return an ll.Search, such as Settled(skips)")
        self.pays = True
        self._rounds: list[dict[str, float]] = []
        self._sets: list[SkipSet] = []
        self._plain: Mapping[int, deque[float]] = defaultdict(lambda: deque(maxlen=_PLAIN_KEPT))
        self._since_plain = 0
        self._n_judged, self._seconds, self._worth = 0, 0.0, 0.0
        self._n_in_vain = 0  # rounds of searching since the last draft, once a set was proposed

    @property
    def skips(self) -> SkipSet:
        """What drafts leave out now."""
        return self.search.skips

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per round.

        n_rows               texts that were being decoded
        set                  which of `sets` the draft left out; -1 where nothing was drafted
        drafted, accepted    tokens for each text, on average; accepted counts siblings
        siblings             of the accepted ones
        emitted              tokens for each text, on average
        is_over              whether the search had ended before
        draft_seconds, verify_seconds, search_seconds
        plain_seconds        what a round of plain decoding took at that time; NaN before the first
        """
        table: pd.DataFrame = pd.DataFrame(self._rounds, columns=_COLUMNS)
        return table

    @property
    def sets(self) -> pd.DataFrame:
        """One row per set that drafts left out.

        skipped              the blocks, in words
        share                of the model's attention modules and MLPs, 0..1
        lambda               of ConfLayers; NaN for others
        rounds, drafted, accepted, siblings, emitted   sums over its rounds
        acceptance           accepted over drafted, 0..1
        speed_up             over plain decoding at the same time, without the search
        """
        rounds = self.rounds
        rounds = rounds[rounds["set"] >= 0]
        seconds = rounds["draft_seconds"] + rounds["verify_seconds"]
        rounds = rounds.assign(seconds=seconds, worth=rounds["emitted"] * rounds["plain_seconds"], rounds=1)
        names = ["rounds", "drafted", "accepted", "siblings", "emitted", "seconds", "worth"]
        sums = rounds.groupby("set")[names].sum()
        known = [self._sets[number] for number in sums.index]
        first = {
            "skipped": [str(skips) for skips in known],
            "share": [skips.share(self.model.n_layers) for skips in known],
            "lambda": [_number(skips.found.get("lambda")) for skips in known],
        }
        last = {"acceptance": sums["accepted"] / sums["drafted"], "speed_up": sums["worth"] / sums["seconds"]}
        table: pd.DataFrame = pd.DataFrame(first, index=sums.index).join(sums[names[:5]]).assign(**last)
        return table

    def begin(self) -> None:
        """Other prompts begin."""
        self.search.begin()

    @property
    def searches(self) -> bool:
        """Whether the search still looks at the whole model's passes."""
        return self.pays and not self.search.is_over

    def length(self, n_rows: int) -> int:
        """The most tokens to draft in the next round of so many rows; 0 for plain decoding."""
        if not (self.pays and self.skips):
            return 0
        if len(self._plain[n_rows]) < _PLAIN_FIRST or self._since_plain >= _PLAIN_EVERY:
            return 0
        return self.search.length or self.policy.length

    def add(self, last: Round, seconds: Seconds, *, was_over: bool) -> None:
        """Note a round, and give drafting up where it does not pay.

        Args:
            last: the round.
            seconds: what it took.
            was_over: whether the search had ended before it.
        """
        n_rows = len(last.drafted)
        names = ("drafted", "accepted", "siblings", "emitted")
        means = {name: sum(getattr(last, name)) / n_rows for name in names}
        plain = median(self._plain[n_rows]) if self._plain[n_rows] else math.nan
        is_drafted = means["drafted"] > 0
        self._rounds.append(
            {
                "n_rows": n_rows,
                "set": self._number_of(last.skips) if is_drafted else -1,
                **means,
                "is_over": was_over,
                "draft_seconds": seconds.draft,
                "verify_seconds": seconds.verify,
                "search_seconds": seconds.search,
                "plain_seconds": plain,
            }
        )
        if self.search.is_over and not self.skips and self.search.n_proposals:
            self._give_up(f"none of {self.search.n_proposals} sets of blocks was good enough to leave out")
        if not is_drafted:
            self._plain[n_rows].append(seconds.draft + seconds.verify)
            self._since_plain = 0
            self._n_in_vain += self.searches and self.search.n_proposals > 0
            if self.policy.patience is not None and self._n_in_vain >= self.policy.patience:
                self._give_up(f"in {self._n_in_vain} rounds the search found no blocks worth leaving out")
            return
        self._since_plain += 1
        self._n_in_vain = 0
        self._n_judged += 1
        self._seconds += seconds.draft + seconds.verify
        self._worth += means["emitted"] * plain
        if self.policy.patience is not None:
            lost = self._seconds - self._worth
            if self._n_judged >= self.policy.patience or lost > self.policy.patience * plain:
                self._judge()

    def _number_of(self, skips: SkipSet) -> int:
        """The place of the set among `sets`; a set that comes again later counts as another."""
        if not self._sets or self._sets[-1] is not skips:
            self._sets.append(skips)
        return len(self._sets) - 1

    def _judge(self) -> None:
        speed = self._worth / self._seconds
        if speed < 1:
            self._give_up(f"{self._n_judged} rounds were {speed:.2f} times as fast as plain decoding")
        self._n_judged, self._seconds, self._worth = 0, 0.0, 0.0

    def _give_up(self, why: str) -> None:
        if self.pays:
            self.pays = False
            said = f"drafts do not pay on {self.model.source}: {why}; decoding goes on without them"
            warnings.warn(said, Notice, stacklevel=2)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def drafter_of(draft: "Drafter | SkipPolicy | str | None", model: Model) -> "Drafter | None":
    """The drafter itself, or one for the policy or the name of one; None for None.

    Raises:
        OptionError: it is for another model, or the policy is unknown or does not fit.
        ModelError: the policy cannot work with the model.
    """
    if draft is None:
        return None
    if isinstance(draft, Drafter):
        if draft.model is not model:
            what, advice = "drafts for another model", f"make one for {model.source}"
            raise OptionError.about("draft", draft.model.source, what, advice)
        return draft
    return Drafter(model, named_skip_policy(draft) if isinstance(draft, str) else draft)
