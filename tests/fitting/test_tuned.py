"""The tuned lens is trained on the true slope of KL, and never ends worse than it began."""

from copy import deepcopy

import pytest
import torch

import layerlens as ll
from layerlens.fitting import tuned, workplace
from layerlens.fitting.slopes import kl_and_slopes
from layerlens.lens import read
from layerlens.lens.files import read_lens
from layerlens.lens.opening import open_lens
from tests.conftest import tiny
from tests.fitting.test_linear import same_tensors, texts
from tests.refusals import refused
from tests.thorough import some

pytestmark = pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")

# plain, soft-cap, logit scale, bias, a projection before the head, a tied one with layer norm
FAMILIES = ["llama", "gemma2", "cohere", "granite", "phi", "gptj", "opt", "gpt2"]


def fitted(model, tmp_path, prompts=None, name="tuned", **options):
    out, given = tmp_path / f"{name}.safetensors", texts(60) if prompts is None else prompts
    return ll.fit_lens(model, given, "tuned", out=out, progress=False, **({"steps": 30} | options))


def plain_kl(model, states, last):
    """KL(p_L ‖ p_l) of each row in float64, by a copy of the head that computes everything at once."""
    tail = [deepcopy(module).double() for module in model.unembed.tail]

    def log_probs(of):
        for module in tail:
            of = module(of)
        logits = of @ model.unembed.weight.detach().double().T
        logits = logits if model.unembed.bias is None else logits + model.unembed.bias.detach().double()
        logits = logits * model.unembed.scale
        cap = model.unembed.softcap
        return (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(1)

    target = log_probs(last).detach()
    return (target.exp() * (target - log_probs(states))).sum(1)


@pytest.mark.parametrize("words", [7, 64, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_and_slope_are_those_of_plain_autograd_in_float64(family, words):
    model = tiny(family)
    draws = torch.Generator().manual_seed(0)
    last, *layers = (3 * torch.randn(6, model.d_model, generator=draws) for _ in range(3))
    unembed = model.unembed
    leaves = [layer.clone().requires_grad_() for layer in layers]
    normed = [unembed.normed(leaf) for leaf in leaves]
    with torch.no_grad():
        normed_last = unembed.normed(last)
    divergences, slopes = kl_and_slopes(normed, normed_last, read(last, unembed), unembed, words)
    for layer, leaf, of_head, slope, divergence in zip(layers, leaves, normed, slopes, divergences, strict=True):
        wide = layer.double().requires_grad_()
        expected = plain_kl(model, wide, last.double())
        torch.testing.assert_close(divergence.double(), expected.detach(), rtol=1e-4, atol=1e-5)
        (ours,) = torch.autograd.grad(of_head, leaf, slope)
        (theirs,) = torch.autograd.grad(expected.sum(), wide)
        largest = float(theirs.abs().max())
        assert largest > 1e-5
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4 * largest)


def test_a_banned_word_has_no_slope():
    model = tiny("phi")
    bias = model.unembed.bias.detach().clone()
    bias[5] = -torch.inf
    unembed = ll.models.unembed.Unembed(model.unembed.tail, model.unembed.weight, bias)
    last, state = torch.randn(2, 4, model.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        divergences, slopes = kl_and_slopes([unembed.normed(state)], unembed.normed(last), read(last, unembed), unembed)
    assert divergences.isfinite().all()
    assert slopes[0].isfinite().all()


@pytest.mark.parametrize("family", some(["llama", "gemma2", "opt"], 1))
def test_training_lowers_the_divergence_on_texts_not_used(family, tmp_path):
    model, given = tiny(family), texts(300)
    linear = ll.fit_lens(model, given, out=tmp_path / "linear.safetensors", progress=False)
    found = fitted(model, tmp_path, given, start=linear.lens, steps=100, learning_rate=1e-3)
    assert found.gain["kl_lens"].mean() < 0.99 * linear.gain["kl_lens"].mean()
    held_out = found.said["held_out_kl"], found.said["held_out_kl_at_start"]
    assert all(best <= first for best, first in zip(*held_out, strict=True))
    assert found.gain["kl_logit"].tolist() == linear.gain["kl_logit"].tolist(), "the same texts"


def test_a_rate_that_ruins_everything_leaves_the_linear_lens(tmp_path):
    model = tiny("llama")
    linear = ll.fit_lens(model, texts(60), out=tmp_path / "linear.safetensors", progress=False)
    found = fitted(model, tmp_path, start=linear.lens, learning_rate=1e3)
    assert found.said["held_out_kl"] == found.said["held_out_kl_at_start"]
    one, other = open_lens(linear.lens, model), open_lens(found.lens, model)
    states = torch.randn(5, model.d_model)
    for layer in range(model.n_layers):
        torch.testing.assert_close(one(states, layer), other(states, layer), rtol=1e-4, atol=1e-4)


def test_without_a_start_it_begins_as_the_linear_lens_of_the_same_texts(tmp_path):
    model = tiny("llama")
    linear = ll.fit_lens(model, texts(60), out=tmp_path / "linear.safetensors", progress=False)
    same_tensors(fitted(model, tmp_path).path, fitted(model, tmp_path, start=linear.lens, name="given").path, "tuned")


def test_it_adds_to_the_state_and_is_read_as_it_was_measured(tmp_path):
    model = tiny("llama")
    found = fitted(model, tmp_path)
    stored = read_lens("tuned", found.path)
    assert stored.adds
    states = torch.randn(4, model.d_model)
    expected = states + states @ stored.weights[1].T + stored.biases[1]
    torch.testing.assert_close(open_lens(found.lens, model)(states, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stops_at", [1, 14])
def test_training_that_stopped_goes_on_to_the_same_lens(stops_at, tmp_path, monkeypatch):
    model = tiny("llama")
    whole = fitted(model, tmp_path, name="whole")
    monkeypatch.setattr(workplace, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(workplace, "_SHARE_OF_TIME", 0)
    step, taken = tuned._Training.step, []

    def stopping(self, *given):
        taken.append(given)
        if len(taken) == stops_at:
            raise KeyboardInterrupt
        step(self, *given)

    monkeypatch.setattr(tuned._Training, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(model, tmp_path)
    again = fitted(model, tmp_path, resume=True)
    assert len(taken) == 31
    same_tensors(whole.path, again.path, "tuned")
    assert again.said["held_out_kl"] == whole.said["held_out_kl"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("states", 0), ("learning_rate", 0.0), ("learning_rate", "x"), ("start", "tuned:x"), ("start", "x")],
)
def test_options_that_cannot_be_are_refused(option, value, tmp_path):
    with refused(ll.OptionError, option, value):
        fitted(tiny("llama"), tmp_path, **{option: value})


def test_a_start_of_another_model_is_refused(tmp_path):
    linear = ll.fit_lens(tiny("llama"), texts(60), out=tmp_path / "linear.safetensors", progress=False)
    with refused(ll.OptionError, "start", linear.lens, problem=f"start {linear.lens!r} was made for"):
        fitted(tiny("qwen3"), tmp_path, start=linear.lens)
