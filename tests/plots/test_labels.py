"""Labels of tokens: nothing in them is invisible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.plots.boxes import label_beside
from layerlens.plots.labels import visible

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


def test_a_space_is_shown_where_only_it_tells_two_tokens_apart():
    assert label_beside(" The", "The") == "␣The"
    assert label_beside("The", " The") == "The"
    assert label_beside(" The", " The") == "The"
    assert label_beside(" The", "A") == "The"
    assert label_beside(" ", "  ") == "␣"
