"""The letter of a multiple choice on which a text settles."""

import re
from collections.abc import Iterable

from layerlens.evaluation.scoring.stated import ANSWER_IS, CORRECTS, QUOTES, boxed, denied


def settled_letter(text: str) -> str | None:
    """The letter A to D that `chosen_letter` finds in the text; None where the text settles on none."""
    phrases = sorted([*ANSWER_IS.finditer(text), *_OPTION_IS.finditer(text)], key=re.Match.end)
    choices = list(_CHOOSES.finditer(text))
    first = phrases[0].end() if phrases else text.rfind(r"\boxed")
    if first < 0 and choices:
        first = choices[0].end()
    if first >= 0:  # a correction needs an earlier answer
        phrases = sorted([*phrases, *_CORRECTION.finditer(text, first)], key=re.Match.end)
    if letter := _given(text, reversed(phrases)):
        return None if _joined(text, letter) else _name(letter)
    in_box = boxed(text)
    if in_box is not None:
        if letter := _IN_BOX.fullmatch(in_box.strip()):
            return letter[1].upper()
        if letters := set(_STANDING.findall(in_box)):
            return letters.pop() if len(letters) == 1 else None
    if letter := _given(text, choices):
        return None if _joined(text, letter) else _name(letter)
    for letter in reversed(list(_STANDING.finditer(text))):
        if not _is_denied(text, letter) and not _COMPARED.search(text[max(0, letter.start() - 80) : letter.start()]):
            return None if _joined(text, letter) else letter[0]
    return None


def _given(text: str, phrases: Iterable["re.Match[str]"]) -> "re.Match[str] | None":
    """The letter right after the first of the phrases that has one which is not denied."""
    letters = (_AFTER_ANSWER.match(text, phrase.end()) for phrase in phrases)
    return next((letter for letter in letters if letter and not denied(text, *letter.span())), None)


def _name(letter: "re.Match[str]") -> str:
    return (letter["enclosed"] or letter["alone"]).upper()


def _joined(text: str, letter: "re.Match[str]") -> bool:
    """Whether "or", "and" or a slash joins another letter to this one, so that neither letter is the choice."""
    end, start = letter.end(), letter.start()
    after = _JOINED_AFTER.match(text, end)
    if after is not None and not _is_denied(text, after, "other"):
        return True
    before = _JOINED_BEFORE.search(text[max(0, start - 20) : start])
    return before is not None


def _is_denied(text: str, letter: "re.Match[str]", group: int | str = 0) -> bool:
    """Whether the letter is denied, alone or with those that are joined to it: "A, C and D are wrong"."""
    end = letter.end(group)
    joined = _REST_OF_LIST.match(text, end)
    return denied(text, letter.start(group), joined.end() if joined else end)


_OPTION_IS = re.compile(
    r"\b(?:(?:correct|right|best)\s+(?:option|choice|letter)|(?:answer|option|choice)\s+(?:must|would|should|has\s+to))"
    r"\b[*_]*[^\S\n]*(?:is\b|be\b|:)[*_]*[^\S\n]*:?",
    re.IGNORECASE,
)
_QUOTE = f"[{re.escape(QUOTES)}]"
_CHOOSES = re.compile(
    r"(?<!\bif )\b(?:I|we)(?:['’](?:d|ll|m|re))?\s+(?:(?:will|would|shall|have\s+to|am|are|therefore|thus|so)\s+)?"
    r"(?:choose|pick|select|go(?:ing)?\s+(?:with|for))\b",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"(?<!\w)[A-D]\b(?:(?!\bnot?\b|n['’]t\b)[^.;!?\n]){0,60}\b(?:over|beats?|(?:better|more\s+\w+)\s+than)[\s*_(\"']+$"
)
_OPENING = (
    r"(?:\\(?:boxed|text(?:bf)?|mathrm|mathbf)|[^\w?]|_)*"
    r"(?:(?i:(?:the\s+)?(?:option|choice|letter))[\s*_]+)?"
)
_BEFORE, _AFTER = r"(?<![^\W_])(?<![^\W_]_)(?<!['’°+^-])", r"(?!_?\{?[^\W_]|['’#+^-])"
_ENCLOSED = (
    rf"(?:[(（]\s*|{_QUOTE}{{1,2}}[(（]?)[*_]*(?P<enclosed>[A-Da-d])[*_]*"
    rf"(?:\s*[)）]|[)）.]?{_QUOTE}){_QUOTE}?(?![^\W_])"
)
_AFTER_ANSWER = re.compile(rf"{_OPENING}(?:{_ENCLOSED}|{_BEFORE}(?P<alone>[A-D]){_AFTER})")
_END = rf"[)）>〉》】\]}}$*_{re.escape(QUOTES)}]*"
_CORRECTION = re.compile(
    rf"{CORRECTS}"
    rf"(?={_AFTER_ANSWER.pattern}{_END}[}}$]*(?:\s*(?:[.;!]|,(?!\s*[A-D]\b)|\n|$)|\s+(?:is\s+(?:right|correct)|or)\b))"
)
_IN_BOX = re.compile(r"(?:\\text(?:bf)?|\\mathrm|\\mathbf)?[\s{(]*([A-Da-d])[\s.)}]*")
_STANDING = re.compile(rf"{_BEFORE}(?:[B-D]|A(?! [a-z])){_AFTER}|(?<=(?<![^\W_])['‘’‚‛])[A-D](?=['‘’‛](?![^\W_]))")
_LETTER = (
    rf"[*_(（<〈《【\[{{$\\{re.escape(QUOTES)}]*(?P<other>(?<![^\W_])[A-D](?![^\W_]))(?:[)）*_]|{_QUOTE}(?![^\W_]))*"
)
_PLAIN_LETTER = _LETTER.replace("?P<other>", "?:")
_JOINED_AFTER = re.compile(
    rf"{_END}(?:\s*,\s*{_PLAIN_LETTER})*\s*(?:,?\s*\b(?:or|and(?:/or)?)\s+|[/&]\s*)(?:(?:option|choice)\s+)?{_LETTER}"
    r"(?!\s+(?:is|was|has|does|would|can|could|cannot|fails|follows|gives)\b|\s*n['’]t)"
)
_JOINED_BEFORE = re.compile(
    rf"(?<![^\W_])[A-D]{_END}(?:\s*,?\s*\b(?:or|and(?:/or)?)\s+|\s*[/&]\s*)[*_(（{re.escape(QUOTES)}]*$"
)
_REST_OF_LIST = re.compile(rf"{_END}(?:\s*(?:,\s*(?:or\b|and\b)?|\b(?:or|and)\b|[/&])\s*{_PLAIN_LETTER})+")
