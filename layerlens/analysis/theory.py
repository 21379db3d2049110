"""What the theory of valley decoding claims (section 3.3 of arXiv 2606.21906), checked on simulated entropies.

The observed entropy of layer l = 1..L, in nats, is a noiseless curve S(l) and projection noise e(l):

    H(l)  = S(l) + e(l),  S(l) = H*(l) + r(l)
    H*(l) = plateau                                                        for l <= V_onset
            plateau - (plateau - lowest) (l - V_onset) / (V* - V_onset)    for V_onset < l <= V*
            lowest                                                         for l > V*
    r(l)  = rise (l - V*) / (L - V*) for l > V*, else 0                    the late perturbation
    e(l)  normal with mean 0 and sd noise early_factor^((L - l) / (L - 1)); layers k apart correlate by correlation^k

That the entropy is such a sum is the paper's idea. Ours are the straight descent and rise, H* flat after V*, one curve
for all tokens, normal noise, and no floor at 0 nats: rules see only which entropy is lower, and sums below 0 keep that.

Four rules choose a layer in a window of K candidates, the layers [L-K+1, L]; w is the first of them:

    last       L
    algorithm  max{l <= L : l = w or H(l-1) >= H(l)}: Algorithm 1, which walks back while the entropy strictly falls
    theorem    max{l < L : l = w or H(l-1) >= H(l)}: Theorem 1's V-hat, which never compares L-1 with L
    argmin     the layer with the least H, the latest of equals

Theorem 1 names no window; "l = w" is ours, so that there is always a layer, and without a window w = 1.
The loss of a choice is S(chosen) - min S over the window: the late perturbation counts as real. Were it an artefact of
the readout alone, the loss would be H*(chosen) - min H*, under which the last layer is never wrong; tables hold both.

Draws are independent, so means have normal 95 % intervals over draws and shares have Wilson's, which keep a width at
0 and 1. The same seed gives the same standard normal draws for any curve and noise: points of a sweep share theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Sample, groups, sample
from layerlens.analysis.uncertainty import CONFIDENCE, Floats, interval, mean_interval, resampled_means
from layerlens.analysis.valleys import onset_layers, valley_layers
from layerlens.errors import OptionError, RunError
from layerlens.records.reader import Records

Ints = np.ndarray[Any, np.dtype[np.int64]]

DRAWS = 20_000
SEED = 0
WINDOW = 10
MIN_LAYERS = 4
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Parameters:
    """The noiseless curve S and the noise on it; the formulas are at the top of this module.

    Raises:
        OptionError: a value is out of range or contradicts another.
    """

    n_layers: int
    """L, at least 2."""
    onset: int
    """V_onset, from 1 and before V*."""
    valley: int
    """V*, up to L."""
    plateau: float
    """H* up to V_onset, in nats."""
    lowest: float
    """H* from V* on, in nats; at most the plateau."""
    rise: float
    """The late perturbation at L, in nats, at least 0; it must be 0 where V* is L."""
    noise: float = 0.0
    """Standard deviation of the noise at layer L, in nats, at least 0."""
    early_factor: float = 1.0
    """The noise at layer 1 over the noise at layer L, above 0."""
    correlation: float = 0.0
    """Of the noise of neighbouring layers, above -1 and below 1."""

    def __post_init__(self) -> None:
        if not 1 <= self.onset < self.valley <= self.n_layers:
            order = f"V_onset {self.onset}, V* {self.valley} and {self.n_layers} layers"
            raise OptionError(f"{order} do not fit together; choose 1 <= V_onset < V* <= the number of layers")
        if not np.isfinite(astuple(self)).all():
            raise OptionError(f"{self} holds a number that is not finite; give finite ones")
        if self.plateau < self.lowest:
            raise OptionError(
                f"a plateau of {self.plateau:g} nats is below the valley's {self.lowest:g}; exchange them"
            )
        if self.rise < 0 or (self.rise > 0 and self.valley == self.n_layers):
            at = f"a rise of {self.rise:g} nats after V* {self.valley} of {self.n_layers} layers"
            raise OptionError(f"{at} is not one; give a rise of at least 0, and 0 where V* is the last layer")
        if self.noise < 0 or self.early_factor <= 0 or not -1 < self.correlation < 1:
            given = f"noise {self.noise:g}, early_factor {self.early_factor:g}, correlation {self.correlation:g}"
            raise OptionError(f"{given} cannot be; choose at least 0, above 0, and between -1 and 1")

    @property
    def bare(self) -> Floats:
        """H*(1..L) in nats, [L]."""
        layer = np.arange(1, self.n_layers + 1)
        return np.interp(layer, [self.onset, self.valley], [self.plateau, self.lowest])

    @property
    def noiseless(self) -> Floats:
        """S(1..L) in nats, [L]: H* and the late perturbation."""
        layer = np.arange(1, self.n_layers + 1)
        late = np.maximum(0, layer - self.valley) / max(1, self.n_layers - self.valley)
        return self.bare + self.rise * late

    @property
    def sd(self) -> Floats:
        """Standard deviation of the noise of layers 1..L in nats, [L]."""
        layer = np.arange(1, self.n_layers + 1)
        return self.noise * self.early_factor ** ((self.n_layers - layer) / (self.n_layers - 1))


# The perturbed tokens of Qwen3.5-35B-A3B in Figure 4: V_onset, V*, the entropy at V*, the drop of 10.8 nats, the rise.
PAPER = Parameters(n_layers=40, onset=28, valley=39, plateau=11.32, lowest=0.52, rise=0.37)


def simulate(parameters: Parameters, *, n_draws: int = DRAWS, seed: int = SEED) -> Floats:
    """Observed entropies H in nats, [n_draws, L], one token a row; they may lie below 0 where the noise is large.

    Raises:
        OptionError: fewer than two draws.
    """
    if n_draws < 2:
        raise OptionError(f"{n_draws} draws have no interval; ask for at least 2")
    normal = np.random.default_rng(seed).standard_normal((n_draws, parameters.n_layers))
    if parameters.correlation:
        fresh = sqrt(1 - parameters.correlation**2)
        for layer in range(1, parameters.n_layers):
            normal[:, layer] = parameters.correlation * normal[:, layer - 1] + fresh * normal[:, layer]
    observed: Floats = parameters.noiseless + parameters.sd * normal
    return observed


def algorithm_layers(entropy: Floats, window: int | None = None) -> Ints:
    """The layer that Algorithm 1 walks back to, 1..L, [...] from entropies [..., L]; ties and NaN end the walk.

    Raises:
        OptionError: the window is not in 1..L; None means L.
    """
    back = _falls_back(entropy, window)
    layers: Ints = entropy.shape[-1] - _leading(back)
    return layers


def theorem_layers(entropy: Floats, window: int | None = None) -> Ints:
    """Theorem 1's V-hat, 1..L-1, [...] from entropies [..., L]: the walk of Algorithm 1 begun at L-1.

    Raises:
        OptionError: the window is not in 2..L; None means L. A window of one holds no layer before L.
    """
    back = _falls_back(entropy, window)
    if not back.shape[-1]:
        raise OptionError("Theorem 1 chooses a layer before the last, and a window of 1 holds none; choose 2 or more")
    layers: Ints = entropy.shape[-1] - 1 - _leading(back[..., 1:])
    return layers


def argmin_layers(entropy: Floats, window: int | None = None) -> Ints:
    """The layer of the least entropy in the window, the latest of equals, 1..L, [...] from [..., L].

    Raises:
        OptionError: the window is not in 1..L; None means L.
    """
    first = entropy.shape[-1] - _candidates(entropy, window)
    latest_first = entropy[..., first:][..., ::-1]
    return np.asarray(entropy.shape[-1] - np.argmin(latest_first, axis=-1), dtype=np.int64)


def last_layers(entropy: Floats, window: int | None = None) -> Ints:
    """L for every token, [...] from entropies [..., L]; OptionError where the window is not in 1..L."""
    _candidates(entropy, window)
    return np.full(entropy.shape[:-1], entropy.shape[-1], dtype=np.int64)


RULES: dict[str, Callable[[Floats, int | None], Ints]] = {
    "last": last_layers,
    "algorithm": algorithm_layers,
    "theorem": theorem_layers,
    "argmin": argmin_layers,
}


def theorem_table(
    parameters: Parameters,
    noises: Sequence[float] | None = None,
    *,
    windows: Sequence[int | None] = (WINDOW, None),
    n_draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """One row per noise, window and rule: where the rule's layers lie and what they lose.

    Args:
        parameters: the curve and its noise.
        noises: sd of the noise at L in nats, one after the other in place of the parameters' own.
        windows: numbers of candidates; None for all layers.
        n_draws: of the simulation; every rule sees the same draws.
        seed: of the draws.

    Columns: noise; window; rule; inside, the share of draws whose layer is in [V_onset, V*]; early and late, the shares
    before and after; depth, the mean of L - layer; loss, the mean of S(chosen) - min S over the window, in nats;
    loss_bare, the same of H*; each with `_low` and `_high` (95 % over draws); n_draws.

    Raises:
        OptionError: a window is not in 2..L, a noise is negative, or there are fewer than two draws.
    """
    rows = []
    for each in _at_noises(parameters, noises):
        entropy = simulate(each, n_draws=n_draws, seed=seed)
        for window in windows:
            for rule, choose in RULES.items():
                row: dict[str, Any] = {"noise": each.noise, "window": window or each.n_layers, "rule": rule}
                for name, values in _measures(each, choose(entropy, window), window).items():
                    row |= over_draws(name, values)
                rows.append(row | {"n_draws": n_draws})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def forms_table(
    parameters: Parameters,
    noises: Sequence[float] | None = None,
    *,
    windows: Sequence[int | None] = (WINDOW, None),
    n_draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """One row per noise and window: how often and how far Theorem 1's V-hat and Algorithm 1 differ on the same draws.

    They differ exactly where H(L-1) >= H(L): Algorithm 1 then stays at L and V-hat does not.

    Columns: noise; window; differ, the share of draws; differ_expected, 1 - `first_step`; contradicted, the number of
    draws that differ without H(L-1) >= H(L) or the other way round; layers_apart, the mean distance of the two where
    they differ (NaN where they nowhere do); differ and layers_apart have `_low` and `_high` (95 %); n_differ; n_draws.

    Raises:
        OptionError: as in `theorem_table`.
    """
    rows = []
    for each in _at_noises(parameters, noises):
        entropy = simulate(each, n_draws=n_draws, seed=seed)
        stays = entropy[:, -2] >= entropy[:, -1]
        for window in windows:
            apart = algorithm_layers(entropy, window) - theorem_layers(entropy, window)
            differ = apart != 0
            row: dict[str, Any] = {"noise": each.noise, "window": window or each.n_layers} | over_draws(
                "differ", differ
            )
            row |= {"differ_expected": 1 - first_step(each), "contradicted": int((differ != stays).sum())}
            row |= over_draws("layers_apart", apart[differ].astype(np.float64))
            rows.append(row | {"n_differ": int(differ.sum()), "n_draws": n_draws})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


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

    P(depth >= k) = P(H(L-k) < ... < H(L)) is a chain of integrals, each over one layer's normal density, done by the
    trapezoid rule; within 1e-4.

    Raises:
        OptionError: the noise of neighbouring layers is correlated, or the window is not in 1..L.
    """
    if parameters.correlation:
        raise OptionError(f"a correlation of {parameters.correlation:g} has no chain of integrals; simulate it")
    curve, sd = parameters.noiseless, parameters.sd
    n_candidates = _candidates(curve, window)
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
    descent, 2e - 5 = 0.437 times for a wide window: dominance is lost where the rise is less than that share of it.

    Args:
        descent: how much S falls per layer before V*, in units of the noise, at least 0.
        window: K, at least 2.

    Raises:
        OptionError: a value is out of range.
    """
    low, high = 0.0, _steps(descent, 0.0, window).plateau / (window - 1)
    while high - low > 1e-4 * descent:
        middle = (low + high) / 2
        low, high = (low, middle) if expected_gain(_steps(descent, middle, window), window) > 0 else (middle, high)
    return high


def dominance_table(
    rises: Sequence[float],
    descents: Sequence[float],
    *,
    window: int = WINDOW,
    n_draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """One row per descent and rise, both in units of the noise: does walking back beat staying at the last layer?

    V* is L-1, and S falls by the descent from each layer of the window to the next up to V*; the noise is independent
    and of sd 1. What "dominates" means is ours: a positive mean gain, S(L) - S(chosen by Algorithm 1).

    Columns: descent; rise; first_step, its probability in closed form; step, the share of draws that take it; gain, the
    mean in units of the noise; gain_expected, by integration; better and worse, the shares of draws whose layer has a
    lower and a higher S than L; step, gain, better and worse have `_low` and `_high` (95 % over draws); n_draws.

    Raises:
        OptionError: a rise or descent is negative, the window is below 2, or there are fewer than two draws.
    """
    rows = []
    for descent in descents:
        for rise in rises:
            parameters = _steps(descent, rise, window)
            chosen = algorithm_layers(simulate(parameters, n_draws=n_draws, seed=seed), window)
            gain = parameters.noiseless[-1] - parameters.noiseless[chosen - 1]
            row: dict[str, Any] = {"descent": descent, "rise": rise, "first_step": first_step(parameters)}
            row |= over_draws("step", chosen < parameters.n_layers) | over_draws("gain", gain)
            row |= {"gain_expected": expected_gain(parameters, window)}
            rows.append(row | over_draws("better", gain > 0) | over_draws("worse", gain < 0) | {"n_draws": n_draws})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def parameters_table(run: Records, group: str = "all") -> pd.DataFrame:
    """One row per parameter of the theory as a run shows it, for tokens of a group: all, perturbed or unperturbed.

    On the group's mean entropy curve m(1..L):

    - V_onset and V* by the rules of `valleys`. Where there is no V*, it is L and the rise 0; where there is no V_onset,
      the highest layer before V* stands in. `found` is False for both stand-ins, and `attrs["note"]` says so.
    - plateau = m(V_onset), lowest = m(V*), rise = m(L) - m(V*), descent = (plateau - lowest) / (V* - V_onset), the
      only row that is no field of `Parameters`.
    - noise and early_factor from how unevenly single tokens run: the sd over tokens, divided by sqrt 6, of
      H(l-1) - 2 H(l) + H(l+1), which is sd(l) for independent noise and 0 for whatever is straight over three layers.
      Through its medians over the layers up to L/2 and over the others, each at the middle of its layers, passes the
      exponential of the theory. All that is uneven counts as noise, so that it is an upper bound; what neighbouring
      layers have in common does not count.

    Perturbed tokens are selected for H(L) > H(L-1): their rise is positive without any late perturbation. Noise of sd
    sigma on a flat end alone gives one of 2 sigma / sqrt(pi) from L-1 to L.

    Columns: parameter; value (layers, nats, nats per layer, or 1); low and high (95 %, prompts resampled); found;
    n_tokens; n_prompts.

    Raises:
        OptionError: no group of that name.
        RunError: no token of the group can be counted, the model has fewer than 4 layers, or m does not fall before
            its final rise.
    """
    tokens, among = _members(run, group)
    ceiling = float(np.log(run.manifest["model"]["n_vocab"]))
    every = np.vstack([np.ones(tokens.n_prompts), tokens.weights])
    estimates, found = _read_off(tokens, tokens.of(run.layers("entropy")), among, ceiling, every)
    if np.isnan(estimates["V_onset"][0]):
        reason = f"the mean entropy of the {group} tokens of {run.path} does not fall before its final rise"
        raise RunError(f"{reason}, and the theory is about a descent; choose another group or a run with one")
    n_prompts = tokens.n_prompts_with(among)
    rows = []
    for name, values in estimates.items():
        low, high = interval(values[1:], n_prompts)
        row = {"parameter": name, "value": values[0], "low": float(low), "high": float(high)}
        rows.append(row | {"found": found.get(name, True), "n_tokens": int(among.sum()), "n_prompts": n_prompts})
    table = tokens.frame(rows)
    table.attrs |= {"group": group}
    absent = [name for name, there in found.items() if not there]
    if absent:
        stands_in = {"V_onset": "the highest layer before V* stands in for V_onset", "V*": "L stands in for V*"}
        table.attrs |= {"note": "; ".join(stands_in[name] for name in absent)}
    return table


def parameters_from(run: Records, group: str = "all") -> Parameters:
    """The parameters of the theory as a run shows them, with independent noise; see `parameters_table`."""
    value = parameters_table(run, group).set_index("parameter")["value"].to_dict()
    return Parameters(
        n_layers=run.n_layers,
        onset=int(value["V_onset"]),
        valley=int(value["V*"]),
        plateau=float(value["plateau"]),
        lowest=float(value["lowest"]),
        rise=float(value["rise"]),
        noise=float(value["noise"]),
        early_factor=float(value["early_factor"]),
    )


def prediction_table(
    run: Records, group: str = "all", *, n_draws: int = DRAWS, seed: int = SEED, window: int | None = None
) -> pd.DataFrame:
    """One row per measure: what the theory predicts with a run's own parameters, beside what the run shows.

    Measures: first_step, the share of tokens for which H(L-1) < H(L); inside, early and late, the shares whose layer
    by Algorithm 1 is in [V_onset, V*], before and after it; depth, the mean of L - layer. The window is the run's
    unless given. Parameters come from the same tokens, so that agreement tests the theory's form, not its numbers.

    Columns: measure; predicted with `_low` and `_high` (95 % over draws, the parameters taken as they are); measured
    with `_low` and `_high` (95 %, prompts resampled); n_draws; n_tokens; n_prompts.

    Raises:
        OptionError, RunError: as in `parameters_table` and `theorem_table`.
    """
    parameters = parameters_from(run, group)
    tokens, among = _members(run, group)
    window = min(int(run.manifest["window"]), run.n_layers) if window is None else window
    predicted = _walk_measures(parameters, simulate(parameters, n_draws=n_draws, seed=seed), window)
    measured = _walk_measures(parameters, tokens.of(run.layers("entropy")), window)
    counts = {"n_draws": n_draws, "n_tokens": int(among.sum()), "n_prompts": tokens.n_prompts_with(among)}
    rows = []
    for name, values in measured.items():
        sums, numbers = tokens.sums_and_counts(values[:, None].astype(np.float64), among)
        found = [float(part[0]) for part in mean_interval(sums, numbers, tokens.weights)]
        row: dict[str, Any] = {"measure": name} | over_draws("predicted", predicted[name])
        row |= dict(zip(("measured", "measured_low", "measured_high"), found, strict=True))
        rows.append(row | counts)
    return tokens.frame(rows)


def _candidates(entropy: Floats, window: int | None) -> int:
    n_layers = entropy.shape[-1]
    if window is not None and not 1 <= window <= n_layers:
        raise OptionError(f"a window of {window} does not fit {n_layers} layers; choose 1 to {n_layers}")
    return n_layers if window is None else window


def _falls_back(entropy: Floats, window: int | None) -> Bools:
    """Whether H(l-1) < H(l), [..., K-1], for l = L, L-1, ... in the window."""
    below = entropy[..., :-1] < entropy[..., 1:]
    return np.asarray(below[..., ::-1][..., : _candidates(entropy, window) - 1])


def _leading(flags: Bools) -> Ints:
    return np.asarray(np.logical_and.accumulate(flags, axis=-1).sum(axis=-1), dtype=np.int64)


def _at_noises(parameters: Parameters, noises: Sequence[float] | None) -> list[Parameters]:
    return [parameters] if noises is None else [replace(parameters, noise=float(noise)) for noise in noises]


def _steps(descent: float, rise: float, window: int) -> Parameters:
    """A curve that falls by the descent from layer to layer up to V* = L-1, then rises; noise of sd 1."""
    if window < 2 or descent < 0:
        raise OptionError(f"window {window} and descent {descent:g} cannot be; choose at least 2 and at least 0")
    plateau = descent * (window - 1)
    return Parameters(window + 1, onset=1, valley=window, plateau=plateau, lowest=0.0, rise=rise, noise=1.0)


def _measures(parameters: Parameters, layers: Ints, window: int | None) -> dict[str, np.ndarray[Any, Any]]:
    measures: dict[str, np.ndarray[Any, Any]] = _places(parameters, layers)
    for name, curve in (("loss", parameters.noiseless), ("loss_bare", parameters.bare)):
        measures[name] = curve[layers - 1] - curve[parameters.n_layers - (window or parameters.n_layers) :].min()
    return measures


def _places(parameters: Parameters, layers: Ints) -> dict[str, np.ndarray[Any, Any]]:
    early, late = layers < parameters.onset, layers > parameters.valley
    return {"inside": ~early & ~late, "early": early, "late": late, "depth": parameters.n_layers - layers}


def _walk_measures(parameters: Parameters, entropy: Floats, window: int) -> dict[str, np.ndarray[Any, Any]]:
    step = entropy[:, -2] < entropy[:, -1]
    return {"first_step": step} | _places(parameters, algorithm_layers(entropy, window))


def over_draws(name: str, values: np.ndarray[Any, Any]) -> dict[str, float]:
    """The mean over independent draws with its 95 % interval: Wilson's where the values are true or false."""
    n, mean = len(values), float(values.mean()) if len(values) else np.nan
    if values.dtype == np.bool_:
        centre, width = (mean + Z**2 / (2 * n)), Z * sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        low, high = ((centre + sign * width) / (1 + Z**2 / n) for sign in (-1, 1))
        low, high = min(max(low, 0.0), mean), max(min(high, 1.0), mean)
    else:
        width = Z * float(values.std(ddof=1)) / sqrt(n) if n > 1 else np.nan
        low, high = mean - width, mean + width
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _members(run: Records, group: str) -> tuple[Sample, Bools]:
    if run.n_layers < MIN_LAYERS:
        raise RunError(
            f"{run.path} traces {run.n_layers} layers, too few to tell noise from a curve: "
            f"trace a model with at least {MIN_LAYERS}"
        )
    tokens = sample(run)
    members = groups(run, tokens)
    if group not in members:
        raise OptionError(f"there is no group {group!r} of tokens; choose from {', '.join(members)}")
    if not members[group].any():
        raise RunError(f"{run.path} holds no token of the group {group!r}; choose another group or trace more tokens")
    return tokens, members[group]


def _read_off(
    tokens: Sample, entropy: Floats, among: Bools, ceiling: float, weights: Floats
) -> tuple[dict[str, Floats], dict[str, bool]]:
    """Every parameter in every row of weights, and whether the first row has V_onset and V*; NaN without a descent."""
    n_layers = entropy.shape[1]
    curves = resampled_means(*tokens.sums_and_counts(entropy, among), weights)
    valley, onset = valley_layers(curves), onset_layers(curves, ceiling)
    found = {"V_onset": not np.isnan(onset[0]), "V*": not np.isnan(valley[0])}
    valley = np.where(np.isnan(valley), n_layers, valley)
    before = np.where(np.arange(1, n_layers + 1) < valley[:, None], curves, -np.inf)
    onset = np.where(np.isnan(onset), before.argmax(axis=1) + 1.0, onset)
    falls = onset < valley
    rows = np.arange(len(curves))
    plateau, lowest = (curves[rows, layer.astype(int) - 1] for layer in (onset, valley))
    noise, early_factor = _noise(tokens, entropy, among, weights)
    descent = (plateau - lowest) / np.where(falls, valley - onset, 1)
    values = {"V_onset": onset, "V*": valley, "plateau": plateau, "lowest": lowest, "descent": descent}
    values |= {"rise": curves[:, -1] - lowest, "noise": noise, "early_factor": early_factor}
    return {name: np.where(falls, value, np.nan) for name, value in values.items()}, found


def _noise(tokens: Sample, entropy: Floats, among: Bools, weights: Floats) -> tuple[Floats, Floats]:
    """The sd of the noise at L, and that at layer 1 over it, in every row of weights; see `parameters_table`."""
    n_layers = entropy.shape[1]
    bends = np.diff(entropy, n=2, axis=1)
    bends = bends - bends[among].mean(axis=0, dtype=np.float64).astype(bends.dtype)  # so that squares lose no digits
    means = resampled_means(*tokens.sums_and_counts(bends, among), weights)
    squares = resampled_means(*tokens.sums_and_counts(np.square(bends), among), weights)
    sd = np.sqrt(np.maximum(squares - means**2, 0) / 6)
    layer = np.arange(2, n_layers)
    early, late = (np.median(sd[:, half], axis=1) for half in (layer <= n_layers / 2, layer > n_layers / 2))
    apart = layer[layer > n_layers / 2].mean() - layer[layer <= n_layers / 2].mean()
    known = (early > 0) & (late > 0)
    growth = np.log(np.where(known, early, 1) / np.where(known, late, 1)) / apart
    to_last = n_layers - layer[layer > n_layers / 2].mean()
    return late * np.exp(-growth * to_last), np.exp(growth * (n_layers - 1))
