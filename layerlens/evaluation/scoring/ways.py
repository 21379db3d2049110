"""The ways of scoring, and which of them a dataset declares."""

import re
import unicodedata
from collections.abc import Callable

from layerlens.datasets import Dataset, names
from layerlens.datasets.source import Scoring
from layerlens.errors import OptionError, PromptError, did_you_mean
from layerlens.evaluation.scoring.letters import settled_letter
from layerlens.evaluation.scoring.numbers import is_number, last_value
from layerlens.evaluation.scoring.spelling import spelled_alike
from layerlens.evaluation.scoring.stated import boxed, denied, stated

Score = Callable[[str, str], bool]


def way_of_scoring(dataset: str) -> Scoring:
    """How answers to a dataset of that name are scored; if they cannot be, an OptionError names those that can."""
    ways = {card.name: card.scoring for card in names() if card.scoring is not None}
    if dataset not in ways:
        advice = did_you_mean(dataset, ways, f"give one of the datasets {', '.join(ways)}")
        raise OptionError(f"answers to {dataset!r} have no way of scoring", advice, option="dataset", given=dataset)
    return ways[dataset]


def check_references(dataset: Dataset, way: Scoring) -> None:
    """Raise a PromptError unless every prompt has a reference that counts as right when it is given as the answer."""
    for prompt in dataset:
        if prompt.reference is None:
            problem = f"prompt {prompt.prompt_id} of {dataset.name} has no reference"
            raise PromptError(problem, "give one, or leave it out", given=prompt.prompt_id)
        if not WAYS[way](prompt.reference, prompt.reference):
            problem = f"the reference {prompt.reference!r} of prompt {prompt.prompt_id} cannot be scored as {way!r}"
            raise PromptError(problem, "correct it, or leave the prompt out", given=prompt.reference)


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


def chosen_letter(text: str, reference: str) -> bool:
    """Whether the letter that the text settles on is the reference, one of A, B, C, D.

    It is the first of these that the text has:

    - the letter right after the last "answer is", "answer:", "answer →", "<answer>" or "correct option is" that is
      followed by one, with nothing but signs between;
    - the letter in the last \\boxed{};
    - the letter after the first "I choose", "we pick", "I'd select", "I will go with" and the like;
    - the last capital A to D that stands alone, and that another letter is not compared with ("B over D", "B beats D",
      "B is better than D").

    A correction counts as a later answer: "no, wait: B", "actually, it is B", "sorry, I meant B" and the like, where
    the clause ends after the letter or continues with "is right" or "is correct".

    A letter stands alone if no letter, digit, apostrophe, hyphen, + or ^ is next to it, no ° before it and no # after
    it, or if it is in single quotes. An A that is an article, followed by a space and a small letter, does not count.
    Letters that the text denies or asks about are ignored: "not D", "neither A nor D", "rather than D", "D is wrong",
    "D does not hold" and the like, and any letter in a sentence that ends in a question mark. A text settles on no
    letter where "or", "and" or a slash joins several, or a box has several. Small letters count in brackets or quotes
    after "answer is", and in a box.
    """
    return settled_letter(text) == reference.strip()


def exact(text: str, reference: str) -> bool:
    """Whether what the text states in the end is the reference, apart from spelling.

    A text states what is in its last complete \\boxed{}; without one, the rest of the line after its last "answer is"
    or "answer:"; without that, its last line that is not blank. If one of the last two is corrected, only the
    correction counts, as for `number_or_words`. The comparison ignores

    - spaces and their commands, \\left and \\right, markup, double quotes, full stops at the end, brackets around one
      value, braces around a single character, and signs of multiplication except between digits;
    - what separates groups of three digits: 10,080, 10{,}080, 10\\,080, 10,\\!080 and 10 080 are 10080, in brackets
      too where one of the groups begins with 0: (1,080) is 1080, and (1,234) is a pair;
    - how a fraction, a root or a power of ten is written: \\frac12, \\dfrac{1}{2}, 1/2, ½ and .5; \\frac{\\sqrt3}{3},
      √3/3 and sqrt(3)/3; 2 \\cdot 10^3, 2e3 and 2000;
    - dollar, percent and degree signs and units, in \\text or known by name, but no other unit that is known: 5 cents
      is 5, and not 5 dollars;
    - the name of the value ("x =", "x \\in"), but no other name: x = 5 is 5, and not y = 5;
    - the order of a list or a set, separated by commas, "and" or "or": 1, -2 is \\{-2, 1\\}, and 1 \\pm 2 is the list
      1 + 2, 1 - 2. Entries in brackets keep their order: (1, 2) is not (2, 1).

    Numbers are compared by value wherever they stand, and words without regard to case; everything else is compared
    letter by letter. Nothing is calculated: 2 + x is not x + 2, and \\sqrt{8} is not 2\\sqrt{2}.
    """
    in_box = boxed(reference)
    return spelled_alike(stated(text), reference if in_box is None else in_box)


def number_or_words(text: str, reference: str) -> bool:
    """`last_number` where the reference is a number; else whether the text ends with its words, in any case of letters.

    The end of a text is its last \\boxed{}, the line after the last "answer is" or "answer:", or the last line, as for
    `exact`. If one of the last two is corrected, only the correction counts: Rome in "Paris. No, wait: Rome". A
    correction is a name or a number of one to three words, or one word after a colon. White space of any length is one
    space. An accent may be a part of its letter or follow it. Words that the text denies do not count:
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

WAYS: dict[Scoring, Score] = {
    "last number": last_number,
    "chosen letter": chosen_letter,
    "exact": exact,
    "number or words": number_or_words,
}
"""Every way of scoring by its name: (text, reference) -> whether the text is right."""
