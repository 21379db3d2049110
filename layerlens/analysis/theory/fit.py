"""The parameters of the theory, estimated from a run, and what the theory predicts with them."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Sample, groups, sample
from layerlens.analysis.theory.curve import DRAWS, SEED, Parameters, simulate
from layerlens.analysis.theory.rules import algorithm_layers
from layerlens.analysis.theory.tables import over_draws, places
from layerlens.analysis.uncertainty import Floats, interval, mean_interval, resampled_means
from layerlens.analysis.valleys import onset_layers, valley_layers
from layerlens.errors import OptionError, RunError, did_you_mean
from layerlens.records.reader import Records

MIN_LAYERS = 4


def parameters_table(run: Records, group: str = "all") -> pd.DataFrame:
    """One row per parameter of the theory, estimated from the tokens of a group: all, perturbed or unperturbed.

    On the group's mean entropy curve m(1..L):

    - V_onset and V* by the rules of `valleys`. Where there is no V*, V* is set to L and the rise to 0. Where there is
      no V_onset, the highest layer before V* takes its place. `found` is False for both stand-ins, and `attrs["note"]`
      says so.
    - plateau = m(V_onset), lowest = m(V*), rise = m(L) - m(V*), descent = (plateau - lowest) / (V* - V_onset), the
      only row that is no field of `Parameters`.
    - noise and early_factor from how uneven the curves of single tokens are. The measure is the sd over tokens, divided
      by sqrt 6, of H(l-1) - 2 H(l) + H(l+1). It equals sd(l) for independent noise, and 0 for a curve that is straight
      over three layers. Its median is taken over the layers up to L/2, and over the other layers. The exponential of
      the theory passes through both medians, each placed at the middle of its layers. All unevenness counts as noise,
      so the noise is an upper bound. What neighbouring layers have in common does not count.

    Perturbed tokens are selected for H(L) > H(L-1), so their rise is positive even without a late perturbation. Noise
    of sd sigma on a flat end alone gives a rise of 2 sigma / sqrt(pi) from L-1 to L.

    Columns: parameter; value (layers, nats, nats per layer, or 1); low and high (95 %, prompts resampled); found;
    n_tokens; n_prompts.

    Raises:
        OptionError: there is no group of that name.
        RunError: no token of the group can be counted, the model has fewer than 4 layers, or m does not fall before its
            final rise.
    """
    tokens, among = _members(run, group)
    ceiling = float(np.log(run.manifest["model"]["n_vocab"]))
    every = np.vstack([np.ones(tokens.n_prompts), tokens.weights])
    estimates, present = _read_off(tokens, tokens.of(run.layers("entropy")), among, ceiling, every)
    if np.isnan(estimates["V_onset"][0]):
        reason = f"the mean entropy of the {group} tokens of {run.path} does not fall before its final rise"
        raise RunError(
            f"{reason}, and the theory needs a descent", "choose another group or a run with one", given=run.path
        )
    n_prompts = tokens.n_prompts_with(among)
    rows = []
    for name, values in estimates.items():
        low, high = interval(values[1:], n_prompts)
        row = {"parameter": name, "value": values[0], "low": float(low), "high": float(high)}
        rows.append(row | {"found": present.get(name, True), "n_tokens": int(among.sum()), "n_prompts": n_prompts})
    table = tokens.frame(rows)
    table.attrs |= {"group": group}
    absent = [name for name, there in present.items() if not there]
    if absent:
        stands_in = {
            "V_onset": "the highest layer before V* stands in for V_onset",
            "V*": "L stands in for V*",
        }
        table.attrs |= {"note": "; ".join(stands_in[name] for name in absent)}
    return table


def parameters_from(run: Records, group: str = "all") -> Parameters:
    """The parameters of the theory, estimated from a run, with independent noise; see `parameters_table`."""
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
    """One row per measure: what the theory predicts with a run's own parameters, beside what was measured in the run.

    Measures: first_step, the share of tokens for which H(L-1) < H(L); inside, early and late, the shares whose layer by
    Algorithm 1 is in [V_onset, V*], before and after it; depth, the mean of L - layer. The window is the run's unless
    given. The parameters come from the same tokens. So agreement supports the form of the theory, not its numbers.

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
        estimate = [float(part[0]) for part in mean_interval(sums, numbers, tokens.weights)]
        row: dict[str, Any] = {"measure": name} | over_draws("predicted", predicted[name])
        row |= dict(zip(("measured", "measured_low", "measured_high"), estimate, strict=True))
        rows.append(row | counts)
    return tokens.frame(rows)


def _walk_measures(parameters: Parameters, entropy: Floats, window: int) -> dict[str, np.ndarray[Any, Any]]:
    step = entropy[:, -2] < entropy[:, -1]
    return {"first_step": step} | places(parameters, algorithm_layers(entropy, window))


def _members(run: Records, group: str) -> tuple[Sample, Bools]:
    if run.n_layers < MIN_LAYERS:
        raise RunError(
            f"{run.path} traces {run.n_layers} layers, too few to tell noise from a curve",
            f"trace a model with at least {MIN_LAYERS}",
            given=run.path,
        )
    tokens = sample(run)
    members = groups(run, tokens)
    if group not in members:
        advice = did_you_mean(group, members, f"choose from {', '.join(members)}")
        raise OptionError(f"there is no group {group!r} of tokens", advice, option="group", given=group)
    if not members[group].any():
        raise RunError(
            f"{run.path} holds no token of the group {group!r}",
            "choose another group or trace more tokens",
            given=run.path,
        )
    return tokens, members[group]


def _read_off(
    tokens: Sample, entropy: Floats, among: Bools, ceiling: float, weights: Floats
) -> tuple[dict[str, Floats], dict[str, bool]]:
    """Every parameter in every row of weights, and whether the first row has V_onset and V*; NaN without a descent."""
    n_layers = entropy.shape[1]
    curves = resampled_means(*tokens.sums_and_counts(entropy, among), weights)
    valley, onset = valley_layers(curves), onset_layers(curves, ceiling)
    present = {"V_onset": not np.isnan(onset[0]), "V*": not np.isnan(valley[0])}
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
    return {name: np.where(falls, value, np.nan) for name, value in values.items()}, present


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
