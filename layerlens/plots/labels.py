"""A token's text as a label."""

import re
import unicodedata
from collections.abc import Callable

_SIGNS = {"\n": "⏎", "\t": "⇥"}
_REPEATED = re.compile(r"([␣⏎⇥])\1{3,}")
_MOST_ACCENTS = 2


def visible(text: str, can_show: Callable[[str], bool] = str.isprintable) -> str:
    """A token's text with nothing in it that cannot be seen, for labels.

    Spaces around it are dropped; where there is nothing else, each is shown as ␣. A line feed is shown as ⏎, a tab as
    ⇥, four or more of the same sign in a row as ⏎×4, an empty text as ∅. Every other character that is not printable,
    or that `can_show` refuses, and the third and further accents on one letter, are shown as codes: \\x1b, \\u4e2d.
    """
    if not text:
        return "∅"
    stripped = text.strip(" ")
    signed = "".join(_SIGNS.get(character, character) for character in (stripped or text.replace(" ", "␣")))
    counted = _REPEATED.sub(lambda run: f"{run[1]}×{len(run[0])}", signed)
    shown, accents = "", 0
    for character in counted:
        accents = accents + 1 if unicodedata.category(character)[0] == "M" else 0
        seen = character.isprintable() and can_show(character) and accents <= _MOST_ACCENTS
        shown += character if seen else character.encode("unicode_escape").decode()
    return shown
