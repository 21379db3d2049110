"""Replaces the logits of a model by those that a strategy chooses."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from layerlens.decode.log import Decisions
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Choice, Strategy, layers_of
from layerlens.errors import OptionError
from layerlens.lens.sums import arg_max
from layerlens.lens.transport import IDENTITY, Transport, refuse_lacking
from layerlens.models import Model
from layerlens.models.hooks import replacing_logits

_STREAM = 0x5DEECE66D
_STATES_AT_ONCE = 512  # more rows are read out in parts, so that their float32 logits stay small


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """The generator of a strategy's draws. The sampler may have the same seed, and its draws must be independent."""
    return torch.Generator(device).manual_seed(seed ^ _STREAM)


class Chooser:
    """Answers each forward pass with the logits a strategy chooses; use `choosing` around the model's passes.

    Attributes:
        decisions: the decisions about the last pass.
        may_branch: see `Readouts`.
        generator: the random generator for strategies that act with a probability.
        is_alive: bool [rows], which rows of the next pass still emit tokens; None where all do.
        is_running: whether logits are replaced; otherwise the model's own are left.
        thread: the thread whose passes are changed; those of other threads are left alone.
        n_read: how many of the last positions of each row have their logits chosen; decisions and states have a row for
            each of these positions.
    """

    def __init__(self, model: Model, strategy: Strategy, seed: int = 0, transport: Transport = IDENTITY) -> None:
        self._model = model
        self._strategy = strategy
        self._transport = transport
        self.layers = layers_of(strategy, model.n_layers, model.tied)
        refuse_lacking(transport, self.layers, type(strategy).__name__)
        self.decisions: Decisions | None = None
        self.may_branch = True
        self.generator = generator_of(seed, model.unembed.device)
        self.is_running = True
        self.thread = get_ident()
        self.is_alive: Tensor | None = None
        self.n_read = 1
        self._n_rows = 0
        self._alive: Int[Tensor, " rows"] | None = None

    @property
    def is_passive(self) -> bool:
        """Whether the model's own logits are left as they are."""
        return not self.layers

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """While open, the model's forward passes give the strategy's logits for their last position."""
        model = self._model
        with replacing_logits(
            model.hf, model.head, model.blocks, self.layers, self._answer, self._is_on, lambda: self.n_read
        ):
            yield

    def keep_rows(self, alive: Int[Tensor, " rows"], n_rows: int) -> None:
        """From now on passes hold only these rows of the first batch; the draws of each row do not change."""
        self._alive, self._n_rows = alive, n_rows

    @torch.no_grad()
    def _answer(self, states: dict[int, Tensor], own_logits: Tensor) -> Tensor | None:
        if self.is_passive:
            top = arg_max(own_logits)
            choice = Choice(own_logits, torch.full_like(top, self._model.n_layers), top)
            greatest = own_logits.gather(1, top.unsqueeze(1))[:, 0]  # a NaN counts as the greatest
            self.decisions = Decisions.of(choice, torch.ones_like(top), greatest)
            return None
        readouts = Readouts(
            self._model.unembed,
            states,
            self._model.n_layers,
            lambda: self._draw(len(next(iter(states.values())))),
            transport=self._transport,
            tied=self._model.tied,
            may_branch=self.may_branch,
            alive=None if self.is_alive is None else self._for_each_read(self.is_alive.to(self.generator.device)),
        )
        rows = max(1, _STATES_AT_ONCE // len(self.layers))
        parts = [readouts] if self._strategy.whole_batch or len(readouts) <= rows else readouts.split(rows)
        choices = [self._chosen(part) for part in parts]
        answers = [choice.logits.to(own_logits.dtype) for choice in choices]
        decisions = [
            Decisions.of(choice, part.projections, answer.amax(1))  # a NaN is the arg-max too
            for choice, part, answer in zip(choices, parts, answers, strict=True)
        ]
        if len(parts) == 1:
            self.decisions = decisions[0]
            return answers[0].to(own_logits.device)
        self.decisions = Decisions.joined(decisions)
        return torch.cat(answers).to(own_logits.device)

    def _chosen(self, readouts: Readouts) -> Choice:
        choice = self._strategy.choose(readouts)
        n_rows, model, name = len(readouts), self._model, type(self._strategy).__name__
        if not isinstance(choice, Choice):
            problem = f"{name}.choose returned a {type(choice).__name__}"
            raise OptionError(problem, "return a Choice from it", option="strategy", given=type(choice).__name__)
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "logits": (choice.logits, (n_rows, model.n_vocab)),
            "selected_layer": (choice.selected_layer, (n_rows,)),
            "last_token_id": (choice.last_token_id, (n_rows,)),
        }
        for field, (tensor, shape) in shapes.items():
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            if given != shape:
                problem = f"{name}.choose gave {field} of shape {given}"
                raise OptionError(problem, f"the shape must be {shape}", option="strategy", given=given)
        if self.may_branch and not all(1 <= layer <= model.n_layers for layer in choice.selected_layer.tolist()):
            problem = f"{name}.choose selected a layer that does not exist"
            raise OptionError(problem, f"selected_layer must be in 1..{model.n_layers}", option="strategy")
        return choice

    def _is_on(self) -> bool:
        # while a model is compiled a thread has no number; compiled passes are watched in `ll.decoding` alone
        return self.is_running and (torch.compiler.is_compiling() or get_ident() == self.thread)

    def _draw(self, n_rows: int) -> Tensor:
        everyone = n_rows if self._alive is None else self._n_rows * self.n_read
        draws = torch.rand(everyone, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        if self._alive is None:
            return draws
        return draws.view(-1, self.n_read)[self._alive.to(draws.device)].flatten()

    def _for_each_read(self, of_rows: Tensor) -> Tensor:
        return of_rows if self.n_read == 1 else of_rows.repeat_interleave(self.n_read)
