"""Each criterion against scipy in float64, and the release's quantity bit for bit."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.decode.criteria import CRITERIA, margin, max_prob, neg_sum_sq_logp, shannon
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Valley
from layerlens.models import Unembed


def make(seed, rows, vocab, *, spread=1.0, offset=0.0, banned=0):
    """Random logits on an offset, some words banned by a logit of minus infinity, others in each row."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * spread + offset
    order = torch.rand(rows, vocab, generator=generator).argsort(1)
    return logits.scatter(1, order[:, :banned], -math.inf)


def release(logits):
    """What the method's first release computed; the logarithm in place makes the probabilities logarithms too."""
    probs = torch.softmax(logits.float(), dim=-1)
    log_probs = probs.log_()
    return -(probs * log_probs).sum(dim=-1)


def expected(name, logits):
    """The criterion from float64 log-probabilities of the very same float32 logits."""
    log_probs = scipy.special.log_softmax(logits.double().numpy(), axis=1)
    probs = np.exp(log_probs)
    best = -np.sort(-probs, axis=1)
    return {
        "shannon": lambda: scipy.stats.entropy(probs, axis=1),
        "neg-sum-sq-logp": lambda: -(log_probs**2).sum(1),
        "max-prob": lambda: -best[:, 0],
        "margin": lambda: best[:, 1] - best[:, 0],
    }[name]()


SIZES = {
    "seed": st.integers(0, 10**6),
    "rows": st.integers(1, 9),
    "vocab": st.integers(2, 400),
    "spread": st.sampled_from([0.0, 0.1, 1.0, 8.0]),
    "offset": st.sampled_from([0.0, -30.0, 500.0, -1e4]),
}


@pytest.mark.parametrize("name", list(CRITERIA))
@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_criteria_agree_with_float64(name, seed, rows, vocab, spread, offset):
    logits = make(seed, rows, vocab, spread=spread, offset=offset)
    np.testing.assert_allclose(CRITERIA[name](logits.clone()), expected(name, logits), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["shannon", "max-prob", "margin"])
@settings(max_examples=60, deadline=None)
@given(**SIZES, banned=st.integers(1, 400))
def test_a_banned_word_has_no_part_in_a_criterion(name, seed, rows, vocab, spread, offset, banned):
    logits = make(seed, rows, vocab, spread=spread, offset=offset, banned=min(banned, vocab - 1))
    np.testing.assert_allclose(CRITERIA[name](logits.clone()), expected(name, logits), rtol=2e-5, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_bounds_and_what_reaches_them(seed, rows, vocab, spread, offset):
    """Bounds to float32 rounding: 2e-6."""
    logits = make(seed, rows, vocab, spread=spread, offset=offset)
    assert (shannon(logits) >= 0).all()
    assert (shannon(logits) <= math.log(vocab)).all()
    assert (max_prob(logits) >= -1).all()
    assert (max_prob(logits) <= -1 / vocab + 2e-6).all()
    assert (margin(logits) >= -1).all()
    assert (margin(logits) <= 0).all()
    uniform = -vocab * math.log(vocab) ** 2  # the logarithms' mean is at most −ln V, so their squares add up to more
    assert (neg_sum_sq_logp(logits) <= uniform * (1 - 2e-6)).all()


def test_equal_logits_and_a_certain_word_reach_the_bounds():
    level, certain = torch.zeros(1, 300), torch.zeros(1, 300)
    certain[0, 7] = 300.0
    np.testing.assert_allclose(shannon(level), math.log(300), rtol=1e-6)
    np.testing.assert_allclose(max_prob(level), -1 / 300, rtol=1e-6)
    np.testing.assert_allclose(neg_sum_sq_logp(level), -300 * math.log(300) ** 2, rtol=1e-6)
    assert margin(level).item() == 0.0
    assert shannon(certain).item() == 0.0
    assert max_prob(certain).item() == margin(certain).item() == -1.0
    assert neg_sum_sq_logp(certain).item() == -math.inf, "the probability of the others underflows"


@settings(max_examples=60, deadline=None)
@given(**SIZES, banned=st.integers(0, 2))
def test_the_release_s_quantity_has_its_very_bits(seed, rows, vocab, spread, offset, banned):
    logits = make(seed, rows, vocab, spread=spread, offset=offset, banned=min(banned, vocab - 1))
    before = logits.clone()
    assert torch.equal(neg_sum_sq_logp(logits), release(logits))
    assert torch.equal(logits, before)


def test_the_release_s_quantity_has_its_very_bits_inside_a_walk():
    """The values of every candidate as a strategy computes them, in pieces, against all candidates at once."""
    generator = torch.Generator().manual_seed(3)
    head = Unembed([], torch.randn(5000, 16, generator=generator))
    states = {layer: torch.randn(9, 16, generator=generator) for layer in range(1, 11)}
    readouts = Readouts(head, states, 10, torch.zeros(9))
    values = Valley(criterion="neg-sum-sq-logp", scan="batched").choose(readouts).values
    assert values.shape == (9, 10)
    assert torch.equal(values, release(readouts.logits(range(1, 11))))


@pytest.mark.parametrize("name", list(CRITERIA))
def test_a_nan_logit_gives_nan_and_leaves_its_neighbours_alone(name):
    logits = make(4, 4, 300)
    clean = CRITERIA[name](logits.clone())
    logits[2, 11] = math.nan
    values = CRITERIA[name](logits.clone())
    assert values.isnan().tolist() == [False, False, True, False]
    assert values[[0, 1, 3]].equal(clean[[0, 1, 3]])


@pytest.mark.parametrize("name", list(CRITERIA))
def test_a_criterion_leaves_the_logits_as_they_are(name):
    """They are the sampler's afterwards."""
    logits = make(5, 4, 300)
    before = logits.clone()
    CRITERIA[name](logits)
    assert logits.equal(before)


def test_entropy_and_the_release_s_quantity_choose_different_layers():
    """Two words of six, the rest not impossible; or five of six, the last as good as impossible."""
    two = torch.tensor([5.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    one = torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, -30.0])
    for layers, shannon_layer, release_layer in (((two, one), 1, 2), ((one, two), 2, 1)):
        states = {number: logits.unsqueeze(0) for number, logits in enumerate(layers, 1)}
        head = Unembed([], torch.eye(6))
        chosen = {
            name: Valley(criterion=name).choose(Readouts(head, states, 2, torch.zeros(1))).selected_layer.item()
            for name in ("shannon", "neg-sum-sq-logp")
        }
        assert chosen == {"shannon": shannon_layer, "neg-sum-sq-logp": release_layer}


def test_every_criterion_ranks_some_layers_unlike_every_other():
    logits = make(6, 40, 12, spread=2.0)
    ranks = [scipy.stats.rankdata(CRITERIA[name](logits.clone())).tolist() for name in CRITERIA]
    assert all(one != other for index, one in enumerate(ranks) for other in ranks[:index])
