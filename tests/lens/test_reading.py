"""The tiled readout against whole float64 logits and scipy."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens import lens
from layerlens.models import Unembed


def make(seed, rows, d, vocab, *, bias=False, scale=1.0, softcap=None, spread=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(vocab, d, generator=generator) * spread).to(dtype)
    states = torch.randn(rows, d, generator=generator).to(dtype)
    offsets = (torch.randn(vocab, generator=generator) * 2).to(dtype) if bias else None
    return states, Unembed([torch.nn.Identity()], weight, offsets, scale, softcap)


def whole(states, unembed):
    """Log-probs [rows, vocab] in float64, the head written out in numpy."""
    logits = states.double().numpy() @ unembed.weight.double().numpy().T
    if unembed.bias is not None:
        logits = logits + unembed.bias.double().numpy()
    logits = logits * unembed.scale
    if unembed.softcap is not None:
        logits = unembed.softcap * np.tanh(logits / unembed.softcap)
    return scipy.special.log_softmax(logits, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    d=st.integers(1, 24),
    vocab=st.integers(2, 400),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.3, -2.0]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 8.0]),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 450)),
)
def test_any_tiling_agrees_with_scipy_on_whole_float64_logits(seed, rows, d, vocab, bias, scale, softcap, spread, tile):
    states, unembed = make(seed, rows, d, vocab, bias=bias, scale=scale, softcap=softcap, spread=spread)
    chosen = torch.randint(0, vocab, (rows, 3), generator=torch.Generator().manual_seed(seed))
    log_probs = whole(states, unembed)

    reading = lens.read(states, unembed, chosen, tile=tile)

    np.testing.assert_allclose(reading.entropy, scipy.stats.entropy(np.exp(log_probs), axis=1), atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(
        reading.log_probs, np.take_along_axis(log_probs, chosen.numpy(), 1), atol=2e-4, rtol=2e-5
    )
    assert (reading.entropy >= 0).all()
    assert (reading.entropy <= math.log(vocab)).all()
    top = np.take_along_axis(log_probs, reading.top_token_id.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(top, log_probs.max(1), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("vocab", [64, 65, 307, 1024, 5000])
def test_equal_logits_give_ln_v_and_the_first_token(vocab):
    states, unembed = make(0, 3, 5, vocab, spread=0.0)
    reading = lens.read(states, unembed)
    np.testing.assert_allclose(reading.entropy, math.log(vocab), rtol=1e-6)
    assert reading.top_token_id.tolist() == [0, 0, 0]


@pytest.mark.parametrize("words", [64, 100, 128, 1000])
@pytest.mark.parametrize("places", [(3, 900), (640, 641), (63, 64), (0, 999)])
def test_of_equal_maxima_the_first_is_the_top_token(words, places):
    weight = torch.zeros(1000, 1)
    weight[list(places)] = 5.0
    reading = lens.read(torch.ones(2, 1), Unembed([], weight), tile=(2, words))
    assert reading.top_token_id.tolist() == [places[0]] * 2


def test_an_offset_of_all_logits_costs_no_digits():
    states, unembed = make(1, 4, 16, 3000)
    shifted = Unembed(unembed.tail, unembed.weight, torch.full((3000,), 500.0))
    np.testing.assert_allclose(lens.read(states, shifted).entropy, lens.read(states, unembed).entropy, atol=2e-4)


def test_a_certain_state_has_no_entropy():
    weight = torch.zeros(500, 1)
    weight[77] = 300.0
    reading = lens.read(torch.ones(1, 1), Unembed([], weight))
    assert reading.entropy.item() == 0.0
    assert reading.top_token_id.item() == 77


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_accumulated_in_float32(dtype):
    states, unembed = make(2, 6, 64, 2000, spread=0.5, dtype=dtype)
    reading = lens.read(states, unembed)
    assert reading.entropy.dtype == torch.float32
    np.testing.assert_allclose(
        reading.entropy, scipy.stats.entropy(np.exp(whole(states, unembed)), axis=1), atol=5e-5, rtol=5e-5
    )


def test_a_nan_state_gives_nan_and_leaves_its_neighbours_alone():
    states, unembed = make(3, 4, 8, 300)
    clean = lens.read(states, unembed)
    states[2, 1] = math.nan
    reading = lens.read(states, unembed)
    assert reading.entropy.isnan().tolist() == [False, False, True, False]
    np.testing.assert_allclose(reading.entropy[[0, 1, 3]], clean.entropy[[0, 1, 3]], rtol=1e-6)


def test_no_rows_give_empty_readings():
    _, unembed = make(4, 1, 8, 300)
    reading = lens.read(torch.empty(0, 8), unembed, torch.empty(0, 2, dtype=torch.long))
    assert reading.entropy.shape == (0,)
    assert reading.log_probs.shape == (0, 2)


def peak_bytes(work):
    """What the CPU allocator held at most while `work` ran, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def test_the_largest_temporary_does_not_grow_with_the_vocabulary():
    """Peak of the CPU allocator for 512 rows over 200,000 words stays under 40 MB; the logits alone are 410 MB."""
    states, unembed = make(5, 512, 8, 200_000)
    lens.read(states[:1], unembed)
    assert 2**20 < peak_bytes(lambda: lens.read(states, unembed)) < 40 * 2**20


def test_a_banned_word_has_no_part_in_the_entropy():
    states, unembed = make(6, 4, 8, 300, bias=True)
    unembed.bias[[0, 5, 299]] = -math.inf
    reading = lens.read(states, unembed, torch.full((4, 1), 7), tile=(4, 64))
    with np.errstate(invalid="ignore"):
        log_probs = whole(states, unembed)
    np.testing.assert_allclose(reading.entropy, scipy.stats.entropy(np.exp(log_probs), axis=1), atol=2e-5)
    np.testing.assert_allclose(reading.log_probs[:, 0], log_probs[:, 7], atol=1e-4)
