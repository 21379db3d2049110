"""The logits of a step by the strategy of each request. A model of transformers stands where vLLM's would."""

import numpy as np
import pytest
import torch
from scipy import stats

from layerlens import SLED, DoLa, Fixed, Last, Valley
from layerlens.decode.readouts import Readouts
from layerlens.engines.vllm import serving as module
from layerlens.engines.vllm.head import Reads
from layerlens.engines.vllm.options import EngineOptions, RequestOptions
from layerlens.engines.vllm.serving import Row, Serving, uniform
from layerlens.errors import OptionError
from tests.conftest import tiny
from tests.refusals import refused


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """A model runner that tells its requests."""
    monkeypatch.setattr(module.here, "is_told", True)


ALL = EngineOptions(Valley(window=4), (SLED(),))


@pytest.fixture(scope="module", params=["llama", "gemma2", "cohere"])
def model(request):
    """Soft-cap in the second, logit scale in the third."""
    return tiny(request.param)


@pytest.fixture(scope="module")
def states(model):
    ids = torch.arange(12).view(6, 2) + 5
    with torch.no_grad():
        out = model.hf.model(ids, output_hidden_states=True).hidden_states
    found = {layer: state[:, -1] for layer, state in enumerate(out)}
    # transformers gives the last state after the norm; the head of the test needs the one before, too
    seen = []
    handle = model.blocks[-1].register_forward_hook(lambda _block, _given, out: seen.append(out))
    with torch.no_grad():
        model.hf.model(ids)
    handle.remove()
    raw = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return found | {model.n_layers: raw[:, -1]}


def served(model, states, rows, options=ALL):
    """Serving, and the logits that it gives to these rows."""
    serving = Serving(options, model.n_layers, model.tied)
    norm = model.hf.model.norm
    normed = norm(states[model.n_layers])
    kept = torch.stack([*(states[layer] for layer in serving.layers), normed], dim=1)[: len(rows)]
    unembed = model.unembed
    reads = Reads(
        norm,
        # the model's own way, which knows nothing of our Unembed
        lambda normed: own_logits(model, normed),
        unembed.n_vocab,
    )
    serving.expect(rows, list)
    with torch.no_grad():
        return serving, serving.logits(kept, reads), (kept, reads)


def own_logits(model, normed):
    logits = model.hf.lm_head(normed)
    config = model.hf.config
    if getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / config.final_logit_softcapping) * config.final_logit_softcapping
    return logits * getattr(config, "logit_scale", 1.0)


def expected(model, states, strategy, index, draw):
    """What our own head makes of one row."""
    layers = strategy.layers(model.n_layers, model.tied) or [model.n_layers]
    one = {layer: states[layer][index : index + 1] for layer in layers}
    with torch.no_grad():
        readouts = Readouts(model.unembed, one, model.n_layers, torch.tensor([draw]), tied=model.tied)
        return strategy.choose(readouts)


STRATEGIES = [
    Valley(window=4),
    Last(),
    Valley(window=2),
    Fixed(1),
    Valley(window=4, p=0.5),
    Valley(window=3, shift=-1),
    Valley(window=4, criterion="margin"),
    Valley(window=4, entropy_floor=0.5),
    DoLa(candidates="low", per="row"),
    SLED(),
]


def test_each_row_has_the_logits_of_its_own_strategy(model, states):
    for start in (0, 4):
        chosen = STRATEGIES[start : start + 6]
        rows = [Row(RequestOptions(one, seed=3, id=str(n)), n) for n, one in enumerate(chosen)]
        serving, logits, _ = served(model, states, rows)
        records = serving.store.take()
        for index, strategy in enumerate(chosen):
            choice = expected(model, states, strategy, index, uniform(3, index))
            torch.testing.assert_close(logits[index : index + 1], choice.logits, rtol=1e-4, atol=1e-4)
            record = records[str(index)]
            assert record["place"] == [index]
            assert record["selected_layer"] == choice.selected_layer.tolist()
            assert record["last_token_id"] == choice.last_token_id.tolist()
            if choice.values is not None:
                np.testing.assert_allclose(record["values"], choice.values, rtol=1e-4, atol=1e-4)


def test_the_rows_of_a_large_batch_are_read_in_parts(model, states, monkeypatch):
    rows = [Row(RequestOptions(Valley(window=4), id=str(n)), 0) for n in range(6)]
    whole, logits, _ = served(model, states, rows)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 2 * 4 * model.n_vocab + 1)
    parts, again, _ = served(model, states, rows)
    torch.testing.assert_close(again, logits)
    found, wanted = parts.store.take(), whole.store.take()
    assert list(found) == list(wanted) == [str(n) for n in range(6)]
    for id, record in wanted.items():
        np.testing.assert_allclose(found[id].pop("values"), record.pop("values"), rtol=1e-5)
        assert found[id] == record


def test_further_calls_of_a_step_get_the_last_layers_logits(model, states):
    rows = [Row(RequestOptions(Fixed(2)), 0)] * 6
    serving, logits, (kept, reads) = served(model, states, rows)
    own = own_logits(model, kept[:, -1])
    assert not torch.allclose(logits, own)
    assert torch.equal(serving.logits(kept, reads), own)
    assert torch.equal(serving.logits(kept[:2], reads), own_logits(model, kept[:2, -1]))


def test_before_the_first_step_all_rows_are_read_as_the_engine_reads_them(model, states):
    _, logits, (kept, reads) = served(model, states, [Row(RequestOptions(Valley(window=4)), 0)] * 6)
    fresh = Serving(ALL, model.n_layers, model.tied)
    assert torch.equal(fresh.logits(kept, reads), logits)
    assert fresh.store.take() == {}


def test_another_number_of_rows_than_announced_is_an_error(model, states):
    serving, _, (kept, reads) = served(model, states, [Row(RequestOptions(Last()), 0)] * 6)
    serving.expect([Row(RequestOptions(Last()), 0)] * 5, list)
    with pytest.raises(RuntimeError, match="6 rows, but 5 requests"):
        serving.logits(kept, reads)


def test_a_request_without_an_id_leaves_no_record_and_neither_does_a_part_of_a_prompt(model, states):
    rows = [Row(RequestOptions(Valley(window=4), id="a"), -3), Row(RequestOptions(Valley(window=4)), 2)]
    serving, _, _ = served(model, states, rows)
    assert serving.store.take() == {}


def test_draws_depend_on_seed_and_token_alone_and_are_uniform():
    draws = np.array([[uniform(seed, place) for place in range(500)] for seed in range(40)])
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.01
    assert len(np.unique(draws)) > 0.99 * draws.size
    assert abs(np.corrcoef(draws)[~np.eye(40, dtype=bool)]).max() < 0.25
    assert abs(np.corrcoef(draws.T[:40])[~np.eye(40, dtype=bool)]).max() < 0.65
    assert 0 <= draws.min() < draws.max() < 1
    assert draws[3, 7] == uniform(3, 7) == np.float32(uniform(3, 7))


def test_an_engine_that_does_not_tell_its_requests_is_an_error(model, states, monkeypatch):
    monkeypatch.setattr(module.here, "is_told", False)
    with pytest.raises(RuntimeError, match="did not load"):
        served(model, states, [Row(RequestOptions(Last()), 0)] * 6)


@pytest.mark.parametrize(
    ("ids", "next_ids", "option"),
    [
        ("a", None, "ids"),
        (["a"], {"b": 3}, "next_ids"),
        (["a"], {"a": "x"}, "next_ids"),
        (["a"], {"a": None}, "next_ids"),
        (["a"], {"a": -1}, "next_ids"),
        (["a"], {"a": 10**6}, "next_ids"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_nothing_is_lost(model, states, ids, next_ids, option):
    serving, _, (_, reads) = served(model, states, [Row(RequestOptions(Valley(window=4), id="a"), 0)])
    serving._reads = reads
    with refused(OptionError, option):
        serving.take(ids, next_ids)
    assert list(serving.take(["a"])) == ["a"]
