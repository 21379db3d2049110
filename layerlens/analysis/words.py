"""What kind of word a text is: its class, how frequent it is in English, and the whole word that a token stands in."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from layerlens.errors import OptionError, did_you_mean
from layerlens.sources.shipped import shipped_file

CLASSES = ("content", "function", "punctuation", "other")
FREQUENCY_BANDS = (
    "zipf 6 and above",
    "zipf 5 to 6",
    "zipf 4 to 5",
    "zipf 3 to 4",
    "zipf below 3",
    "not in the corpus",
    "no word",
)
RULES = ("paper", "own")

_SPECIAL = re.compile(r"\[/?[A-Z_]{2,}\]")  # [INST], [SEP]; special tokens in angle brackets are not words anyway
_WORD = re.compile("c|w+(?:'w+)*")  # over the kinds of characters


def word_class(text: str, rule: str = "paper") -> str:
    """The class of a text that is one token or one word: "content", "function", "punctuation" or "other".

    White space around the text is dropped, case is folded, and the typographic apostrophe counts as the straight one.

    - punctuation: every character is punctuation to Unicode (P*), which takes in * # / % & @ \\ _ but not + = < >. By
      the rule "paper" the dollar sign is punctuation too, and so is white space alone that breaks a line.
    - function: the word is on the shipped list of closed classes (`closed_class`), or the part before its apostrophe is
      on it ("it's").
    - content: any other word.
    - other: everything else, such as spaces, digits, symbols, single letters that are not words (x, B), code, special
      tokens and pieces of a character.

    A word consists of letters, with single apostrophes or hyphens between them. Opening brackets and quotes before it
    are ignored, and so are closing ones and . , ; : ! ? … after it. With anything else attached (`x1`, `\\frac`,
    `.append`), a text counts as code. An identifier of letters alone looks like a word and counts as one.

    The paper gives no rule for its classes. In the column of Table 8 for its instruct model, $ alone is 8.2 % of the
    last layer's words and "other" is 4 %. So the paper must have counted $ as punctuation. The rule "paper" counts line
    breaks as punctuation too, because they set off a text as $ does. By the rule "own" both are "other", because
    Unicode does not count them as punctuation.

    Raises:
        OptionError: there is no such rule.
    """
    if rule not in RULES:
        advice = did_you_mean(rule, RULES, f"choose from {', '.join(RULES)}")
        raise OptionError(f"there is no rule {rule!r} for word classes", advice, option="rule", given=rule)
    if _SPECIAL.fullmatch(text.strip()):
        return "other"
    given = text.strip().casefold().replace("’", "'")
    by_paper = rule == "paper"
    if given and all(_category(character) == "P" or (by_paper and character == "$") for character in given):
        return "punctuation"
    if by_paper and not given and len(f"{text}.".splitlines()) > 1:
        return "punctuation"
    word = given if given in closed_class() else _without_marks(given)
    if not _is_word(word) and word not in closed_class():
        return "other"
    if word in closed_class() or word.split("'")[0] in closed_class():
        return "function"
    is_lone_letter = len(word) == 1 and word != word.upper()
    return "other" if is_lone_letter else "content"


@cache
def closed_class() -> frozenset[str]:
    """The function words that come with layerlens, in small letters; English only."""
    lines = shipped_file("closed_class.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def frequency_band(text: str) -> str:
    """How frequent a word is in English at large, as a band of its Zipf value; one of `FREQUENCY_BANDS`.

    The Zipf value is the decimal logarithm of occurrences in a billion words, as the package wordfreq counts them: 7.7
    for "the", 4.7 for "valley". A band contains its lower bound. A text whose class is punctuation or other by
    `word_class` is not a word.

    Raises:
        OptionError: wordfreq is not installed.
    """
    if word_class(text) not in ("content", "function"):
        return "no word"
    try:
        from wordfreq import zipf_frequency
    except ImportError as error:
        problem = "bands of word frequency need the package wordfreq"
        raise OptionError(problem, "get it with: pip install wordfreq", option="by", given="frequency") from error
    zipf = zipf_frequency(_without_marks(text.strip().replace("’", "'")), "en")
    if zipf == 0:
        return "not in the corpus"
    return FREQUENCY_BANDS[6 - min(6, max(2, int(zipf)))]


def whole_words(texts: Sequence[str]) -> list[str]:
    """The whole word that each token of a text is a part of; its own text where it is in no word, or is a whole one.

    The texts follow each other as generated. A word is an unbroken run of letters, digits and pieces of characters,
    with single apostrophes in it ("don't", "o'clock"), so that a token continues the word before it unless one of the
    two has white space, punctuation or a symbol where they meet. Characters twice as wide as Latin ones (Chinese,
    Japanese, Korean) are words of their own. If a token contains several words, the first counts.
    """
    joined = "".join(texts)
    kinds = joined.translate({ord(character): _kind(character) for character in set(joined)})
    words = [match.span() for match in _WORD.finditer(kinds)]
    whole, at = [], 0
    for start, end in pairwise(np.cumsum([0, *map(len, texts)]).tolist()):
        while at < len(words) and words[at][1] <= start:
            at += 1
        inside = start < end and at < len(words) and words[at][0] < end
        begins, ends = words[at] if inside else (start, end)
        whole.append(joined[begins:ends] if begins < start or ends > end else joined[start:end])
    return whole


def whole_word_classes(texts: Sequence[str], rule: str = "paper") -> list[str]:
    """The class of each token's whole word, by `whole_words` and `word_class`, for tokens that follow each other."""
    return [word_class(word, rule) for word in whole_words(texts)]


def _category(character: str) -> str:
    return unicodedata.category(character)[0]


def _kind(character: str) -> str:
    """The kind of a character: w within words, c a word by itself, ' an apostrophe, - anything else."""
    if character in "'’":
        return "'"
    if character == "\ufffd":
        return "w"
    if _category(character) not in "LMN":
        return "-"
    return "c" if unicodedata.east_asian_width(character) in "WF" else "w"


def _is_word(word: str) -> bool:
    return all(part and all(_category(c) in "LM" for c in part) for part in re.split("['-]", word))


def _without_marks(text: str) -> str:
    """Without opening marks before it and closing marks after it."""
    start, end = 0, len(text)
    while start < end and (text[start] in "\"'" or unicodedata.category(text[start]) in ("Ps", "Pi")):
        start += 1
    while end > start and (text[end - 1] in "\"'.,;:!?…" or unicodedata.category(text[end - 1]) in ("Pe", "Pf")):
        end -= 1
    return text[start:end]
