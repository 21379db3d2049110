"""Requests that come one by one are answered together: a row of the batch begins as soon as there is room for it, and
leaves as soon as it ends."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from layerlens.compat import decoding_fast
from layerlens.datasets import Prompt
from layerlens.decode.batch import Decoded
from layerlens.decode.chooser import Chooser, generator_of
from layerlens.decode.forward import Forward
from layerlens.decode.log import Decisions
from layerlens.decode.loop import generations
from layerlens.decode.options import GenerateOptions
from layerlens.decode.padding import padding_fault
from layerlens.decode.prompts import TokenizedPrompt, pad, pad_token_id, refuse_unreadable
from layerlens.decode.requests import Answer, Requests
from layerlens.decode.rows import Row
from layerlens.decode.strategies import Strategy
from layerlens.errors import OptionError
from layerlens.lens.transport import IDENTITY, Transport
from layerlens.models import Model

_MOST_READ = 2048
"""Tokens of prompts, padding included, that are read in one pass while others wait for their next token."""


class Continuous(Requests):
    """A thread that answers requests with a model, as many at once as a batch has rows.

    The answer to a request is that of `generate` to its prompt alone, with its own options, strategy and seed; up to
    rounding, which depends on the rows that pass beside it. Requests of one strategy are decoded in one batch; batches
    of several strategies take turns.

    Args:
        model: from `load`, with its weights in this process.
        batch_size: the most requests that are decoded at once; the others wait.
        transport: that of the lens through which strategies read layers.
    """

    def __init__(self, model: Model, batch_size: int = 16, transport: Transport = IDENTITY) -> None:
        if not model.backend.is_here:
            what = "runs the model elsewhere, and requests cannot be put into its batches"
            raise OptionError.about("backend", model.backend.name, what, "give another backend")
        super().__init__(model)
        self._transport = transport
        self._batch_size = batch_size
        self._lanes: dict[Any, _Lane] = {}
        self._joins = True  # until a lane shows that the family cannot
        self.start()

    def submit(
        self, prompt: Prompt, strategy: Strategy, options: GenerateOptions, n_first: int | None = None
    ) -> "Future[Answer]":
        """As `Requests.submit`."""
        tokenized, settled = self.prepared(prompt, strategy, options)
        row = _Row(self.model, tokenized, strategy, settled, n_first)
        self.take(row)
        return row.future

    def work(self) -> None:
        """Decode until nothing is asked any more."""
        while (self.waiting or self._lanes) and not self.is_closed:
            self.come()
            self._begin()
            for key, lane in list(self._lanes.items()):
                lane.step()
                if lane.is_done:
                    del self._lanes[key]

    def _begin(self) -> None:
        """Let requests begin for which there is room, the first ones first."""
        begun: dict[Any, list[_Row]] = {}
        full = set()
        later = []
        running = sum(lane.n_rows for lane in self._lanes.values())
        room = (self._batch_size if running + len(self.waiting) > 1 and self._shares_batches else 1) - running
        for row in self.waiting:
            if row.future.cancelled():
                continue
            lane = self._lanes.get(row.lane)
            beside = [*begun.get(row.lane, []), row]
            longest = max(len(one.prompt_ids) for one in beside)
            if self._joins and len(beside) > 1 and len(beside) * longest > _MOST_READ:
                full.add(row.lane)  # the first ones first
            if room > 0 and row.lane not in full and (lane is None or lane.can_join):
                begun[row.lane] = beside
                room -= 1
            else:
                later.append(row)
        self.waiting = later
        for key, rows in begun.items():
            if key not in self._lanes:
                self._lanes[key] = _Lane(self.model, rows[0].strategy.for_one_row(), self._transport)
            try:
                self._lanes[key].begin(rows)
                self._joins = self._joins and self._lanes[key].can_join
            except BaseException as error:
                for row in rows:
                    row.end(error)
                raise

    @cached_property
    def _shares_batches(self) -> bool:
        """Whether prompts of different lengths can go through the model together."""
        return padding_fault(self.model) is None

    def begun(self) -> list[Any]:
        """As `Requests.begun`."""
        rows = [row for lane in self._lanes.values() for row in lane.rows if row is not None]
        self._lanes = {}
        return rows


class _Row(Row):
    """A request, and what was emitted for it so far."""

    def __init__(
        self, model: Model, prompt: TokenizedPrompt, strategy: Strategy, options: GenerateOptions, n_first: int | None
    ) -> None:
        super().__init__(model, prompt.token_ids, options, options.seed)
        self.prompt, self.strategy = prompt, strategy
        self.draws = generator_of(options.seed, model.unembed.device)
        self.future: Future[Answer] = Future()
        self._model = model
        self._n_first = n_first
        self._log_probs: list[list[tuple[int, float]]] = []

    @property
    def lane(self) -> Any:
        """Requests with the same one can share a batch."""
        strategy = self.strategy.for_one_row()
        return (strategy, id(self)) if strategy.whole_batch else strategy

    def end(self, result: "Answer | BaseException") -> None:
        """Answer, or end with an error; nothing happens where somebody has cancelled meanwhile."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

    def draw(self, logits: Tensor, decisions: Decisions) -> str | None:
        """Draw the next token; why the text ends with it or before it, or None where it goes on.

        Args:
            logits: of this row: [1, vocab].
            decisions: of this row alone.
        """
        token = self.sampler(logits, self.step)
        if not bool(decisions.is_finite):
            return "non_finite"
        token_id = int(token)
        if self._n_first is not None:
            of_all = logits[0].float().log_softmax(0)
            first = of_all.topk(self._n_first)
            pairs = zip(first.indices.tolist(), first.values.tolist(), strict=True)
            self._log_probs.append([(token_id, float(of_all[token])), *pairs])
        return self.emit(token_id, decisions)

    def answer(self, reason: str) -> "Answer":
        """What is answered, once the text has ended."""
        emitted = Decoded([self.output], [reason], [self.decisions])
        (generation,) = generations(self._model, [self.prompt], self.strategy, emitted)
        return Answer(generation, self.prompt, None if self._n_first is None else self._log_probs)


class _RowChooser(Chooser):
    """Each row has a generator of its own, so that its draws do not depend on the rows beside it."""

    generators: Sequence[torch.Generator] = ()

    def _draw(self, n_rows: int) -> Tensor:
        return torch.cat([torch.rand(1, generator=one, device=one.device) for one in self.generators])


class _Lane:
    """A batch of requests with the same strategy.

    Attributes:
        rows: of the batch; None in place of a row that has ended and that the family cannot drop.
    """

    def __init__(self, model: Model, strategy: Strategy, transport: Transport) -> None:
        self._model = model
        self._chooser = _RowChooser(model, strategy, 0, transport)
        self._chooser.may_branch = model.device.type == "cpu"
        self._pad = pad_token_id(model)
        self._forward: Forward | None = None
        self.rows: list[_Row | None] = []

    @property
    def n_rows(self) -> int:
        """How many requests are being answered."""
        return sum(row is not None for row in self.rows)

    @property
    def is_done(self) -> bool:
        """Whether all requests have ended."""
        return self.n_rows == 0

    @property
    def can_join(self) -> bool:
        """Whether further rows can begin beside those that have begun."""
        return self._forward is None or self._forward.can_join

    def begin(self, rows: Sequence[_Row]) -> None:
        """Read the prompts of these rows, emit their first tokens, and go on with them."""
        ids, mask = pad([row.prompt_ids for row in rows], self._pad, left=True)
        forward = Forward(self._model, ids.to(self._model.device), mask.to(self._model.device), 1, static=False)
        with self._choosing(rows):
            logits = forward.prompts()
        left = self._left(forward, self._emit(rows, logits))
        if not left:
            return
        if self._forward is None:
            self._forward = forward
        else:
            self._forward.join(forward)
        self.rows += left

    def step(self) -> None:
        """One more token of every row."""
        if self._forward is None:
            return
        self._forward.make_room(1)
        tokens = [[self._pad if row is None else row.output[-1]] for row in self.rows]
        with self._choosing(self.rows), decoding_fast(self._model.hf):
            logits = self._forward.step(torch.tensor(tokens, device=self._model.device))[:, 0]
        n_before = len(self.rows)
        self.rows = self._left(self._forward, self._emit(self.rows, logits))
        if 0 < len(self.rows) < n_before:
            self._forward.narrow()

    @contextlib.contextmanager
    def _choosing(self, rows: Sequence[_Row | None]) -> Iterator[None]:
        unused = torch.Generator(self._model.unembed.device)
        self._chooser.generators = [unused if row is None else row.draws for row in rows]
        with self._chooser.choosing():
            yield

    def _left(self, forward: Forward, rows: list[_Row | None]) -> list[_Row | None]:
        """The rows that go on, once the others are dropped from the batch, if the family can do that."""
        kept = [place for place, row in enumerate(rows) if row is not None]
        if not kept:
            return []
        if len(kept) == len(rows) or not forward.keep_rows(torch.tensor(kept, device=self._model.device)):
            return rows
        return [rows[place] for place in kept]

    def _emit(self, rows: Sequence[_Row | None], logits: Tensor) -> list[_Row | None]:
        """Emit a token for each row; the rows that go on, with None in place of those that have ended."""
        decisions = self._chooser.decisions
        assert decisions is not None
        left: list[_Row | None] = []
        for place, row in enumerate(rows):
            here = slice(place, place + 1)
            reason: str | None = None
            goes_on = row is not None and not row.future.cancelled()
            if row is not None and goes_on:
                try:
                    reason = row.draw(logits[here], Decisions(decisions.numbers[here], decisions.values[here]))
                    if reason is None:
                        refuse_unreadable(row.output[-1:], self._model.n_known_tokens)
                except Exception as error:  # of this row, or of what it asked for: the others go on
                    row.end(error)
                    goes_on = False
                if reason is not None:
                    row.end(row.answer(reason))
                    goes_on = False
            left.append(row if goes_on else None)
        return left
