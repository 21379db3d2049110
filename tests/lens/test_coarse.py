"""Readings from products in bfloat16 against whole float64 logits, and what asks for them."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import layerlens as ll
from layerlens import lens
from layerlens.lens import coarse
from layerlens.models import Unembed
from tests.conftest import tiny
from tests.lens.test_reading import make, whole
from tests.refusals import refused


@pytest.fixture
def any_processor(monkeypatch):
    """The numbers are the same where bfloat16 is not faster."""
    monkeypatch.setattr(coarse, "has_fast_bfloat16", lambda: True)


def entropies(log_probs):
    return scipy.stats.entropy(np.exp(log_probs), axis=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    d=st.integers(1, 24),
    vocab=st.integers(2, 700) | st.integers(1000, 3200),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.3, -2.0]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_any_head_agrees_with_scipy_to_the_rounding_of_its_logits(seed, rows, d, vocab, bias, scale, softcap, spread):
    states, unembed = make(seed, rows, d, vocab, bias=bias, scale=scale, softcap=softcap, spread=spread)
    log_probs = whole(states, unembed)
    reading = lens.CoarseHead(unembed).read(states)
    rounding = 2**-7 * (1 + abs(scale)) * (1 + float((states @ unembed.weight.t()).abs().max()))
    tolerance = 2e-5 if vocab < 1024 else rounding
    np.testing.assert_allclose(reading.entropy, entropies(log_probs), atol=tolerance)
    top = np.take_along_axis(log_probs, reading.top_token_id.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(top, log_probs.max(1), atol=tolerance)


@pytest.mark.parametrize("vocab", [2048, 2077])
@pytest.mark.parametrize("places", [(0, 1), (5, 36), (63, 65), (100, 2047), (-1, -2), (30, -1)])
def test_the_likeliest_words_are_exact(vocab, places):
    """Two words far above the rest, of different blocks and a nat apart: rounding their logits, about 40, to bfloat16
    moves the entropy by more than 0.01."""
    states, unembed = make(1, 5, 32, vocab, spread=0.3)
    ids = [place % vocab for place in places]
    unembed.weight[ids] = states[0] * torch.tensor([[40.1], [38.9]]) / states[0].square().sum()
    states = states[:1] * torch.tensor([[1.0], [1.013], [0.98]])
    log_probs = whole(states, unembed)
    reading = lens.CoarseHead(unembed).read(states)
    np.testing.assert_allclose(reading.entropy, entropies(log_probs), atol=1e-4)
    np.testing.assert_allclose(reading.log_normalizer, lens.read(states, unembed).log_normalizer, atol=1e-4)
    assert reading.top_token_id.tolist() == [ids[0]] * 3
    rounded = (states.bfloat16() @ unembed.weight.bfloat16().t()).double().log_softmax(1).numpy()
    assert np.abs(entropies(rounded) - entropies(log_probs)).max() > 0.01


def naive(states, unembed):
    """Entropies of products of two bfloat16 matrices, added up and given out in float64."""
    return entropies(whole(states.bfloat16().float(), Unembed(unembed.tail, unembed.weight.bfloat16().float())))


def test_the_rounding_of_a_state_is_taken_off():
    """Of words that lie along one direction: whatever a state's rounding does to one logit it does to all of them."""
    states, unembed = make(3, 200, 64, 16384, spread=0.05)
    generator = torch.Generator().manual_seed(4)
    along = torch.randn(16384, 1, generator=generator) * 0.25
    unembed.weight.addmm_(along, torch.randn(1, 64, generator=generator))
    expected = entropies(whole(states, unembed))
    miss = np.abs(lens.CoarseHead(unembed).read(states).entropy.numpy() - expected)
    assert expected.mean() > 7
    assert np.quantile(miss, 0.99) < 0.005 < 0.02 < np.quantile(np.abs(naive(states, unembed) - expected), 0.99)


@pytest.mark.parametrize("offset", [-100.0, 100.0, 1000.0])
def test_an_offset_of_all_logits_costs_little(offset):
    """By the bias or by a direction of the states. Logits of 100 come out of bfloat16 rounded by up to a quarter."""
    states, unembed = make(2, 40, 64, 8192, spread=0.3)
    expected = entropies(whole(states, unembed))
    shifted = Unembed(unembed.tail, unembed.weight, torch.full((8192,), offset))
    np.testing.assert_allclose(lens.CoarseHead(shifted).read(states).entropy, expected, atol=0.01)
    states = torch.cat([states, torch.full((40, 1), 7.7)], 1)
    unembed = Unembed(unembed.tail, torch.cat([unembed.weight, torch.full((8192, 1), offset / 7.7)], 1))
    reading = lens.CoarseHead(unembed).read(states)
    np.testing.assert_allclose(reading.entropy, expected, atol=0.01)
    np.testing.assert_allclose(reading.log_normalizer, lens.read(states, unembed).log_normalizer, atol=0.01)


@pytest.mark.parametrize("spread", [30.0, 300.0, 3000.0])
def test_logits_far_apart_leave_nothing_behind(spread):
    """The likeliest word has all of the probability; what rounding leaves of the sums without it is not the rest."""
    states, unembed = make(7, 100, 32, 4096, spread=spread)
    reading = lens.CoarseHead(unembed).read(states)
    expected = entropies(whole(states, unembed))
    alone = expected < 1e-9
    assert alone.mean() > 0.5
    assert reading.entropy[alone].max() < 1e-5


def test_a_banned_word_and_a_state_that_is_not_a_number():
    states, unembed = make(6, 4, 8, 1300, bias=True)
    unembed.bias[[0, 5, 1299]] = -torch.inf
    states[2, 1] = torch.nan
    reading = lens.CoarseHead(unembed).read(states)
    with np.errstate(invalid="ignore"):
        expected = entropies(whole(states, unembed))
    kept = [0, 1, 3]
    np.testing.assert_allclose(reading.entropy[kept], expected[kept], atol=0.02)
    assert reading.entropy.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype):
    states, unembed = make(2, 600, 64, 2000, spread=0.5, dtype=dtype)  # more rows than are read at once
    reading = lens.CoarseHead(unembed).read(states)
    np.testing.assert_allclose(reading.entropy, entropies(whole(states, unembed)), atol=0.03)


TEXTS = {
    "problems": " ".join(str(prompt.content) for prompt in ll.dataset("sample").prompts[:4]),
    "code": Path(coarse.__file__).read_text(),
    "a word over and over": "again " * 300,
    "other languages": "Der Ball ist rund und das Spiel dauert neunzig Minuten. 北京是中国的首都。 " * 12,
    "numbers": " ".join(str(number * 37 % 1000) for number in range(150)),
}


def test_a_real_model_within_a_hundredth_of_a_nat(smollm2):
    within_a_hundredth_of_a_nat(smollm2)


def within_a_hundredth_of_a_nat(model):
    """Of 99 of 100 states over all layers, within two of the last one; and with the same first choice."""
    head = lens.CoarseHead(model.unembed)
    for text in TEXTS.values():
        misses = {}
        for layer, states in states_of(model, text).items():
            fine, rough = lens.read(states, model.unembed), head.read(states)
            misses[layer] = (fine.entropy - rough.entropy).abs()
            assert (fine.top_token_id == rough.top_token_id).float().mean() > 0.98
        assert torch.cat(list(misses.values())).quantile(0.99) < 0.01
        assert misses[model.n_layers].quantile(0.99) < 0.02


def states_of(model, text):
    """What goes into the final norm after a sixth of the layers, by layer: [positions, d], every third position."""
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, :150]
    found = {}
    hooks = [
        block.register_forward_hook(
            lambda module, inputs, output, layer=layer: found.update(
                {layer: (output[0] if isinstance(output, tuple) else output)[0, ::3]}
            )
        )
        for layer, block in enumerate(model.hf.model.layers, start=1)
        if layer % 6 == 0
    ]
    with torch.no_grad():
        model.hf(ids)
    for hook in hooks:
        hook.remove()
    return found


def test_a_trace(run_of, any_processor):
    texts = ["Hello there, you", "a"]
    fine, rough = (
        run_of(tiny("gemma2", vocab_size=1500), texts, max_new_tokens=4, lens_precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert rough.manifest["options"]["lens_precision"] == "bfloat16"
    np.testing.assert_array_equal(fine.layers("norm_ratio"), rough.layers("norm_ratio"))
    miss = np.abs(fine.layers("entropy") - rough.layers("entropy"))
    assert 0 < miss.max() < 0.01


@pytest.mark.parametrize("options", [{"lens_precision": "int3"}, {"kl": True, "lens_precision": "bfloat16"}])
def test_options_that_do_not_fit(run_of, options):
    with refused(ll.OptionError, *next(iter(options.items()))):
        run_of(tiny("llama"), ["a"], max_new_tokens=0, **options)


def test_where_it_would_not_be_faster_it_is_refused(run_of, monkeypatch):
    monkeypatch.setattr(coarse, "has_fast_bfloat16", lambda: False)
    with refused(ll.OptionError, "lens_precision", "bfloat16", advice="leave"):
        run_of(tiny("llama"), ["a"], max_new_tokens=0, lens_precision="bfloat16")
    with refused(ll.OptionError, "lens_precision", "bfloat16", advice="dtype 'bfloat16'"):
        lens.refuse_without_bfloat16(torch.device("cuda"))


def test_measures_of_another_library_are_in_float32(run_of, tiny_folder, any_processor):
    pytest.importorskip("nnsight")
    model = ll.load(tiny_folder("llama"), backend="nnsight")
    with refused(ll.OptionError, "lens_precision", "bfloat16", problem="nnsight"):
        run_of(model, ["a"], max_new_tokens=0, lens_precision="bfloat16")
