"""KnapSpec (arXiv 2602.20217): attention modules and MLPs to leave out, by a knapsack over their measured latencies,
and a draft length chosen with them."""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
from torch import Tensor

from layerlens.decode.speculative.branching import refuse_unbranched
from layerlens.decode.speculative.clasp import StateSearch
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.policy import Round, SkipPolicy, candidates, number, whole
from layerlens.decode.speculative.programme import Programme
from layerlens.decode.speculative.skipping import parts_of, split, splits
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.errors import ModelError
from layerlens.models import Model
from layerlens.models.hooks import rewritten, timed_modules

_UNITS = 48  # weights of all candidates together, about: the programme's pass reads as many states
_BUDGETS = 4
_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
_KEPT = 8  # times of which a median is taken
_SLOPE = 0.1  # of the time of a pass for one more token, until passes of several tokens were measured


@dataclass(frozen=True)
class KnapSpec(SkipPolicy):
    """Leaves out the attention modules and MLPs that cost most for what the last verified token's state loses."""

    threshold: float = 0.0
    """A draft stops after a token whose probability is below this; the length is chosen, so that 0 is the default."""
    skip_ratio: float = 0.6
    """The most that is left out, as a share of the candidates' latency. A quarter, a half and three quarters of it are
    tried too."""
    context_window: int = 16
    """On how many of the last verified tokens the sets are compared."""
    search_interval: int = 64
    """Rounds after which set and length are chosen again."""

    def check(self) -> None:
        """As for every policy, and the search's own options."""
        super().check()
        number("skip_ratio", self.skip_ratio, 0, 1)
        for name in ("context_window", "search_interval"):
            whole(name, getattr(self, name), 1)

    def search(self, model: Model) -> "LatencySearch":
        """A search that begins once enough tokens were verified.

        Raises:
            ModelError: attention and MLP of a block cannot be left out one without the other, or the model cannot read
                several continuations in one pass.
        """
        if parts_of(model) is None:
            raise ModelError(
                f"the blocks of {model.source} ({model.family}) can be left out as a whole only",
                "give another policy",
                given=model.source,
            )
        refuse_unbranched(model)
        return LatencySearch(self, model)


def expected_tokens(agreement: float, length: int) -> float:
    """Tokens that a round emits where each drafted token holds with this probability: (1 − a^(d + 1)) / (1 − a)."""
    return float(sum(agreement**power for power in range(length + 1)))


def integer_weights(attention_seconds: float, mlp_seconds: float, n_blocks: int) -> dict[str, int]:
    """Weights in the ratio of the latencies of an attention module and an MLP, at least 1; about 48 for all blocks."""
    unit = n_blocks * (attention_seconds + mlp_seconds) / _UNITS
    return {name: max(1, round(s / unit)) for name, s in (("attention", attention_seconds), ("mlp", mlp_seconds))}


class LatencySearch(StateSearch):
    """The search of `KnapSpec`.

    Attributes:
        expected: the speed-up over plain decoding that is expected of the set and the length; 1 where nothing is left
            out because no pair promises more.
    """

    def __init__(self, policy: KnapSpec, model: Model) -> None:
        super().__init__(model, policy.search_interval)
        self.n_back = policy.context_window
        self.expected = 1.0
        self._policy = policy
        self._able = candidates(model)
        parts = parts_of(model)
        assert parts is not None, "refused by the policy"
        self._modules = {
            name: [module for block in self._able for module in of_all[block]]
            for name, of_all in zip(("attention", "mlp"), parts, strict=True)
        }
        self._splits = splits(model)
        self._seconds: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=_KEPT))
        self._passes: dict[int, deque[float]] = defaultdict(partial(deque, maxlen=_KEPT))

    @contextmanager
    def watching(self, n_tokens: int) -> Iterator[None]:
        """Keeps streams where a set is due, what passes take, and of passes over one token what their parts take."""
        spent = dict.fromkeys(self._modules, 0.0) if n_tokens == 1 else {}

        def add(name: str, seconds: float) -> None:
            spent[name] += seconds

        began = perf_counter()
        with ExitStack() as stack:
            for name in spent:
                watched = timed_modules(self._modules[name], self.model.device, partial(add, name))
                stack.enter_context(watched)
            stack.enter_context(super().watching(n_tokens))
            yield
        self._passes[n_tokens].append(perf_counter() - began)
        for name, seconds in spent.items():
            self._seconds[name].append(seconds / len(self._able))

    def after(self, last: Round, lab: Lab) -> None:
        """Choose set and length, where they are due."""
        window = self._policy.context_window
        if not self.is_due or lab.n_known < window or not self._seconds:
            return
        seconds = {name: median(times) for name, times in self._seconds.items()}
        weights = integer_weights(seconds["attention"], seconds["mlp"], len(self._able))
        most = int(self._policy.skip_ratio * sum(weights.values()) * len(self._able))
        programme = self._programme(last, lab, weights, most)
        self.is_done()
        best = (1.0, SkipSet(), 0)
        for weight in {programme.nearest(most * part // _BUDGETS) for part in range(1, _BUDGETS + 1)} - {0}:
            left_out = [(block, name) for block, names in programme.left_out(weight) for name in names]
            skips = SkipSet(
                frozenset(block for block, name in left_out if name == "attention"),
                frozenset(block for block, name in left_out if name == "mlp"),
                {"policy": "knapspec", "cosine": programme.cosine(weight), "weights": weights},
            )
            agreement = lab.agreement(skips, window)
            draft = self._pass(1) - sum(seconds[name] for _, name in left_out)
            for length in (length for length in _LENGTHS if length <= self._policy.length):
                speed = expected_tokens(agreement, length) * self._pass(1) / (length * draft + self._pass(length + 1))
                best = max(best, (speed, skips, length), key=lambda one: one[0])
        self.expected, self.skips, self.length = best[0], best[1], best[2] or None

    def _programme(self, last: Round, lab: Lab, weights: dict[str, int], most: int) -> Programme:
        """The states of the last verified token, with every weight up to the most left out.

        Blocks that do not split, such as parallel ones, are left out as a whole.
        """
        programme = Programme(most)
        ends = [self.last_token(last, h_out) for _, _, h_out in self.streams]
        middles = [None if part is None else self.last_token(last, part) for _, part, _ in self.streams]

        def through_half(block: int, name: str, before: Tensor, applied: Tensor) -> Tensor:
            wanted = ends[block] if name == "mlp" else middles[block]
            assert wanted is not None, "refused by the policy"
            return programme.choose((block, (name,)), weights[name], wanted, before, applied)

        def through_block(block: int, before: Tensor, applied: Tensor) -> Tensor:
            if block not in self._able:
                return programme.apply(ends[block], applied)
            return programme.choose((block, tuple(weights)), sum(weights.values()), ends[block], before, applied)

        with ExitStack() as stack:
            if self._splits:
                stack.enter_context(split(self.model, self._able, through_half))
            else:
                stack.enter_context(rewritten(self.model.blocks, through_block))
            lab.variants(most + 1)
        return programme

    def _pass(self, n_tokens: int) -> float:
        """Seconds of a pass over so many tokens, by a line through what was measured."""
        one = median(self._passes[1])
        widths = [width for width in self._passes if width > 1]
        slopes = [(median(self._passes[width]) - one) / (width - 1) for width in widths]
        slope = float(np.median(slopes)) if slopes else _SLOPE * one
        return one + max(0.0, slope) * (n_tokens - 1)
