"""Generated texts on standard output, in which the tokens are marked that a strategy changed.

Marks stand in brackets that the texts themselves do not contain. On a terminal they have colours.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerlens.cli.printable import printable
from layerlens.decode.loop import Generation
from layerlens.decode.speculative.drafter import Drafter
from layerlens.decode.texts import decoded, is_known
from layerlens.models import Model

Pieces = list[tuple[str, str]]  # what is written, and its style on a terminal


_ARROW, _MARK = " -> ", "yellow"
_BRACKETS = (("⟦", "⟧"), ("⟪", "⟫"), ("⦃", "⦄"), ("«", "»"))
_PLAIN_BRACKETS = ("<", ">")  # for an encoding that lacks the others; doubled until the text does not hold them


def print_generation(model: Model, name: str, generation: Generation, *, sampled: bool, drafted: bool = False) -> None:
    """Print the text with its changed tokens marked, and a line of counts. Only a terminal gets colours."""
    brackets = brackets_for(model, [generation])
    text = marked(model, generation, brackets, sampled=sampled)
    notes = [counts(model, name, generation, sampled=sampled, drafted=drafted), *_legend(brackets, [text])]
    _print([*text, ("\n", "")], notes)


def print_drafts(drafter: Drafter) -> None:
    """Print a line on what the drafts were worth."""
    rounds = drafter.rounds
    drafted = rounds[rounds["set"] >= 0]
    left_out = f"now left out: {drafter.skips}"
    if drafted.empty:
        _print([], [f"nothing was drafted; {left_out}"])
        return
    seconds = (drafted["draft_seconds"] + drafted["verify_seconds"]).sum()
    speed = (drafted["emitted"] * drafted["plain_seconds"]).sum() / seconds
    accepted, proposed = drafted["accepted"].sum(), drafted["drafted"].sum()
    note = f"{accepted:,.0f} of {proposed:,.0f} drafted tokens accepted in {len(drafted):,} rounds"
    _print([], [f"{note}, {speed:.2f} x plain decoding without the search; {left_out}"])


def print_side_by_side(
    model: Model,
    left_name: str,
    left: Generation,
    right_name: str,
    right: Generation,
    *,
    sampled: bool,
    drafted: bool = False,
) -> None:
    """Print two texts in two columns, and a line of counts for each. Without a terminal one stands below the other."""
    both = [(left_name, left), (right_name, right)]
    brackets = brackets_for(model, [left, right])
    texts = [marked(model, generation, brackets, sampled=sampled) for _, generation in both]
    same = _common_length(left.token_ids, right.token_ids)
    whole = same == len(left.token_ids) == len(right.token_ids)
    notes = ["the texts are equal" if whole else f"the first {same:,} tokens are equal"]
    notes += [
        counts(model, left_name, left, sampled=sampled),
        counts(model, right_name, right, sampled=sampled, drafted=drafted),
    ]
    notes += _legend(brackets, texts)
    if not sys.stdout.isatty():
        below = [piece for (name, _), text in zip(both, texts, strict=True) for piece in _below(name, text)]
        _print(below[:-1], notes)
        return
    table = Table(box=None, padding=(0, 3, 0, 0), expand=True)
    for name, _ in both:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(_styled(text) for text in texts))
    Console(highlight=False).print(table)
    _print([], notes)


def _below(name: str, text: Pieces) -> Pieces:
    return [(f"{name}\n", ""), *text, ("\n", ""), ("\n", "")]


def _print(text: Pieces, notes: list[str]) -> None:
    said = "".join(f"\n{note}" for note in notes)
    if sys.stdout.isatty():
        # the terminal breaks long lines itself: rich would drop the spaces where it breaks them
        Console(highlight=False).print(_styled([*text, (said, "dim")]), soft_wrap=True)
    else:
        sys.stdout.write("".join(piece for piece, _ in text) + f"{said}\n")
        sys.stdout.flush()


def _styled(text: Pieces) -> Text:
    return Text.assemble(*((printable(piece), style) for piece, style in text))


def brackets_for(model: Model, generations: Sequence[Generation]) -> tuple[str, str]:
    """What opens and closes a mark: signs that are in no text and no token of them, and that the output can write."""
    held = "".join(_everything(model, one) for one in generations)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for opening, closing in _BRACKETS:
        if opening not in held and closing not in held and _can_write(opening + closing, encoding):
            return opening, closing
    width = 2
    while any(bracket * width in held for bracket in _PLAIN_BRACKETS):
        width += 1
    opening, closing = _PLAIN_BRACKETS
    return opening * width, closing * width


def _everything(model: Model, generation: Generation) -> str:
    others = generation.steps["last_token_id"].tolist()
    return generation.text + "".join(_piece(model, [], [int(token)], special=True) for token in {*others})


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _legend(brackets: tuple[str, str], texts: Sequence[Pieces]) -> list[str]:
    """What the marks mean, if there are any."""
    opening, closing = brackets
    is_marked = any(piece == opening for text in texts for piece, _ in text)
    return [f"{opening}last layer's token{_ARROW}emitted token{closing}"] if is_marked else []


def marked(model: Model, generation: Generation, brackets: tuple[str, str], *, sampled: bool) -> Pieces:
    """The text with the last layer's token and the emitted token, in brackets, where the strategy changed it."""
    opening, closing = brackets
    ids, steps = generation.token_ids, generation.steps
    changed = _substituted(model, generation, sampled=sampled)
    text, done = Pieces(), 0
    for place in [*changed, len(ids)]:
        text.append((_piece(model, ids[:done], ids[done:place]), ""))
        if place < len(ids):
            last = _piece(model, ids[:place], [int(steps["last_token_id"].iloc[place])], special=True)
            emitted = _piece(model, ids[:place], [ids[place]], special=True)
            space = " " if last[:1] == emitted[:1] == " " else ""
            text.append((space, ""))
            text.append((opening, _MARK))
            text.append((_visible(last.removeprefix(space)), "red"))
            text.append((_ARROW, _MARK))
            text.append((_visible(emitted.removeprefix(space)), "bold green"))
            text.append((closing, _MARK))
        done = place + 1
    return text


def counts(model: Model, name: str, generation: Generation, *, sampled: bool, drafted: bool = False) -> str:
    """How many tokens there are, how many the strategy changed, how many came from an earlier layer, and the cost.

    The cost is not known with drafts, where tokens that are rejected were read out too.
    """
    steps = generation.steps
    n_tokens = len(steps)
    if not n_tokens:
        return f"{name}: no tokens"
    changed = len(_substituted(model, generation, sampled=sampled))
    earlier = int((steps["selected_layer"] < model.n_layers).sum())
    cost = "" if drafted else f", {steps['projections'].mean():.1f} unembeddings a token"
    return (
        f"{name}: {n_tokens:,} tokens, {changed:,} changed ({changed / n_tokens:.1%}), "
        f"{earlier:,} from an earlier layer ({earlier / n_tokens:.1%}){cost}"
    )


def _substituted(model: Model, generation: Generation, *, sampled: bool) -> list[int]:
    """Places of tokens that are not the last layer's. Of sampled tokens, those from another layer's logits."""
    steps = generation.steps
    changed = steps["next_token_id"] != steps["last_token_id"]
    if sampled:
        changed &= steps["selected_layer"] < model.n_layers
    return [int(place) for place in changed.to_numpy().nonzero()[0]]


def _piece(model: Model, before: list[int], token_ids: list[int], *, special: bool = False) -> str:
    """What tokens add to a text, because some tokenizers write a token that stands alone in another way; "#310" for an
    unknown id."""
    tokenizer, skip = model.tokenizer, not special
    if special and not is_known(tokenizer, token_ids[0]):
        return f"#{token_ids[0]}"
    head = decoded(tokenizer, before, skip_special_tokens=skip)
    return decoded(tokenizer, [*before, *token_ids], skip_special_tokens=skip)[len(head) :]


def _visible(piece: str) -> str:
    return piece.replace("\n", "⏎")


def _common_length(left: list[int], right: list[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(left), len(right)))
