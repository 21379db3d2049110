"""The linear lens: ridge regression from the state of a layer to that of the last one. arXiv 2303.09435, with a vector.

y ≈ A x + b for the states x of layer l and y of layer L of the same position, where A = Cᵀ (G + λ v I)⁻¹ from the
centred sums G = Σ x xᵀ and C = Σ x yᵀ, v is the mean eigenvalue of G, and b = ȳ − A x̄ is not penalised. The penalty λ
is chosen for each layer, because the spectra of their variances differ by orders of magnitude. It is the one with the
least KL(p_L ‖ p_l) on texts that were held out. The squared error would choose larger penalties, because most of it is
in a few components that the head hardly reads.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerlens.axes import States
from layerlens.errors import Notice, PromptError
from layerlens.fitting.moments import Moments
from layerlens.fitting.options import FitOptions
from layerlens.fitting.states import held_out_states, states_of
from layerlens.fitting.texts import Split, Text
from layerlens.fitting.workplace import Workplace
from layerlens.lens import kl_from_last, read
from layerlens.models import Model
from layerlens.models.unembed import Unembed
from layerlens.tracing.progress import Progress

PENALTIES = tuple(10.0**power for power in range(-6, 1))
"""The penalties of which one is chosen, in units of the mean eigenvalue."""
_HELD_OUT_STATES = 128  # each is read out once for each penalty and layer
_GOOD = 10  # tokens for each component of a state; a notice says where there are fewer
# rows of a product, each of which goes through all sums: more where the sums are on a disk
_ROWS_IN_MEMORY, _ROWS_ON_DISK = 512, 2048


@dataclass(frozen=True)
class Affinities:
    """The fitted maps.

    Attributes:
        weights: A of each layer 0..L−1, float32 [d_model, d_model].
        biases: b of each, [d_model].
        said: what the file says of the fit.
    """

    weights: dict[int, Tensor]
    biases: dict[int, Tensor]
    said: dict[str, Any]


def refuse_few(model: Model, split: Split) -> None:
    """PromptError where the texts to fit on have no more positions than a state has components; Notice below ten times.

    With so few positions the regression would fit every one of them exactly.
    """
    n, least = split.n_positions(split.fitted), model.d_model + 1
    if n < least:
        raise PromptError(
            f"{n:,} tokens in {len(split.fitted)} texts are too few to fit states of width {model.d_model:,}",
            f"give texts with {least:,} or more, besides the fifth that is held out; ten times as many are better",
            option="prompts",
            given=n,
        )
    if n < _GOOD * model.d_model:
        few = f"{n:,} tokens are few to fit states of width {model.d_model:,}"
        warnings.warn(f"{few}; {_GOOD * model.d_model:,} or more make a better lens", Notice, stacklevel=5)


def fit_linear(model: Model, split: Split, options: FitOptions, place: Workplace, progress: Progress) -> Affinities:
    """The linear lens of all layers, from one pass over the texts.

    Raises:
        PromptError: the texts are too few.
    """
    refuse_few(model, split)
    moments = Moments(model.n_layers, model.d_model, place)
    _sum_up(model, split, moments, place, progress)
    means = moments.centre()
    held_out = held_out_states(model, split, options.seed, _HELD_OUT_STATES, progress)
    progress.begin("solving", model.n_layers, "layers")
    weights, biases, penalties = {}, {}, []
    for layer in range(model.n_layers):
        ridge = Ridge(moments.gram[layer], moments.cross[layer], means[layer], means[-1])
        divergences = ridge.divergences(held_out[layer], held_out[-1], model.unembed)
        penalties.append(PENALTIES[int(divergences.argmin())])
        weight, bias = ridge.at(penalties[-1])
        weights[layer], biases[layer] = weight.float(), bias.float()
        progress.advance(1, len(held_out[-1]))
    return Affinities(weights, biases, {"penalties": penalties})


class Ridge:
    """Ridge regressions of one layer with any penalty, from one eigendecomposition.

    Args:
        gram: Σ x xᵀ about the mean, float64 [d_in, d_in]; overwritten with eigenvectors.
        cross: Σ x yᵀ about the means, [d_in, d_out]; overwritten too.
        mean_x: [d_in].
        mean_y: [d_out].
    """

    def __init__(self, gram: Tensor, cross: Tensor, mean_x: Tensor, mean_y: Tensor) -> None:
        values, vectors = torch.linalg.eigh(gram)
        self._values = values.clamp_(min=0.0)
        self._unit = float(values.mean().clamp(min=torch.finfo(torch.float64).tiny))
        self._vectors, self._turned = gram, cross
        self._turned.copy_(vectors.T @ cross)
        self._vectors.copy_(vectors)
        self._mean_x, self._mean_y = mean_x, mean_y

    def at(self, penalty: float) -> tuple[Tensor, Tensor]:
        """A [d_out, d_in] and b [d_out] with that penalty, which is in units of the mean eigenvalue."""
        weight = (self._shrunk(penalty).T @ self._vectors.T).contiguous()
        return weight, self._mean_y - weight @ self._mean_x

    def divergences(self, states: States, last: States, unembed: Unembed) -> Tensor:
        """Mean KL(p_L ‖ p_l) in nats with each of PENALTIES, on states of the layer and of layer L, [rows, d] each."""
        every = []
        for weight, bias in map(self.at, PENALTIES):
            mapped = states.to(weight.device).double() @ weight.T + bias
            every.append(mapped.to(states.device, states.dtype))
        readings = [read(one, unembed) for one in (*every, last)]
        divergences: Tensor = kl_from_last([*every, last], readings, unembed)
        return divergences[:-1].mean(1)

    def _shrunk(self, penalty: float) -> Tensor:
        shrunk: Tensor = self._turned / (self._values + penalty * self._unit).unsqueeze(1)
        return shrunk


def _sum_up(model: Model, split: Split, moments: Moments, place: Workplace, progress: Progress) -> None:
    """Add the states of all texts, continuing where an earlier process was stopped."""
    batches = list(_batches(split, _ROWS_ON_DISK if moments.on_disk else _ROWS_IN_MEMORY))
    done = place.load(moments.tensors, "sums") or {"batches": 0}
    progress.begin("fitting", len(split.fitted), "texts", done=sum(map(len, batches[: done["batches"]])))
    for number, batch in enumerate(batches[done["batches"] :], done["batches"] + 1):
        moments.add([states_of(model, text, split.skip) for text in batch])
        progress.advance(len(batch), split.n_positions(batch))
        if place.is_due() or number == len(batches):
            place.save({"batches": number}, moments.tensors, "sums")


def _batches(split: Split, n_rows: int) -> Iterator[list[Text]]:
    """Texts to fit on, in order, in groups that give a product enough rows."""
    batch: list[Text] = []
    for text in split.fitted:
        if batch and split.n_positions([*batch, text]) > n_rows:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
