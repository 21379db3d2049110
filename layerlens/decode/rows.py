"""One text of a batch whose rows begin, draw and end each for itself."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from layerlens.decode.endings import ending_criteria, has_ended
from layerlens.decode.generation_config import row_processors
from layerlens.decode.log import Decisions
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import end_token_ids
from layerlens.decode.sampling import Sampler
from layerlens.models import Model


class Row:
    """The text of one prompt as it grows.

    Attributes:
        prompt_ids: the prompt's tokens.
        sampler: draws its tokens.
        output: the tokens emitted so far, end token included.
    """

    def __init__(self, model: Model, prompt: Sequence[int], options: GenerateOptions, seed: int) -> None:
        self.prompt_ids = list(prompt)
        self.output: list[int] = []
        self._most = options.max_new_tokens
        self._decisions: list[Decisions] = []
        ends = end_token_ids(model, options)
        end_ids = torch.tensor(ends, dtype=torch.long, device=model.device)
        processors = row_processors(model, [self.prompt_ids], options, ends)
        penalised = processors is None and options.repetition_penalty not in (None, 1.0)
        read = torch.tensor([self.prompt_ids], device=model.device)
        seen = seen_tokens(read, torch.ones_like(read), model.n_vocab) if penalised else None
        self.sampler = Sampler(options, end_ids, seen, 1, seed, processors, [self.prompt_ids], model.source)
        self._ends = set(ends)
        self._endings: StoppingCriteriaList = ending_criteria(ends, options.stops, model.tokenizer)
        # a stop string spans no more tokens than it has bytes
        self._tail = max((len(stop.encode()) for stop in options.stops), default=1)

    @property
    def n_left(self) -> int:
        """How many more tokens can be emitted."""
        return self._most - len(self.output)

    @property
    def step(self) -> Tensor:
        """The number of the next token, from 0."""
        return torch.tensor(len(self.output), device=self.sampler.generator.device)

    def is_end(self, token_id: int) -> bool:
        """Whether the token ends a text."""
        return token_id in self._ends

    def emit(self, token_id: int, decisions: Decisions) -> str | None:
        """Add a token that the sampler has drawn and appended; why the text ends with it, or None where it goes on.

        Args:
            token_id: the token.
            decisions: about this token alone.
        """
        self.output.append(token_id)
        self._decisions.append(Decisions(decisions.numbers.cpu().clone(), decisions.values.cpu().clone()))
        text = [*self.prompt_ids[-self._tail :], *self.output[-self._tail :]][-self._tail :]
        if has_ended(self._endings, text):
            return "stop"
        return "length" if self.n_left == 0 else None

    @property
    def decisions(self) -> Decisions:
        """One for each emitted token."""
        nothing = Decisions(torch.zeros(0, 5, dtype=torch.int32), torch.zeros(0, 0))
        return Decisions.joined(self._decisions) if self._decisions else nothing


def seen_tokens(ids: Tensor, mask: Tensor, n_vocab: int) -> Tensor:
    """Which tokens each row has read: bool [rows, vocab]. Padding and tokens that cannot be emitted do not count."""
    words = ids.masked_fill(mask == 0, n_vocab).clamp(max=n_vocab)
    return torch.zeros(len(ids), n_vocab + 1, dtype=torch.bool, device=ids.device).scatter_(1, words, True)[:, :n_vocab]
