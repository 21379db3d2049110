"""Traces whose tokens were drafted: the same rows, with the same numbers, as without drafts."""

import itertools

import numpy as np
import pytest

import layerlens as ll
from layerlens.records import token_columns
from layerlens.tracing import meter
from tests.conftest import tiny
from tests.refusals import refused
from tests.thorough import some

TEXTS = ["Hello", "What is it?", "x"]
EAGER = {"length": 4, "threshold": 0.0, "patience": None}
ASKED = {"targets": True, "top": 2, "kl": True}
POLICIES = {
    "fixed": lambda: ll.FixedSkip([2], **EAGER),
    "tree": lambda: ll.FixedSkip([2, 3], tree=True, **EAGER),
    "swift": lambda: ll.Swift(context_window=2, **EAGER),
}
FAMILIES = ["llama", "gemma2", "gpt2"]
SEEDS = {"gemma2": {"seed": 3}}  # whose text is not one token again and again


def model_of(family):
    return tiny(family, **SEEDS.get(family, {}))


def both(run_of, model, policy, strategy, **options):
    """A run without drafts, one with them, and what made the drafts."""
    drafter = ll.Drafter(model, policy)
    plain = run_of(model, TEXTS, strategy=strategy, **options)
    return plain, run_of(model, TEXTS, strategy=strategy, draft=drafter, **options), drafter


def assert_same_records(plain, drafted):
    """The same rows in the same order, the same ids, and numbers that differ by rounding."""
    assert plain.positions.dtypes.equals(drafted.positions.dtypes)
    assert plain.positions.equals(drafted.positions)
    assert plain.prompts.drop(columns="seconds").equals(drafted.prompts.drop(columns="seconds"))
    names = [column.name for column in token_columns(plain.manifest)]
    assert names == [column.name for column in token_columns(drafted.manifest)]
    for name in names:
        if name in plain.positions:
            continue
        one, other = plain.layers(name), drafted.layers(name)
        assert one.dtype == other.dtype
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


def n_accepted_and_rejected(drafter):
    rounds = drafter.rounds
    drafted, accepted = ((rounds[name] * rounds["n_rows"]).sum() for name in ("drafted", "accepted"))
    return round(accepted), round(drafted - accepted)


@pytest.mark.parametrize(
    "how",
    some(
        itertools.product(FAMILIES, [ll.Last(), ll.Valley(window=3)], ["generate", "replay"], ["generated", "all"]), 8
    ),
)
def test_a_trace_with_drafts_is_the_trace_without(run_of, how):
    family, strategy, mode, positions = how
    model = model_of(family)
    options = {"max_new_tokens": 16, "batch_size": 3, "mode": mode, "positions": positions, "strategy": strategy}
    plain = run_of(model, TEXTS, **options, **ASKED)
    assert len(plain.positions) == 3 * 16 + (sum(map(len, TEXTS)) - 3) * (positions == "all")
    for name, policy in POLICIES.items():
        drafter = ll.Drafter(model, policy())
        assert_same_records(plain, run_of(model, TEXTS, draft=drafter, **options, **ASKED))
        assert sum(n_accepted_and_rejected(drafter)) > 0, name
        assert n_accepted_and_rejected(drafter)[0] > 0 or name != "fixed", "a model on which drafts are often right"


@pytest.mark.parametrize("family", FAMILIES)
def test_some_drafts_are_accepted_and_others_rejected(family):
    """So that the tests above are of both."""
    drafter = ll.Drafter(model_of(family), POLICIES["fixed"]())
    ll.generate(drafter.model, TEXTS, draft=drafter, max_new_tokens=16, batch_size=3)
    assert min(n_accepted_and_rejected(drafter)) > 2


@pytest.mark.parametrize("rows_waiting", [1, 5])
def test_however_many_states_wait(run_of, monkeypatch, rows_waiting):
    """States of rejected tokens wait among the others, and none of them is taken for one of the text."""
    monkeypatch.setattr(meter, "_MOST_ROWS_WAITING", rows_waiting)
    monkeypatch.setattr(meter, "_LEAST_ROWS_WAITING", 1)
    options = {"max_new_tokens": 16, "batch_size": 3, "js": True, "sublayers": True, **ASKED}
    plain, drafted, drafter = both(run_of, tiny("llama"), POLICIES["fixed"](), ll.Last(), **options)
    assert_same_records(plain, drafted)
    assert min(n_accepted_and_rejected(drafter)) > 2


@pytest.mark.parametrize("mode", ["generate", "replay"])
def test_texts_that_end_within_an_accepted_draft(run_of, monkeypatch, mode):
    """What was accepted beyond the end is in no record, and the other rows go on."""
    model = tiny("llama")
    free = run_of(model, TEXTS, max_new_tokens=16)
    emitted = [rows["next_token_id"].tolist() for _, rows in free.positions.groupby("prompt_id", sort=False)]
    ends = [emitted[0][9], emitted[2][6]]
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", ends)
    options = {"max_new_tokens": 16, "batch_size": 3, "mode": mode, "positions": "all", **ASKED}
    plain, drafted, _ = both(run_of, model, POLICIES["fixed"](), ll.Last(), **options)
    assert_same_records(plain, drafted)
    lengths = [next((at + 1 for at, token in enumerate(row) if token in ends), 16) for row in emitted]
    assert drafted.prompts["n_generated_tokens"].tolist() == lengths
    assert len(set(lengths)) > 1
    assert set(drafted.prompts["finish_reason"]) == {"stop", "length"} or max(lengths) < 16


def test_one_search_serves_all_batches_of_a_run(run_of):
    """What it finds for the first prompts drafts for the next ones."""
    model = tiny("llama")
    drafter = ll.Drafter(model, ll.Swift(context_window=2, max_proposals=3, **EAGER))
    options = {"max_new_tokens": 12, "batch_size": 1, **ASKED}
    plain = run_of(model, TEXTS, **options)
    drafted = run_of(model, TEXTS, draft=drafter, **options)
    assert_same_records(plain, drafted)
    assert drafter.search.n_proposals == 3
    assert drafter.search.is_over
    assert drafter.rounds["is_over"].any()


def test_a_trace_goes_on_where_drafting_was_given_up(run_of):
    model, options = tiny("llama"), {"max_new_tokens": 16, "batch_size": 3, **ASKED}
    drafter = ll.Drafter(model, ll.FixedSkip([2], length=4, threshold=0.0))
    plain = run_of(model, TEXTS, **options)
    drafter.pays = False
    assert_same_records(plain, run_of(model, TEXTS, draft=drafter, **options))
    assert drafter.rounds.empty


@pytest.mark.parametrize("draft", ["every-other", ll.EveryOther(**EAGER)], ids=["name", "policy"])
def test_the_manifest_names_the_policy_with_its_options(run_of, draft):
    run = run_of(tiny("llama"), ["Hello"], max_new_tokens=6, draft=draft)
    given = EAGER if isinstance(draft, ll.EveryOther) else {}
    expected = {"name": "every-other", "length": 25, "threshold": 0.8, "tree": False, "patience": 100} | given
    assert run.manifest["options"]["draft"] == expected


def test_sampled_tokens_have_the_records_of_a_replay_of_their_text(run_of):
    """Which tokens are drawn differs from a trace without drafts, and what is said of them does not."""
    model, options = tiny("llama"), {"max_new_tokens": 16, "positions": "all", **ASKED}
    drafter = ll.Drafter(model, POLICIES["fixed"]())
    run = run_of(model, TEXTS, draft=drafter, temperature=1.0, seed=4, batch_size=3, **options)
    again = run_of(
        model, TEXTS, draft=POLICIES["fixed"](), temperature=1.0, seed=4, batch_size=3, mode="replay", **options
    )
    assert_same_records(run, again)
    assert min(n_accepted_and_rejected(drafter)) > 0


def test_what_cannot_be_drafted_is_refused(run_of, tmp_path):
    model = tiny("llama")
    with refused(ll.OptionError, "draft", "every-other"):
        run_of(model, TEXTS, max_new_tokens=0, draft="every-other")
    with refused(ll.OptionError, "draft", "every-othr", advice="every-other"):
        run_of(model, TEXTS, max_new_tokens=2, draft="every-othr")
    with refused(ll.OptionError, "draft", 3):
        run_of(model, TEXTS, max_new_tokens=2, draft=3)
    with refused(ll.OptionError, "draft", tiny("gpt2").source):
        run_of(model, TEXTS, max_new_tokens=2, draft=ll.Drafter(tiny("gpt2"), ll.EveryOther()))
    with refused(ll.OptionError, "skipped"):
        run_of(model, TEXTS, max_new_tokens=2, draft=ll.FixedSkip([0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["mamba", "mamba2", "qwen3_next"])
def test_a_model_that_takes_nothing_back_is_refused(run_of, tmp_path, family):
    with refused(ll.ModelError, "draft"):
        run_of(tiny(family), TEXTS, max_new_tokens=2, draft=ll.FixedSkip([2]))
    assert not list(tmp_path.iterdir())


def test_a_model_whose_weights_are_elsewhere_is_refused(tiny_folder, run_of, tmp_path):
    pytest.importorskip("nnsight")
    model = ll.load(tiny_folder("llama"), backend="nnsight-simulated")
    with refused(ll.ModelError, "draft", "nnsight-simulated"):
        run_of(model, TEXTS, max_new_tokens=2, draft="every-other")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["nnsight", "transformer-lens"])
def test_drafts_with_the_weights_in_another_library(tiny_folder, run_of, backend):
    pytest.importorskip(backend.replace("-", "_"))
    model = ll.load(tiny_folder("llama"), backend=backend)
    options = {"max_new_tokens": 12, "mode": "replay", "batch_size": 3}
    plain, drafted, drafter = both(run_of, model, POLICIES["fixed"](), ll.Last(), **options)
    assert_same_records(plain, drafted)
    assert sum(n_accepted_and_rejected(drafter)) > 0
