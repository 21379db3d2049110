"""analyses/temperature.py: a run read again against what its tracer wrote; temperatures against scipy in float64."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "analyses"


@pytest.fixture
def temperature(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FOLDER / "temperature.py"))


def test_a_run_that_is_read_again_has_the_numbers_of_its_tracer(temperature, tmp_path):
    model = ll.load(tiny_model("llama", num_hidden_layers=4, max_position_embeddings=512), tokenizer=tiny_tokenizer())
    options = {"max_new_tokens": 9, "batch_size": 2, "progress": False, "kl": True}
    run = ll.trace(model, ll.dataset("sample", limit=4), out=tmp_path / "run", strategy=ll.Last(), **options)
    with torch.no_grad():
        rows = {row.quantity: row for row in temperature["rows_of"](run, model)}
    entropy, kl = run.layers("entropy").astype(float), run.layers("kl_last_to_layer")[:, -2]
    change = entropy[:, -1] - entropy[:, -2]
    assert rows["entropy change at L, all, as the lens is"].value == pytest.approx(change.mean(), abs=1e-5)
    assert rows["KL(L || L-1), all, as the lens is"].value == pytest.approx(kl.mean(), abs=1e-5)
    assert rows["surplus at L-1, all, as the lens is"].value == pytest.approx((change + kl).mean(), abs=2e-5)
    assert rows["perturbed tokens, as the lens is"].value == pytest.approx(100 * (change > 0).mean())
    assert rows["perturbed tokens, as the lens is"].n_tokens == len(change)


def test_a_temperature_divides_the_logits(temperature):
    z, p = np.random.default_rng(0).normal(size=(2, 5, 40))
    p = special.softmax(p, axis=1)
    found = temperature["_at"](torch.tensor(z), 1.7, torch.tensor(p), torch.tensor(stats.entropy(p, axis=1)))
    q = special.softmax(z / 1.7, axis=1)
    assert found[0].numpy() == pytest.approx(stats.entropy(q, axis=1), abs=1e-12)
    assert found[1].numpy() == pytest.approx(stats.entropy(p, q, axis=1), abs=1e-12)


def test_no_prompt_is_read_at_a_temperature_that_it_chose(temperature):
    prefers = lambda best: np.abs(np.arange(7) - best)[None].repeat(3, axis=0)  # noqa: E731
    assert temperature["chosen"]([prefers(2), prefers(5), prefers(2), prefers(5)]) == [5, 2, 5, 2]


def test_one_of_the_temperatures_leaves_the_lens_as_it_is(temperature):
    assert temperature["TEMPERATURES"][temperature["AS_IT_IS"]] == 1
