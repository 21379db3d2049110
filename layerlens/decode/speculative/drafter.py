"""A policy at work on one model: what its search found, and whether its drafts pay."""

import statistics
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from layerlens.decode.speculative.policy import Round, SkipPolicy
from layerlens.decode.speculative.registry import named_skip_policy
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.errors import ModelError, Notice, OptionError
from layerlens.models import Model

_PLAIN_FIRST = 4  # rounds of plain decoding before the first draft of so many rows, to compare with
_PLAIN_EVERY = 32  # afterwards every so many rounds, because a longer text takes longer
_PLAIN_KEPT = 8


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
        pays: False once drafting was given up because it was slower than plain decoding.

    Raises:
        ModelError, OptionError: the policy cannot work with the model.
    """

    def __init__(self, model: Model, policy: SkipPolicy) -> None:
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
        self.model, self.policy = model, policy
        self.search = policy.search(model)
        self.pays = True
        self._rounds: list[dict[str, float]] = []
        self._plain: Mapping[int, deque[float]] = defaultdict(lambda: deque(maxlen=_PLAIN_KEPT))
        self._since_plain = 0
        self._n_judged, self._seconds, self._worth = 0, 0.0, 0.0

    @property
    def skips(self) -> SkipSet:
        """What drafts leave out now."""
        return self.search.skips

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per round.

        n_rows               texts that were being decoded
        drafted, accepted    tokens for each text, on average; accepted counts siblings
        emitted              tokens for each text, on average
        n_skipped            attention modules and MLPs that the draft left out
        n_proposals          sets that the search had tried before
        is_over              whether the search had ended before
        draft_seconds, verify_seconds, search_seconds
        """
        names = ("n_rows", "drafted", "accepted", "emitted", "n_skipped", "n_proposals", "is_over")
        columns = [*names, "draft_seconds", "verify_seconds", "search_seconds"]
        table: pd.DataFrame = pd.DataFrame(self._rounds, columns=columns)
        return table

    def begin(self) -> None:
        """Other prompts begin."""
        self.search.begin()

    def length(self, n_rows: int) -> int:
        """The most tokens to draft in the next round of so many rows; 0 for plain decoding."""
        if not (self.pays and self.skips):
            return 0
        if len(self._plain[n_rows]) < _PLAIN_FIRST or self._since_plain >= _PLAIN_EVERY:
            return 0
        return self.search.length or self.policy.length

    def add(self, last: Round, seconds: Seconds, n_before: int, *, was_over: bool) -> None:
        """Note a round, and give drafting up where it does not pay.

        Args:
            last: the round.
            seconds: what it took.
            n_before: proposals before it.
            was_over: whether the search had ended before it.
        """
        n_rows = len(last.drafted)
        counts = {"drafted": last.drafted, "accepted": last.accepted, "emitted": last.emitted}
        mean = {name: sum(of_rows) / n_rows for name, of_rows in counts.items()}
        self._rounds.append(
            {
                "n_rows": n_rows,
                **mean,
                "n_skipped": len(last.skips) if mean["drafted"] else 0,
                "n_proposals": n_before,
                "is_over": was_over,
                "draft_seconds": seconds.draft,
                "verify_seconds": seconds.verify,
                "search_seconds": seconds.search,
            }
        )
        if not mean["drafted"]:
            self._plain[n_rows].append(seconds.verify)
            self._since_plain = 0
            return
        self._since_plain += 1
        self._n_judged += 1
        self._seconds += seconds.draft + seconds.verify
        self._worth += mean["emitted"] * statistics.median(self._plain[n_rows])
        if self.policy.patience is not None and self._n_judged >= self.policy.patience:
            self._judge()

    def _judge(self) -> None:
        speed = self._worth / self._seconds
        if speed < 1:
            self.pays = False
            warnings.warn(
                f"drafts do not pay on {self.model.source}: {self._n_judged} rounds were {speed:.2f} times as fast as "
                "plain decoding, which goes on from here",
                Notice,
                stacklevel=2,
            )
        self._n_judged, self._seconds, self._worth = 0, 0.0, 0.0


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
