"""What a chat template writes around a user's message, and which prompts already have it."""

import re
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Protocol

Messages = Sequence[dict[str, str]]

_MARKS = tuple(f"qz{place}xk" for place in range(3))


class Render(Protocol):
    def __call__(self, messages: Messages, *, begins_answer: bool) -> str | None:
        """What the template writes for a conversation, or None where it refuses the conversation."""


class Turns:
    """The turn markers of a chat template, as it writes them around the messages of a probe conversation.

    Args:
        render: the template.
        special: special and added tokens of the tokenizer, which are compared as wholes.
    """

    def __init__(self, render: Render, special: Collection[str]) -> None:
        every = sorted((token for token in special if token.strip()), key=len, reverse=True)
        self._pieces = re.compile("|".join([*map(re.escape, every), r"\S"]))
        answered = [
            {"role": role, "content": mark} for role, mark in zip(("user", "assistant", "user"), _MARKS, strict=True)
        ]
        asked = answered[:1]
        before, after = self._around(render(asked, begins_answer=True))
        # an added token that is a plain word is not a marker
        self._begins = {piece for piece in before if piece in every and not piece.isalnum()}
        end = self._around(render(asked, begins_answer=False))[1]
        # only before a first message can there be a begin token and a system message
        later = self._around(render(answered, begins_answer=True), _MARKS[2])[0]
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(before), reversed(later), strict=False))
        opening = [piece for piece, _ in pairs][::-1] if later else before
        if len(opening) > len(end) and opening[: len(end)] == end:  # the end of the system message
            opening = opening[len(end) :]
        self._opening, self._end, self._answer = ("".join(pieces) for pieces in (opening, end, after))

    def found_in(self, text: str) -> str | None:
        """A marker of the template in the text, if the text is a chat that is already written out; else None.

        A text is such a chat if it begins with a special token that the template writes before messages. It is one too
        if it has, in this order, what the template writes before and after a user's message, and begins with the former
        or ends with the latter. White space makes no difference. A text that only mentions a marker is not such a chat.
        """
        pieces: list[str] = self._pieces.findall(text)
        if pieces[:1] and pieces[0] in self._begins:
            return pieces[0]
        written, opening = "".join(pieces), self._opening
        start = written.find(opening)
        if start < 0 or not any(map(str.isalnum, opening)):
            return None
        rest = written[start + len(opening) :]
        for closing in filter(None, (self._end, self._answer)):
            if closing in rest and (start == 0 or written.endswith(closing)):
                return opening
        return None

    def _around(self, text: str | None, mark: str = _MARKS[0]) -> tuple[list[str], list[str]]:
        """The pieces before the mark, back to another mark, and the pieces after it; none where the mark is missing."""
        if text is None:
            return [], []
        parts = re.split(f"({'|'.join(_MARKS)})", text, flags=re.IGNORECASE)
        places = [place for place, part in enumerate(parts) if part.lower() == mark]
        if not places:
            return [], []
        return self._pieces.findall(parts[places[0] - 1]), self._pieces.findall(parts[places[-1] + 1])
