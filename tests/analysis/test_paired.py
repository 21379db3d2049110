"""Tests of paired answers against scipy, against rules written out, and on random scores."""

import numpy as np
import pytest
from scipy.stats import binomtest

from layerlens.analysis.paired import holm, mcnemar


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (0, 5), (7, 7), (3, 11), (40, 25), (300, 200)])
def test_mcnemar_is_the_binomial_test(won, lost):
    wanted = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(wanted, rel=1e-12)


def by_hand(p):
    """Holm's rule, step by step: the k-th smallest of m is multiplied by m - k, and never falls below those before."""
    known = sorted((value, place) for place, value in enumerate(p) if value == value)
    adjusted, before = [float("nan")] * len(p), 0.0
    for k, (value, place) in enumerate(known):
        before = max(before, min(1.0, (len(known) - k) * value))
        adjusted[place] = before
    return adjusted


@pytest.mark.parametrize(
    "p", [[], [0.04], [0.01, 0.04, 0.03, 0.005], [0.5, 0.6], [0.02, float("nan"), 0.02], [float("nan")]]
)
def test_holm(p):
    assert holm(p) == pytest.approx(by_hand(p), nan_ok=True)


def test_holm_on_a_known_table():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_two_arms_that_are_alike_differ_in_few_of_many_evaluations():
    draw = np.random.default_rng(0)
    rejected = 0
    for _ in range(1000):
        last, other = draw.random((2, 900)) < 0.4
        rejected += mcnemar(int((other & ~last).sum()), int((last & ~other).sum())) < 0.05
    assert 30 <= rejected <= 70


def test_holm_keeps_the_rate_over_a_family_of_nine():
    draw = np.random.default_rng(1)
    wrong = sum(min(holm(list(draw.random(9)))) < 0.05 for _ in range(1000))
    assert 30 <= wrong <= 70
