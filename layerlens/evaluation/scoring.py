"""Whether an answer is right, by the way of scoring that its dataset declares. Each way compares texts alone.

    last number       the last number of the text equals the reference's
    chosen letter     the text settles on the reference's letter, A to D
    exact             what the text states in the end is the reference, but for its spelling
    number or words   as "last number" where the reference is one; else its words stand where the text ends

A text that was cut off is scored as it stands. None of the ways reads a number of more than 1,000 characters.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from layerlens.datasets import Dataset, names
from layerlens.datasets.source import Scoring
from layerlens.errors import OptionError, PromptError

Score = Callable[[str, str], bool]


def way_of_scoring(dataset: str) -> Scoring:
    """How answers to a dataset of that name are scored; an OptionError names those that can be if it cannot."""
    ways = {card.name: card.scoring for card in names() if card.scoring is not None}
    if dataset not in ways:
        raise OptionError(f"answers to {dataset!r} have no way of scoring; give one of the datasets {', '.join(ways)}")
    return ways[dataset]


def check_references(dataset: Dataset, way: Scoring) -> None:
    """Nothing, if every prompt has a reference that, given as the answer, is right; a PromptError otherwise."""
    for prompt in dataset:
        if prompt.reference is None:
            raise PromptError(
                f"prompt {prompt.prompt_id} of {dataset.name} has no reference; give one, or leave it out"
            )
        if not WAYS[way](prompt.reference, prompt.reference):
            raise PromptError(
                f"the reference {prompt.reference!r} of prompt {prompt.prompt_id} cannot be scored as {way!r}; "
                "mend it, or leave the prompt out"
            )


def last_number(text: str, reference: str) -> bool:
    """Whether the last number of the text equals that of the reference; False where either has none.

    A number is written as 1450000, 1,450,000, 2.5, .5, 1/2, 3 1/2, \\frac{1}{2} or 3\\frac{1}{2}, and 0.5 equals 1/2.
    Groups of three digits after commas belong to one number. A minus sign (- or −) right before it, or before its $,
    counts unless a digit, a letter, a closing bracket, % or another minus sign stands before that: "5-3" ends in 3.
    Currency, percent signs, units and punctuation are passed over: 50% is 50. Powers of ten are not understood.
    """
    found, wanted = _last_value(text), _last_value(reference)
    return found is not None and found == wanted


def chosen_letter(text: str, reference: str) -> bool:
    """Whether the letter that the text settles on is the reference, one of A, B, C, D.

    It is the letter after the last "answer is" or "answer:" that has one, in brackets or not; where there is none, the
    one in the last \\boxed{}; where there is none either, the last capital A to D that stands alone: no letter, digit,
    apostrophe or hyphen next to it, and no A that is an article, followed by a space and a small letter. Small letters
    count only in brackets or in a box.
    """
    return _letter(text) == reference.strip()


def exact(text: str, reference: str) -> bool:
    """Whether what the text states in the end is the reference, but for its spelling.

    A text states what is in its last complete \\boxed{}; without one, the rest of the line after its last "answer is"
    or "answer:"; without that, its last line that is not blank. Passed over are dollar, percent and degree signs,
    spaces and their commands, \\left and \\right, the size of fractions, braces around a single character, a unit in
    \\text after a number, full stops at the end, markup, and what names the value ("x =", "x \\in"). Numbers are
    compared by value, words without case; all else letter by letter.
    """
    boxed = _boxed(reference)
    return spelled_alike(_stated(text), reference if boxed is None else boxed)


def number_or_words(text: str, reference: str) -> bool:
    """`last_number` where the reference is a number; else whether its words stand where the text ends, in any case.

    That is the last \\boxed{}, the line after the last "answer is" or "answer:", or the last line, as for `exact`. Of
    "yes" and "no", the first one there decides.
    """
    if _NUMBER.fullmatch(reference.strip()):
        return last_number(text, reference)
    ending, words = _stated(text).casefold(), reference.strip().casefold()
    if words in ("yes", "no"):
        said = re.search(r"\b(?:yes|no)\b", ending)
        return said is not None and said[0] == words
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", ending) is not None


WAYS: dict[Scoring, Score] = {
    "last number": last_number,
    "chosen letter": chosen_letter,
    "exact": exact,
    "number or words": number_or_words,
}
"""Every way of scoring by its name: (text, reference) -> whether the text is right."""


def spelled_alike(answer: str, reference: str) -> bool:
    """Whether two short answers, plain or in LaTeX, are the same but for what `exact` passes over."""
    return _normalised(answer) == _normalised(reference) != ""


_LONGEST_NUMBER = 1000
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+)?|(?<![0-9A-Za-z.])\.[0-9]+)"
_FRAC = rf"\\[dt]?frac\s*\{{\s*(?P<upper>-?{_WHOLE})\s*\}}\s*\{{\s*(?P<lower>{_WHOLE})\s*\}}"
_SLASH = rf"(?P<over>{_WHOLE})/(?P<under>{_WHOLE})"
_NUMBER = re.compile(
    rf"(?:(?<![0-9A-Za-z)\]}}%−-])(?P<minus>[-−]))?(?:\\?\$)?"
    rf"(?:(?:(?P<ones>{_WHOLE}) ?)?{_FRAC}|(?:(?P<units>{_WHOLE}) )?{_SLASH}|(?P<decimal>{_DECIMAL}))"
)


def _last_value(text: str) -> Fraction | None:
    numbers = list(_NUMBER.finditer(_joined_digits(text)))
    return _value(numbers[-1]) if numbers else None


def _value(number: "re.Match[str]") -> Fraction | None:
    """None where it is too long, or divides by zero."""
    if len(number[0]) > _LONGEST_NUMBER:
        return None
    part = {name: value.replace(",", "") for name, value in number.groupdict().items() if value is not None}
    below = part.get("lower") or part.get("under") or "1"
    if not int(below):
        return None
    above = part.get("upper") or part.get("over") or part["decimal"]
    size = Fraction(above) / int(below) + int(part.get("ones") or part.get("units") or 0)
    return -size if "minus" in part else size


def _joined_digits(text: str) -> str:
    """The text without what LaTeX writes between the digits of one number."""
    return re.sub(r"(?<=[0-9])(?:\{,\}|,\\!|\\,|\\!)\s?(?=[0-9]{3}(?![0-9]))", "", text)


_ANSWER_IS = re.compile(r"\banswer\b[*_]*[^\S\n]*(?:is\b[*_]*[^\S\n]*:?|[:=])", re.IGNORECASE)
_OPENING = r"(?:[\s*_$]|\\\(|\\\[|\\boxed|\\text(?:bf)?|\\mathrm|\\mathbf|\{|\[)*"
_IN_BRACKETS = r"\(\s*(?P<bracketed>[A-Da-d])\s*\)"
_BEFORE, _AFTER = r"(?<![^\W_])(?<!['’-])", r"(?![^\W_]|['’-])"
_ALONE = rf"{_BEFORE}(?P<alone>[A-D]){_AFTER}"
_AFTER_ANSWER = re.compile(rf"{_OPENING}(?:{_IN_BRACKETS}|{_ALONE})")
_IN_BOX = re.compile(r"(?:\\text(?:bf)?|\\mathrm|\\mathbf)?[\s{(]*([A-Da-d])[\s.)}]*")
_STANDING = re.compile(rf"{_BEFORE}(?:[B-D]|A(?! [a-z])){_AFTER}")


def _letter(text: str) -> str | None:
    for phrase in reversed(list(_ANSWER_IS.finditer(text))):
        if found := _AFTER_ANSWER.match(text, phrase.end()):
            return (found["bracketed"] or found["alone"]).upper()
    boxed = _boxed(text)
    if boxed is not None and (found := _IN_BOX.fullmatch(boxed.strip())):
        return found[1].upper()
    standing = _STANDING.findall(text)
    return standing[-1] if standing else None


def _stated(text: str) -> str:
    """What the text gives as its answer: see `exact`."""
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    for phrase in reversed(list(_ANSWER_IS.finditer(text))):
        if rest := text[phrase.end() :].strip():
            return rest.splitlines()[0]
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _boxed(text: str) -> str | None:
    """The content of the last \\boxed{} or \\fbox{} whose braces close; None where there is none."""
    opened: list[re.Match[str]] = []
    last = (-1, -1)
    for brace in _BRACES.finditer(text):
        if brace[0] == "}":
            if opened and opened[-1]["box"]:
                last = max(last, (opened[-1].end(), brace.start()))
            del opened[-1:]
        elif brace["box"] or brace[0] == "{":
            opened.append(brace)
    return text[slice(*last)] if last[0] >= 0 else None


_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_WORDING = r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}"
_SPELLINGS = [
    (r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\q?quad|~", " "),
    (r"\\[dt]frac", r"\\frac"),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\?[$%]|\\[()\[\]]|[*`]", " "),
    (rf"(?<=[0-9}}.])\s*{_WORDING}\s*(?:\^\s*\{{?[23]\}}?)?[\s.,]*$", ""),  # a unit at the end
    (_WORDING, r"\1"),
    (r"\\(frac|sqrt)\s*([0-9A-Za-z])", r"\\\1{\2}"),
    (r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z])", r"\\frac\1{\2}"),
    (r"^\s*[A-Za-z]\w*\s*(?:=|\\in(?![a-z]))", ""),
    (r"([_^])\{(\w)\}", r"\1\2"),
]


def _normalised(answer: str) -> str:
    """One spelling for all that `exact` takes as the same."""
    for pattern, spelling in _SPELLINGS:
        answer = re.sub(pattern, spelling, answer)
    answer = _joined_digits(answer.strip().rstrip(".,").strip())
    number = _NUMBER.fullmatch(answer)
    if number is not None and (value := _value(number)) is not None:
        return str(value)
    tight = re.sub(r"\s+", "", answer)
    return tight.casefold() if tight.isalpha() and len(tight) > 1 else tight
