"""Requests to a model that come one by one, and what is answered to each."""

import queue
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from layerlens.datasets import Prompt
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.loop import Generation
from layerlens.decode.options import GenerateOptions, settle_chat_template
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.strategies import Strategy, layers_of
from layerlens.errors import ModelError
from layerlens.models import Model
from layerlens.models.use import in_use

if TYPE_CHECKING:
    from typing_extensions import Self


class Answer(NamedTuple):
    """What was answered to a request."""

    generation: Generation
    prompt: TokenizedPrompt
    log_probs: list[list[tuple[int, float]]] | None
    """For each emitted token, its id with its natural log-probability, then those of the most probable tokens: among
    the logits that the strategy chose, before any penalty and at temperature 1."""


class Requests(ABC):
    """A thread that answers requests to a model, which come one by one.

    Attributes:
        model: from `load`.
        waiting: requests that have come and have not begun.
        is_closed: whether requests are no longer taken.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.waiting: list[Any] = []
        self.is_closed = False
        self._coming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="layerlens requests", daemon=True)

    @abstractmethod
    def work(self) -> None:
        """Answer until nothing waits any more; the thread calls it whenever something does."""

    @abstractmethod
    def begun(self) -> list[Any]:
        """Requests that have begun and have no answer; none has begun any more."""

    @abstractmethod
    def submit(
        self, prompt: Prompt, strategy: Strategy, options: GenerateOptions, n_first: int | None = None
    ) -> "Future[Answer]":
        """Answer a prompt. A future that is cancelled gives its place to another request.

        Args:
            prompt: as of a dataset.
            strategy: chooses the logits.
            options: of this request alone; `batch_size` has no effect.
            n_first: how many of the most probable tokens are told beside each emitted one; None: no probabilities.

        Raises:
            OptionError, PromptError: the strategy does not fit the model, or the prompt does not fit its context.
        """

    def start(self) -> None:
        """Start the thread, once all that `work` needs is there."""
        self._thread.start()

    def take(self, request: Any) -> None:
        """Let a request wait; ModelError where the thread has been ended. A request has a `future` and an `end`."""
        if self.is_closed:
            raise ModelError("requests are no longer taken", "begin anew", given=request.prompt.prompt_id)
        self._coming.put(request)

    def come(self) -> None:
        """Let what has come meanwhile wait."""
        while not self._coming.empty():
            if (request := self._coming.get()) is not None:
                self.waiting.append(request)

    def close(self) -> None:
        """End the thread; requests that are not answered yet are cancelled."""
        self.is_closed = True
        self._coming.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Wait for requests; while there are any, the model is in use by this thread alone."""
        while (first := self._coming.get()) is not None:
            self.waiting.append(first)
            try:
                with in_use(self.model, may_decode_elsewhere=True), torch.no_grad():
                    self.work()
            except BaseException as error:  # whatever went wrong, nobody may wait for ever
                self._end_all(error)
            if self.is_closed:
                break
        self._end_all(None)

    def _end_all(self, error: BaseException | None) -> None:
        """End all requests, with the error or as cancelled."""
        self.come()
        requests, self.waiting = [*self.waiting, *self.begun()], []
        for request in requests:
            if error is None:
                request.future.cancel()
            else:
                request.end(error)

    def length_of(self, prompt: Prompt, options: GenerateOptions) -> int:
        """How many tokens a prompt has, with its chat template; PromptError where it has none or cannot be read."""
        (tokenized,) = tokenize(self.model, [prompt], self._settled(options), fits_context=False)
        return len(tokenized.token_ids)

    def prepared(
        self, prompt: Prompt, strategy: Strategy, options: GenerateOptions
    ) -> tuple[TokenizedPrompt, GenerateOptions]:
        """The prompt as token ids, and the options with what the model fills; errors as of `submit`."""
        model = self.model
        layers_of(strategy, model.n_layers, model.tied)
        settled = with_generation_config(self._settled(options), model)
        (tokenized,) = tokenize(model, [prompt], settled)
        return tokenized, settled

    def _settled(self, options: GenerateOptions) -> GenerateOptions:
        return settle_chat_template(options, bool(getattr(self.model.tokenizer, "chat_template", None)))

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
