"""CLaSp (arXiv 2505.24196): the blocks to leave out, by a dynamic programme over the states of one verified token."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from layerlens.decode.speculative.branching import refuse_unbranched
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.policy import Round, Search, SkipPolicy, candidates, n_of, number, whole
from layerlens.decode.speculative.programme import Programme
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.models import Model
from layerlens.models.hooks import rewritten, watch_blocks
from layerlens.models.probing import Streams, keeper


@dataclass(frozen=True)
class Clasp(SkipPolicy):
    """Leaves out the blocks without which the last verified token's state stays closest to the whole model's."""

    skip_ratio: float = 0.45
    """The share of the candidates to leave out."""
    search_interval: int = 64
    """Rounds after which the set is computed again."""

    def check(self) -> None:
        """As for every policy, and the search's own options."""
        super().check()
        number("skip_ratio", self.skip_ratio, 0, 1)
        whole("search_interval", self.search_interval, 1)

    def search(self, model: Model) -> "BlockSearch":
        """A search that begins with the first verified token.

        Raises:
            ModelError: the model cannot read several continuations in one pass.
        """
        refuse_unbranched(model)
        return BlockSearch(self, model)


class StateSearch(Search):
    """A search that looks at the streams of the last verified token, at intervals, and never ends."""

    def __init__(self, model: Model, interval: int) -> None:
        super().__init__()
        self.n_back = 1
        self.model = model
        self._interval = interval
        self._n_left = 0  # rounds until a set is due
        self.streams: Streams = []

    @property
    def is_due(self) -> bool:
        """Whether a set is to be computed after this round."""
        return self._n_left <= 0

    def watching(self, n_tokens: int) -> AbstractContextManager[None]:
        """Keeps the streams of the pass after which a set is due."""
        self.streams = []
        self._n_left -= 1
        blocks = self.model.blocks if self.is_due else []
        return watch_blocks(blocks, self.model.sublayers[: len(blocks)], keeper(self.streams))

    def is_done(self) -> None:
        """A set was computed."""
        self.n_proposals += 1
        self._n_left, self.streams = self._interval, []

    @staticmethod
    def last_token(last: Round, stream: Tensor) -> Tensor:
        """Of [rows, tokens, d_model], the state of the last token that each row keeps: [rows, d_model]."""
        return torch.stack([stream[row, read[-1]] for row, read in enumerate(last.read)])


class BlockSearch(StateSearch):
    """The search of `Clasp`."""

    def __init__(self, policy: Clasp, model: Model) -> None:
        super().__init__(model, policy.search_interval)
        self._able = set(candidates(model))
        self._n_skipped = n_of(policy.skip_ratio, len(self._able))

    def after(self, last: Round, lab: Lab) -> None:
        """Compute the set, where it is due."""
        if not self.is_due:
            return
        wanted = [self.last_token(last, h_out) for _, _, h_out in self.streams]
        programme = Programme(self._n_skipped)

        def through(block: int, before: Tensor, applied: Tensor) -> Tensor:
            if block in self._able:
                return programme.choose(block, 1, wanted[block], before, applied)
            return programme.apply(wanted[block], applied)

        with rewritten(self.model.blocks, through):
            lab.variants(self._n_skipped + 1)
        self.is_done()
        found = {"policy": "clasp", "cosine": programme.cosine(self._n_skipped), "proposals": self.n_proposals}
        self.skips = SkipSet.of_blocks(programme.left_out(self._n_skipped), **found)
