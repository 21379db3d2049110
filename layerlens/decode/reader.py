"""Puts a strategy where a model computes its logits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from layerlens.decode.log import Decisions
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Choice, Strategy
from layerlens.models import Model
from layerlens.models.hooks import reading_out

_STATES_AT_ONCE = 512  # more are read out in parts, so that their float32 logits stay small


class Reader:
    """Answers each forward pass with the logits a strategy chooses; use `answering` around the model's passes.

    Attributes:
        decisions: about the last pass.
        may_branch: see `Readouts`.
        generator: of the draws for strategies that act with a probability.
    """

    def __init__(self, model: Model, strategy: Strategy, seed: int = 0) -> None:
        self._model = model
        self._strategy = strategy
        self.layers = tuple(strategy.layers(model.n_layers, model.tied))
        self.decisions: Decisions | None = None
        self.may_branch = True
        self.generator = torch.Generator(model.unembed.weight.device).manual_seed(seed)
        self._n_rows = 0
        self._alive: Int[Tensor, " rows"] | None = None

    @property
    def is_passive(self) -> bool:
        """Whether the model's own logits are left as they are."""
        return self.layers == (self._model.n_layers,)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While open, the model's forward passes give the strategy's logits for their last position."""
        model = self._model
        with reading_out(model.hf, model.head, model.blocks, self.layers, self._answer):
            yield

    def keep_rows(self, alive: Int[Tensor, " rows"], n_rows: int) -> None:
        """From now on passes hold only these of the first batch's rows; draws stay what they were for each."""
        self._alive, self._n_rows = alive, n_rows

    @torch.no_grad()
    def _answer(self, states: dict[int, Tensor], own_logits: Tensor) -> Tensor | None:
        if self.is_passive:
            top = own_logits.argmax(1)
            choice = Choice(own_logits, torch.full_like(top, self._model.n_layers), top)
            self.decisions = Decisions.of(choice, torch.ones_like(top))
            return None
        readouts = Readouts(
            self._model.unembed,
            states,
            self._model.n_layers,
            self._draw(len(next(iter(states.values())))),
            tied=self._model.tied,
            may_branch=self.may_branch,
        )
        rows = max(1, _STATES_AT_ONCE // len(self.layers))
        parts = [readouts] if self._strategy.whole_batch or len(readouts) <= rows else readouts.split(rows)
        choices = [self._strategy.choose(part) for part in parts]
        decisions = [Decisions.of(choice, part.projections) for choice, part in zip(choices, parts, strict=True)]
        self.decisions = Decisions(
            torch.cat([part.numbers for part in decisions]), torch.cat([part.values for part in decisions])
        )
        return torch.cat([choice.logits.to(own_logits.dtype) for choice in choices]).to(own_logits.device)

    def _draw(self, n_rows: int) -> Tensor:
        everyone = n_rows if self._alive is None else self._n_rows
        draws = torch.rand(everyone, generator=self.generator, device=self.generator.device)
        return draws if self._alive is None else draws[self._alive.to(draws.device)]
