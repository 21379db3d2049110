"""Two runs on one page: which prompts they share, and which token of one text belongs to which token of the other.

Models cut texts into tokens in different ways, so tokens are aligned by their place in the text. A token belongs to the
token of the other text that begins at the same character, or else to the last one that begins before. Characters count
from where the generated text begins.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from layerlens.analysis.pairing import paired_ids
from layerlens.records.reader import Records
from layerlens.report import packing
from layerlens.report.facts import labels
from layerlens.report.packing import Packed, deflated, pack, traced_ids


@dataclass(frozen=True)
class Text:
    """A text as one run has it.

    Attributes:
        tokens: the text of each token, in order.
        n_given: how many of them were given, from the first on. The others were generated.
    """

    tokens: Sequence[str]
    n_given: int

    @property
    def generated(self) -> str:
        """What the model wrote."""
        return "".join(self.tokens[self.n_given :])

    @property
    def starts(self) -> list[int]:
        """Where each token begins, in characters from the beginning of the generated text. Given tokens are below 0."""
        ends = [0, *accumulate(map(len, self.tokens))]
        return [end - ends[self.n_given] for end in ends[:-1]]


def pack_beside(run: Records, other: Records, prompt_ids: Sequence[str] | None = None) -> Packed:
    """`pack` of the prompts that both runs have. "beside" holds those of the other run, in the same order.

    "pairs" holds for each prompt, deflated as int32, the other run's token that belongs to each of our tokens
    ("there"), and our token that belongs to each of the other's ("back"). It also holds "parting", the first tokens at
    which the two texts differ, ours and the other's. Each is null where that text has ended or is cut before, and
    "parting" is null where the texts do not differ. "labels" are the names of the runs. "unpaired" counts the prompts
    of either run that have no partner, or those of `run` alone if prompts were chosen.

    Args:
        run, other: two runs of the same prompts, by whatever models, strategies or lenses.
        prompt_ids: which prompts of `run` to hold, in this order; by default all that both runs have.

    Raises:
        OptionError: `run` traced no prompt of such an id, or the list of ids is empty.
        RunError: the runs share no prompt, or a run holds no complete one.
    """
    ours, theirs = traced_ids(run, prompt_ids), traced_ids(other, None)
    pairs = paired_ids(run, other, ours, theirs)
    half = packing.BUDGET / 2
    packed, beside = (pack(one, [pair[side] for pair in pairs], half) for side, one in enumerate((run, other)))
    n_held = min(len(one["prompts"]) for one in (packed, beside))
    for one in (packed, beside):
        del one["prompts"][n_held:]
        one["prompts_left_out"] = len(pairs) - n_held
    held = [one.of_prompts([pair[side] for pair in pairs[:n_held]]) for side, one in enumerate((run, other))]
    aligned = [
        _pair(text_of(held[0], first), text_of(held[1], second), before["n_tokens"], after["n_tokens"])
        for (first, second), before, after in zip(pairs, packed["prompts"], beside["prompts"], strict=False)
    ]
    unpaired = len(ours) - len(pairs) + (len(theirs) - len(pairs) if prompt_ids is None else 0)
    return packed | {"beside": beside, "pairs": aligned, "unpaired": unpaired, "labels": labels(run, other)}


def text_of(run: Records, prompt_id: str) -> Text:
    """The tokens that followed the positions of a prompt. A text that was only given counts as given to its end."""
    rows = np.flatnonzero(run.positions["prompt_id"].to_numpy() == prompt_id)
    frame = run.positions.iloc[rows].sort_values("position", kind="stable")
    following = frame["next_token_id"].fillna(-1).astype(int).tolist()
    texts = ["" if token_id < 0 else text for token_id, text in zip(following, run.text_of(following), strict=True)]
    generated = np.flatnonzero(frame["is_generated"].to_numpy())
    return Text(texts, int(generated[0]) if len(generated) else len(texts))


def counterparts(text: Text, other: Text) -> list[int]:
    """For each token of a text, the token of the other text that begins at the same place, or else the last one before.

    Tokens with an empty text begin where the next one does. Of several that begin at one place, the last ones belong
    together, so that a text beside itself is aligned token by token. Tokens beyond the other text belong to its end.
    """
    starts, others = text.starts, other.starts
    found = []
    for token, start in enumerate(starts):
        last = bisect_right(others, start) - 1
        if last < 0:
            found.append(0)
            continue
        to_the_last = bisect_right(starts, start) - 1 - token
        first = bisect_left(others, others[last])
        found.append(max(first, last - to_the_last) if others[last] == start else last)
    return found


def parting(text: Text, other: Text) -> tuple[int, int] | None:
    """The token of each text with the first character that differs in the generated texts; None if none differs.

    If a text ends there, its number of tokens stands for the token. If one of the texts was not generated, there is
    nothing to compare.
    """
    both = (text, other)
    ours, theirs = (one.generated for one in both)
    same = next((at for at, (one, its) in enumerate(zip(ours, theirs, strict=False)) if one != its), None)
    same = min(len(ours), len(theirs)) if same is None else same
    if any(one.n_given == len(one.tokens) for one in both) or len(ours) == len(theirs) == same:
        return None
    return _token_with(text, same), _token_with(other, same)


def _token_with(text: Text, character: int) -> int:
    """The token that a character of the generated text belongs to; behind the last token, the number of tokens."""
    ends = [start + len(token) for start, token in zip(text.starts, text.tokens, strict=True)]
    return bisect_right(ends, character)


def _pair(text: Text, other: Text, n_shown: int, n_others_shown: int) -> Packed:
    there = np.minimum(counterparts(text, other), n_others_shown - 1)[:n_shown]
    back = np.minimum(counterparts(other, text), n_shown - 1)[:n_others_shown]
    apart = parting(text, other)
    shown = zip(apart or (), (n_shown, n_others_shown), strict=False)
    return {
        "there": deflated(there.astype(np.int32).tobytes()),
        "back": deflated(back.astype(np.int32).tobytes()),
        "parting": None if apart is None else [token if token < n else None for token, n in shown],
    }
