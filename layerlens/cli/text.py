"""Generated texts on a terminal, with what a strategy changed."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerlens.decode.loop import Generation
from layerlens.decode.texts import decoded, is_known
from layerlens.models import Model


def print_generation(model: Model, name: str, generation: Generation, *, sampled: bool) -> None:
    """The text with its substituted tokens marked, and a line of counts."""
    console = Console(highlight=False)
    console.print(marked(model, generation, sampled=sampled))
    console.print(Text(f"\n{counts(model, name, generation, sampled=sampled)}", style="dim"))


def print_side_by_side(
    model: Model, left_name: str, left: Generation, right_name: str, right: Generation, *, sampled: bool
) -> None:
    """Two texts in two columns, and a line of counts for each."""
    console = Console(highlight=False)
    table = Table(left_name, right_name, box=None, padding=(0, 3, 0, 0), expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(marked(model, left, sampled=sampled), marked(model, right, sampled=sampled))
    console.print(table)
    same = _common_length(left.token_ids, right.token_ids)
    whole = same == len(left.token_ids) == len(right.token_ids)
    console.print(Text("\nthe texts are equal" if whole else f"\nthe first {same:,} tokens are equal", style="dim"))
    for name, generation in ((left_name, left), (right_name, right)):
        console.print(Text(counts(model, name, generation, sampled=sampled), style="dim"))


def marked(model: Model, generation: Generation, *, sampled: bool) -> Text:
    """The text with [last layer's token -> emitted token] where the strategy changed it."""
    ids, steps = generation.token_ids, generation.steps
    changed = _substituted(model, generation, sampled=sampled)
    text, done = Text(), 0
    for place in [*changed, len(ids)]:
        text.append(_piece(model, ids[:done], ids[done:place]))
        if place < len(ids):
            last = _piece(model, ids[:place], [int(steps["last_token_id"].iloc[place])], special=True)
            emitted = _piece(model, ids[:place], [ids[place]], special=True)
            space = " " if last[:1] == emitted[:1] == " " else ""
            text.append(f"{space}[")
            text.append(_visible(last.removeprefix(space)), style="red")
            text.append(" -> ")
            text.append(_visible(emitted.removeprefix(space)), style="bold green")
            text.append("]")
        done = place + 1
    return text


def counts(model: Model, name: str, generation: Generation, *, sampled: bool) -> str:
    """How many tokens, how many of them the strategy changed, how many came from an earlier layer, at what cost."""
    steps = generation.steps
    n_tokens = len(steps)
    if not n_tokens:
        return f"{name}: no tokens"
    changed = len(_substituted(model, generation, sampled=sampled))
    earlier = int((steps["selected_layer"] < model.n_layers).sum())
    return (
        f"{name}: {n_tokens:,} tokens, {changed:,} changed ({changed / n_tokens:.1%}), "
        f"{earlier:,} from an earlier layer ({earlier / n_tokens:.1%}), "
        f"{steps['projections'].mean():.1f} unembeddings a token"
    )


def _substituted(model: Model, generation: Generation, *, sampled: bool) -> list[int]:
    """Places of tokens that are not the last layer's; of sampled ones those alone that another layer's logits gave."""
    steps = generation.steps
    changed = steps["next_token_id"] != steps["last_token_id"]
    if sampled:
        changed &= steps["selected_layer"] < model.n_layers
    return [int(place) for place in changed.to_numpy().nonzero()[0]]


def _piece(model: Model, before: list[int], token_ids: list[int], *, special: bool = False) -> str:
    """What tokens add to a text, as some tokenizers write one otherwise when it stands alone; "#310" where unknown."""
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
