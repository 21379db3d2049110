"""What the theory says without simulation: how far walks go, what they gain, and above which late rise they pay."""

from math import sqrt
from statistics import NormalDist

import numpy as np

from layerlens.analysis.theory.curve import Parameters
from layerlens.analysis.theory.rules import WINDOW, algorithm_layers, candidates
from layerlens.analysis.uncertainty import Floats
from layerlens.errors import OptionError


def first_step(parameters: Parameters) -> float:
    """The probability that Algorithm 1 leaves the last layer, P(H(L-1) < H(L)), in 0..1; the window at least 2.

    With d = S(L) - S(L-1), the noise's sd a at L and b at L-1, and their correlation c, it is
    Phi(d / sqrt(a^2 + b^2 - 2 a b c)), which is Phi(d / (sigma sqrt 2)) for independent noise of one sd. Without noise
    it is 1 where d > 0, else 0.
    """
    step = float(np.diff(parameters.noiseless)[-1])
    before, last = parameters.sd[-2:]
    sd = sqrt(before**2 + last**2 - 2 * before * last * parameters.correlation)
    return NormalDist().cdf(step / sd) if sd else float(step > 0)


def walk_depths(parameters: Parameters, window: int = WINDOW) -> Floats:
    """The probability that Algorithm 1 stops 0, 1, ..., K-1 layers before L, [K], without simulation; sums to 1.

    P(depth >= k) = P(H(L-k) < ... < H(L)) is a chain of integrals, each over the normal density of one layer. They are
    computed by the trapezoid rule, within 1e-4.

    Raises:
        OptionError: the noise of neighbouring layers is correlated, or the window is not in 1..L.
    """
    if parameters.correlation:
        raise OptionError(
            f"a correlation of {parameters.correlation:g} cannot be integrated layer by layer",
            "simulate it",
            option="correlation",
            given=parameters.correlation,
        )
    curve, sd = parameters.noiseless, parameters.sd
    n_candidates = candidates(curve, window)
    if not parameters.noise:
        depth = parameters.n_layers - int(algorithm_layers(curve, window))
        return np.asarray(np.arange(n_candidates) == depth, dtype=np.float64)
    nodes, step = np.linspace(-8, 8, 1201, retstep=True)
    density = np.exp(-(nodes**2) / 2) / sqrt(2 * np.pi)
    chains = np.empty((0, len(nodes)))  # each P(H(start) < ... < H(layer - 1) < x), at the nodes x of a layer
    for layer in range(parameters.n_layers - n_candidates, parameters.n_layers):
        chains = np.vstack([chains, np.ones_like(nodes)])  # and one that starts here
        weighted = density * chains
        if layer == parameters.n_layers - 1:
            break
        reached = np.cumsum(weighted[:, 1:] + weighted[:, :-1], axis=1) * step / 2
        reached = np.hstack([np.zeros((len(chains), 1)), reached])
        at = (curve[layer + 1] + sd[layer + 1] * nodes - curve[layer]) / sd[layer]  # the next layer's nodes among these
        place = np.clip((at - nodes[0]) / step, 0, len(nodes) - 1)
        before = np.minimum(place.astype(int), len(nodes) - 2)
        chains = reached[:, before] + (place - before) * (reached[:, before + 1] - reached[:, before])
    at_least = np.append(weighted.sum(axis=1)[::-1] * step, 0.0)
    at_least[0] = 1.0
    return np.asarray(at_least[:-1] - at_least[1:])


def expected_gain(parameters: Parameters, window: int = WINDOW) -> float:
    """S(L) less the expected S at the layer of Algorithm 1, in nats: above 0 where walking back beats staying at L.

    Raises:
        OptionError: as in `walk_depths`.
    """
    depths = walk_depths(parameters, window)
    curve = parameters.noiseless[::-1][: len(depths)]
    return float(curve[0] - depths @ curve)


def critical_rise(descent: float, window: int = WINDOW) -> float:
    """The late rise, in units of the noise, above which walking back beats staying at L on average.

    The curve is that of `dominance_table`; within 1e-4 of the descent. As the noise grows the layers become
    exchangeable, P(depth >= k) tends to 1 / (k + 1)!, and the critical rise to 2 (1/3! + 1/4! + ... + 1/K!) times the
    descent, 2e - 5 = 0.437 times for a wide window: walking back no longer pays where the rise is less than that share
    of the descent.

    Args:
        descent: how much S falls per layer before V*, in units of the noise, at least 0.
        window: K, at least 2.

    Raises:
        OptionError: a value is out of range.
    """
    low, high = 0.0, descending(descent, 0.0, window).plateau / (window - 1)
    while high - low > 1e-4 * descent:
        middle = (low + high) / 2
        low, high = (low, middle) if expected_gain(descending(descent, middle, window), window) > 0 else (middle, high)
    return high


def descending(descent: float, rise: float, window: int) -> Parameters:
    """A curve that falls by the descent from layer to layer up to V* = L-1, then rises; noise of sd 1."""
    if window < 2 or descent < 0:
        raise OptionError(
            f"window {window} or descent {descent:g} is out of range",
            "choose at least 2 and at least 0",
            option="window",
            given=window,
        )
    plateau = descent * (window - 1)
    return Parameters(window + 1, onset=1, valley=window, plateau=plateau, lowest=0.0, rise=rise, noise=1.0)
