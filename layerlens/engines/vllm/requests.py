"""Requests that come one by one are answered by vLLM's engine, which batches them by itself."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from layerlens.datasets import Prompt
from layerlens.decode.batch import Decoded
from layerlens.decode.loop import generations
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import TokenizedPrompt
from layerlens.decode.requests import Answer, Requests
from layerlens.decode.strategies import Strategy
from layerlens.engines.vllm import offline
from layerlens.engines.vllm.offline import Offline, refuse_too_long
from layerlens.errors import OptionError, spelled
from layerlens.models import Model

Ready = Callable[[Sequence[Strategy]], Offline]
"""The engine that answers requests with these strategies, started or started anew where it must be."""


@dataclass(eq=False)
class _Request:
    """One request."""

    prompt: TokenizedPrompt
    strategy: Strategy
    options: GenerateOptions
    future: "Future[Answer]" = field(default_factory=Future)

    def end(self, result: "Answer | BaseException") -> None:
        """Answer, or end with an error; nothing happens where somebody has cancelled meanwhile."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)


class Engine(Requests):
    """A thread that gives requests to an engine as they come. The answer to a request is that of `generate` to its
    prompt alone, with its own options, strategy and seed.

    Args:
        model: of the backend vllm.
        ready: gives the engine.
        strategies: those that are known to come; another one starts the engine anew once it has nothing to do.
    """

    def __init__(self, model: Model, ready: Ready, strategies: Sequence[Strategy] = ()) -> None:
        super().__init__(model)
        self._ready = ready
        self._strategies = list(strategies)
        self._open: dict[str, _Request] = {}
        self.start()

    def submit(
        self, prompt: Prompt, strategy: Strategy, options: GenerateOptions, n_first: int | None = None
    ) -> "Future[Answer]":
        """As `Requests.submit`; probabilities are not told."""
        if n_first is not None:
            problem = f"probabilities of tokens are not told with {spelled('backend', 'vllm')}"
            raise OptionError(problem, "ask for none, or give another backend", option="backend", given="vllm")
        offline.named(strategy)
        offline.refuse_stops(options)
        tokenized, settled = self.prepared(prompt, strategy, options)
        request = _Request(tokenized, strategy, settled)
        self.take(request)
        return request.future

    def work(self) -> None:
        """Answer until nothing is asked any more."""
        engine: Offline | None = None
        while (self.waiting or self._open) and not self.is_closed:
            self.come()
            if not self._open:
                engine = self._started()
            if engine is None:
                continue
            self._begin(engine)
            gone = [id for id, request in self._open.items() if request.future.cancelled()]
            engine.forget(gone)
            for id in gone:
                del self._open[id]
            if self._open:
                for id, answer in engine.step().items():
                    request = self._open.pop(id)
                    request.end(self._answer(request, answer))

    def _started(self) -> Offline | None:
        """The engine for what waits; None where nothing does any more."""
        self.waiting = [request for request in self.waiting if not request.future.cancelled()]
        if not self.waiting:
            return None
        self._strategies = list(dict.fromkeys([*self._strategies, *(one.strategy for one in self.waiting)]))
        return self._ready(self._strategies)

    def _begin(self, engine: Offline) -> None:
        """Give requests to the engine, the first ones first, as far as it has room and was started for them."""
        later = []
        for request in self.waiting:
            if request.future.cancelled():
                continue
            if len(self._open) >= engine.room or not engine.fits([request.strategy], None, engine.lens):
                later.append(request)
                continue
            try:
                ids = list(request.prompt.token_ids)
                refuse_too_long([[ids]], request.options, engine.longest)
                begun = engine.add(ids, request.strategy, f"{request.options.seed}/0", request.options)
            except Exception as error:
                request.end(error)
            else:
                self._open[begun] = request
        self.waiting = later

    def _answer(self, request: _Request, answer: offline.Answer) -> Answer:
        emitted = Decoded([answer.token_ids], [answer.finish_reason], [answer.decisions])
        (generation,) = generations(self.model, [request.prompt], request.strategy, emitted)
        return Answer(generation, request.prompt, None)

    def begun(self) -> list[Any]:
        """As `Requests.begun`."""
        requests = list(self._open.values())
        self._open = {}
        return requests
