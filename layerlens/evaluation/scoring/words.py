"""Whether a text ends with a number, or with a number or words."""

import re
import unicodedata

from layerlens.evaluation.scoring.numbers import is_number, last_value
from layerlens.evaluation.scoring.stated import denied, stated


def last_number(text: str, reference: str) -> bool:
    """Whether the last number of the text equals that of the reference; False where either has none.

    - *Writing.* A number is written as 1450000, 1,450,000, 2.5, .5, 1/2, 3 1/2, 3½, \\frac{1}{2}, \\frac12,
      3\\frac{1}{2}, 10^3, 2 \\cdot 10^{-3}, 2 × 10³ or 2e3. 0.5 equals 1/2. A number of more than 1,000 characters is
      not read.
    - *Groups of three digits* belong to one number where a comma, {,}, a space of LaTeX (such as \\, or \\!) or a space
      at which no line breaks is between them. A plain space counts too where one of the groups begins with 0, as in
      10 080.
    - *A minus sign* (- or −) right before the number, or before its $, counts unless a digit, a letter, a closing
      bracket, % or another minus sign is before it: "5-3" ends in 3.
    - *Ignored* are currency, percent signs, units and punctuation: 50% is 50, and 12 m^2 and 12 cm3 are 12. Digits
      right after a letter, as in H2O or B12, are ignored too, but not the 18 of US$18. So is a number right after a
      denial: "12, not 13", "12 rather than 13" and "12 ≠ 13" end in 12.

    Nothing else is calculated: a text whose last number is a part of something larger has none. Such are 2^3, 2**3,
    x \\cdot 10^3, 52_8, 2\\pi, \\sqrt{2}, \\frac{\\pi}{12}, \\binom52, \\log_2 8, 0.\\overline{3}, f(2), x/12, 1 ÷ 2,
    3 × 4, ±2, 12 mod 5, 5 choose 2, and 5! in a box or between dollars. The signs +, -, * and x also write ranges,
    lists and sizes, so "5-3" and "2 * 3" end in 3.
    """
    number, wanted = last_value(text), last_value(reference)
    return number is not None and number == wanted


def number_or_words(text: str, reference: str) -> bool:
    """`last_number` where the reference is a number; else whether the text ends with its words, in any case of letters.

    The end of a text is the first of these that it has: its last \\boxed{}, the line after its last "answer is" or
    "answer:", its last line. If one of the last two is corrected, only the correction counts: Rome in "Paris. No,
    wait: Rome". A correction is a name or a number of one to three words, or one word after a colon. White space of any
    length is one space. An accent may be a part of its letter or follow it. Words that the text denies do not count:
    "not Paris", "rather than Paris", "neither Paris nor Rome", "Paris is wrong", "Paris isn't". Nor do words in a
    sentence that ends in a question mark, or words that "or" joins to others. Of "yes" and "no", the first one there
    that counts decides; "no doubt", "no one" and the like say neither.
    """
    if is_number(reference):
        return last_number(text, reference)
    ending, words = _folded(stated(text)), _folded(reference)
    wanted = (
        _YES_OR_NO if words in ("yes", "no") else re.compile(rf"(?<!\w)(?<!\bor ){re.escape(words)}{_ENDS}(?! or\b)")
    )
    said = [place[0] for place in wanted.finditer(ending) if not denied(ending, *place.span())]
    return said[:1] == [words]


def _folded(text: str) -> str:
    """The text in small letters, each with its accents one character, and one space for any white space."""
    return unicodedata.normalize("NFC", " ".join(text.casefold().split()))


_ENDS = r"(?![\w\u0300-\u036f])"
_YES_OR_NO = re.compile(
    r"\b(?:yes|no(?!\s+(?:doubt|question|need|reason|problem|matter|way|longer|one|more|other|less)\b))\b"
)
