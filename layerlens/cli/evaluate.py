"""`layerlens eval`: how strategies score on benchmarks, beside the last layer, on the same items."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import asking, options
from layerlens.cli.printable import echo
from layerlens.errors import OptionError, spelled
from layerlens.paths import expanded

if TYPE_CHECKING:
    import pandas as pd


@options.grouped
def evaluate(
    *,
    out: asking.Out,
    model: asking.Model = None,
    items: asking.Items,
    strategies: Annotated[
        str,
        typer.Option(help="Strategies to compare with the last layer, separated by commas, such as valley,dola,sled."),
    ] = "last",
    scoring: asking.Scoring,
    answering: asking.Answering,
    wrapping: options.Wrapping,
    window: options.Window = None,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace", help="Also trace the answers, each in one pass, into a run directory for each task and arm."
        ),
    ] = False,
    readings: options.Readings,
    batch_size: asking.BatchSize = 16,
    loading: options.Loading,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also show how well measures inside the model tell right answers from wrong."),
    ] = False,
    power: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Also show how many items are needed to see a difference of so many percentage points.",
        ),
    ] = None,
) -> int:
    """Answer benchmarks with several strategies (arms), score the answers, and compare with the last layer.

    inspect runs the benchmarks. Repeat the command to continue an evaluation that was interrupted; add tasks or
    strategies to extend it. Without --model, an evaluation that is there is shown.
    """
    from layerlens.analysis.evaluation import evaluation_table
    from layerlens.records.evaluation import refuse_unless_free

    if power is not None and not 0 < power < 100:
        raise OptionError.about("power", power, "is no difference in points", "give a number above 0 and below 100")
    if model is None:
        alone = {"strategies": (strategies, "last"), "window": (window, None), "trace": (trace, False)}
        asking.refuse_no_model(items, scoring, answering, wrapping, readings, **alone)
        asking.tell_again(out)
    else:
        refuse_unless_free(out)
        if power is not None and set(asking.listed(strategies)) <= {"last"} and not expanded(out).exists():
            what = "needs a strategy to compare with the last layer"
            raise OptionError.about("power", power, what, f"give {spelled('strategies')} too, or leave it out")
        given = {**items.given(), **vars(scoring), "window": window}
        for option, value in readings.numbers().items():
            if value and not trace:
                raise OptionError.about(option, value, "is read in traces", f"give {spelled('trace', True)} too")
        loading.refuse_unloadable(model, window)
        # what needs inspect and torch, and still no model
        from layerlens.evaluation.asked import Generating, asked_of

        asked = asked_of(items.names(), asking.listed(strategies), Generating(**vars(answering)), **given)
        traced = readings.numbers() if trace else None
        wrapped = wrapping.wrapping()
        if not asking.answered(
            out, model, asked, loading, readings.lens, batch_size=batch_size, trace=traced, **wrapped
        ):
            return 130
    table = evaluation_table(out)
    _print(table)
    if explain:
        _print_explanation(out)
    if power is not None:
        _print_power(out, power)
    echo(f"answers  {out}")
    return 0


def _print(table: "pd.DataFrame") -> None:
    echo(f"\n{asking.head(table)}\n")
    heads = ("task", "arm", "score", "minus last", "won", "lost", "p", "p (Holm)", "tokens", "unscored")
    rows = []
    for row in table.to_dict("records"):
        is_last = row["arm"] == "last"
        rows.append(
            (
                row["task"],
                row["arm"],
                asking.percent(row, "score", ".1f"),
                "" if is_last else asking.percent(row, "difference", "+.1f"),
                *(("", "", "", "") if is_last else _won(row)),
                "" if row["generated_tokens"] != row["generated_tokens"] else f"{row['generated_tokens']:,.1f}",
                f"{row['unscored']:,}" if row["unscored"] else "",
            )
        )
    asking.show(heads, rows)
    asking.say_unfinished(table)


def _won(row: "Mapping[Any, Any]") -> tuple[str, str, str, str]:
    if row["p"] != row["p"]:  # no item has a score under both arms
        return "", "", "", ""
    return f"{row['won']:,}", f"{row['lost']:,}", asking.probability(row["p"]), asking.probability(row["p_holm"])


def _print_explanation(out: Path) -> None:
    from layerlens.analysis.explanation import FEWEST, explanation_table

    table = explanation_table(out)
    if table.empty:
        echo(f"\nno arm has {FEWEST} right and {FEWEST} wrong answers, which --explain needs")
        return
    echo("\nhow well a measure tells right answers from wrong ones (AUROC; 0.5 says nothing)\n")
    rows = [
        (
            row["task"],
            row["arm"],
            row["measure"],
            f"{row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            f"{row['n_right']:,}",
            f"{row['n_wrong']:,}",
            asking.interval(row, "beats_length", "+.2f"),
            asking.interval(row, "beats_entropy", "+.2f"),
        )
        for row in table.to_dict("records")
    ]
    asking.show(("task", "arm", "measure", "AUROC", "right", "wrong", "above length", "above entropy"), rows)


def _print_power(out: Path, points: float) -> None:
    from layerlens.analysis.power import power_table

    table = power_table(out, points / 100)
    echo(f"\nitems that show a difference of {points:g} points (5 % level, power 80 %),")
    echo("and the least difference in points that the items here show\n")
    rows = [
        (
            row["task"],
            row["arm"],
            f"{row['n_items']:,}",
            "" if row["correlation"] != row["correlation"] else f"{row['correlation']:.2f}",
            f"{100 * row['changed']:.1f}",
            "{} [{}, {}]".format(*(_count(row[f"needed{end}"]) for end in ("", "_low", "_high"))),
            "" if row["detectable"] != row["detectable"] else f"{100 * row['detectable']:.1f}",
        )
        for row in table.to_dict("records")
    ]
    asking.show(("task", "arm", "items", "correlation", "% changed", "items needed", "shown now"), rows)


def _count(number: float) -> str:
    return "-" if number != number else f"{number:,.0f}"
