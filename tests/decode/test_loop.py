"""`ll.generate`: the loop of our own says what transformers' `generate` says, on every family."""

import pytest
import torch

import layerlens as ll
from layerlens.decode.batch import decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.log import DecodingLog
from layerlens.decode.loop import batch_seed, by_length
from layerlens.models import tiny_names
from tests.conftest import STATEFUL, stateful, tiny
from tests.decode import plain
from tests.invariants.laws import hook_count
from tests.refusals import refused
from tests.thorough import combined

PROMPTS = [[5, 9, 20, 7, 44, 8], [7, 13, 99], [50, 60, 70, 80, 90]]
IDS = torch.tensor([PROMPTS[0], [0, 0, 0, *PROMPTS[1]], [0, *PROMPTS[2]]])
MASK = (IDS != 0).long()
ENDS = [254, 37, 9, 10, 11, 12, 13, 14, 15, 16]
TEXTS = ["Hello there, you", "a", "What is this? And that"]


def dropped_in(model, strategy, seed=3, **options):
    torch.manual_seed(seed)
    with ll.decoding(model, strategy, seed=seed) as log:
        model.hf.generate(input_ids=IDS, attention_mask=MASK, pad_token_id=0, **options)
    return log.steps


def looped(model, strategy, seed=3, static=None, **options):
    decoded = decode_batch(
        model, PROMPTS, Chooser(model, strategy, seed), ll.GenerateOptions(**options), seed, static=static
    )
    log = DecodingLog()
    log.add_call(decoded.outputs, [len(prompt) - 1 for prompt in PROMPTS], decoded.decisions)
    return log.steps


def decided(steps):
    return steps.drop(columns=["entropy"]).astype(object).where(steps.notna(), None).to_numpy().tolist()


@pytest.mark.parametrize(("family", "static"), combined(tiny_names(), [False, True], n=16))
def test_tokens_and_decisions_are_those_of_transformers(family, static):
    """Greedy, with rows that end early and leave the batch, over a growing and over a static cache."""
    model = tiny(family)
    for strategy in (ll.Last(), ll.Valley(window=3)):
        theirs = dropped_in(model, strategy, max_new_tokens=15, min_new_tokens=3, do_sample=False, eos_token_id=ENDS)
        ours = looped(model, strategy, static=static, max_new_tokens=15, min_new_tokens=3, eos_token_id=ENDS)
        assert decided(ours) == decided(theirs)
    assert hook_count(model.hf) == 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_5_moe_text", "cohere2"])
def test_the_same_seed_draws_the_same_tokens(family):
    """Sampling with every warper, a repetition penalty, p = 0.5: rows that leave do not move the others' draws."""
    model = tiny(family)
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2}
    options |= {"max_new_tokens": 20, "min_new_tokens": 3, "eos_token_id": ENDS}
    lengths = set()
    for strategy in (ll.Last(), ll.Valley(window=3, p=0.5)):
        theirs = dropped_in(model, strategy, do_sample=True, **options)
        lengths |= set(theirs.groupby("row").size())
        assert decided(looped(model, strategy, **options)) == decided(theirs)
        assert decided(looped(model, strategy, seed=4, **options)) != decided(theirs)
    assert len(lengths) > 1, "rows are to end at different steps"


def test_blocks_of_steps_change_nothing(monkeypatch):
    """As on an accelerator: the host looks every few steps, rows end in the middle of a block, the rest is cut off."""
    from layerlens.decode import batch

    model = tiny("llama")
    options = {"max_new_tokens": 19, "eos_token_id": ENDS, "stop_strings": ["q"]}
    expected = decided(looped(model, ll.Valley(window=3), **options))
    for size in (4, 7, 32):
        monkeypatch.setitem(batch._STEPS_PER_BLOCK, "cpu", size)
        for static in (False, True):
            assert decided(looped(model, ll.Valley(window=3), static=static, **options)) == expected


def test_without_branching_the_choice_is_the_same(monkeypatch):
    """Inside a captured graph the host cannot decide what to read next."""
    model = tiny("llama")
    strategy = ll.Valley(window=4, scan="lazy", entropy_floor=4.0)
    expected = looped(model, strategy, max_new_tokens=12)
    monkeypatch.setattr(Chooser, "may_branch", property(lambda self: False, lambda self, value: None), raising=False)
    unbranched = looped(model, strategy, max_new_tokens=12)
    assert (unbranched["projections"] == 4).all()
    assert (expected["projections"] < 4).any()
    columns = ["next_token_id", "last_token_id", "selected_layer", "valley_layer"]
    assert (unbranched[columns] == expected[columns]).all(axis=None)


def test_one_text_gives_one_generation(tiny_llama):
    found = ll.generate(tiny_llama, "Why is it so?", strategy=ll.Valley(window=3), max_new_tokens=7)
    assert str(found) == found.text == tiny_llama.tokenizer.decode(found.token_ids, skip_special_tokens=True)
    assert found.prompt == "Why is it so?"
    assert found.finish_reason == "length"
    ids = tiny_llama.tokenizer("Why is it so?").input_ids
    tokens, layers = plain.decode(tiny_llama.hf, [ids], 7, window=3)
    assert found.token_ids == tokens[0] == found.steps["next_token_id"].tolist()
    assert found.steps["selected_layer"].tolist() == layers[0]
    assert found.steps["position"].tolist() == list(range(len(ids) - 1, len(ids) + 6))


def test_answers_come_in_the_order_of_the_prompts(tiny_llama):
    """Whatever batches they were decoded in: of similar length, and in their order where all fit into one."""
    alone = [ll.generate(tiny_llama, text, strategy=ll.Valley(window=3), max_new_tokens=6) for text in TEXTS]
    for size in (2, 3, 5):
        batched = ll.generate(tiny_llama, TEXTS, strategy=ll.Valley(window=3), max_new_tokens=6, batch_size=size)
        assert [one.token_ids for one in batched] == [one.token_ids for one in alone]
        assert [one.prompt for one in batched] == TEXTS
    lengths = [type("P", (), {"token_ids": [0] * n})() for n in (9, 2, 7, 3)]
    assert by_length(lengths, 2) == [[1, 3], [2, 0]]
    assert by_length(lengths, 4) == [[0, 1, 2, 3]]
    assert batch_seed(7, 0) == 7
    assert len({batch_seed(seed, batch) for seed in range(3) for batch in range(3)}) == 9


def test_one_seed_means_the_same_in_every_door(tiny_llama):
    """Sampling from a valley that acts half the time: `ll.generate`, and transformers after torch.manual_seed."""
    strategy = ll.Valley(window=4, p=0.5)
    found = ll.generate(tiny_llama, "abcd", strategy=strategy, max_new_tokens=30, temperature=0.9, seed=3)
    torch.manual_seed(3)
    with ll.decoding(tiny_llama, strategy, seed=3) as log:
        ids = tiny_llama.tokenizer("abcd", return_tensors="pt").input_ids
        tiny_llama.hf.generate(input_ids=ids, do_sample=True, temperature=0.9, top_k=0, max_new_tokens=30)
    columns = ["next_token_id", "selected_layer", "valley_layer", "position"]
    assert (found.steps[columns] == log.steps[columns]).all(axis=None)


def test_how_a_generation_ends(tiny_llama):
    free = ll.generate(tiny_llama, "Hello", max_new_tokens=12)
    end = free.token_ids[4]
    cut = free.token_ids[: free.token_ids.index(end) + 1]
    stopped = ll.generate(tiny_llama, "Hello", max_new_tokens=12, eos_token_id=end)
    assert (stopped.token_ids, stopped.finish_reason) == (cut, "stop")
    exactly = ll.generate(tiny_llama, "Hello", max_new_tokens=len(cut), eos_token_id=end)
    assert (exactly.token_ids, exactly.finish_reason) == (cut, "stop")
    later = ll.generate(tiny_llama, "Hello", max_new_tokens=12, min_new_tokens=len(cut) + 1, eos_token_id=end)
    assert end not in later.token_ids[: len(cut)]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": 9, "max_new_tokens": 5},
        {"top_k": 5},
        {"top_k": -1},
        {"top_p": 0.5},
        {"do_sample": True},
        {"do_sample": False, "temperature": 1.0},
        {"temperature": -1.0},
        {"repetition_penalty": 0.0},
        {"stop_strings": [""]},
        {"stop_strings": []},
        {"eos_token_id": "x"},
        {"eos_token_id": []},
        {"batch_size": 0},
        {"system": "Be brief"},
        {"seed": True},
        {"num_beams": 2},
        {"strategy": "vally"},
        {"strategy": ll.Valley},
    ],
)
def test_options_that_cannot_be(tiny_llama, options):
    """The first of the options is the one that is refused."""
    with refused(ll.OptionError, *next(iter(options.items()))):
        ll.generate(tiny_llama, "Hello", **options)


def test_what_does_not_fit_is_refused_before_decoding(tiny_llama):
    with refused(ll.OptionError, "window", 9):
        ll.generate(tiny_llama, "Hello", strategy=ll.Valley(window=9))
    with pytest.raises(ll.PromptError, match="is empty"):
        ll.generate(tiny_llama, "")
    with pytest.raises(ll.PromptError, match="context"):
        ll.generate(tiny_llama, "Hello", max_new_tokens=500)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("family", STATEFUL)
def test_families_that_carry_on_in_other_ways(family, static):
    model = stateful(family)
    free = dropped_in(model, ll.Last(), max_new_tokens=12, do_sample=False, eos_token_id=None)
    ends = [int(free[free["row"] == 1]["next_token_id"].iloc[4])]  # so that a row leaves
    for strategy in (ll.Last(), ll.Valley(window=3)):
        theirs = dropped_in(model, strategy, max_new_tokens=12, do_sample=False, eos_token_id=ends)
        ours = looped(model, strategy, static=static, max_new_tokens=12, eos_token_id=ends)
        assert decided(ours) == decided(theirs)
