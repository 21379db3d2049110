"""What the rules choose and lose on simulated entropies, counted over draws."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.theory.chances import descending, expected_gain, first_step
from layerlens.analysis.theory.curve import DRAWS, SEED, Parameters, simulate
from layerlens.analysis.theory.rules import RULES, WINDOW, Ints, algorithm_layers, theorem_layers
from layerlens.analysis.uncertainty import CONFIDENCE

Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


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
        noises: values of the sd of the noise at L, in nats; each takes the place of the parameters' own in turn.
        windows: numbers of candidates; None for all layers.
        n_draws: of the simulation; every rule sees the same draws.
        seed: of the draws.

    Columns: noise; window; rule; inside, the share of draws whose layer is in [V_onset, V*]; early and late, the shares
    before and after; depth, the mean of L - layer; loss, the mean of S(chosen) - min S over the window, in nats;
    loss_bare, the same for H*; each with `_low` and `_high` (95 % over draws); n_draws.

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
            parameters = descending(descent, rise, window)
            chosen = algorithm_layers(simulate(parameters, n_draws=n_draws, seed=seed), window)
            gain = parameters.noiseless[-1] - parameters.noiseless[chosen - 1]
            row: dict[str, Any] = {"descent": descent, "rise": rise, "first_step": first_step(parameters)}
            row |= over_draws("step", chosen < parameters.n_layers) | over_draws("gain", gain)
            row |= {"gain_expected": expected_gain(parameters, window)}
            rows.append(row | over_draws("better", gain > 0) | over_draws("worse", gain < 0) | {"n_draws": n_draws})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


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


def places(parameters: Parameters, layers: Ints) -> dict[str, np.ndarray[Any, Any]]:
    """Where chosen layers lie, [draws] each: inside [V_onset, V*], early (before), late (after), and L - layer."""
    early, late = layers < parameters.onset, layers > parameters.valley
    return {"inside": ~early & ~late, "early": early, "late": late, "depth": parameters.n_layers - layers}


def _at_noises(parameters: Parameters, noises: Sequence[float] | None) -> list[Parameters]:
    return [parameters] if noises is None else [replace(parameters, noise=float(noise)) for noise in noises]


def _measures(parameters: Parameters, layers: Ints, window: int | None) -> dict[str, np.ndarray[Any, Any]]:
    measures: dict[str, np.ndarray[Any, Any]] = places(parameters, layers)
    for name, curve in (("loss", parameters.noiseless), ("loss_bare", parameters.bare)):
        measures[name] = curve[layers - 1] - curve[parameters.n_layers - (window or parameters.n_layers) :].min()
    return measures
