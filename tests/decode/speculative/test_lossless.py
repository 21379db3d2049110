"""Tokens, ends and decisions with drafts are those without them."""

from dataclasses import dataclass

import pytest
import torch

import layerlens as ll
from layerlens.decode.chooser import _STATES_AT_ONCE
from layerlens.decode.speculative.branching import branching_fault
from layerlens.decode.speculative.clasp import Clasp
from layerlens.decode.speculative.fixed import EveryOther, FixedSkip
from layerlens.decode.speculative.knapspec import KnapSpec
from layerlens.decode.speculative.policy import Search, candidates
from layerlens.decode.speculative.skipping import parts_of, skipping
from layerlens.errors import ModelError, Notice, OptionError
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.conftest import stateful, tiny
from tests.decode.speculative.drafts import (
    DRAFTING,
    PROMPTS,
    Eager,
    assert_same,
    damped,
    drafted,
    n_accepted_and_rejected,
    plain,
    steady_clock,
)
from tests.decode.test_forward import RECURRENT
from tests.decode.test_loop import ENDS, TEXTS
from tests.decode.test_non_finite import poisoned
from tests.decode.test_unknown_ids import with_readout
from tests.invariants.laws import hook_count
from tests.refusals import refused
from tests.thorough import some

# chunks of positions, a mask of its own making, the whole text again, and a mask of two dimensions alone
UNBRANCHED = ["llama4_text", "gpt_neo", "openai-gpt", "bloom"]
WINDOWED = ["gpt_oss", "gemma2", "gemma3_text", "mistral", "olmo3", "cohere2"]
# drafts of this many tokens, however sure they are, and no drafting is given up
ALWAYS = {"length": 4, "threshold": 0.0, "patience": None}


def fixed(model, **options):
    """Drafts that leave out every block that they can, unless told otherwise."""
    return FixedSkip(**({"skipped": candidates(model)} | ALWAYS | options))


def assert_untouched(model):
    assert hook_count(model.hf) == 0
    assert not any("forward" in vars(module) for module in model.hf.modules())


@pytest.mark.parametrize("family", some(DRAFTING, 8))
def test_sets_that_do_not_change(family):
    """Ragged rows that end early; whole blocks and a chain, parts of blocks and a tree where the model can read one."""
    model = damped(family)
    able, can_branch = candidates(model), branching_fault(model) is None
    assert can_branch == (family not in UNBRANCHED)
    parts = ll.SkipSet(frozenset(able[-1:]), frozenset(able[:1])) if parts_of(model) else able[:1]
    chain, tree = (Eager(model, fixed(model))), Eager(model, fixed(model, skipped=parts, tree=can_branch))
    options = {"eos_token_id": ENDS, "min_new_tokens": 7}
    expected = plain(model, **options)
    for drafter in (chain, tree):
        assert_same(drafted(drafter, **options), expected)
    accepted, rejected = n_accepted_and_rejected(chain, tree)
    assert accepted > 0
    assert rejected > 0
    assert_untouched(model)


@pytest.mark.parametrize("family", some(DRAFTING, 8))
def test_sets_that_are_searched_for(family, monkeypatch):
    """Sets that change while a text grows; searches read the text again, and leave no trace."""
    steady_clock(monkeypatch, part=0.1)
    model = damped(family)
    policies = [
        ll.Swift(skip_ratio=0.8, context_window=3, good_score=1.0, **ALWAYS),
        *([EveryOther(**ALWAYS)] if any(block % 2 for block in candidates(model)) else []),
        *([ll.ConfLayers(skip_ratio=0.5, context_window=2, search_interval=3, **ALWAYS)] if parts_of(model) else []),
    ]
    if family not in UNBRANCHED:
        policies += [Clasp(skip_ratio=1.0, search_interval=2, tree=True, **ALWAYS)]
        if parts_of(model):
            policies += [KnapSpec(skip_ratio=0.9, context_window=3, search_interval=2, **ALWAYS)]
    expected = plain(model)
    drafters = [Eager(model, policy) for policy in policies]
    for drafter in drafters:
        assert_same(drafted(drafter), expected)
    accepted, rejected = n_accepted_and_rejected(*drafters)
    # of llama4 one block alone can be left out, and no draft without it holds
    assert accepted > 0 or family == "llama4_text"
    assert rejected > 0
    assert_untouched(model)


class Asking(Search):
    """After each round it asks how far the whole model agrees with itself over the last four tokens."""

    def __init__(self, skips):
        super().__init__(skips)
        self.n_back, self.found = 4, []

    def after(self, last, lab):
        self.found.append(lab.agreement(ll.SkipSet(), min(lab.n_known, self.n_back)))


@dataclass(frozen=True)
class Asked(FixedSkip):
    """Blocks that are left out, and a search that only asks."""

    def search(self, model):
        return Asking(super().search(model).skips)


@pytest.mark.parametrize("tree", [False, True])
def test_a_search_is_told_the_tokens_that_were_read_and_what_was_chosen_after_them(tree):
    """The whole model chooses again what it chose."""
    model = damped("llama")
    drafter = Eager(model, Asked(skipped=candidates(model), tree=tree, **ALWAYS))
    assert_same(drafted(drafter, max_new_tokens=20), plain(model, max_new_tokens=20))
    assert len(drafter.search.found) > 4
    assert set(drafter.search.found) == {1.0}


@pytest.mark.parametrize("family", sorted(RECURRENT))
def test_a_recurrence_is_refused(family):
    """Before anything is decoded, whatever the policy; the model is left as it was."""
    model = stateful(family) if family not in ll.models.tiny_names() else tiny(family)
    for policy in (fixed(model), ll.Swift(), Clasp()):
        with refused(ModelError, "draft", model.source, problem="it keeps a recurrence", advice="without drafts"):
            ll.Drafter(model, policy)
    with refused(ModelError, "draft", model.source, problem=family):
        ll.generate(model, "abc", draft="swift", max_new_tokens=9)
    assert_untouched(model)
    assert len(plain(model, max_new_tokens=2).outputs[0]) == 2, "without drafts it decodes"


@pytest.mark.parametrize("family", UNBRANCHED)
def test_a_tree_that_the_model_cannot_read(family):
    """Is refused, or else changes nothing; chains are read."""
    model = damped(family)
    assert branching_fault(model)
    expected = plain(model)
    assert_same(drafted(Eager(model, fixed(model))), expected)
    try:
        found = drafted(Eager(model, fixed(model, tree=True)))
    except ModelError as error:
        assert model.source in error.problem  # noqa: PT017
    else:
        assert_same(found, expected)
    assert_untouched(model)
    for policy in (Clasp(), KnapSpec()):
        with refused(ModelError, given=model.source):
            ll.Drafter(model, policy)


@pytest.mark.parametrize("family", some(DRAFTING, 8))
def test_ragged_rows_that_fill_the_context(family):
    """Rows that accept different numbers of tokens need padding, which is dropped before they outgrow the context."""
    model = damped(family)
    length = model.context_length or 128
    lengths = (length - 30, length - 41, 2)
    prompts = [[(7 * place + size) % 90 + 5 for place in range(size)] for size in lengths]
    options = {"prompts": prompts, "max_new_tokens": 30}
    expected = plain(model, **options)
    searching = ll.Swift(skip_ratio=0.8, context_window=3, good_score=1.0, **ALWAYS)
    for policy in (fixed(model), searching):
        drafter = Eager(model, policy)
        assert_same(drafted(drafter, **options), expected)
        rounds = drafter.rounds
        assert rounds["n_rows"].max() == 3
        assert (rounds["accepted"] % 1 > 0).any(), "rows accept different numbers"


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("family", some(WINDOWED, 2))
def test_drafts_and_texts_longer_than_a_window(family, tree):
    """Windows of five tokens: a draft of nine leaves the pending token behind, and what was read before."""
    model = damped(family)
    prompts = [[*PROMPTS[0], *range(100, 108)], PROMPTS[1], [*PROMPTS[2], 21]]
    expected = plain(model, prompts=prompts, max_new_tokens=19)
    drafters = [
        Eager(model, fixed(model, length=9, tree=tree)),
        Eager(damped(family, 0.1), fixed(model, length=9, tree=tree)),
    ]
    assert_same(drafted(drafters[0], prompts=prompts, max_new_tokens=19), expected)
    sure = plain(drafters[1].model, prompts=prompts, max_new_tokens=19)
    assert_same(drafted(drafters[1], prompts=prompts, max_new_tokens=19), sure)
    assert drafters[1].rounds["accepted"].max() > 5, "otherwise nothing accepted has left a window"
    assert n_accepted_and_rejected(*drafters)[1] > 0


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "llama"])
def test_texts_that_fill_the_context(family):
    """A long text ends where the model's positions do, beside short ones for which more is drafted."""
    model = damped(family, 0.5)
    assert model.context_length == 128
    for seed in range(5):
        drawn = torch.randint(3, 250, (130,), generator=torch.Generator().manual_seed(seed)).tolist()
        prompts = [drawn[:116], drawn[116:121], drawn[121:]]
        drafter = Eager(model, fixed(model, length=9))
        assert_same(drafted(drafter, prompts=prompts), plain(model, prompts=prompts))


STRATEGIES = {
    "last": ll.Last(),
    "valley": ll.Valley(window=3),
    "valley at times": ll.Valley(window=3, p=0.5),
    "valley shifted": ll.Valley(window=3, shift=1, scan="lazy"),
    "fixed": ll.Fixed(1),
    "fixed at times": ll.Fixed(1, p=0.5),
    "sled": ll.SLED(),
    "dola": ll.DoLa(per="row"),
}


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("llama", name) for name in STRATEGIES),
        *(("gemma3_text", name) for name in ("valley", "fixed at times", "dola")),
    ],
)
def test_strategies_that_verify(family, name, tree):
    """Layers and the last layer's tokens are the same too; rows end at different steps, and draws stay theirs."""
    model, strategy = damped(family), STRATEGIES[name]
    options = {"eos_token_id": ENDS, "min_new_tokens": 5, "max_new_tokens": 16}
    expected = plain(model, strategy, seed=3, **options)
    drafter = Eager(model, fixed(model, tree=tree))
    assert_same(drafted(drafter, strategy, seed=3, **options), expected)
    accepted, rejected = n_accepted_and_rejected(drafter)
    assert accepted > 0
    assert rejected > 0
    if "at times" in name:
        layers = [decisions.selected_layer.tolist() for decisions in expected.decisions]
        assert layers != [one.selected_layer.tolist() for one in plain(model, strategy, seed=4, **options).decisions]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_dola_verifies(prompt):
    """Its layer for a batch is one for the row where there is one row; of several rows each has its own."""
    model = damped("llama")
    drafter = Eager(model, fixed(model))
    assert_same(drafted(drafter, ll.DoLa(), [prompt]), plain(model, ll.DoLa(), [prompt]))
    assert_same(drafted(drafter, ll.DoLa()), plain(model, ll.DoLa(per="row")))


def test_a_strategy_that_draws_for_many_rows():
    """More nodes than are read out at once."""
    model, strategy = damped("llama"), STRATEGIES["valley at times"]
    prompts = [[first, 9, 20] for first in range(3, 11)]
    drafter = Eager(model, fixed(model, tree=True))
    expected = plain(model, strategy, prompts, seed=3)
    assert_same(drafted(drafter, strategy, prompts, seed=3), expected)
    assert drafter.rounds["n_rows"].max() * 4 * 10 > _STATES_AT_ONCE // 3


@dataclass(frozen=True)
class Together(ll.Last):
    """The last layer, by the name of a choice for all rows."""

    whole_batch = True


def test_a_choice_for_a_batch_as_a_whole_is_refused():
    model = damped("llama")
    with refused(OptionError, "strategy", "Together", advice="without drafts"):
        ll.generate(model, "abc", strategy=Together(), draft=fixed(model), max_new_tokens=3)
    assert_untouched(model)


@pytest.mark.parametrize("tree", [False, True])
def test_texts_end_inside_a_draft(tree):
    """Every token of a text as an end token, and every two as a stop string; all that is drafted is right."""
    model = damped("llama", 0.0)
    options = {"max_new_tokens": 9}
    free = plain(model, **options)
    drafter = Eager(model, fixed(model, length=6, tree=tree))
    assert_same(drafted(drafter, **options), free)
    assert n_accepted_and_rejected(drafter)[1] == 0
    letters = {letter for output in free.outputs for letter in model.tokenizer.decode(output)} - {"�"}
    ends = [{"eos_token_id": token} for token in free.outputs[0]]
    ends += [{"stop_strings": letter} for letter in sorted(letters)]
    lengths = {"eos_token_id": set(), "stop_strings": set()}
    for one in ends:
        expected = plain(model, **(options | one))
        assert_same(drafted(drafter, **(options | one)), expected)
        pairs = zip(expected.outputs, expected.finish_reasons, strict=True)
        lengths[next(iter(one))] |= {len(output) for output, reason in pairs if reason == "stop"}
    assert lengths["eos_token_id"] >= set(range(1, 10))
    assert len(lengths["stop_strings"] & set(range(2, 8))) > 2, "inside of the first draft"


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 3},
        {"eos_token_id": "some"},
        {"eos_token_id": "some", "min_new_tokens": 6},
        {"eos_token_id": "some", "min_new_tokens": 12},
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.6},
    ],
    ids=str,
)
def test_options_of_the_generation(options, tree):
    model = damped("llama")
    drafter = Eager(model, fixed(model, length=6, tree=tree))
    free = plain(model)
    if "eos_token_id" in options:
        options = options | {"eos_token_id": [free.outputs[0][3], free.outputs[1][7], free.outputs[2][10]]}
    expected = plain(model, **options)
    assert_same(drafted(drafter, **options), expected)
    if "max_new_tokens" not in options:
        accepted, rejected = n_accepted_and_rejected(drafter)
        assert accepted > 0
        assert rejected > 0
        assert expected.outputs != free.outputs, "the option is to act"


@pytest.mark.parametrize("length", [1, 2, 25])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_drafts_of_any_length(length, threshold):
    """One token and more than are left, after prompts of a token or two; a threshold of 1 stops each draft after its
    first token."""
    model, prompts = damped("llama", 0.4), [[5], [7, 13], PROMPTS[0]]
    drafter = Eager(model, fixed(model, length=length, threshold=threshold))
    assert_same(drafted(drafter, prompts=prompts), plain(model, prompts=prompts))
    assert drafter.rounds["drafted"].max() <= (1 if threshold == 1 else length)
    if (length, threshold) == (25, 0.0):
        assert drafter.rounds["drafted"].max() == 12 - 2, "a draft and the token after it fill the text"


@pytest.mark.parametrize(
    "entries",
    [{"no_repeat_ngram_size": 1}, {"bad_words_ids": [[31], [45, 77]]}, {"suppress_tokens": [*range(150, 307)]}],
    ids=str,
)
def test_a_generation_config_is_followed(entries):
    """Processors of transformers, which look at the text so far, see the draft's too."""
    model = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for block in candidates(model):
            for parameter in model.blocks[block].parameters():
                parameter.mul_(0.3)
    options = {"max_new_tokens": 14, "batch_size": 3, "eos_token_id": -1}
    free = ll.generate(model, TEXTS, **options)
    if "bad_words_ids" in entries:
        entries = {"bad_words_ids": [free[0].token_ids[1:2], free[1].token_ids[3:5]]}
    for name, value in entries.items():
        setattr(model.hf.generation_config, name, value)
    expected = ll.generate(model, TEXTS, **options)
    for tree in (False, True):
        drafter = Eager(model, fixed(model, tree=tree))
        found = ll.generate(model, TEXTS, draft=drafter, **options)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        accepted, rejected = n_accepted_and_rejected(drafter)
        assert accepted > 0
        assert rejected > 0
    assert [one.token_ids for one in expected] != [one.token_ids for one in free], "the entry is to act"


@pytest.mark.parametrize("strategy", [ll.Last(), ll.Valley(window=3)], ids=["last", "valley"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_what_generate_gives(batch_size, strategy):
    """Every field of a generation, in the order of the prompts; one drafter serves all batches."""
    model = damped("llama")
    texts = [*TEXTS, "xyz xyz", "b"]
    options = {"strategy": strategy, "batch_size": batch_size, "max_new_tokens": 12}
    expected = ll.generate(model, texts, **options)
    drafter = Eager(model, fixed(model, tree=True))
    found = ll.generate(model, texts, draft=drafter, **options)
    for one, other in zip(found, expected, strict=True):
        for field in ("prompt", "text", "token_ids", "finish_reason"):
            assert getattr(one, field) == getattr(other, field)
        assert list(one.steps.columns) == list(other.steps.columns)
        exact = one.steps.columns.difference(["entropy", "projections"])
        assert one.steps[exact].equals(other.steps[exact])
    assert n_accepted_and_rejected(drafter)[0] > 0
    assert drafter.rounds["n_rows"].max() == min(batch_size, 5)


def damp(model, by=0.6):
    with torch.no_grad():
        for block in candidates(model):
            for parameter in model.blocks[block].parameters():
                parameter.mul_(by)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("strategy", [ll.Last(), ll.Valley(window=3)], ids=["last", "valley"])
def test_logits_that_are_no_numbers(strategy, tree):
    """The token is poison from a prompt on, or from the middle of a text on: what comes before is kept, and the other
    rows go on."""
    clean = poisoned(0)[0]
    damp(clean)
    options = {"max_new_tokens": 12, "eos_token_id": -1, "strategy": strategy, "batch_size": 3}
    texts = ["abc", "xyz", "a longer one"]
    free = [one.token_ids for one in ll.generate(clean, texts, **options)]
    in_prompts = {token for text in texts for token in clean.tokenizer(text).input_ids}
    own = [token for token in free[0][2:8] if token not in in_prompts and token not in free[1] + free[2]]
    assert own
    for token in [clean.tokenizer("y").input_ids[0], *own]:
        broken = poisoned(token)[1]
        damp(broken)
        with pytest.warns(Notice, match="prompt"):
            expected = ll.generate(broken, texts, **options)
        assert [one.finish_reason for one in expected].count("non_finite") == 1
        with pytest.warns(Notice, match="prompt"):
            found = ll.generate(broken, texts, draft=Eager(broken, fixed(broken, tree=tree)), **options)
        for one, other in zip(found, expected, strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
            assert len(one.steps) == len(one.token_ids)


@pytest.mark.parametrize("tree", [False, True])
def test_a_draft_whose_token_is_poison_is_thrown_away(tree):
    """The model gives no number once it has read the token. It would not have emitted it, so that nothing is lost."""
    clean = poisoned(0)[0]
    damp(clean)
    prompts = [[first, 9, 20, 7] for first in range(3, 20)]
    options = {"prompts": prompts, "max_new_tokens": 4}
    every = plain(clean, **options)
    wrong, known = [], {token for text in prompts + every.outputs for token in text}
    for prompt, output in zip(prompts, every.outputs, strict=True):
        with torch.no_grad(), skipping(clean, ll.SkipSet.of_blocks(candidates(clean))):
            logits = clean.hf(input_ids=torch.tensor([[*prompt, output[0]]]), use_cache=False).logits[0, -1]
        best = logits.topk(3 if tree else 1).indices.tolist()
        wrong += [token for token in best if token not in known]
    assert wrong
    for token in wrong[:3]:
        broken = poisoned(token)[1]
        damp(broken)
        expected = plain(broken, **options)
        assert expected.outputs == every.outputs
        assert_same(drafted(Eager(broken, fixed(broken, tree=tree)), **options), expected)


@pytest.mark.parametrize("tree", [False, True])
def test_tokens_that_are_emitted_and_cannot_be_read(tree):
    """A readout of more entries than there are embeddings: what a draft holds of them is left out, and a text in which
    the whole model emits one is refused as it is without drafts."""
    model = with_readout(360)
    damp(model)
    prompts = [[first, 9, 20, 7] for first in range(3, 22)]
    drafter = Eager(model, fixed(model, tree=tree, length=8))
    n_refused = 0
    for prompt in prompts:
        given = {"prompts": [prompt], "max_new_tokens": 8}
        try:
            expected = plain(model, **given)
        except ModelError as error:
            n_refused += 1
            with refused(ModelError, given=error.given):
                drafted(drafter, **given)
        else:
            assert_same(drafted(drafter, **given), expected)
    assert 3 < n_refused < len(prompts) - 3
