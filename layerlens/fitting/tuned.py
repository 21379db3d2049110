"""The tuned lens: translators h + (W h + b), trained to say what the last layer says. arXiv 2303.08112.

For each layer l = 0..L−1 on its own, training minimises the mean of KL(p_L ‖ p_l). A translator starts from the linear
lens, so that few steps are needed. The translator that is kept is the best one on states of texts that were held out;
the start is among the candidates. Each step reads one text and uses some of its states. The optimiser is Adam. Its
units are the spreads of the components of the states, which differ by a factor of a thousand. Its rate falls to zero
linearly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerlens.axes import States
from layerlens.errors import OptionError, spelled
from layerlens.fitting.linear import Affinities, fit_linear
from layerlens.fitting.options import TunedOptions
from layerlens.fitting.slopes import kl_and_slopes
from layerlens.fitting.states import drawn, held_out_states, states_of
from layerlens.fitting.texts import Split
from layerlens.fitting.workplace import Workplace
from layerlens.lens import kl_from_last, read
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import Affine
from layerlens.models import Model
from layerlens.tracing.progress import Progress

_HELD_OUT_STATES = 512
_STEPS_BETWEEN = 25  # measurements on what is held out
_ROWS_AT_ONCE = 256


def fit_tuned(model: Model, split: Split, options: TunedOptions, place: Workplace, progress: Progress) -> Affinities:
    """The tuned lens of all layers.

    Raises:
        OptionError: `start` is not a linear lens of this model.
        PromptError: the texts are too few for the linear lens at the start.
    """
    held_out = held_out_states(model, split, options.seed, _HELD_OUT_STATES, progress)
    training = _Training(model, held_out, options)
    done = place.load(training.tensors, "training") or {"steps": -1}
    if done["steps"] < 0:
        training.begin(*_start(model, split, options, place, progress))
        training.look()
        done = {"steps": 0}
    progress.begin("training", options.steps, "steps", done["steps"])
    for step in range(done["steps"] + 1, options.steps + 1):
        draws = np.random.default_rng([options.seed, step])
        text = split.fitted[int(draws.integers(len(split.fitted)))]
        states = drawn(states_of(model, text, split.skip), options.states, draws)
        training.step(states, options.learning_rate * (1 - (step - 1) / options.steps))
        progress.advance(1, len(states[0]))
        if step % _STEPS_BETWEEN == 0 or step == options.steps:
            training.look()
        if place.is_due() or step == options.steps:
            place.save({"steps": step}, training.tensors, "training")
    return training.best()


class _Training:
    """Translators of all layers while they are trained, in units of the spread of each component.

    Args:
        model: the model whose head reads their results.
        held_out: states of layers 0..L, by which the best translators are chosen.
        options: of the fit.
    """

    def __init__(self, model: Model, held_out: Sequence[States], options: TunedOptions) -> None:
        self._model, self._held_out = model, held_out
        n, width, device = model.n_layers, model.d_model, model.unembed.device
        self._spreads = [_spread(states) for states in held_out]
        self._weights, self._biases = torch.zeros(n, width, width, device=device), torch.zeros(n, width, device=device)
        self._best_weights, self._best_biases = torch.zeros_like(self._weights), torch.zeros_like(self._biases)
        self._first, self._least = (torch.full((n,), torch.inf, device=device) for _ in range(2))
        self._slopes = [torch.zeros_like(self._weights), torch.zeros_like(self._biases)]
        self._weights.grad, self._biases.grad = self._slopes
        self._optimiser = torch.optim.Adam([self._weights, self._biases])
        for parameter in (self._weights, self._biases):  # made at the beginning, so that it can be saved and restored
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self._optimiser.state[parameter] = {"step": torch.zeros(()), **zeros}

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that changes, for a snapshot."""
        kept = [self._weights, self._biases, self._best_weights, self._best_biases, self._first, self._least]
        return kept + [one for state in self._optimiser.state.values() for one in state.values()]

    def begin(self, weights: dict[int, Tensor], biases: dict[int, Tensor]) -> None:
        """Start from the linear lens A h + b."""
        last = self._spreads[-1]
        for layer, spread in enumerate(self._spreads[:-1]):
            weight = weights[layer].to(last.device) - torch.eye(len(last), device=last.device)
            self._weights[layer] = weight * spread / last.unsqueeze(1)
            self._biases[layer] = biases[layer].to(last.device) / last

    def step(self, states: Sequence[States], rate: float) -> None:
        """One step on states of layers 0..L, [rows, d_model] each."""
        unembed, last_spread = self._model.unembed, self._spreads[-1]
        translated = [self._translated(layer, one).requires_grad_() for layer, one in enumerate(states[:-1])]
        with torch.enable_grad():
            normed = [unembed.normed(one) for one in translated]
        with torch.no_grad():
            last = unembed.normed(states[-1])
        _, slopes = kl_and_slopes(normed, last, read(states[-1], unembed), unembed)
        for layer, (one, of_head, slope) in enumerate(zip(translated, normed, slopes, strict=True)):
            (back,) = torch.autograd.grad(of_head, one, slope.to(of_head.dtype) / len(one))
            back = back.float() * last_spread
            self._slopes[0][layer] = back.T @ (states[layer].float() / self._spreads[layer])
            self._slopes[1][layer] = back.sum(0)
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.step()

    @torch.no_grad()
    def look(self) -> None:
        """Measure on what is held out, and keep the translators that are better than before."""
        sums = torch.zeros_like(self._least)
        for rows in zip(*(layer.split(_ROWS_AT_ONCE) for layer in self._held_out), strict=True):
            every = [*(self._translated(layer, one) for layer, one in enumerate(rows[:-1])), rows[-1]]
            readings = [read(one, self._model.unembed) for one in every]
            sums += kl_from_last(every, readings, self._model.unembed)[:-1].sum(1)
        means = sums / len(self._held_out[-1])
        if self._first.isinf().all():
            self._first.copy_(means)
        better = means < self._least
        self._least[better] = means[better]
        self._best_weights[better] = self._weights[better]
        self._best_biases[better] = self._biases[better]

    def best(self) -> Affinities:
        """The translators that were best on what is held out."""
        last = self._spreads[-1]
        weights, biases = {}, {}
        for layer, spread in enumerate(self._spreads[:-1]):
            weights[layer] = self._best_weights[layer] * last.unsqueeze(1) / spread
            biases[layer] = self._best_biases[layer] * last
        said: dict[str, Any] = {
            "held_out_states": len(self._held_out[-1]),
            "held_out_kl_at_start": self._first.tolist(),
            "held_out_kl": self._least.tolist(),
        }
        return Affinities(weights, biases, said)

    @torch.no_grad()
    def _translated(self, layer: int, states: States) -> Tensor:
        wide = states.float()
        moved = torch.addmm(self._biases[layer], wide / self._spreads[layer], self._weights[layer].T)
        return (wide + moved * self._spreads[-1]).to(states.dtype)


def _spread(states: States) -> Tensor:
    """The spread of each component, never zero: [d_model]."""
    spread = states.float().std(0)
    return spread.clamp(min=1e-3 * float(spread.mean()) + torch.finfo(torch.float32).tiny)


def _start(
    model: Model, split: Split, options: TunedOptions, place: Workplace, progress: Progress
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    if options.start is None:
        linear = fit_linear(model, split, options, place, progress)
        return linear.weights, linear.biases
    try:
        lens = open_lens(options.start, model)
    except OptionError as error:
        problem = error.problem.replace(spelled("lens", options.start), spelled("start", options.start))
        raise OptionError(problem, error.advice, option="start", given=options.start) from error
    assert isinstance(lens, Affine)
    weights = {layer: weight.float() for layer, (weight, _) in lens.tensors().items()}
    return weights, {layer: bias.float() for layer, (_, bias) in lens.tensors().items() if bias is not None}
