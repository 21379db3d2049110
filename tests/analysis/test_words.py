"""Classes of words, and the tables of substituted tokens, against slow plain readings of their definitions."""

import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis.reported import reported
from layerlens.analysis.words import (
    BANDS,
    CLASSES,
    RULES,
    choices,
    class_shares,
    closed_class,
    frequency_band,
    substituted_classes,
    substituted_tokens,
    substitution_pairs,
    visible,
    whole_word_classes,
    whole_words,
    word_class,
)
from layerlens.errors import OptionError, RunError
from layerlens.sources.shipped import shipped_file
from tests.made_up_run import hybrid_curves, planted, write_run

CASES = {
    "content": [
        *["birds", " Birds", "photosynthesis", "naïve", "well-known", " John's", "birds,", "(birds)", "“birds”"],
        *["中", "日本語", "Überraschung", "won", "two", "camelCase", "ing"],
    ],
    "function": [
        *["the", " The", "THE", "I", " a", "n't", "'s", "’s", "don't", "Don’t", "it's", "we'll", "can't", "won't"],
        *["y'all", "the,", "(the", "and\n", "e.g.", "themselves", "not"],
    ],
    "punctuation": [".", ",", " (", "...", "…", '"', "'", "\n.", ".\n\n", "—", "**", "#", "\\", "_", "%", "。", "!?"],
    "other": [
        *["", " ", "\t\t", "1", " 42", "3.14", "x1", "2nd", "=", "+", "$x", "$5", "\\frac", ".append", "_name"],
        *["<|im_end|>", "\ufffd", "caf\ufffd", "x", " B", "a b", "birds sing", "😀", "\x00", "a--b", "#123", "½", "€"],
    ],
}
SET_OFF = ["$", " $", "$$", "{$", "$,", "$.\n", "\n", "\n\n", " \n", "\r\n", "\t\n ", "\u2028"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("expected", "text"), [(name, text) for name, texts in CASES.items() for text in texts])
def test_classes_of_single_texts(expected, text, rule):
    assert word_class(text, rule) == expected


@pytest.mark.parametrize("text", SET_OFF)
def test_dollars_and_line_breaks_are_punctuation_to_the_paper_and_other_by_our_own_rule(text):
    assert word_class(text) == word_class(text, "paper") == "punctuation"
    assert word_class(text, "own") == "other"
    assert whole_word_classes([text]) == ["punctuation"]
    assert whole_word_classes([text], "own") == ["other"]


def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(OptionError, match="no rule 'unicode' for word classes; choose from paper, own"):
        word_class("the", "unicode")


def test_every_shipped_word_is_a_function_word_of_its_own():
    lines = shipped_file("closed_class.txt").read_text(encoding="utf-8").splitlines()
    listed = [word for line in lines if not line.startswith("#") for word in line.split()]
    assert len(listed) > 250
    assert [word for word, count in Counter(listed).items() if count > 1] == []
    assert set(listed) == closed_class()
    assert {word_class(word) for word in listed} == {"function"}
    assert [word for word in listed if word != word.strip().casefold() or "’" in word] == []


@given(st.text(max_size=12))
def test_a_class_is_one_of_four_whatever_the_text(text):
    assert word_class(text) in CLASSES
    assert word_class(f" {text}\t") == word_class(text)
    assert word_class(f" {text}\n", "own") == word_class(text, "own")


@given(st.text(max_size=12))
def test_the_rules_differ_only_in_what_is_other_by_our_own(text):
    if word_class(text) != word_class(text, "own"):
        assert (word_class(text), word_class(text, "own")) == ("punctuation", "other")
        assert "$" in text or "".join(text.splitlines()) != text


@given(st.text(st.characters(categories=["P"]), min_size=1), st.text(st.characters(categories=["S", "N"]), min_size=1))
def test_punctuation_alone_is_punctuation_and_symbols_are_not(marks, symbols):
    assert word_class(marks) == "punctuation"
    assert word_class(symbols, "own") == "other"
    assert word_class(symbols.replace("$", "+")) == "other"


@given(st.text("abcdefgh", min_size=2), st.sampled_from(["1", "_", "=", "\ufffd", "\\", "\x07"]))
def test_a_word_with_anything_inside_is_code(word, foreign):
    assert word_class(word[:1] + foreign + word[1:]) == "other"


SEQUENCES = [
    ([" th", "is", " is"], ["this", "this", " is"]),
    ([" don", "'t", "."], ["don't", "don't", "."]),
    ([" photos", "yn", "thesis", ",", " a"], ["photosynthesis"] * 3 + [",", " a"]),
    (["\n", "The", "me"], ["\n", "Theme", "Theme"]),
    ([" (", "the", ")"], [" (", "the", ")"]),
    (["(th", "is)"], ["this", "this"]),
    ([" well", "-", "known"], [" well", "-", "known"]),
    ([" '", "word", "'", " s"], [" '", "word", "'", " s"]),
    ([" x", "2"], ["x2", "x2"]),
    (["caf", "\ufffd", "\ufffd", "s"], ["caf\ufffd\ufffds"] * 4),
    (["中国", "人"], ["中国", "人"]),
    ([" na", "ï", "ve"], ["naïve"] * 3),
    (["<|im_end|>"], ["<|im_end|>"]),
    ([" the", "", "me"], ["theme", "", "theme"]),
    ([], []),
]


@pytest.mark.parametrize(("texts", "words"), SEQUENCES)
def test_whole_words_of_sequences(texts, words):
    assert whole_words(texts) == words


def slow_whole_words(texts):
    """The rule character by character: where each character's word begins and ends, found by walking both ways."""
    joined = "".join(texts)

    def plain(at):
        within = 0 <= at < len(joined) and unicodedata.east_asian_width(joined[at]) not in "WF"
        return within and (joined[at].isalnum() or joined[at] == "\ufffd")

    def within(at):
        return plain(at) or (0 <= at < len(joined) and joined[at] in "'’" and plain(at - 1) and plain(at + 1))

    found, start = [], 0
    for text in texts:
        end, word = start + len(text), text
        for at in range(start, end):
            if joined[at].isalnum() and not plain(at):
                break  # a wide character, a word by itself within its token
            if within(at):
                first = last = at
                while within(first - 1):
                    first -= 1
                while within(last + 1):
                    last += 1
                if first < start or last >= end:
                    word = joined[first : last + 1]
                break
        found.append(word)
        start = end
    return found


@given(st.lists(st.text("ab2 '’.\n中\ufffd", max_size=4), max_size=8))
@settings(max_examples=400)
def test_whole_words_are_their_plain_reading(texts):
    assert whole_words(texts) == slow_whole_words(texts)


def test_each_token_has_the_class_of_its_whole_word():
    assert whole_word_classes([" axi", "s", ",", " th", "e", " 2", "nd"]) == [
        *["content", "content", "punctuation", "function", "function", "other", "other"]
    ]
    assert [word_class(text) for text in (" axi", "s", " th", "e")] != ["content", "content", "function", "function"]


SHOWN = {
    " the ": "the",
    "\n": "⏎",
    " \n ": "⏎",
    "\n\n\n": "⏎⏎⏎",
    "\n\n\n\n": "⏎×4",
    "\t": "⇥",
    " ": "␣",
    " " * 16: "␣×16",
}
SHOWN |= {"": "∅", "\r\n": "\\r⏎", "\x1b[0m": "\\x1b[0m", "\u202ex": "\\u202ex", "a b": "a b", "$x$": "$x$"}
SHOWN |= {"e\u0301\u0301\u0301": "e\u0301\u0301\\u0301", "中": "中", "a\xa0b": "a\\xa0b", "<b>": "<b>"}


@pytest.mark.parametrize("text", SHOWN)
def test_what_cannot_be_seen_is_shown_by_a_sign_or_its_code(text):
    assert visible(text) == SHOWN[text]


def test_a_character_that_cannot_be_shown_is_its_code():
    assert visible("a中😀", str.isascii) == "a\\u4e2d\\U0001f600"


@given(st.text())
def test_a_label_is_never_empty_and_always_printable(text):
    assert visible(text)
    assert visible(text).isprintable()


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
    with pytest.raises(
        RunError, match=r"say \(words.parquet\), as complete runs traced by this version do; trace it again$"
    ):
        class_shares(run)


def test_a_run_that_is_not_complete_is_to_be_continued_for_its_texts(tmp_path):
    run = write_run(tmp_path / "run", PROMPTS, words=WORDS, finish=False)
    with pytest.raises(RunError, match=r"does not hold what its tokens say .*; continue it with --resume$"):
        class_shares(run)


def test_a_run_without_substitutions_says_which_would_have_some(tmp_path):
    run = write_run(tmp_path / "run", {"c": PROMPTS["c"]}, words=WORDS)
    for analysis in (
        substitution_pairs,
        class_shares,
        substituted_classes,
        lambda run: substituted_tokens(run, "last"),
    ):
        with pytest.raises(RunError, match=r"no substitution: at none of its 2 generated tokens .* larger --window$"):
            analysis(run)


def test_a_run_without_generated_tokens_says_so(tmp_path):
    given_text = prompt((1, 2, 2), (1, 2, 2), generated=[False, False])
    run = write_run(tmp_path / "run", {"a": given_text}, words=WORDS)
    with pytest.raises(RunError, match="holds no generated token: trace with --max-new-tokens above 0"):
        substitution_pairs(run)


def test_options_that_do_not_exist_are_refused(run):
    with pytest.raises(OptionError, match="no method 'standard'; choose from last, confident"):
        substituted_tokens(run, "standard")
    with pytest.raises(OptionError, match="k is 0"):
        substitution_pairs(run, 0)
    with pytest.raises(OptionError, match="by 'length'; choose from class, own class, frequency"):
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


def test_bands_of_corpus_frequency():
    pytest.importorskip("wordfreq")
    bands = [
        frequency_band(text) for text in (" the", " People", "valley", "photosynthesis", "qzxv", "42", ".", "don't")
    ]
    assert bands[0] == bands[7] == "zipf 6 and above"
    assert bands[2] == "zipf 4 to 5"
    assert bands[3] == "zipf 3 to 4"
    assert bands[4:7] == ["not in the corpus", "no word", "no word"]
    assert set(bands) <= set(BANDS)


@pytest.mark.parametrize("word", ["the", "people", "valley", "photosynthesis", "crayon", "axolotl", "anglerfish"])
def test_a_band_holds_the_zipf_value(word):
    zipf = pytest.importorskip("wordfreq").zipf_frequency(word, "en")
    low, high = {"6 and above": (6, 9), "5 to 6": (5, 6), "4 to 5": (4, 5), "3 to 4": (3, 4), "below 3": (0, 3)}[
        frequency_band(word).removeprefix("zipf ")
    ]
    assert low <= zipf < high


def test_shares_of_frequency_bands(run):
    pytest.importorskip("wordfreq")
    table = class_shares(run, by="frequency")
    assert table["condition"].tolist() == [*BANDS] * 3
    assert table["share"].groupby(table["method"]).sum().tolist() == pytest.approx([1, 1, 1])
    for side, method in ((1, "last"), (2, "confident")):
        shares = table[table["method"] == method].set_index("condition")["share"]
        expected = slow_share(run, lambda one, side=side: frequency_band(WORDS[one[side]]) == "no word")[0]
        assert shares["no word"] == pytest.approx(expected)


def test_without_wordfreq_one_sentence_says_what_to_install():
    check = (
        "import sys; sys.modules['wordfreq'] = None\n"
        "from layerlens.analysis.words import frequency_band, word_class\n"
        "from layerlens.errors import OptionError\n"
        "assert word_class(' birds') == 'content'\n"
        "try: frequency_band(' birds')\n"
        "except OptionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout == "bands of word frequency need the package wordfreq: pip install wordfreq\n", done.stderr
