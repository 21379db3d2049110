"""The walk back from the last layer: all candidates in one product, or one layer at a time."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Logits
from layerlens.decode.criteria import Criterion
from layerlens.decode.readouts import Readouts
from layerlens.formulas import n_steps_back, steps_back

SCANS = ("auto", "batched", "lazy")


class Walk(NamedTuple):
    """Where the walk went."""

    steps: Int[Tensor, " rows"]
    """How many layers before L it ended, 0..window − 1."""
    valley_logits: Logits
    """Logits of the layer where it ended."""
    last_logits: Logits
    """Logits of layer L."""
    values: Float[Tensor, "rows window"]
    """The criterion of the window's layers, L last; NaN where a layer was not read."""


def walk_back(readouts: Readouts, window: int, criterion: Criterion, scan: str = "auto", floor: float = 0.0) -> Walk:
    """Eq. 7 of arXiv 2606.21906: go back layer by layer while the criterion strictly falls; ties and NaN end the walk.

    Args:
        readouts: the readouts of one step.
        window: the number of candidates, L included.
        criterion: of logits; lower is surer.
        scan: "batched", "lazy", or "auto": batched while the product is bound by reading the weight.
        floor: rows whose criterion at L is below this do not walk; with 0 all rows walk.
    """
    if not readouts.may_branch:
        if (scan == "lazy" or floor > 0) and readouts.measures_itself(criterion):
            return _unseen(readouts, window, criterion, floor, in_turn=scan == "lazy")
        return _whole_window(readouts, window, criterion, floor)
    if scan == "lazy" or (scan == "auto" and len(readouts) * window > readouts.rows_at_balance):
        return _layer_by_layer(readouts, window, criterion, floor)
    if floor > 0:
        return _window_above_floor(readouts, window, criterion, floor)
    return _whole_window(readouts, window, criterion, floor)


def _whole_window(readouts: Readouts, window: int, criterion: Criterion, floor: float) -> Walk:
    logits, values = readouts.measured(_candidates(readouts, window), criterion)
    if readouts.may_branch:
        # the host is done before a kernel would have started
        walked = [n_steps_back(row) for row in values.tolist()]
        steps = torch.tensor(walked, device=values.device)
        if len(set(walked)) == 1:  # nothing to copy
            return Walk(steps, logits[:, window - 1 - walked[0]], logits[:, -1], values)
    else:
        steps = steps_back(values)
        if floor > 0:
            steps = steps.where(values[:, -1] >= floor, 0)
    rows = torch.arange(len(logits), device=logits.device)
    return Walk(steps, logits[rows, window - 1 - steps], logits[:, -1], values)


def _window_above_floor(readouts: Readouts, window: int, criterion: Criterion, floor: float) -> Walk:
    walk = _start(readouts, window, criterion)
    walking = (walk.values[:, -1] >= floor).nonzero()[:, 0]
    if len(walking) and window > 1:
        logits, values = readouts.measured(_candidates(readouts, window)[:-1], criterion, walking)
        walk.values[walking, :-1] = values
        walk.steps[walking] = steps_back(walk.values[walking])
        moved = walk.steps[walking] > 0
        away = walking[moved]
        walk.valley_logits[away] = logits[moved, window - 1 - walk.steps[away]]
    return walk


def _layer_by_layer(readouts: Readouts, window: int, criterion: Criterion, floor: float) -> Walk:
    walk = _start(readouts, window, criterion)
    lowest = walk.values[:, -1].clone()
    walking = ((lowest >= floor) if floor > 0 else ~lowest.isnan()).nonzero()[:, 0]
    for layer in reversed(_candidates(readouts, window)[:-1]):
        if len(walking) == 0:
            break
        logits, values = readouts.measured([layer], criterion, walking)
        value = values[:, 0]
        walk.values[walking, layer - readouts.n_layers - 1] = value
        falls = value < lowest[walking]
        walking = walking[falls]
        lowest[walking] = value[falls]
        walk.steps[walking] += 1
        walk.valley_logits[walking] = logits[falls, 0]
    return walk


def _unseen(readouts: Readouts, window: int, criterion: Criterion, floor: float, *, in_turn: bool) -> Walk:
    """The walk where the host may not look: each stage has room for all rows, and rows that have ended cost nothing.

    Layers are read one, two, four at a time, because every stage reads the weight once; otherwise all in one stage.
    """
    walk = _start(readouts, window, criterion)
    lowest = walk.values[:, -1]
    walking = lowest >= floor if floor > 0 else ~lowest.isnan()
    done = 1
    while done < window:
        size = min(done, window - done) if in_turn else window - 1
        layers = _candidates(readouts, window)[-done - size : -done]
        entropies = readouts.entropies(layers, walking)
        walk.values[:, -done - size : -done] = entropies
        steps = steps_back(torch.cat([entropies, lowest.unsqueeze(1)], dim=1))
        walk.steps.add_(steps)
        walking = steps == size
        lowest = entropies[:, 0]
        done += size
    valley_logits = readouts.logits_at(readouts.n_layers - walk.steps)
    moved = (walk.steps > 0).unsqueeze(1)
    return walk._replace(valley_logits=torch.where(moved, valley_logits, walk.last_logits))


def _start(readouts: Readouts, window: int, criterion: Criterion) -> Walk:
    """The walk before its first step."""
    last_logits, value = readouts.measured([readouts.n_layers], criterion)
    values = torch.cat([value.new_full((len(value), window - 1), torch.nan), value], dim=1)
    steps = torch.zeros(len(value), dtype=torch.long, device=value.device)
    return Walk(steps, last_logits[:, 0].clone(), last_logits[:, 0], values)


def _candidates(readouts: Readouts, window: int) -> list[int]:
    return list(range(readouts.n_layers - window + 1, readouts.n_layers + 1))
