"""Theorem 1 under its own premise, against every pattern of the worst noise, and what is left where that fails."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from layerlens.analysis.theory import PAPER, Parameters, margins, premise_table
from layerlens.errors import OptionError
from tests.analysis.theory.test_theory import slow_algorithm, slow_curve, slow_theorem
from tests.refusals import refused

SMALL = Parameters(n_layers=8, onset=3, valley=6, plateau=3.0, lowest=0.0, rise=0.8)  # falls by 1, rises by 0.4 a layer
STEEP = replace(SMALL, valley=7, onset=4, rise=3.0)  # the fall of 1 is the narrower margin


def every_pattern(parameters, bound, window):
    """The shares of all 2^L patterns of noise of the bound's size in which either rule is at V*, by plain loops."""
    curve = slow_curve(parameters)[1]
    found = np.zeros(2)
    for signs in itertools.product((-bound, bound), repeat=parameters.n_layers):
        entropy = [value + noise for value, noise in zip(curve, signs, strict=True)]
        found += [slow(entropy, window) == parameters.valley for slow in (slow_theorem, slow_algorithm)]
    return (found / 2**parameters.n_layers).tolist()


@pytest.mark.parametrize(("parameters", "largest"), [(SMALL, 0.2), (STEEP, 0.5)])
def test_under_the_premise_no_pattern_of_noise_moves_either_rule(parameters, largest):
    assert every_pattern(parameters, 0.99 * largest, 6) == [1, 1]
    table = premise_table(parameters, [0.0, 0.5 * largest, 0.99 * largest], window=6, n_draws=4_000)
    assert table["holds"].all()
    assert (table["n_at"] == 4_000).all()
    assert (table["at_low"] < 1).all()


@pytest.mark.parametrize(("parameters", "bound"), [(SMALL, 0.21), (SMALL, 0.7), (STEEP, 0.6), (STEEP, 1.7)])
def test_where_the_premise_fails_the_worst_noise_moves_as_many_draws_as_patterns(parameters, bound):
    table = premise_table(parameters, [bound], window=6, n_draws=40_000, seed=2).set_index(["noise", "rule"])
    assert not table["holds"].any()
    exact = every_pattern(parameters, bound, 6)
    assert min(exact) < 1
    for rule, share in zip(("theorem", "algorithm"), exact, strict=True):
        row = table.loc[("extreme", rule)]
        assert row["at"] == row["n_at"] / 40_000 == pytest.approx(share, abs=4 * 0.5 / 200)
        assert row["at_low"] <= row["at"] <= row["at_high"]


def test_even_noise_is_even_and_stays_under_its_bound():
    """V* at L-1: Algorithm 1 leaves it only where the triangular difference of two layers' noise outweighs the rise."""
    curve = Parameters(n_layers=5, onset=1, valley=4, plateau=300.0, lowest=0.0, rise=1.0)
    for bound in (0.6, 1.0, 2.0):
        table = premise_table(curve, [bound], window=4, n_draws=40_000).set_index(["noise", "rule"])
        stays = (2 * bound - 1.0) ** 2 / (8 * bound**2)  # P(e(4) - e(5) >= 1)
        assert table.loc[("even", "algorithm"), "at"] == pytest.approx(1 - stays, abs=4 * 0.5 / 200)
        assert table.loc[("even", "theorem"), "n_at"] == 40_000


def test_the_premise_is_read_off_the_curve():
    assert margins(PAPER) == pytest.approx((0.37, 10.8 / 11))
    assert margins(replace(PAPER, valley=36, onset=25)) == pytest.approx((0.37 / 4, 10.8 / 11))
    assert margins(SMALL) == pytest.approx((0.4, 1.0))
    assert margins(replace(SMALL, valley=8, rise=0.0)) == pytest.approx((math.inf, 3 / 5))
    holds = premise_table(PAPER, [0.1849, 0.1851], n_draws=2)["holds"]
    assert holds.tolist() == [True] * 4 + [False] * 4


def test_what_cannot_be_simulated_is_refused():
    with refused(OptionError, "valley", 8):
        premise_table(replace(SMALL, valley=8, rise=0.0), [0.1], window=5)
    for bound in (-0.1, math.nan, math.inf):
        with refused(OptionError, "bounds"):
            premise_table(SMALL, [bound], window=5)
    with refused(OptionError, "n_draws", 1):
        premise_table(SMALL, [0.1], window=5, n_draws=1)
    with refused(OptionError, "window", 10):
        premise_table(SMALL, [0.1])
