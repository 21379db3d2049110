"""What drafts are worth, recomputed from the seconds of each prompt, and what each block alone is worth, from whole
passes of transformers."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pytest
import scipy.stats
import torch

import layerlens as ll
from layerlens.bench import speculative
from layerlens.bench.speculative import greedy_outputs, measure_blocks, measure_speculative
from layerlens.bench.timing import Timing
from layerlens.decode.options import GenerateOptions
from layerlens.decode.speculative.policy import Search, SkipPolicy
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.refusals import refused
from tests.thorough import some, thorough

PROMPTS = [[7, 13, 99], [50, 60, 70, 80, 90], [5, 9, 20, 7, 44, 8], [33]]
OPTIONS = GenerateOptions(max_new_tokens=14, eos_token_id=-1)
EAGER = {"length": 3, "threshold": 0.0}
POLICIES = {
    "every-other": ll.EveryOther(**EAGER),
    "ends": ll.Swift(**EAGER, context_window=2, max_proposals=1),  # within the first prompt
    "goes on": ll.ConfLayers(**EAGER, context_window=2, search_interval=3),
}


@pytest.fixture(scope="module")
def measured():
    done = []
    report, drafters = measure_speculative(
        tiny("llama"), POLICIES, PROMPTS, OPTIONS, early_exit=2, on_prompt=lambda: done.append(1)
    )
    assert len(done) == len(PROMPTS)
    return report, drafters


def interval(other, own):
    """The expanded percentile interval of the ratio of sums, prompts resampled."""
    n = len(own)
    drawn = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=2000).tolist()
    ratios = [
        sum(k * a for k, a in zip(counts, other, strict=True)) / sum(k * b for k, b in zip(counts, own, strict=True))
        for counts in drawn
    ]
    effective = max(2, math.floor(sum(own) ** 2 / sum(value**2 for value in own) + 1e-9))
    wide = math.sqrt(effective / (effective - 1)) * scipy.stats.t.ppf(0.975, effective - 1)
    level = scipy.stats.norm.cdf(-wide)
    low, high = np.quantile(ratios, [level, 1 - level])
    ratio = sum(other) / sum(own)
    return ratio, min(low, ratio), max(high, ratio)


def assert_holds(row, name, expected):
    found = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[1] <= found[0] <= found[2]


def test_speed_ups_are_ratios_of_total_times(measured):
    report, _ = measured
    assert list(report["by_prompt"]) == ["plain", *POLICIES, "generate", "assistant_early_exit"]
    assert [row["way"] for row in report["table"]] == list(report["by_prompt"])
    for row in report["table"]:
        own = report["by_prompt"][row["way"]]
        other = report["by_prompt"]["generate" if row["way"] in ("generate", "assistant_early_exit") else "plain"]
        assert row["tokens_per_second"] == pytest.approx(sum(own["tokens"]) / sum(own["seconds"]))
        assert_holds(row, "speed_up", interval(other["seconds"], own["seconds"]))
        ratios = [a / b for a, b in zip(other["seconds"], own["seconds"], strict=True)]
        assert_holds(row, "mean_speed_up", interval(ratios, [1.0] * len(ratios)))
    assert [report["table"][place]["speed_up"] for place in (0, 4)] == [1, 1]


def test_speed_ups_after_the_search_are_those_of_the_prompts_that_began_after_it(measured):
    report, _ = measured
    rows = {row["way"]: row for row in report["table"]}
    plain = report["by_prompt"]["plain"]["seconds"]
    for name, n_during in (("every-other", 0), ("ends", 1)):
        own = report["by_prompt"][name]["seconds"]
        assert rows[name]["prompts_after_search"] == 4 - n_during
        assert rows[name]["is_over"]
        assert_holds(rows[name], "speed_up_after_search", interval(plain[n_during:], own[n_during:]))
    assert (rows["goes on"]["prompts_after_search"], rows["goes on"]["is_over"]) == (0, False)
    ends = ("", "_low", "_high")
    assert all(math.isnan(rows["goes on"][f"speed_up_after_search{end}"]) for end in ends)
    assert "speed_up_after_search" not in rows["plain"]


def test_what_drafting_did_is_counted_over_rounds_with_drafts(measured):
    report, drafters = measured
    for row in report["table"]:
        if row["way"] not in POLICIES:
            continue
        drafter = drafters[row["way"]]
        rounds = drafter.rounds.to_dict("records")
        drafted = [one for one in rounds if one["drafted"] > 0]
        assert len(drafted) < len(rounds), "some rounds are plain"
        assert row["rounds"] == len(drafted) > 0
        for name in ("drafted", "accepted"):
            assert row[name] == pytest.approx(sum(one[name] for one in drafted) / len(drafted))
        assert row["acceptance"] == pytest.approx(row["accepted"] / row["drafted"])
        assert row["accepted_without_siblings"] == row["accepted"]  # without a tree there are none
        seconds = sum(report["by_prompt"][row["way"]]["seconds"])
        assert row["search_share"] == pytest.approx(sum(one["search_seconds"] for one in rounds) / seconds)
        assert 0 <= row["search_share"] < 1
        assert row["skipped"] == str(drafter.skips)
        assert row["skipped_share"] == len(drafter.skips) / 8
        assert row["proposals"] == drafter.search.n_proposals
    assert {row["way"]: row["proposals"] for row in report["table"] if row["way"] in POLICIES}["ends"] == 1


def test_no_policy_gives_up_while_it_is_measured(recwarn):
    """What is measured is drafting, whether it pays or not."""
    policy = {"patient": ll.FixedSkip([1], length=4, threshold=0.0, patience=1)}
    report, drafters = measure_speculative(tiny("llama"), policy, PROMPTS[:2], OPTIONS)
    drafter = drafters["patient"]
    assert drafter.pays
    assert drafter.policy.patience is None
    assert report["table"][1]["rounds"] > 2
    assert report["policies"]["patient"]["patience"] == 1  # as it was given
    assert not recwarn


def test_an_early_exit_is_left_out_where_it_is_not_asked_for():
    report, _ = measure_speculative(tiny("llama"), {}, PROMPTS[:2], OPTIONS)
    assert list(report["by_prompt"]) == ["plain"]
    assert report["early_exit"] is None
    assert report["sets"] == {}


def test_all_ways_emit_the_tokens_of_transformers(measured):
    report, _ = measured
    model = tiny("llama")
    expected = [
        model.hf.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=14,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    assert greedy_outputs(model, PROMPTS, OPTIONS) == expected
    assert report["differences"] == []
    assert [row["different"] for row in report["table"]] == [0] * 6
    for way in report["by_prompt"].values():
        assert way["tokens"] == [14] * 4


@pytest.mark.parametrize("family", some(["gpt2", "llama"], 1))
def test_transformers_own_drafts_leave_the_model_as_it_was(family):
    """Whether they work for the family, or break on their way."""
    model = ll.load(tiny_model(family), tokenizer=tiny_tokenizer())
    before = model.hf.config.to_dict()
    expected = greedy_outputs(model, PROMPTS, OPTIONS)
    report, _ = measure_speculative(model, {}, PROMPTS, OPTIONS, early_exit=2)
    assert model.hf.config.to_dict() == before
    assert greedy_outputs(model, PROMPTS, OPTIONS) == expected
    assert all(way["tokens"] == [14] * 4 for way in report["by_prompt"].values())


def test_drafts_pay_from_the_prompt_from_which_their_total_is_never_behind(monkeypatch):
    """With seconds that are made up, so that every answer occurs."""
    found = []
    for seed in range(8):
        random = np.random.default_rng(seed)

        def timed(way, _, random=random):
            way()
            return Timing(float(random.gamma(1.0)), 0.0)

        monkeypatch.setattr(speculative, "timed_with_memory", timed)
        policy = {"fixed": ll.FixedSkip([1], length=2, threshold=0.0)}
        options = GenerateOptions(max_new_tokens=8, eos_token_id=-1)
        report, _ = measure_speculative(tiny("llama"), policy, [[number] for number in range(5, 10)], options)
        seconds = [report["by_prompt"][way]["seconds"] for way in ("plain", "fixed")]
        totals = [list(accumulate(of_way)) for of_way in seconds]
        is_ahead = [plain >= own for plain, own in zip(*totals, strict=True)]
        found.append(next((number + 1 for number in range(5) if all(is_ahead[number:])), None))
        assert report["table"][1]["break_even"] == found[-1]
        assert_holds(report["table"][1], "speed_up", interval(*seconds))
    assert {None, 1} < set(found)


def test_nothing_that_was_never_drafted_pays(monkeypatch):
    monkeypatch.setattr(speculative, "timed_with_memory", lambda way, _: (way(), Timing(1.0, 0.0))[1])
    options = GenerateOptions(max_new_tokens=2, eos_token_id=-1)  # fewer than are decoded before the first draft
    report, _ = measure_speculative(tiny("llama"), {"fixed": ll.FixedSkip([1])}, PROMPTS, options)
    row = report["table"][1]
    assert (row["rounds"], row["speed_up"], row["break_even"]) == (0, 1.0, None)


class Meddling(Search):
    """Adds to the states of the whole model, as no search may do."""

    def __init__(self, model):
        super().__init__(SkipSet.of_blocks([1]))
        self._block = model.blocks[2]

    @contextmanager
    def watching(self, n_tokens):
        def shifted(_, __, output):
            stream = output[0] if isinstance(output, tuple) else output
            more = stream + 3 * torch.linspace(-1, 1, stream.shape[-1])
            return (more, *output[1:]) if isinstance(output, tuple) else more

        handle = self._block.register_forward_hook(shifted)
        yield
        handle.remove()

    def after(self, last, lab):
        pass


@dataclass(frozen=True)
class Meddles(SkipPolicy):
    def search(self, model):
        return Meddling(model)


@thorough
def test_texts_that_differ_are_told_with_the_distance_of_the_two_logits():
    model, policy = tiny("llama"), Meddles(length=3, threshold=0.0)
    report, _ = measure_speculative(model, {"meddles": policy, "right": ll.EveryOther()}, PROMPTS[:3], OPTIONS)
    drafted = ll.Drafter(model, policy)
    plain = greedy_outputs(model, PROMPTS[:3], OPTIONS)
    assert len(report["differences"]) == report["table"][1]["different"] == 3
    assert report["table"][2]["different"] == 0
    for number, (one, prompt) in enumerate(zip(report["differences"], PROMPTS, strict=False)):
        wrong = speculative.decode_drafted(model, [prompt], ll.Last(), OPTIONS, 0, drafted).outputs[0]
        place = next(at for at in range(14) if plain[number][at] != wrong[at])
        ids = torch.tensor([[*prompt, *plain[number][:place]]])
        with torch.no_grad():
            logits = model.hf(input_ids=ids, use_cache=False).logits[0, -1].double()
        margin = float(logits[plain[number][place]] - logits[wrong[place]])
        assert (one["way"], one["prompt"], one["place"]) == ("meddles", number, place)
        assert one["margin"] == pytest.approx(margin, abs=1e-4)
        assert margin > 0


def test_what_cannot_be_measured():
    with refused(ll.OptionError, "temperature", 1.0):
        measure_speculative(tiny("llama"), POLICIES, PROMPTS, GenerateOptions(max_new_tokens=2, temperature=1.0))
    with refused(ll.OptionError, "limit", 1):
        measure_speculative(tiny("llama"), POLICIES, PROMPTS[:1], OPTIONS)


# one block alone


def best_without(model, block, text, n):
    """After each of the last n tokens, the best token where these pass the block by, and the others do not."""

    def passed_by(_, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        stream[:, -n:] = before[:, -n:]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = model.blocks[block].register_forward_hook(passed_by, with_kwargs=True)
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([text]), use_cache=False).logits[0, -n:]
    handle.remove()
    return logits.argmax(1).tolist()


LONG = {"llama": [1, 2, 3], "gpt2": [1, 2, 3], "gemma2": [2, 3], "gptj": [1, 2, 3]}


@pytest.mark.parametrize("family", LONG)
def test_the_acceptance_without_a_block_is_that_of_whole_passes(family):
    """Texts of different lengths, one of them longer than what counts."""
    model = tiny(family)
    outputs = [
        greedy_outputs(model, [prompt], GenerateOptions(max_new_tokens=n, eos_token_id=-1))[0]
        for prompt, n in zip(PROMPTS, (70, 9, 14, 1), strict=True)
    ]
    done = []
    table, correlations = measure_blocks(model, PROMPTS, outputs, lambda: done.append(1))
    assert len(done) == 4
    assert table["block"].tolist() == LONG[family]
    counts = [min(len(output), 64) for output in outputs]
    assert counts == [64, 9, 14, 1]
    agreements = {}
    for row in table.to_dict("records"):
        agreed = []
        for prompt, output, n in zip(PROMPTS, outputs, counts, strict=True):
            text = [*prompt, *output[: n - 1]]
            best = best_without(model, row["block"], text, n)
            agreed.append(sum(one == other for one, other in zip(best, output[:n], strict=True)))
        agreements[row["block"]] = agreed
        assert [row[f"acceptance{end}"] for end in ("", "_low", "_high")] == pytest.approx(interval(agreed, counts))
    shares = [sum(agreed) / sum(counts) for agreed in agreements.values()]
    assert 0 < min(shares) < max(shares) or family == "gemma2"  # whose text is one token again and again
    for name, one in correlations.items():
        assert (one.n_blocks, one.n_prompts) == (len(table), 4)
        if len(set(shares)) > 1:
            assert one.rho == pytest.approx(scipy.stats.spearmanr(shares, table[name]).statistic)
            assert one.low <= one.rho <= one.high
        else:
            assert math.isnan(one.rho)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_a_block_does_to_the_stream_is_what_a_trace_says(family, run_of):
    model, texts = tiny(family), ["Hello there", "x", "What is it?"]
    options = {"max_new_tokens": 70, "min_new_tokens": 70, "generation_config": False}
    run = run_of(model, texts, **options)
    prompts = [model.tokenizer(text).input_ids for text in texts]
    by_prompt = [rows for _, rows in run.positions.groupby("prompt_id", sort=False)]
    outputs = [rows["next_token_id"].tolist() for rows in by_prompt]
    kept = np.concatenate([rows.index.to_numpy()[:64] for rows in by_prompt])
    table, _ = measure_blocks(model, prompts, outputs)
    for row in table.to_dict("records"):
        ratio = run.layers("norm_ratio")[kept, row["block"]].astype(float).mean()
        cosine = run.layers("io_cosine")[kept, row["block"]].astype(float).mean()
        assert row["norm_ratio"] == pytest.approx(ratio, rel=1e-5)
        assert row["one_minus_cosine"] == pytest.approx(1 - cosine, abs=2e-6)
    assert table["one_minus_cosine"].nunique() == len(table)
