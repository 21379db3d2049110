"""The copy of an unembedding that decoding multiplies by: its numbers are the weight's, and it never outlives them."""

import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.models import laid_out, memory
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.models.unembed import Unembed

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def head(vocab=257, d=33, **kwargs):
    torch.manual_seed(0)
    return Unembed([nn.LayerNorm(d)], kwargs.pop("weight", torch.randn(vocab, d)), **kwargs)


def used_often(unembed, rows=10):
    d = unembed.weight.shape[1]
    for _ in range(laid_out._USES):
        unembed.logits(torch.randn(rows, d), often=True)
    return unembed


def exact(unembed, states):
    """In float64, by plain operations."""
    logits = nn.functional.layer_norm(states, states.shape[1:]).double() @ unembed.weight.double().t()
    if unembed.bias is not None:
        logits = logits + unembed.bias.double()
    logits = logits * unembed.scale
    return logits if unembed.softcap is None else unembed.softcap * torch.tanh(logits / unembed.softcap)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 10, 16, 80])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": torch.linspace(-2, 2, 257), "scale": 0.25, "softcap": 3.0},
        {"weight": torch.randn(33, 257).t()},  # not contiguous
        {"weight": torch.randn(514, 33)[::2]},
        {"weight": torch.randn(257, 33, dtype=torch.bfloat16)},
        {"weight": torch.randn(257, 33, dtype=torch.float16)},
        {"weight": nn.Parameter(torch.randn(257, 33))},
    ],
    ids=["plain", "bias, scale, soft-cap", "transposed", "strided", "bfloat16", "float16", "parameter"],
)
@torch.no_grad()
def test_logits_are_those_of_float64_before_and_after_the_copy(rows, options):
    unembed = head(**options)
    states = torch.randn(rows, 33)
    before = unembed.logits(states, often=True)
    used_often(unembed, rows=10 if rows else 0)
    after = unembed.logits(states, often=True)
    has_copy = unembed.weight.dtype == torch.float32 and unembed.weight.is_contiguous() and rows > 0
    assert (unembed.laid_out.n_bytes > 0) == has_copy
    assert torch.equal(before, after), "a copy must not change a bit"
    torch.testing.assert_close(after.double(), exact(unembed, states), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_it_is_made_when_it_pays_and_only_for_who_asks_often():
    unembed = head()
    for _ in range(3 * laid_out._USES):
        unembed.logits(torch.randn(10, 33))
    for _ in range(3 * laid_out._USES):
        unembed.logits(torch.randn(1, 33), often=True)  # one state is multiplied in the weight's own order
    for _ in range(laid_out._USES - 1):
        unembed.logits(torch.randn(2, 33), often=True)
    assert unembed.laid_out.n_bytes == 0
    unembed.logits(torch.randn(2, 33), often=True)
    assert unembed.laid_out.n_bytes >= unembed.weight.nbytes
    assert replace(unembed, scale=2.0).laid_out is unembed.laid_out
    for other in (copy.deepcopy(unembed), copy.copy(unembed.laid_out)):
        assert getattr(other, "laid_out", other).n_bytes == 0


@pytest.mark.parametrize("free", [0, 4 * 257 * 33 * 4 - 1])
@torch.no_grad()
def test_it_takes_no_more_than_a_quarter_of_the_free_memory(monkeypatch, free):
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": free})
    unembed = used_often(head())
    assert unembed.laid_out.n_bytes == 0
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": free + 1})
    assert (used_often(head()).laid_out.n_bytes > 0) == (free > 0)


@pytest.mark.parametrize("change", ["in place", "a row", "another tensor", "optimizer"])
@torch.no_grad()
def test_a_weight_that_changed_is_read_anew(change):
    model = nn.Linear(33, 257, bias=False)
    unembed = used_often(head(weight=model.weight))
    states = torch.randn(10, 33)
    assert unembed.laid_out.n_bytes
    if change == "in place":
        model.weight.mul_(2)
    elif change == "a row":
        model.weight[5] = 1.0
    elif change == "another tensor":
        model.weight.data = torch.randn(257, 33)
    else:
        model.weight.grad = torch.randn_like(model.weight)
        torch.optim.SGD([model.weight], lr=0.5).step()
    for _ in range(laid_out._USES + 1):
        torch.testing.assert_close(
            unembed.logits(states, often=True).double(), exact(unembed, states), rtol=1e-5, atol=1e-4
        )


def test_a_generation_after_one_row_was_changed_past_its_version_reads_the_new_row():
    model = ll.load(tiny_model("llama", seed=0), tokenizer=tiny_tokenizer())
    options = {"strategy": ll.Valley(window=2), "max_new_tokens": laid_out._USES + 4, "chat_template": False}
    ll.generate(model, "one two three", **options)
    assert model.unembed.laid_out.n_bytes > 0
    word = 7
    model.unembed.weight.data[word] *= 50.0  # no version is counted
    found = ll.generate(model, "one two three", **options)
    fresh = ll.load(model.hf, tokenizer=model.tokenizer)
    assert found.token_ids == ll.generate(fresh, "one two three", **options).token_ids


def test_tokens_and_layers_are_the_same_with_and_without_the_copy(monkeypatch):
    model = ll.load(tiny_model("llama", seed=0), tokenizer=tiny_tokenizer())
    options = {"strategy": ll.Valley(window=2), "max_new_tokens": 30, "chat_template": False}
    with_copy = ll.generate(model, "one two three", **options)
    assert model.unembed.laid_out.n_bytes > 0
    model.unembed.laid_out.drop()
    monkeypatch.setattr(laid_out, "_is_room", lambda _: False)
    without = ll.generate(model, "one two three", **options)
    assert model.unembed.laid_out.n_bytes == 0
    assert with_copy.steps.equals(without.steps)


_SAME_BITS = """
import torch
from torch import nn
from layerlens.models import laid_out
from layerlens.models.unembed import Unembed
torch.manual_seed(0)
unembed = Unembed([nn.Identity()], torch.randn(5000, 576))
states = [torch.randn(rows, 576) for rows in (2, 3, 10, 16, 80)]
before = [unembed.logits(some, often=True) for some in states]
unembed.logits(states[0], often=True), unembed.logits(states[0], often=True)
for one, some in zip(before, states):
    after = unembed.logits(some, often=True)
    assert unembed.laid_out.n_bytes and torch.equal(one, after), len(some)
    assert (after.double() - some.double() @ unembed.weight.double().t()).abs().max() < 1e-3
print("same")
"""


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("most", ["AVX2", "AVX512_CORE"])
def test_the_bits_are_the_same_in_each_instruction_set(most, threads):
    done = subprocess.run(
        [sys.executable, "-c", _SAME_BITS],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": most},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "same\n", done.stderr
