"""From logits to the next token, without waiting for the host. The tokens are those of transformers' `generate` with
the same seed."""

from collections.abc import Sequence
from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    InfNanRemoveLogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from layerlens.decode.generation_config import processed
from layerlens.decode.options import GenerateOptions
from layerlens.lens.sums import arg_max


class Sampler:
    """Chooses the next token of each row.

    Attributes:
        generator: the random generator of the draws.
    """

    def __init__(
        self,
        options: GenerateOptions,
        ends: Int[Tensor, " ends"],
        seen: Tensor | None,
        n_rows: int,
        seed: int,
        processors: Sequence[LogitsProcessorList] | None = None,
        prompts: Sequence[Sequence[int]] = (),
        source: str = "the model",
    ) -> None:
        """Begin.

        Args:
            options: of the generation, with the generation config's.
            ends: the tokens that end a text.
            seen: [rows, vocab], which tokens a repetition penalty finds in each prompt; None without a penalty.
            n_rows: of the batch.
            seed: of the draws.
            processors: those of each row, in place of the options; None where the options say everything.
            prompts: the prompt of each row, for the processors.
            source: what the model is called in messages.
        """
        self._options = options
        self._source = source
        self._processors = None if processors is None else list(processors)
        self._texts = [torch.tensor(prompt, device=ends.device) for prompt in prompts] if processors else []
        self._ends = ends
        self._seen = seen
        self._n_rows = n_rows
        self._alive: Tensor | None = None
        self.generator = torch.Generator(ends.device).manual_seed(seed)
        self._warpers = LogitsProcessorList()
        if options.samples and processors is None:
            self._warpers.append(InfNanRemoveLogitsProcessor())
            self._warpers.append(TemperatureLogitsWarper(float(options.temperature)))
            if options.top_k:
                self._warpers.append(TopKLogitsWarper(options.top_k))
            if options.top_p is not None and options.top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(options.top_p)))

    def __call__(self, logits: Float[Tensor, "rows vocab"], step: Int[Tensor, ""]) -> Int[Tensor, " rows"]:
        """The next token of each row; `step` counts from 0."""
        scores = self.scores(logits, step)
        token_ids = self.drawn(self.probabilities(scores)) if self._options.samples else arg_max(scores)
        self.append(token_ids)
        return token_ids

    def scores(self, logits: Float[Tensor, "rows vocab"], step: Int[Tensor, ""]) -> Float[Tensor, "rows vocab"]:
        """The float32 logits after penalties, bans and everything else that depends on the text so far."""
        scores = logits.float()
        if self._processors is not None:
            return processed(self._source, self._processors, self._texts, scores)
        if self._seen is not None:
            penalty = self._options.repetition_penalty or 1.0
            scores = torch.where(self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        if self._options.min_new_tokens and len(self._ends):
            barred = torch.where(step < self._options.min_new_tokens, -torch.inf, 0.0).to(scores.dtype)
            scores = scores.index_add(1, self._ends, barred.expand(len(scores), len(self._ends)))
        return scores

    def probabilities(self, scores: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """What tokens are drawn from: temperature, top-k and top-p applied."""
        return self._warpers(None, scores).softmax(1)  # type: ignore[arg-type]

    def drawn(self, probs: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        """A token of each row, as torch.multinomial draws it, but without a look of the host.

        Args:
            probs: not below 0; they need not add up to 1.
        """
        noise = probs.new_empty(self._n_rows, probs.shape[1]).exponential_(generator=self.generator)
        return arg_max(probs / (noise if self._alive is None else noise[self._alive]))

    def append(self, token_ids: Int[Tensor, " rows"]) -> None:
        """Add a token to each text, on which later scores depend."""
        if self._seen is not None:
            self._seen.scatter_(1, token_ids.unsqueeze(1), True)
        if self._processors is not None:
            self._texts = [torch.cat([text, one]) for text, one in zip(self._texts, token_ids.split(1), strict=True)]

    def fork(self) -> "Sampler":
        """A sampler of the same texts, to which tokens can be added that these do not get; the generator is shared."""
        fork = copy(self)
        fork._seen = None if self._seen is None else self._seen.clone()
        fork._texts = list(self._texts)
        return fork

    def keep_rows(self, kept: Int[Tensor, " rows"], alive: Int[Tensor, " rows"]) -> None:
        """Continue with some rows: `kept` says which of the present rows, `alive` which of the first rows."""
        self._alive = alive
        if self._seen is not None:
            self._seen = self._seen[kept]
        if self._processors is not None:
            rows = kept.tolist()
            self._processors = [self._processors[row] for row in rows]
            self._texts = [self._texts[row] for row in rows]
