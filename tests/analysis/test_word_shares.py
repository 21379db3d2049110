"""Tables of substituted tokens and their words, against slow plain readings of their definitions."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from layerlens.analysis.reported import reported
from layerlens.analysis.substitutions import choices, substituted_tokens, substitution_pairs
from layerlens.analysis.word_shares import class_shares, substituted_classes
from layerlens.analysis.words import (
    CLASSES,
    FREQUENCY_BANDS,
    frequency_band,
    word_class,
)
from layerlens.errors import OptionError, RunError
from tests.made_up_run import hybrid_curves, planted, write_run
from tests.refusals import refused

WORDS = {1: " the", 2: " birds", 3: ".", 4: "\n", 5: "me", 6: " a", 7: " axi", 8: "s", 9: " sing", 10: "ick", 11: " th"}


def prompt(*tokens, generated=None, reverse=False):
    """Tokens as (standard, confident, emitted) ids; the valley is layer 2 of 3, or the last where the two agree."""
    last, confident, emitted = (np.array(ids, dtype=np.int32) for ids in zip(*tokens, strict=True))
    there = np.ones(len(tokens), dtype=bool) if generated is None else np.array(generated)
    agree = last == confident
    entropy = np.where(agree[:, None], [3.0, 2.0, 1.0], [3.0, 1.0, 2.0])
    rows = {"entropy": entropy, "top_token_id": np.stack([np.full_like(last, 99), confident, last], axis=1)}
    rows |= {"next_token_id": emitted, "is_generated": there, "position": np.arange(len(tokens), dtype=np.int32)}
    return {name: np.asarray(values)[::-1].copy() for name, values in rows.items()} if reverse else rows


PROMPTS = {
    "b": prompt((1, 2, 2), (3, 3, 3), (1, 2, 1), (4, 6, 6)),
    "a": prompt((4, 6, 4), (1, 2, 2), (2, 1, 1), (9, 9, 9), (6, 3, 3), generated=[True] * 4 + [False]),
    "c": prompt((9, 9, 9), (6, 6, 6)),
    "d": prompt((1, 2, 2), (1, 2, 2), (1, 2, 2)),
}


@pytest.fixture(params=["last", "valley"])
def run(tmp_path, request):
    return write_run(tmp_path / "run", PROMPTS, words=WORDS, strategy=request.param, finish_reasons={"d": "non_finite"})


def slow_substitutions(run):
    """(prompt, standard, confident) of every substitution, read off the tokens one by one, by prompt."""
    found = []
    for row in run.tokens.to_dict("records"):
        standard, confident = row["top_token_id"][-1], row["top_token_id"][row["valley_layer"] - 1]
        if row["is_generated"] and standard != confident and row["prompt_id"] != "d":
            found.append((row["prompt_id"], int(standard), int(confident)))
    return found


def slow_share(run, wanted):
    """The share of substitutions that are wanted, and its interval: by Kish's number there are about two answers."""
    found = slow_substitutions(run)
    sums = np.array([sum(one[0] == name and wanted(one) for one in found) for name in "abc"], dtype=float)
    counts = np.array([sum(one[0] == name for one in found) for name in "abc"], dtype=float)
    share, n = sums.sum() / counts.sum(), counts.sum() ** 2 / (counts**2).sum()
    seen = n * share
    low = scipy.stats.beta.ppf(0.025, seen, n - seen + 1) if seen > 0 else 0
    high = scipy.stats.beta.ppf(0.975, seen + 1, n - seen) if seen < n else 1
    return [share, low, high]


def test_pairs_are_counted_over_generated_tokens(run):
    table = substitution_pairs(run)
    found = Counter((standard, confident) for _, standard, confident in slow_substitutions(run))
    assert dict(found) == {(1, 2): 3, (4, 6): 2, (2, 1): 1}
    ids = list(zip(table["standard_token_id"], table["confident_token_id"], strict=True))
    assert ids == sorted(found, key=lambda pair: (-found[pair], pair))
    assert table["count"].tolist() == [found[pair] for pair in ids]
    assert table["standard"].tolist() == [" the", "\n", " birds"]
    assert table["confident"].tolist() == [" birds", " a", " the"]
    assert table["n_prompts"].tolist() == [2, 2, 1]
    assert table["n_substitutions"].tolist() == [6, 6, 6]
    assert table.attrs == {"n_prompts": 3, "n_prompts_left_out": 1, "n_substitutions": 6, "n_tokens": 10}
    for pair, row in zip(ids, table.to_dict("records"), strict=True):
        expected = slow_share(run, lambda one, pair=pair: one[1:] == pair)
        assert [row["share"], row["share_low"], row["share_high"]] == pytest.approx(expected)


def test_only_the_k_most_frequent_are_given(run):
    whole = substitution_pairs(run)
    for k in (1, 2, 3, 50):
        table = substitution_pairs(run, k)
        pd.testing.assert_frame_equal(table, whole.head(k), rtol=1e-9)


@pytest.mark.parametrize(("method", "side"), [("last", 1), ("confident", 2)])
def test_tokens_of_either_method(run, method, side):
    table = substituted_tokens(run, method)
    found = Counter(one[side] for one in slow_substitutions(run))
    assert table["token_id"].tolist() == sorted(found, key=lambda token_id: (-found[token_id], token_id))
    assert table["count"].tolist() == [found[token_id] for token_id in table["token_id"]]
    assert table["token"].tolist() == [WORDS[token_id] for token_id in table["token_id"]]
    for row in table.to_dict("records"):
        expected = slow_share(run, lambda one, row=row: one[side] == row["token_id"])
        assert [row["share"], row["share_low"], row["share_high"]] == pytest.approx(expected)
        assert row["n_prompts"] == len({one[0] for one in slow_substitutions(run) if one[side] == row["token_id"]})


@pytest.mark.parametrize(("by", "rule"), [("class", "paper"), ("own class", "own")])
def test_shares_of_classes(run, by, rule):
    table = class_shares(run, by=by).set_index(["method", "condition"])
    assert list(table.index) == [(m, c) for m in ("last", "confident", "generated") for c in CLASSES]
    for side, method in ((1, "last"), (2, "confident")):
        for name in CLASSES:
            row = table.loc[(method, name)]
            expected = slow_share(run, lambda one, side=side, name=name: word_class(WORDS[one[side]], rule) == name)
            assert row[["share", "share_low", "share_high"]].tolist() == pytest.approx(expected)
            assert row[["n_tokens", "n_prompts"]].tolist() == [6, 2]
    # two of the last layer's six words are line breaks
    assert table.loc[("last", "punctuation" if rule == "paper" else "other"), "share"] == pytest.approx(2 / 6)
    emitted = [row for row in run.tokens.to_dict("records") if row["is_generated"] and row["prompt_id"] != "d"]
    for name in CLASSES:
        number = sum(word_class(WORDS[row["next_token_id"]], rule) == name for row in emitted)
        assert table.loc[("generated", name), "share"] == pytest.approx(number / len(emitted))
        assert table.loc[("generated", name), ["n_tokens", "n_prompts"]].tolist() == [10, 3]
    assert table["share"].groupby("method").sum().tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("whole_words", [False, True])
def test_each_class_is_counted_in_the_prompt_that_has_it(tmp_path, whole_words):
    prompts = {"a": prompt(*[(1, 2, 1)] * 6)} | {name: prompt(*[(2, 1, 2)] * 2) for name in "bcdef"}
    run = write_run(tmp_path / "run", prompts, words={1: " the", 2: " birds"})
    table = class_shares(run, whole_words).set_index(["method", "condition"])
    seen = 4 * 6 / 16  # lengths of 6 and five times 2 are effectively four
    limits = scipy.stats.beta.ppf([0.025, 0.975], [seen, seen + 1], [5 - seen, 4 - seen])
    row = table.loc[("last", "function"), ["share", "share_low", "share_high"]]
    assert row.tolist() == pytest.approx([6 / 16, *limits])


def shares_of(run, method, **options):
    table = class_shares(run, **options)
    table = table[table["method"] == method].set_index("condition")["share"]
    return {name: share for name, share in table.items() if share}


@pytest.mark.parametrize("reverse", [False, True])
def test_whole_words_are_judged_in_their_place(tmp_path, reverse):
    tokens = [(7, 7, 7), (5, 8, 8), (1, 6, 1), (5, 5, 5), (11, 11, 11), (10, 10, 10)]  # axi s the me th ick
    run = write_run(tmp_path / "run", {"p": prompt(*tokens, reverse=reverse)}, words=WORDS)
    # at 1: "axi" + "me" and "axis"; at 2: "theme", which was emitted, and "a", whose continuation nobody knows
    assert shares_of(run, "last", whole_words=True) == {"content": 1.0}
    assert shares_of(run, "confident", whole_words=True) == {"content": 0.5, "function": 0.5}
    assert shares_of(run, "generated", whole_words=True) == {"content": 1.0}
    assert shares_of(run, "last") == {"function": 1.0}
    assert shares_of(run, "confident") == {"function": 0.5, "other": 0.5}


def test_a_word_far_from_its_beginning_is_joined(tmp_path):
    tokens = [(1, 1, 1), *[(10, 10, 10)] * 40, (3, 5, 3)]
    run = write_run(tmp_path / "run", {"p": prompt(*tokens)}, words={1: " brea", 10: "", 3: ".", 5: "the"})
    assert shares_of(run, "confident", whole_words=True) == {"content": 1.0}
    assert shares_of(run, "confident") == {"function": 1.0}


def test_classes_join_the_papers_table(run):
    measured = substituted_classes(run)
    keys = ["method", "condition", "quantity"]
    paper = reported("8")
    for model in paper["model"].unique():
        joined = paper[paper["model"] == model].merge(measured, on=keys, how="outer", suffixes=("_paper", ""))
        assert len(joined) == len(measured) == 10
        assert joined[["value", "value_paper"]].notna().all(axis=None)
    shares = class_shares(run).set_index(["method", "condition"])["share"]
    table = measured.set_index(keys)
    for (method, condition, _), row in table.head(8).iterrows():
        assert row["value"] == pytest.approx(100 * shares[method, condition])
        assert row["value_low"] <= row["value"] <= row["value_high"]
    assert table.loc[("", "", "substitutions"), "value"] == 6
    assert table.loc[("", "", "tokens"), "value"] == 10


def test_one_prompt_has_shares_and_no_interval(tmp_path):
    run = write_run(tmp_path / "run", {"a": PROMPTS["b"]}, words=WORDS)
    for table in (substitution_pairs(run), substituted_tokens(run, "last"), class_shares(run)):
        assert table["share"].notna().all()
        assert table[["share_low", "share_high"]].isna().all(axis=None)


def test_token_ids_stand_in_for_texts_that_are_not_there(tmp_path):
    run = write_run(tmp_path / "run", PROMPTS)
    assert substituted_tokens(run, "last")["token"].tolist()[0] == "#1"
    with refused(RunError, problem="words.parquet", advice="trace it"):
        class_shares(run)


def test_a_run_that_is_not_complete_is_to_be_continued_for_its_texts(tmp_path):
    run = write_run(tmp_path / "run", PROMPTS, words=WORDS, finish=False)
    with refused(RunError, problem="words.parquet", advice="resume=True"):
        class_shares(run)


def test_a_run_without_substitutions_says_which_would_have_some(tmp_path):
    run = write_run(tmp_path / "run", {"c": PROMPTS["c"]}, words=WORDS)
    for analysis in (
        substitution_pairs,
        class_shares,
        substituted_classes,
        lambda run: substituted_tokens(run, "last"),
    ):
        with refused(RunError, problem="no substitution", advice="window"):
            analysis(run)


def test_a_run_without_generated_tokens_says_so(tmp_path):
    given_text = prompt((1, 2, 2), (1, 2, 2), generated=[False, False])
    run = write_run(tmp_path / "run", {"a": given_text}, words=WORDS)
    with refused(RunError, problem="generated token", advice="max_new_tokens"):
        substitution_pairs(run)


def test_options_that_do_not_exist_are_refused(run):
    with refused(OptionError, "method", "standard", advice="last, confident"):
        substituted_tokens(run, "standard")
    with refused(OptionError, "k", 0):
        substitution_pairs(run, 0)
    with refused(OptionError, "by", "length", advice="class, frequency"):
        class_shares(run, by="length")


def test_choices_follow_positions_not_the_order_of_the_file(tmp_path):
    forward = write_run(tmp_path / "forward", {"a": PROMPTS["a"], "b": PROMPTS["b"]})
    turned = {name: {column: values[::-1].copy() for column, values in PROMPTS[name].items()} for name in "ba"}
    backward = write_run(tmp_path / "backward", turned)
    for part in ("last", "confident", "substituted"):
        assert getattr(choices(forward), part).tolist() == getattr(choices(backward), part).tolist()


def test_a_run_of_many_tokens_agrees_with_a_count(tmp_path):
    random = np.random.default_rng(4)
    prompts = planted(hybrid_curves(), n_prompts=5, n_tokens=30, perturbed_share=0.5)
    for measures in prompts.values():
        measures["top_token_id"] = random.integers(1, 9, (30, 40)).astype(np.int32)
    run = write_run(tmp_path / "run", prompts, words=WORDS, window=7)
    found = Counter((standard, confident) for _, standard, confident in slow_substitutions(run))
    table = substitution_pairs(run, 100)
    ids = zip(table["standard_token_id"], table["confident_token_id"], strict=True)
    assert dict(zip(ids, table["count"], strict=True)) == dict(found)
    assert table["share"].sum() == pytest.approx(1)


def test_shares_of_frequency_bands(run):
    pytest.importorskip("wordfreq")
    table = class_shares(run, by="frequency")
    assert table["condition"].tolist() == [*FREQUENCY_BANDS] * 3
    assert table["share"].groupby(table["method"]).sum().tolist() == pytest.approx([1, 1, 1])
    for side, method in ((1, "last"), (2, "confident")):
        shares = table[table["method"] == method].set_index("condition")["share"]
        expected = slow_share(run, lambda one, side=side: frequency_band(WORDS[one[side]]) == "no word")[0]
        assert shares["no word"] == pytest.approx(expected)
