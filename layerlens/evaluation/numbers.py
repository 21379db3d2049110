"""Numbers as texts write them, in plain writing and in LaTeX, read as exact fractions."""

import re
from fractions import Fraction

from layerlens.evaluation.stated import denied_at_once

LONGEST = 1000
"""Characters of the longest number that is read."""

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+)?|(?<![0-9A-Za-z.])\.[0-9]+)"


def _argument(name: str) -> str:
    return rf"\s*(?:\{{\s*(?P<{name}>[-−]?\s?{_DECIMAL})\s*\}}|(?P<{name}_digit>[0-9]))"


_FRAC = rf"\\[cdst]?frac{_argument('upper')}{_argument('lower')}"
_SLASH = rf"(?P<over>{_DECIMAL})(?:/| / )(?P<under>{_DECIMAL})"
NUMBER = re.compile(
    rf"(?:(?<![0-9A-Za-z)\]}}%−-])(?P<minus>[-−]))?(?:\\?\$)?"
    rf"(?:(?:(?P<ones>{_WHOLE}) ?)?{_FRAC}|(?:(?P<units>{_WHOLE}) )?{_SLASH}|(?P<decimal>{_DECIMAL}))"
)
"""A number: 1450000, 1,450,000, 2.5, .5, 1/2, 3 1/2, \\frac{1}{2}, \\frac12 or 3\\frac{1}{2}, its sign and its $."""


def joined_digits(text: str) -> str:
    """The text without what stands between the groups of three digits of one number, except for plain commas.

    That is {,}, the spaces of LaTeX with or without a comma before \\!, and spaces that no line breaks at. A comma
    before any other space separates the items of a list.
    """
    return _BETWEEN_DIGITS.sub("", text)


_BETWEEN_DIGITS = re.compile(
    r"(?<=[0-9])(?:(?:\\text)?\{,\}|,?\s?\\!|\\[,:; ]|~|[\u00a0\u2009\u202f])(?:\s|\\!){0,3}(?=[0-9]{3}(?![0-9]))"
)


def value(number: "re.Match[str]") -> Fraction | None:
    """What a match of `NUMBER` is worth; None where it is too long, or divides by zero."""
    if len(number[0]) > LONGEST:
        return None
    part = {
        name.removesuffix("_digit"): digits.replace(",", "").replace("−", "-").replace(" ", "")
        for name, digits in number.groupdict().items()
        if digits is not None
    }
    below = Fraction(part.get("lower") or part.get("under") or 1)
    if not below:
        return None
    above = part.get("upper") or part.get("over") or part["decimal"]
    size = Fraction(above) / below + int(part.get("ones") or part.get("units") or 0)
    return -size if "minus" in part else size


def last_value(text: str) -> Fraction | None:
    """The last number of the text that is neither denied nor belongs to a unit; None where there is none.

    None too where that number is a part of something larger, whose value is another one: \\sqrt{2}, 2\\pi, 10^3, 1e3,
    \\frac{\\pi}{12}, x/12.
    """
    text = joined_digits(text)
    for number in reversed(list(NUMBER.finditer(text))):
        before = text[max(0, number.start() - _REACH) : number.start()]
        if _UNIT_BEFORE.search(before) or denied_at_once(text, number.start()):
            continue
        whole = _PART_BEFORE.search(before) is None and _PART_AFTER.match(text, number.end()) is None
        return value(number) if whole else None
    return None


_REACH = 80
_UNIT_BEFORE = re.compile(r"(?:(?<![A-Za-z])[A-Za-z]+|\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\})\s*[\^_]\s*\{?\s*$")
_PART_BEFORE = re.compile(
    r"(?:[\^_]\s*\{?\s*|[0-9][eE][+-]?|(?:sqrt|√)\s*(?:\[[^\]]*\])?\s*[{(]?\s*|[\w)\]}](?:/| / )"
    r"|\\[cdst]?(?:frac|binom)\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}\s*\{?|\\[A-Za-z]+\s*\{?|\w\s*\{?|\{[^{}]*)\s*)$"
)
_PART_AFTER = re.compile(r"\}?(?:\s*(?:\^(?!\s*\{?\s*\\circ)|\\pi(?![a-z])|π|\\sqrt|√)|_\{?[0-9]|[eE][+-]?[0-9])")
