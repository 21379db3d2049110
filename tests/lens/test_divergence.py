"""Divergences from the last layer against scipy on whole float64 logits."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens import lens
from layerlens.models import Unembed
from tests.lens.test_reading import make, peak_bytes, whole


def divergences(states, unembed, tile=None):
    return lens.kl_from_last(states, [lens.read(layer, unembed, tile=tile) for layer in states], unembed, tile=tile)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    d=st.integers(1, 24),
    vocab=st.integers(2, 400),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.3, -2.0]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 450)),
)
def test_any_tiling_agrees_with_scipy_on_whole_float64_logits(seed, rows, d, vocab, bias, scale, softcap, spread, tile):
    states, unembed = make(seed, 3 * rows, d, vocab, bias=bias, scale=scale, softcap=softcap, spread=spread)
    layers = states.split(rows)
    last = whole(layers[-1], unembed)
    expected = [(np.exp(last) * (last - whole(layer, unembed))).sum(axis=1) for layer in layers]

    found = divergences(layers, unembed, tile)

    assert found.shape == (3, rows)
    np.testing.assert_allclose(found, expected, atol=3e-4, rtol=2e-5)
    assert (found >= 0).all()


def test_its_direction_is_from_the_last_layer():
    """Two words: KL(last ‖ first) and KL(first ‖ last) differ, and the first is what it is called."""
    weight = torch.tensor([[1.0], [0.0]])
    p_first, p_last = 0.9, 0.6
    states = [torch.tensor([[math.log(p / (1 - p))]]) for p in (p_first, p_last)]
    expected = scipy.special.rel_entr([p_last, 1 - p_last], [p_first, 1 - p_first]).sum()
    swapped = scipy.special.rel_entr([p_first, 1 - p_first], [p_last, 1 - p_last]).sum()
    found = divergences(states, Unembed([], weight))
    assert abs(expected - swapped) > 0.05
    np.testing.assert_allclose(found[:, 0], [expected, 0.0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_accumulated_in_float32(dtype):
    states, unembed = make(2, 6, 64, 2000, spread=0.5, dtype=dtype)
    layers = states.split(2)
    last = whole(layers[-1], unembed)
    expected = [(np.exp(last) * (last - whole(layer, unembed))).sum(axis=1) for layer in layers]
    np.testing.assert_allclose(divergences(layers, unembed), expected, atol=2e-4, rtol=5e-5)


def test_a_banned_word_costs_nothing():
    states, unembed = make(5, 4, 8, 300)
    banned = torch.zeros(300)
    banned[[3, 250]] = -math.inf
    allowed = torch.ones(300, dtype=torch.bool)
    allowed[[3, 250]] = False
    found = divergences(states.split(2), Unembed([], unembed.weight, banned))
    expected = divergences(states.split(2), Unembed([], unembed.weight[allowed]))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_nan_state_gives_nan_in_its_row_alone():
    states, unembed = make(3, 6, 8, 300)
    states[1, 4] = math.nan
    found = divergences(states.split(3), unembed)
    assert found.isnan().tolist() == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_largest_temporary_does_not_grow_with_the_vocabulary(softcap):
    """As for readouts: 512 rows over 200,000 words, whose logits alone are 410 MB."""
    states, unembed = make(6, 1024, 8, 200_000, spread=0.1, softcap=softcap)
    layers = states.split(512)
    readings = [lens.read(layer, unembed) for layer in layers]
    assert 2**20 < peak_bytes(lambda: lens.kl_from_last(layers, readings, unembed)) < 40 * 2**20
