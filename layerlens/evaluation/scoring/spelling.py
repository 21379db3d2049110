"""One spelling for all spellings of a short answer, plain or in LaTeX. No algebra: 2 + 3 is not 5."""

import re
import unicodedata
from typing import NamedTuple

from layerlens.evaluation.scoring.numbers import NUMBER, plain_numbers, value


class Reading(NamedTuple):
    """A short answer without its spelling: its items, in the order of their signs, its unit and its name."""

    items: tuple[str, ...]
    unit: str
    name: str


def spelled_alike(answer: str, reference: str) -> bool:
    """Whether two short answers are the same, apart from what `exact` ignores; two empty answers are not."""
    left, right = read(answer), read(reference)
    disagree = any(one and other and one != other for one, other in zip(left[1:], right[1:], strict=True))
    return left.items == right.items != ("",) and not disagree


def read(answer: str) -> Reading:
    """The answer without its spelling; one of more than 1,000 characters is left as it stands."""
    if len(answer) > _LONGEST:
        return Reading((answer,), "", "")
    answer = plain_numbers(unicodedata.normalize("NFC", answer))
    for pattern, spelling in _SPELLINGS:
        answer = re.sub(pattern, spelling, answer, flags=re.ASCII)
    answer, unit = _without_units(_braced_fractions(answer))
    for pattern, spelling in _WORDS:
        answer = re.sub(pattern, spelling, answer, flags=re.ASCII)
    if named := re.match(rf"{_NAME.pattern}\s*(?=\\\{{)", answer, re.ASCII):
        answer = answer[named.end() :]
    answer = answer.strip()
    if elements := re.fullmatch(r"\\\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\\\}", answer):
        answer = elements[1]
    elif not re.search(r"[(\[]", answer):
        answer = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), answer)
    items, name = _without_names(_split(answer, ","))
    signed = [item.replace(r"\pm", sign) for item in items for sign in _signs(item)]
    return Reading(tuple(sorted(map(_canonical, signed))), unit, name)


_LONGEST = 1000
_WORDING = r"\\(?:text|textbf|textrm|textit|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}"
_FUNCTION = r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp)"
_SIGNS = {"−": "-", "π": r"\\pi ", "∞": r"\\infty ", "±": r"\\pm ", "∪": r"\\cup ", "∈": r"\\in ", "√": r"\\sqrt "}
_SPELLINGS: list[tuple[str, str]] = [
    *_SIGNS.items(),
    (r"\\\\(?:\[\w+\])?", ";"),  # a matrix's next row
    (r"\\begin\s*\{[pbB]matrix\}", "["),
    (r"\\end\s*\{[pbB]matrix\}", "]"),
    (r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\q?quad(?![a-z])|~|[\u00a0\u2009\u202f]", " "),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°", r"\\text{degrees}"),
    (r"\\\$", r"\\text{dollars}"),
    (r"\\?%", r"\\text{percent}"),
    (r"\\?\$|\\[()\[\]]|\*\*|`|[\"“”„«»]|^\s*\*|\*\s*$", " "),
    (r"[×·*]|\\times(?![a-z])|\\cdot(?![a-z])", r"\\cdot "),
    (r"\\[cdst]frac", r"\\frac"),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"(?<![A-Za-z\\])(?:\\)?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s+([0-9]+)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*([0-9A-Za-z]|\\(?!frac|sqrt)[A-Za-z]+)", r"\\sqrt{\1}"),
    (r"([_^])\s*(-?[0-9]+|[A-Za-z]|\\(?!frac|sqrt|text)[A-Za-z]+)", r"\1{\2}"),
    (rf"({_FUNCTION})\s*(?:\((\w)\)|\{{(\w)\}})", r"\1 \2\3"),
]
_WORDS = [
    (_WORDING, r"\1"),
    (r"\s*,?\s*\b(?:and|or)\b\s*", ","),
    (r"[\s.,;]+$", ""),
]
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")

_UNITS = {
    "unit": "",
    "degree": "deg",
    "percent": "",
    "dollar": "",
    "cent": "",
    "radian": "rad",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd",
    "mile": "mi",
    "millimeter": "mm millimetre",
    "centimeter": "cm centimetre",
    "meter": "m metre",
    "kilometer": "km kilometre",
    "gram": "g",
    "kilogram": "kg",
    "pound": "lb",
    "second": "s sec",
    "minute": "min",
    "hour": "h hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "",
}
_UNIT = {word: unit for unit, others in _UNITS.items() for word in (unit, *others.split())}
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3"}
_POWER = r"(?:\s*\^\s*\{?([23])\}?)?"
_IN_TEXT = re.compile(_WORDING + _POWER, re.ASCII)
_PLAIN = re.compile(r"(?<=[0-9}) ])()\s*([A-Za-z][A-Za-z. ]*[A-Za-z])(?:(?:\s*\^\s*\{?)?([23])\}?)?[\s.,]*$", re.ASCII)
_UNKNOWN = re.compile(rf"(?<=[0-9}}.])\s*{_WORDING}{_POWER}[\s.,]*$", re.ASCII)
_NO_UNIT = re.compile(
    r"(?:hundred|thousand|million|billion|trillion|dozen|or|and|to|mod|base|more|less)\b", re.IGNORECASE
)


def _without_units(answer: str) -> tuple[str, str]:
    """The answer without its units, and the unit; "" where no unit is known by name, as for apples."""
    units = []

    def passed_over(match: "re.Match[str]") -> str:
        unit = _unit(*match.groups()[-2:])
        if unit is not None:
            units.append(unit)
        return " " if unit is not None else match[0]

    answer = _PLAIN.sub(passed_over, _IN_TEXT.sub(passed_over, answer))
    unknown = _UNKNOWN.search(answer)
    if unknown is not None and not _NO_UNIT.match(unknown[1].strip()):
        answer = answer[: unknown.start()]
    return answer, next(iter(filter(None, units)), "")


def _unit(words: str, power: str | None) -> str | None:
    """One name for a unit, such as "centimeter2"; "" for units that have none, and None for other words."""
    said = words.casefold().replace(".", " ").split()
    powers = [*(_POWERS[word] for word in said if word in _POWERS), power]
    bare = [word for word in said if word not in _POWERS]
    if len(bare) != 1:
        return None
    unit = _UNIT.get(bare[0], _UNIT.get(bare[0].removesuffix("s")))
    return unit and ("" if unit == "unit" else unit + "".join(filter(None, powers[:1])))


_NAME = re.compile(
    r"\s*((?:[A-Za-z]\w*|\\[A-Za-z]+(?:\s?[A-Z]{1,3})?)(?:_\{\w+\}|\(\s*[A-Za-z]\s*\))?)\s*(?:=|\\in(?![a-z]))",
    re.ASCII,
)


def _without_names(items: list[str]) -> tuple[list[str], str]:
    """The items without the one name that they share, and the name; items with different names keep them."""
    matches = [_NAME.match(item) for item in items]
    names = {re.sub(r"\s", "", name[1]) for name in matches if name}
    if len(names) != 1:
        return items, ""
    return [item[name.end() :] if name else item for item, name in zip(items, matches, strict=True)], names.pop()


def _signs(item: str) -> tuple[str, ...]:
    """The signs that a \\pm stands for: both, where it is the only \\pm of its item."""
    return ("+", "-") if item.count(r"\pm") == 1 else (r"\pm",)


def _canonical(piece: str) -> str:
    """One item: numbers by value, brackets entry by entry, and spaces only between digits."""
    piece = piece.strip()
    joined = _split(piece, r"\\cup(?![a-z])")
    if len(joined) > 1:
        return r"\cup".join(map(_canonical, joined))
    if piece[:1] in tuple("([{") and piece[-1:] in tuple(")]}") and _closes_at_the_end(piece):
        entries = [_canonical(entry) for entry in _split(piece[1:-1], ",")]
        if len(entries) == 1 and piece[0] + piece[-1] in ("()", "{}"):
            return entries[0]
        return piece[0] + ",".join(entries) + piece[-1]
    tight = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", piece)
    tight = re.sub(r"^\+", "", re.sub(r"\s+", " ", tight))
    if re.fullmatch(r"[1-9][0-9]{0,2}(?: [0-9]{3})+", tight):
        tight = tight.replace(" ", "")
    tight = _quotients(NUMBER.sub(_by_value, tight))
    tight = re.sub(r"(?<![0-9])\\cdot|\\cdot(?![0-9])", "", tight)
    return tight.casefold() if tight.isalpha() and len(tight) > 1 else tight


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between the matches of a pattern that stand in no bracket."""
    depth, parts, start = 0, [], 0
    for mark in re.finditer(rf"[(\[{{]|[)\]}}]|{separator}", text):
        if not depth and re.fullmatch(separator, mark[0]):
            parts.append(text[start : mark.start()])
            start = mark.end()
        depth += (mark[0] in "([{") - (mark[0] in ")]}")
    return [*parts, text[start:]]


def _closes_at_the_end(piece: str) -> bool:
    """Whether the bracket that opens the piece is the one that closes it."""
    depth = 0
    for place, sign in enumerate(piece):
        depth += (sign in "([{") - (sign in ")]}")
        if not depth:
            return place == len(piece) - 1
    return False


def _by_value(number: "re.Match[str]") -> str:
    """A number by its value, where no sign next to it makes it a part of another; (1/2) for .5, \\frac12 and 2/4."""
    size = value(number)
    before, after = number.string[: number.start()][-1:] or " ", number.string[number.end() :][:1] or " "
    if size is None or before in ("/", ".") or (after in ("/", "!", "^", "_") and size.denominator != 1):
        return number[0]
    written = str(size) if size.denominator == 1 else f"({size})"
    return f"{{{written}}}" if before in ("^", "_") else written


def _braced_fractions(text: str) -> str:
    """The text with braces around both arguments of every \\frac, as in \\frac{1}{2} for \\frac12."""
    for at in [fraction.start() for fraction in re.finditer(r"\\frac(?![a-z])", text)][::-1]:
        arguments: list[str] = []
        end = at + 5
        while len(arguments) < 2 and (token := re.compile(r"\s*(\\[A-Za-z]+|[0-9A-Za-z]|(?=\{))").match(text, end)):
            end = token.end() if token[1] else _group_ends(text, token.end())
            if not end:
                break
            arguments.append(token[1] or text[token.end() + 1 : end - 1])
        if len(arguments) == 2:
            text = f"{text[:at]}\\frac{{{arguments[0]}}}{{{arguments[1]}}}{text[end:]}"
    return text


def _quotients(text: str) -> str:
    """The text with every \\frac{a}{b} written as a/b, in brackets where a is a sum or b is more than one factor."""
    at = text.rfind(r"\frac{")
    while at >= 0:
        above_ends = _group_ends(text, at + 5)
        below_ends = _group_ends(text, above_ends) if text[above_ends : above_ends + 1] == "{" else 0
        if below_ends:
            above, below = text[at + 6 : above_ends - 1], text[above_ends + 1 : below_ends - 1]
            text = text[:at] + _quotient(text[:at], above, below) + text[below_ends:]
        at = text.rfind(r"\frac{", 0, at)
    return text


def _quotient(before: str, above: str, below: str) -> str:
    sign = ""
    if above.startswith("-") and (not before or before[-1] in "([{,;&="):
        sign, above = "-", above[1:]
    if re.search(r"[+-]|\\pm", re.sub(r"\([^()]*\)|\{[^{}]*\}", "", above)) and not _closes_at_the_end(above):
        above = f"({above})"
    if not re.fullmatch(r"(?:[0-9]+|[A-Za-z]|\\[A-Za-z]+)(?:\^\{[^{}]*\})?|\\sqrt\{[^{}]*\}|\([^()]*\)", below):
        below = f"({below})"
    apart = " " if before[-1:].isdigit() and above[:1].isdigit() else ""
    quotient = f"{sign}{apart}{above}/{below}"
    return f"{{{quotient}}}" if before[-1:] in ("^", "_") else quotient


def _group_ends(text: str, start: int) -> int:
    """Where the braces that open at start close, as the place after; 0 where they do not."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place + 1
    return 0
