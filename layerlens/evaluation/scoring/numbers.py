"""Numbers as texts write them, in plain writing and in LaTeX, read as exact fractions."""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from layerlens.evaluation.scoring.stated import denied_at_once

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


def plain_numbers(text: str) -> str:
    """The text with its numbers in one writing, so that `NUMBER` finds each as a whole.

    Signs that are a number of their own become LaTeX (½ is \\frac{1}{2}, ⁄ is /), and so do raised and lowered digits
    (10³ is 10^{3}). What stands between the groups of three digits of one number is left out: {,}, the spaces of LaTeX
    with or without a comma before \\!, and spaces that no line breaks at. A plain comma or space is left out where one
    of the groups begins with 0, because no item of a list does: 1,080 and 10 080. A comma before any other space
    separates the items of a list. Powers of ten with a whole exponent are written out, alone or times a number:
    2 \\cdot 10^3, 2 × 10³ and 2e3 are 2000; another product before them leaves them as they are.
    """
    text = _FRACTION_SIGN.sub(_in_latex, text).replace("⁄", "/")
    text = _LOWERED.sub(_in_latex, _RAISED.sub(_in_latex, text))
    text = _GROUP_FROM_ZERO.sub(lambda number: number[0].replace(number["apart"], ""), _BETWEEN_DIGITS.sub("", text))
    return _POWER_OF_TEN.sub(_written_out, text)


def is_number(text: str) -> bool:
    """Whether the text is a number and nothing else."""
    return NUMBER.fullmatch(plain_numbers(text.strip())) is not None


_FRACTION_SIGN = re.compile("(?P<frac>[¼-¾⅐-⅞])")
_RAISED = re.compile("(?P<up>[⁺⁻]?[⁰¹²³⁴-⁹]+)")
_LOWERED = re.compile("(?P<down>[₀-₉]+)")


def _in_latex(signs: "re.Match[str]") -> str:
    plain = unicodedata.normalize("NFKC", signs[0])
    if signs.lastgroup == "frac":
        return r"\frac{{{}}}{{{}}}".format(*plain.split("⁄"))
    return f"{'^' if signs.lastgroup == 'up' else '_'}{{{plain}}}"


_BETWEEN_DIGITS = re.compile(
    r"(?<=[0-9])(?:(?:\\text)?\{,\}|,?\s?(?:\\!|\{\\!\})|\\[,:; ]|~|[\u00a0\u2009\u202f])(?:\s|\\!){0,3}"
    r"(?=[0-9]{3}(?![0-9]))"
)
_GROUP_FROM_ZERO = re.compile(
    r"(?<![\w.,])[1-9][0-9]{0,2}(?P<apart>[ ,])(?:[0-9]{3}(?P=apart)){0,9}0[0-9]{2}(?:(?P=apart)[0-9]{3})*(?![0-9])"
)
_SPACE = r"(?:\s|\\[,:;! ]|~){0,4}"
_TIMES = r"(?:[×·]|(?<!\*)\*(?!\*)|\\times(?![A-Za-z])|\\cdot(?![A-Za-z]))"
_ALONE = r"(?<![\w.])(?<![0-9],)"
_NOT_RAISED = r"(?![.,]?[0-9]|\s?\^(?!\s*\{?\s*\\circ))"
_POWER_OF_TEN = re.compile(
    rf"(?P<product>{_TIMES}{_SPACE})?"
    rf"(?:{_ALONE}(?P<factor>{_DECIMAL}){_SPACE}(?:{_TIMES}|x){_SPACE}|{_ALONE})"
    rf"10\s?\^\s?(?:\{{\s?(?P<braced>[-−+]?[0-9]{{1,3}})\s?\}}|(?P<bare>[-−+]?[0-9]{{1,3}})){_NOT_RAISED}"
    rf"|{_ALONE}(?P<times>{_DECIMAL})[eE](?P<raised>[-−+]?[0-9]{{1,3}})(?!\w){_NOT_RAISED}"
)


def _written_out(power: "re.Match[str]") -> str:
    if power["product"]:
        return power[0]
    factor = power["factor"] or power["times"] or "1"
    exponent = power["braced"] or power["bare"] or power["raised"]
    return f"{Decimal(factor.replace(',', '')).scaleb(int(exponent.replace('−', '-'))):f}"


def value(number: "re.Match[str]") -> Fraction | None:
    """The value of a match of `NUMBER`; None where it is too long, or divides by zero."""
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
    """The last number of the text that is not denied and not part of a unit; None where there is none.

    None too where that number is a part of something larger, whose value is another one: \\sqrt{2}, 2\\pi, 2^3,
    \\frac{\\pi}{12}, \\binom52, f(2), x/12, 2**3. A number beside a command of LaTeX is such a part, unless the command
    is one of those in `_STANDS_ALONE`, which set text, give space, relate or name a unit.
    """
    text = plain_numbers(text)
    for number in reversed(list(NUMBER.finditer(text))):
        before = text[max(0, number.start() - _REACH) : number.start()]
        belongs_to_a_unit = _UNIT_BEFORE.search(before) and "$" not in number[0]
        if belongs_to_a_unit or denied_at_once(text, number.start()):
            continue
        whole = _PART_BEFORE.search(before) is None and _PART_AFTER.match(text, number.end()) is None
        return value(number) if whole else None
    return None


_REACH = 80
_RAISES = r"\s*[\^_]\s*\{?\s*"
_UNIT_BEFORE = re.compile(
    rf"(?:(?<![A-Za-z])[A-Za-z]+{_RAISES}|(?<![A-Za-z\\])[A-Za-z]+"
    rf"|\\(?:text|mbox|mathrm|textrm)\s*\{{[^{{}}]*\}}{_RAISES})\Z"
)
_STANDS_ALONE = (
    r"[a-z]*box(?:ed)?|[a-z]*color|(?:text|math)[a-z]*|underline|emph|bf|bm|boldsymbol|[Ll]arge|LARGE|[Hh]uge"
    r"|left|right|[Bb]igg?[lr]?|begin|end|item|hline|newline|par|q?quad|[hv]space|displaystyle|approx|sim(?:eq)?|cong"
    r"|equiv|doteq|[lg](?:eq?|eqslant|t)|n(?:ot|eq?)|in|[A-Za-z]*arrow|to|implies|iff|therefore|because|colon|mid|land|lor|cup"
    r"|[lc]?dots|circ|degree|percent|Omega|mu|square|blacksquare|Box|qed|checkmark"
)
"""The commands of LaTeX that leave the number beside them a number of its own; all others make it a part."""
_COMMAND = rf"\\(?!(?:{_STANDS_ALONE})(?![A-Za-z]))[A-Za-z]+"
_GAP = r"[^\S\n]*"
_GROUPED = r"(?:[^{}]|\{[^{}]*\})*"
_ARGUMENTS = rf"(?:{_GAP}(?:\{{{_GROUPED}\}}|\[[^\]]*\]|[\^_]?\w)){{0,3}}"
_PART_BEFORE = re.compile(
    rf"(?:[\^_]\s*\{{?\s*|[0-9][eE][+-]?|(?:sqrt|√)\s*(?:\[[^\]]*\])?\s*[{{(]?\s*|(?<![A-Za-z])[A-Za-z]\([^()]*"
    rf"|[0-9]\.\(|±\s*|[\w)\]}}](?:[/÷×·]|(?<![A-Za-z]{{2}})\*\*| (?:[/÷×·]|\*\*|mod|choose) )"
    rf"|{_COMMAND}{_ARGUMENTS}{_GAP}(?:\{{{_GROUPED}|\([^()]*)?)\Z"
)
_PART_AFTER = re.compile(
    r"\}?(?:\s*(?:\^(?!\s*\{?\s*\\circ)|π|√)|_\{?[0-9]|[eE][+-]?[0-9])"
    rf"|{_GAP}{_COMMAND}|!{_GAP}(?:[}}$]|\\[)\]])|\u0305|{_GAP}[÷×·]| (?:mod|choose) (?=[\w(])"
)
