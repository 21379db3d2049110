"""Options of every policy, policies by name and by somebody else, and what is chosen before the first token."""

import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.decode.speculative import registry as names
from layerlens.decode.speculative.policy import candidates, n_of
from layerlens.decode.speculative.registry import (
    named_skip_policy,
    policy_name,
    policy_record,
    refuse_unknown_policy,
    register_skip_policy,
    skip_policy_names,
)
from layerlens.errors import ModelError, OptionError, RunError
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import stateful, tiny
from tests.decode.speculative.passes import deep
from tests.refusals import refused

NEEDED = {"fixed": {"skipped": [1]}, "traced": {"run": "runs/a"}}
KINDS = {
    "conflayers": ll.ConfLayers,
    "swift": ll.Swift,
    "clasp": ll.Clasp,
    "knapspec": ll.KnapSpec,
    "every-other": ll.EveryOther,
    "fixed": ll.FixedSkip,
    "traced": ll.Traced,
}
NO_NUMBERS = ["0.5", None, [0.5], True, 1j]
NO_SHARES = [-0.01, 1.01, math.nan, math.inf, -math.inf, 45, *NO_NUMBERS]
NO_WHOLE = [1.0, 2.5, "3", [3], True, False, math.nan, 2**31 + 1, -(2**70)]
NO_COUNTS = [0, -1, None, *NO_WHOLE]
COMMON = {
    "length": [0, -3, 1001, None, *NO_WHOLE],
    "threshold": NO_SHARES,
    "tree": [None, 0, 1, "yes", "True", [True], np.True_],
    "patience": [0, -1, *NO_WHOLE],
}
OWN = {
    "conflayers": {
        "readout": ["logits", "Hidden", "", None, 3, ["hidden"], {}],
        "skip_ratio": NO_SHARES,
        "lam": [-10.01, 10.01, math.nan, math.inf, *NO_NUMBERS],
        "context_window": NO_COUNTS,
        "search_interval": [1, *NO_COUNTS],
        "max_proposals": NO_COUNTS,
    },
    "swift": {
        "skip_ratio": NO_SHARES,
        "context_window": NO_COUNTS,
        "good_score": NO_SHARES,
        "max_without_gain": NO_COUNTS,
        "max_proposals": NO_COUNTS,
        "seed": [-1, None, *NO_WHOLE],
    },
    "clasp": {"skip_ratio": NO_SHARES, "search_interval": NO_COUNTS},
    "knapspec": {"skip_ratio": NO_SHARES, "context_window": NO_COUNTS, "search_interval": NO_COUNTS},
    "every-other": {},
    "fixed": {"skipped": [None, 3, 2.5, [1.0], ["1"], [True], [None], {"a": 1}, [[1]], (1, 2.5), object]},
    "traced": {"skip_ratio": NO_SHARES, "run": [None, 3, 2.5, ["runs/a"], True]},
}


def test_every_option_is_tried():
    """The tables above name each policy, and each of its fields."""
    assert set(OWN) == set(KINDS) == set(names._BUILT_IN)
    for name, kind in KINDS.items():
        assert {*OWN[name], *COMMON} == {one.name for one in fields(kind)}


@pytest.mark.parametrize("name", KINDS)
def test_options_out_of_range_or_of_another_type_are_refused(name):
    """By the class and by name, before there is a model."""
    for option, values in {**COMMON, **OWN[name]}.items():
        for value in values:
            if (name, option) == ("traced", "run"):
                continue  # which is looked at where there is a model
            given = NEEDED.get(name, {}) | {option: value}
            with refused(OptionError, option, value):
                KINDS[name](**given)
            with refused(OptionError, option, value):
                named_skip_policy(name, **given)


@pytest.mark.parametrize("value", OWN["traced"]["run"])
def test_a_run_is_a_path(value):
    with refused(OptionError, "run", value):
        ll.Traced(value).search(tiny("llama"))


LIMITS = {
    "length": [1, 1000, np.int64(5)],
    "threshold": [0, 1, 0.0, 1.0, np.float32(0.5)],
    "tree": [True, False],
    "patience": [1, None, 2**31],
    "readout": ["hidden", "vocabulary"],
    "skip_ratio": [0, 1, 0.5],
    "lam": [-10, 10.0, 0],
    "context_window": [1, 2**31],
    "max_proposals": [1],
    "good_score": [0, 1],
    "max_without_gain": [1],
    "seed": [0, 2**31],
    "search_interval": [2],
    "skipped": [[], [1], (1, 2), {3}, frozenset(), range(2), ll.SkipSet(), "a.json"],
    "run": ["runs/a"],
}


@pytest.mark.parametrize("name", KINDS)
def test_values_at_the_limits_are_taken(name):
    for option in {**COMMON, **OWN[name]}:
        for value in LIMITS[option]:
            made = named_skip_policy(name, **NEEDED.get(name, {}) | {option: value})
            assert getattr(made, option) == value
            assert made == KINDS[name](**NEEDED.get(name, {}) | {option: value})


def test_options_that_a_policy_does_not_have():
    with refused(OptionError, "context_window", 5, problem="every-other", advice="leave it out"):
        named_skip_policy("every-other", context_window=5)
    with refused(OptionError, "skip_ration", 0.5, advice="did you mean skip_ratio?"):
        named_skip_policy("clasp", skip_ration=0.5)
    for name, missing in (("fixed", "skipped"), ("traced", "run")):
        with refused(OptionError, "draft", name, problem=f"needs {missing}"):
            named_skip_policy(name)
        with refused(OptionError, "draft", name, problem=f"needs {missing}"):
            ll.generate(tiny("llama"), "a", draft=name, max_new_tokens=2)


@dataclass(frozen=True)
class OneBlock(ll.SkipPolicy):
    """Somebody else's: leaves out one block, and counts what it was told."""

    block: int = 1
    told: tuple = ()

    def search(self, model):
        return Counting(self, model)


class Counting(ll.Search):
    """Takes its block at the first round, and notes all of them."""

    rounds: list = []  # noqa: RUF012

    def __init__(self, policy, model):
        super().__init__()
        self.block = policy.block

    def after(self, last, lab):
        Counting.rounds.append(last)
        self.skips = ll.SkipSet.of_blocks([self.block])


@dataclass(frozen=True)
class Same(ll.EveryOther):
    """A kind of a built-in policy."""

    def search(self, model):
        return super().search(model)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """The registered names, with these among them, as they were again afterwards."""
    monkeypatch.setattr(names, "_REGISTERED", dict(names._REGISTERED))
    monkeypatch.setattr(Counting, "rounds", [])
    register_skip_policy("one-block", OneBlock)
    register_skip_policy("same", Same)


def test_somebody_elses_policy_by_name():
    """It drafts, it is told of every round, and the text is the one without drafts."""
    model = deep("llama")
    plain = ll.generate(model, "hello there", max_new_tokens=20)
    found = ll.generate(model, "hello there", max_new_tokens=20, draft="one-block")
    assert (found.token_ids, found.text) == (plain.token_ids, plain.text)
    assert not Counting.rounds[0].skips
    assert {last.skips for last in Counting.rounds[1:]} == {ll.SkipSet.of_blocks([1])}
    assert sum(last.drafted[0] for last in Counting.rounds) > 0
    assert 1 + sum(last.emitted[0] for last in Counting.rounds) == 20
    drafter = ll.Drafter(model, named_skip_policy("one-block", block=5, length=3))
    ll.generate(model, "hello there", max_new_tokens=20, draft=drafter)
    assert drafter.skips == ll.SkipSet.of_blocks([5])
    assert drafter.rounds["drafted"].max() <= 3


def test_somebody_elses_policy_has_the_options_of_every_policy():
    with refused(OptionError, "length", 0):
        named_skip_policy("one-block", length=0)
    with refused(OptionError, "blok", 2, advice="block"):
        named_skip_policy("one-block", blok=2)
    assert named_skip_policy("one-block", block=3) == OneBlock(block=3)


def test_a_block_that_no_draft_can_leave_out_is_refused_when_it_drafts():
    for block in (0, 8):
        with refused(OptionError, "skipped", problem=f"block {block},"):
            ll.generate(deep("llama"), "a", max_new_tokens=20, draft=OneBlock(block=block))


def test_names_of_policies():
    assert skip_policy_names() == [*KINDS, "one-block", "same"]
    for name, kind in KINDS.items():
        assert policy_name(kind(**NEEDED.get(name, {}))) == name
    assert policy_name(OneBlock()) == "one-block"
    assert policy_name(Same()) == "same", "and not that of the class it derives from"

    class Unknown(OneBlock):
        pass

    assert policy_name(Unknown()) == "Unknown"


def test_a_record_of_a_policy_has_its_name_and_every_option():
    assert policy_record(ll.Clasp(skip_ratio=0.5, patience=None)) == {
        **{"name": "clasp", "length": 25, "threshold": 0.8, "tree": False, "patience": None},
        **{"skip_ratio": 0.5, "search_interval": 64},
    }
    assert policy_record(OneBlock(block=2, told=(1,)))["block"] == 2
    for name, kind in KINDS.items():
        assert set(policy_record(kind(**NEEDED.get(name, {})))) == {"name", *(one.name for one in fields(kind))}


@pytest.mark.parametrize(
    "name", ["", "One", "one_block", "1block", "-one", "one block", "one\n", "ö", "a.b", None, 3, ["a"], b"one"]
)
def test_malformed_names_are_refused(name):
    with refused(OptionError, "name", name, problem="malformed"):
        register_skip_policy(name, OneBlock)
    assert skip_policy_names() == [*KINDS, "one-block", "same"]


@pytest.mark.parametrize("name", [*KINDS, "one-block"])
def test_names_that_are_taken_are_refused(name):
    with refused(OptionError, "name", name, problem="already"):
        register_skip_policy(name, Same)
    assert type(named_skip_policy(name, **NEEDED.get(name, {}))) is KINDS.get(name, OneBlock)


class Abstract(ll.SkipPolicy):
    """Without a search."""


class Unrelated:
    """A class of another kind."""


@pytest.mark.parametrize("policy", [Unrelated, ll.Valley, OneBlock(), "one-block", None, lambda: OneBlock()])
def test_what_is_no_class_of_policies_is_refused(policy):
    with refused(OptionError, "policy", policy, problem="not a subclass of SkipPolicy"):
        register_skip_policy("another", policy)
    assert "another" not in skip_policy_names()


@pytest.mark.parametrize("policy", [Abstract, ll.SkipPolicy])
def test_a_class_that_cannot_be_made_is_refused(policy):
    with refused(OptionError, "policy", policy, problem="search"):
        register_skip_policy("another", policy)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("conflayer", "did you mean conflayers?"),
        ("Swift", "did you mean swift?"),
        ("every", "did you mean every-other?"),
        ("one-blok", "did you mean one-block?"),
        ("zzz", "give conflayers, swift, clasp, knapspec, every-other, fixed, traced, one-block, same"),
        ("", "give conflayers, swift"),
        (3, "give conflayers, swift"),
        (None, "give conflayers, swift"),
        (["swift"], "give conflayers, swift"),
    ],
)
def test_unknown_names_are_refused(name, advice):
    with refused(OptionError, "draft", name, advice=advice):
        refuse_unknown_policy(name)
    with refused(OptionError, "arms", name, advice=advice):
        refuse_unknown_policy(name, "arms")
    with refused(OptionError, "draft", name, advice=advice):
        named_skip_policy(name)
    if isinstance(name, str):
        with refused(OptionError, "draft", name, advice=advice):
            ll.generate(tiny("llama"), "a", draft=name, max_new_tokens=2)


@pytest.mark.parametrize("draft", [3, ["swift"], ll.Swift, ll.Valley(), True])
def test_what_is_neither_a_policy_nor_a_name_is_refused(draft):
    with refused(OptionError, "draft", draft, problem="not a skip policy"):
        ll.generate(tiny("llama"), "a", draft=draft, max_new_tokens=2)


def test_known_names_are_not_refused():
    for name in (*KINDS, "one-block"):
        refuse_unknown_policy(name)


def test_shares_in_whole_things():
    """The nearest number, at least one unless the share is 0, and never more than there are."""
    for n in range(1, 40):
        assert n_of(0, n) == 0
        assert n_of(1, n) == n
        for ratio in (0.001, 0.1, 0.45, 0.6, 0.99):
            found = n_of(ratio, n)
            assert 1 <= found <= n
            assert abs(found - ratio * n) <= 0.5 or found == 1
    assert [n_of(ratio, 10) for ratio in (0.04, 0.14, 0.16, 0.44, 0.46)] == [1, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("family", "able"),
    [
        ("llama", [1, 2]),
        ("gpt2", [1, 2]),
        ("bloom", [1, 2]),
        ("gemma2", [2]),  # sliding, full, sliding, full
        ("gemma3_text", [1, 2, 3, 4]),  # five sliding, one full
        ("qwen3_5_text", [1, 2, 4, 5, 6]),  # three linear, one full, three linear, one full
    ],
)
def test_candidates(family, able):
    """All blocks but the first of each kind and the last."""
    assert candidates(tiny(family)) == able


def test_every_other_block_between_the_first_and_the_last():
    assert ll.EveryOther().search(tiny("llama", num_hidden_layers=9)).skips == ll.SkipSet.of_blocks([1, 3, 5, 7])
    assert ll.EveryOther().search(tiny("llama", num_hidden_layers=8)).skips == ll.SkipSet.of_blocks([1, 3, 5])
    assert ll.EveryOther().search(tiny("llama", num_hidden_layers=3)).skips == ll.SkipSet.of_blocks([1])
    assert ll.EveryOther().search(deep("gemma2")).skips == ll.SkipSet.of_blocks([3, 5]), "1 is the first of its kind"
    assert ll.EveryOther().search(tiny("llama")).is_over


@pytest.mark.parametrize("policy", [ll.EveryOther(), ll.ConfLayers(), ll.Swift(), ll.Clasp(), ll.KnapSpec()])
def test_a_model_without_candidates_is_refused(policy):
    model = tiny("llama", num_hidden_layers=2)
    with refused(OptionError, "model", model.source, problem="2 layers"):
        policy.search(model)


def test_a_model_none_of_whose_candidates_is_an_odd_one_is_refused():
    with refused(OptionError, "model", tiny("gemma2").source, problem="4 layers", advice="another policy"):
        ll.EveryOther().search(tiny("gemma2"))


@pytest.mark.parametrize("skipped", [[1, 3], (3, 1), {1, 3}, ll.SkipSet.of_blocks([1, 3])])
def test_a_fixed_set(skipped):
    search = ll.FixedSkip(skipped).search(deep("llama"))
    assert (search.skips, search.is_over, search.n_proposals) == (ll.SkipSet.of_blocks([1, 3]), True, 0)


@pytest.mark.parametrize(("skipped", "number"), [([0], 0), ([1, 8], 8), ([-1], -1), ((2, 0), 0), ({99}, 99)])
def test_a_fixed_set_of_blocks_that_cannot_be_left_out(skipped, number):
    for given in (skipped, ll.SkipSet(mlp=frozenset(skipped))):
        with refused(OptionError, "skipped", problem=f"block {number},"):
            ll.FixedSkip(given).search(deep("llama"))
    with refused(OptionError, "skipped", problem="block 1,"):
        ll.FixedSkip([1]).search(deep("gemma2"))


def average_ranks(values):
    """1 for the smallest; those that are equal share the mean of their places."""
    ordered = sorted(values)
    ranks = []
    for value in values:
        places = [place for place, other in enumerate(ordered, 1) if other == value]
        ranks.append(sum(places) / len(places))
    return ranks


@cache
def uneven(seed):
    """A model whose later blocks add more, so that norm ratio and cosine rank them differently."""
    hf = tiny_model("llama", num_hidden_layers=8, seed=seed)
    with torch.no_grad():
        for number, block in enumerate(hf.model.layers):
            for module in (block.self_attn.o_proj, block.mlp.down_proj):
                module.weight.mul_(0.5 * 1.4**number)
    return ll.load(hf, tokenizer=tiny_tokenizer())


# of the second, two blocks have the smallest sum of ranks
TRACED = {"llama": lambda: uneven(4), "tie": lambda: uneven(3), "gemma2": lambda: deep("gemma2")}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of every model that is ranked here."""
    found = {}
    for name, model in TRACED.items():
        found[name] = tmp_path_factory.mktemp(name) / "run"
        prompts = ["The first prompt", "and a second one, which is longer", "c"]
        ll.trace(model(), prompts, max_new_tokens=7, out=found[name], progress=False)
    return found


def plain_means(path, able):
    """Norm ratio and 1 - I/O cosine of some blocks, over all tokens of a run."""
    run = ll.open_run(path)
    sums = {
        name: [math.fsum(token[block] for token in run.layers(name).tolist()) for block in able]
        for name in ("norm_ratio", "io_cosine")
    }
    n = len(run.layers("norm_ratio"))
    return [total / n for total in sums["norm_ratio"]], [1 - total / n for total in sums["io_cosine"]]


@pytest.mark.parametrize("skip_ratio", [0, 0.01, 0.34, 0.45, 0.7, 1])
@pytest.mark.parametrize("name", TRACED)
def test_traced_leaves_out_what_changed_the_stream_least(traced, name, skip_ratio):
    """By the sum of two ranks among the candidates; of those that are equal, the earlier."""
    model = TRACED[name]()
    able = candidates(model)
    ranks = [average_ranks(means) for means in plain_means(traced[name], able)]
    sums = [one + other for one, other in zip(*ranks, strict=True)]
    n = 0 if skip_ratio == 0 else max(1, round(skip_ratio * len(able)))
    expected = [able[place] for place in sorted(range(len(able)), key=lambda place: (sums[place], place))[:n]]
    for given in (traced[name], str(traced[name])):
        search = ll.Traced(given, skip_ratio=skip_ratio).search(model)
        assert search.skips == ll.SkipSet.of_blocks(expected)
        assert search.is_over
    assert (sums.count(min(sums)) == 2) == (name == "tie")


def test_traced_ranks_by_both_measures(traced):
    """For some share, neither of them alone would choose the same blocks."""
    able, differ = candidates(uneven(4)), set()
    for n in range(1, 6):
        found = ll.Traced(traced["llama"], skip_ratio=n / 6).search(uneven(4)).skips.blocks
        assert len(found) == n
        for measure, means in enumerate(plain_means(traced["llama"], able)):
            alone = sorted(range(6), key=lambda place, means=means: means[place])[:n]
            if {able[place] for place in alone} != found:
                differ.add(measure)
    assert differ == {0, 1}


def test_traced_needs_a_run_of_the_same_model(traced, tmp_path):
    path = str(traced["llama"])
    for other in (tiny("llama"), uneven(3), deep("gpt2")):
        with refused(OptionError, "run", path, problem=repr(uneven(4).source)):
            ll.Traced(path).search(other)
    with pytest.raises(RunError):
        ll.Traced(tmp_path / "none").search(uneven(4))
    with refused(OptionError, "run", path):
        ll.generate(tiny("llama"), "a", max_new_tokens=2, draft=ll.Traced(path))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "qwen3_5_text", "falcon_h1", "rwkv", "recurrent_gemma"])
def test_models_that_keep_a_recurrence_cannot_take_drafts_back(family):
    """Whatever the policy, also one that reads several continuations: another policy would be refused too."""
    model = stateful(family)
    for policy in (ll.FixedSkip(candidates(model)[:1]), ll.Swift(), ll.Clasp()):
        with refused(ModelError, "draft", model.source, problem="recurrence", advice="without drafts"):
            ll.generate(model, "hello", max_new_tokens=4, draft=policy)


UNDIVIDED = ["bloom", "opt", "mamba"]


@pytest.mark.parametrize("family", UNDIVIDED)
def test_policies_for_attention_and_mlp_need_both(family):
    """Whole blocks can be left out there."""
    model = stateful(family)
    with refused(ModelError, given=model.source, problem="cannot be told apart"):
        ll.ConfLayers().search(model)
    with refused(ModelError, given=model.source, problem="as a whole only"):
        ll.KnapSpec().search(model)
    for part in (ll.SkipSet(frozenset({1})), ll.SkipSet(mlp=frozenset({1, 2}))):
        with refused(ModelError, given=model.source, problem="as a whole only"):
            ll.FixedSkip(part).search(model)
    assert ll.FixedSkip([1]).search(model).skips.blocks == {1}


# why a tree of tokens cannot be read
UNBRANCHED = {
    "bloom": "mask of several continuations",
    "llama4_text": "chunks",
    "gpt_neo": "ignores a mask",
    "openai-gpt": "takes no mask",
    "mamba": "recurrence",
}


@pytest.mark.parametrize("family", UNBRANCHED)
def test_policies_that_read_several_continuations_need_a_model_that_can(family):
    model = stateful(family)
    with refused(ModelError, given=model.source, problem=UNBRANCHED[family], advice="another policy"):
        ll.Clasp().search(model)


@pytest.mark.parametrize("family", [family for family in UNBRANCHED if family != "mamba"])
def test_trees_are_refused_where_a_model_cannot_read_them(family):
    """Instead of another text, or of an error of somebody else's; drafts without siblings are read."""
    model = stateful(family)
    block = candidates(model)[0]
    options = {"length": 4, "threshold": 0.0, "patience": None}
    with refused(ModelError, given=model.source, problem=UNBRANCHED[family]):
        ll.generate(model, "hello", max_new_tokens=24, draft=ll.FixedSkip([block], tree=True, **options))
    found = ll.generate(model, "hello", max_new_tokens=24, draft=ll.FixedSkip([block], **options))
    assert found.token_ids == ll.generate(model, "hello", max_new_tokens=24).token_ids


def test_a_policy_is_for_a_model_whose_weights_are_here(traced):
    """A drafter stays with the model that it was made for."""
    drafter = ll.Drafter(deep("llama"), ll.EveryOther())
    with refused(OptionError, "draft", deep("llama").source, problem="another model"):
        ll.generate(deep("llama", 1), "a", max_new_tokens=2, draft=drafter)
    other = ll.load(tiny_model("llama", num_hidden_layers=8), tokenizer=tiny_tokenizer())
    with refused(OptionError, "draft", problem="another model"):
        ll.generate(other, "a", max_new_tokens=2, draft=drafter)
