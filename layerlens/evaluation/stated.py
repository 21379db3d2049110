"""Where a text gives its answer, and what it denies."""

import re

QUOTES = "\"'`´‘’‚‛“”„‟‹›«»「」『』＂＇"
"""Every sign that opens or closes a quotation."""

ANSWER_IS = re.compile(r"\banswer\b[*_]*[^\S\n]*(?:is\b[*_]*[^\S\n]*:?|[:=])", re.IGNORECASE)


def stated(text: str) -> str:
    """What the text gives as its answer: its last complete box, else the line after "answer is", else its last line."""
    in_box = boxed(text)
    if in_box is not None:
        return in_box
    for phrase in reversed(list(ANSWER_IS.finditer(text))):
        if rest := text[phrase.end() :].strip():
            return rest.splitlines()[0]
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def boxed(text: str) -> str | None:
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


def denied(text: str, start: int, end: int) -> bool:
    """Whether the text says that text[start:end] is not the answer: "not Paris", "rather than D", "D is wrong".

    The denial stands before it with at most four words between, all in one clause ("isn't the city of Paris", "neither
    A nor D", "anything but D"), or right after it ("Paris is not correct", "D fails"). A comma, a full stop, "but",
    "than" and "only" end what a denial reaches: "not Rome but Paris" and "not only Paris" deny no Paris.
    """
    before = text[max(0, start - _REACH) : start]
    return _DENIAL_NEAR.search(before) is not None or _DENIAL_AFTER.match(text, end, end + _REACH) is not None


def denied_at_once(text: str, start: int) -> bool:
    """Whether a denial stands right before the place, with no word between: "not 12", and not "does not have 12"."""
    return _DENIAL_RIGHT_BEFORE.search(text[max(0, start - _REACH) : start]) is not None


_REACH = 80
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_MARKUP = rf"[\s*_$\\{{(\[{re.escape(QUOTES)}]"
_DENIAL = (
    r"(?:\b(?:not|never|no|cannot|neither|nor|unlike|rather\s+than|instead\s+of|other\s+than|except(?:\s+for)?"
    rf"|(?:anything|all|everything|nothing)\s+but)|n['’]t)(?!\w){_MARKUP}*"
)
_WORD_BETWEEN = rf"(?!(?:but|than|only|just|because|since|so)\b)[\w\\-]+(?:{_MARKUP}|[)\]}}*])+"
_DENIAL_RIGHT_BEFORE = re.compile(rf"{_DENIAL}$", re.IGNORECASE)
_DENIAL_NEAR = re.compile(rf"{_DENIAL}(?:(?<!\bno\s)(?:{_WORD_BETWEEN}){{1,4}})?$", re.IGNORECASE)
_NOT_RIGHT = r"\s+(?:the\s+|a\s+)?(?:right|correct|true|answer|it\b)"
_DENIAL_AFTER = re.compile(
    rf"(?:[.)](?=\s*(?:is|was)\b))?[\s*_$)\]}}{re.escape(QUOTES)}]*"
    r"(?:(?:is|are|was|were|seems?|looks?)\s+(?:also\s+|both\s+|all\s+|clearly\s+)?"
    rf"(?:wrong|incorrect|false|impossible|ruled\s+out|(?:not|never){_NOT_RIGHT})"
    rf"|(?:is|are|was|were)n['’]t{_NOT_RIGHT}|(?:can\s*not|can['’]t)\s+be{_NOT_RIGHT}|fails?\b(?!\s+to\b))",
    re.IGNORECASE,
)
