"""Requests to a model that come one by one, and what is answered to each."""

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from layerlens.datasets import Prompt
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.loop import Generation
from layerlens.decode.options import GenerateOptions, settle_chat_template
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.strategies import Strategy, layers_of
from layerlens.models import Model

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
    """Requests to a model, which come one by one.

    Attributes:
        model: from `load`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

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

    @abstractmethod
    def close(self) -> None:
        """End the thread; requests that are not answered yet are cancelled."""

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
