"""Classes of words against slow plain readings of their definitions."""

import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis.words import (
    CLASSES,
    FREQUENCY_BANDS,
    RULES,
    closed_class,
    frequency_band,
    whole_word_classes,
    whole_words,
    word_class,
)
from layerlens.errors import OptionError
from layerlens.sources.shipped import shipped_file
from tests.refusals import refused

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
    with refused(OptionError, "rule", "unicode", advice="paper, own"):
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


def test_bands_of_corpus_frequency():
    pytest.importorskip("wordfreq")
    bands = [
        frequency_band(text) for text in (" the", " People", "valley", "photosynthesis", "qzxv", "42", ".", "don't")
    ]
    assert bands[0] == bands[7] == "zipf 6 and above"
    assert bands[2] == "zipf 4 to 5"
    assert bands[3] == "zipf 3 to 4"
    assert bands[4:7] == ["not in the corpus", "no word", "no word"]
    assert set(bands) <= set(FREQUENCY_BANDS)


@pytest.mark.parametrize("word", ["the", "people", "valley", "photosynthesis", "crayon", "axolotl", "anglerfish"])
def test_a_band_holds_the_zipf_value(word):
    zipf = pytest.importorskip("wordfreq").zipf_frequency(word, "en")
    low, high = {"6 and above": (6, 9), "5 to 6": (5, 6), "4 to 5": (4, 5), "3 to 4": (3, 4), "below 3": (0, 3)}[
        frequency_band(word).removeprefix("zipf ")
    ]
    assert low <= zipf < high


def test_without_wordfreq_one_sentence_says_what_to_install():
    check = (
        "import sys; sys.modules['wordfreq'] = None\n"
        "from layerlens.analysis.words import frequency_band, word_class\n"
        "from layerlens.errors import OptionError\n"
        "assert word_class(' birds') == 'content'\n"
        "try: frequency_band(' birds')\n"
        "except OptionError as error: print(error.option, error.given, error.advice)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout == "by frequency get it with: pip install wordfreq\n", done.stderr
