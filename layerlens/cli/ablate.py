"""`layerlens ablate`: from which layer tokens should come, and how often, measured by scored answers."""

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import typer

from layerlens.cli import asking, options
from layerlens.cli.printable import echo
from layerlens.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd


@options.grouped
def ablate(
    *,
    out: asking.Out,
    model: asking.Model = None,
    items: asking.Items,
    arms: Annotated[
        str,
        typer.Option(help="Strategies to compare, separated by commas: last, last-N, valley, valley-N or valley+N."),
    ] = "last,last-1,last-2,last-4,valley,valley-2,valley-1,valley+1,valley+2",
    p: Annotated[
        str,
        typer.Option(
            "--p", help="Probabilities that a token comes from an arm's layer; 0,0.2,...,1 means equal steps."
        ),
    ] = "0,0.2,...,1",
    scoring: asking.Scoring,
    answering: asking.Answering,
    wrapping: options.Wrapping,
    window: options.Window = None,
    lens: options.Lens = None,
    batch_size: asking.BatchSize = 16,
    loading: options.Loading,
) -> int:
    """Answer benchmarks with strategies (arms) that act with a probability p, and compare with the last layer.

    This is `layerlens eval` with an arm for each strategy and p. Repeat the command to continue an ablation that was
    interrupted; add arms, p or tasks to extend it. Without --model, an ablation that is there is shown.
    """
    from layerlens.analysis.ablation import ablation_table
    from layerlens.records.evaluation import refuse_unless_free

    if model is None:
        asking.refuse_no_model(items, scoring, answering, wrapping, window=(window, None), lens=(lens, None))
        asking.tell_again(out)
    else:
        refuse_unless_free(out)
        given = {**items.given(), **vars(scoring), "window": window}
        names, grid = asking.listed(arms), probabilities(p)
        loading.refuse_unloadable(model, window)
        # what needs inspect and torch, and still no model
        from layerlens.evaluation.ablation import conditions
        from layerlens.evaluation.asked import Generating, asked_of

        asked = asked_of(items.names(), conditions(names, grid), Generating(**vars(answering)), **given)
        wrapped = wrapping.wrapping()
        if not asking.answered(out, model, asked, loading, lens, batch_size=batch_size, **wrapped):
            return 130
    _print(ablation_table(out))
    echo(f"answers  {out}")
    return 0


_LIST = "give numbers from 0 to 1, separated by commas"
_STEPS = "write it like 0,0.2,...,1"


def probabilities(text: str) -> list[float]:
    """Numbers from a text with commas. After two numbers, "..." goes on in equal steps to the next: 0,0.2,...,1.

    Raises:
        OptionError: an entry is not a number from 0 to 1, or the steps do not lead to the number after "...".
    """
    parts, values = asking.listed(text), list[Decimal]()
    if not parts:
        raise OptionError.about("p", text, "is not a list of probabilities", _LIST)
    for place, part in enumerate(parts):
        if part != "...":
            values.append(_number(part, text))
            continue
        end = _number(parts[place + 1], text) if place + 1 < len(parts) else None
        step = values[-1] - values[-2] if len(values) > 1 else Decimal(0)
        if end is not None and step > 0 and (end - values[-1]) % step:
            raise OptionError.about("p", text, f"has steps of {step}, which do not end at {end}", _STEPS)
        if end is None or step <= 0 or (end - values[-1]) % step or (end - values[-1]) / step > 1000:
            raise OptionError.about("p", text, "does not say which numbers ... stands for", _STEPS)
        while values[-1] + step < end:
            values.append(values[-1] + step)
    return [float(value) for value in values]


def _number(part: str, text: str) -> Decimal:
    try:
        value = Decimal(part)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not 0 <= value <= 1:
        raise OptionError.about("p", text, f"contains {part!r}", _LIST)
    return value


def _print(table: "pd.DataFrame") -> None:
    echo(f"\n{asking.head(table)}\n")
    rows = []
    for row in table[(table["p"] > 0) != (table["arm"] == "last")].to_dict("records"):
        is_last = row["arm"] == "last"
        rows.append(
            (
                row["task"],
                row["arm"],
                "" if is_last else f"{row['p']:g}",
                asking.percent(row, "score", ".1f"),
                "" if is_last else asking.percent(row, "difference", "+.1f"),
                f"{row['generated_tokens']:,.1f}",
                f"{100 * row['finished']:.1f}",
            )
        )
    asking.show(("task", "arm", "p", "score", "minus last", "tokens", "% finished"), rows)
    asking.say_unfinished(table)
