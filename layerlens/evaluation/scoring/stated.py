"""Where a text gives its answer, and what it denies."""

import re

QUOTES = "\"'`´‘’‚‛“”„‟‹›«»「」『』＂＇"
"""Every sign that opens or closes a quotation."""

ANSWER_IS = re.compile(
    r"(?<!</)\banswer\b[*_]*[^\S\n]*(?:is\b[*_]*[^\S\n]*:?|[-=]+>|[:=→⇒]|(?<=answer)>)", re.IGNORECASE
)
CORRECTS = (
    r"\b(?i:no(?=[,.:;—–-])|wait|actually|correction|sorry|oops|I\s+meant?|make\s+(?:that|it)|scratch\s+that)\b"
    r"[\s,.:;!…—–-]*(?:(?i:no|it|that|is|(?:it|that)['’]s|must|should|be)\b[\s,:]*){0,4}"
)
"""Words before an answer that corrects an earlier one, as in "no, wait: it is"."""

_CORRECTION = re.compile(
    rf"(?:(?<=[.,;!…—–]\s)|(?<=[^\s:]\n)){CORRECTS}"
    r"(?=(?:(?<=:\s)(?:the\s+)?[^\W_]|[*_$\"“'‘]*[A-Z0-9])[^\s.,;!?]*(?:\s+[A-Z0-9][\w'’-]*){0,2}\s*(?:[.;!\n]|$))"
)


def stated(text: str) -> str:
    """What the text gives as its answer: its last complete box, else the line after "answer is", else its last line.

    If one of the last two is corrected, only the correction counts: Rome in "Paris. No, wait: Rome".
    """
    in_box = boxed(text)
    if in_box is not None:
        return in_box
    phrases = list(ANSWER_IS.finditer(text))
    first = phrases[0].end() if phrases else text.rstrip().rfind("\n") + 1
    for phrase in sorted([*phrases, *_CORRECTION.finditer(text, first)], key=re.Match.end, reverse=True):
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
    """Whether the text says that text[start:end] is not the answer, or only asks about it.

    The denial stands before it with at most four words between, all in one clause ("isn't the city of Paris", "neither
    A nor D", "anything but D", "no longer D", "I doubt it is D"), or right after it: a verb that is denied ("Paris
    isn't", "D does not hold") or a fault ("D is wrong", "D fails"). A comma, a full stop, "but", "than" and "only" end
    what a denial reaches: "not Rome but Paris" and "not only Paris" deny no Paris. An insertion between two commas does
    not end it where nothing else stands between: "not, as many think, Paris". Denials are English, or the French "pas".
    A sentence that ends in a question mark states nothing, whatever comes next: "Is it Paris? No, Rome."
    """
    before = text[max(0, start - _REACH) : start]
    if _DENIAL_NEAR.search(before) or _DENIAL_AFTER.match(text, end, end + _REACH):
        return True
    return _ASKED.match(text, end) is not None


def denied_at_once(text: str, start: int) -> bool:
    """Whether a denial stands right before the place, with no word between: "not 12", and not "does not have 12"."""
    return _DENIAL_RIGHT_BEFORE.search(text[max(0, start - _REACH) : start]) is not None


_REACH = 80
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_MARKUP = rf"[\s*_$\\{{(\[{re.escape(QUOTES)}]"
_DENIAL = (
    r"(?:(?:\b(?:not|never|no\s+longer|no|pas|(?:I|we)\s+(?:\w+ly\s+)?doubt|cannot|neither|nor|unlike|rather\s+than|instead\s+of|other\s+than|except(?:\s+for)?"
    rf"|(?:anything|all|everything|nothing)\s+but)|n['’]t)(?!\w)|≠|!=|\\neq?(?![A-Za-z])|\\not\s*=){_MARKUP}*"
)
_WORD_BETWEEN = (
    r"(?!(?:but|than|only|just|because|since|so|thus|hence|therefore|doubt|mais|seulement)\b)"
    rf"[\w\\][\w\\-]*(?:{_MARKUP}|[)\]}}*])+"
)
_INSERTION = rf"(?<!\bno),(?:(?!\bnot\b|n['’]t\b)[^,.;:!?\n]){{1,60}},{_MARKUP}+"
_DENIAL_RIGHT_BEFORE = re.compile(rf"{_DENIAL}$", re.IGNORECASE)
_DENIAL_NEAR = re.compile(rf"{_DENIAL}(?:{_INSERTION}|(?<!\bno\s)(?:{_WORD_BETWEEN}){{1,4}})?$", re.IGNORECASE)
_VERB = r"(?:is|are|was|were|be|do|does|did|has|have|had|can|could|will|would|should|must|may|might|seems?|looks?)\s+"
_ADVERB = r"(?:(?:also|both|all|\w+ly)\s+)?"
_FAULT = r"(?:wrong|incorrect|false|impossible|ruled\s+out|fails?)\b"
_DENIAL_AFTER = re.compile(
    rf"(?:[.)](?=\s*(?:is|was)\b))?[\s*_$)\]}}{re.escape(QUOTES)}]*{_ADVERB}(?:(?:{_VERB}{_ADVERB}){{0,2}}{_FAULT}"
    rf"|(?:{_VERB}(?:not|never|no\s+longer)|\w+n['’]t|can\s*not|never|no\s+longer|n['’]est\s+pas)\b(?!\s+(?:only\b|just\b|(?:be\s+)?{_FAULT})))",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[^.!?\n]{0,300}\?")
