"""`layerlens eval`: how strategies score on benchmarks, beside the last layer, on the same items."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.errors import OptionError, spelled

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Answering:
    """How answers are generated; None where a benchmark's own setting holds."""

    max_new_tokens: Annotated[
        int | None, typer.Option(help="Generate at most this many tokens for each item. [default: the benchmark's]")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of sampling; 0 means greedy. [default: the benchmark's]")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the smallest set of tokens with this much probability.")
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Sample from this many most probable tokens.")] = None
    seed: Annotated[int, typer.Option(help="Seed for what is drawn, and for shuffling answer options.")] = 0


@dataclass(frozen=True)
class Scoring:
    """How answers are scored where a benchmark needs more than a comparison of texts."""

    judge: Annotated[
        str | None,
        typer.Option(help="Model of inspect that scores answers where a benchmark needs it, such as openai/gpt-5."),
    ] = None
    judge_url: Annotated[str | None, typer.Option(help="Address of a server of the judge.")] = None
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution", help="Run code that the model writes, where a benchmark needs it, with limits."
        ),
    ] = False


@options.grouped
def evaluate(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write, to continue, or to show.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="A hub id, a folder, a .gguf file, or a built-in model. Without it, what --out holds is shown."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks, separated by commas; docs/evaluation.md lists them.")
    ] = None,
    strategies: Annotated[
        str,
        typer.Option(help="Strategies to compare with the last layer, separated by commas, such as valley,dola,sled."),
    ] = "last",
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="N or TASK=N", help="Use only the first N items of each benchmark, or of one."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often each item is answered.")] = 1,
    data_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=FILE",
            help="Local copy of a benchmark, as .json, .jsonl, .csv or .parquet; a single task needs no TASK=.",
        ),
    ] = None,
    scoring: Scoring,
    answering: Answering,
    wrapping: options.Wrapping,
    window: options.Window = None,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace", help="Also trace the answers, each in one pass, into a run directory for each task and arm."
        ),
    ] = False,
    readings: options.Readings,
    batch_size: Annotated[int, typer.Option(help="How many items are decoded together.")] = 16,
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

    if power is not None and not 0 < power < 100:
        raise OptionError.about("power", power, "is no difference in points", "give a number above 0 and below 100")
    if model is None:
        if tasks is not None:
            raise OptionError.about("tasks", tasks, "needs a model to answer them", "give a model, or leave it out")
        table = evaluation_table(out)
    else:
        names = _names(tasks)
        for option, value in readings.numbers().items():
            if value and not trace:
                raise OptionError.about(option, value, "is read in traces", f"give {spelled('trace', True)} too")
        given: dict[str, Any] = {
            "limit": _limits(limit or [], names),
            "epochs": epochs,
            "data_files": _by_task(data_file or [], "data_file", names),
            "window": window,
            **vars(scoring),
        }
        loading.refuse_unloadable(model, window)
        # what needs inspect and torch, and still no model
        from layerlens.decode.registry import asked_strategy
        from layerlens.evaluation.asked import Generating, asked_of
        from layerlens.evaluation.evaluate import answer

        asked = asked_of(names, _listed(strategies), Generating(**vars(answering)), **given)
        loading.refuse_unfit(model, *(asked_strategy(arm.options) for arm in asked.arms))
        options.refuse_no_lens(readings.lens)
        try:
            table = answer(
                loading.load(model),
                asked,
                out,
                lens=readings.lens,
                batch_size=batch_size,
                trace=readings.numbers() if trace else None,
                **wrapping.wrapping(),
            )
        except KeyboardInterrupt:
            typer.echo(f"layerlens: interrupted; the answers so far are in {out}; repeat to continue", err=True)
            return 130
    _print(table)
    if explain:
        _print_explanation(out)
    if power is not None:
        _print_power(out, power)
    typer.echo(f"answers  {out}")
    return 0


def _names(tasks: str | None) -> list[str]:
    """The names of the benchmarks; OptionError where there are none, or one is unknown or given twice."""
    from layerlens.evaluation.benchmarks import NAMES, refuse_unknown

    names = _listed(tasks or "")
    if not names:
        raise OptionError.about("tasks", tasks, "names no benchmark", f"give one or more of {', '.join(NAMES)}")
    for name in names:
        refuse_unknown(name)
        if names.count(name) > 1:
            raise OptionError.about("tasks", tasks, f"names {name} twice", "give it once")
    return names


def _by_task(words: Sequence[str], option: str, names: Sequence[str]) -> dict[str, str]:
    """Values by the task, from texts such as "gsm8k=FILE"; a text without a task is for the only task."""
    from layerlens.evaluation.benchmarks import NAMES

    values: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in NAMES and name not in names:
            raise OptionError.about(option, word, f"is for {name}, which is not among the tasks", "leave it out")
        if not sign or name not in names:
            if len(names) > 1:
                advice = f"write it like {names[0]}=..., with one of {', '.join(names)}"
                raise OptionError.about(option, word, "does not say which of the tasks it is for", advice)
            name, value = names[0], word
        if name in values:
            raise OptionError.about(option, word, f"is the second for {name}", "give one of them")
        values[name] = value
    return values


def _limits(words: Sequence[str], names: Sequence[str]) -> "int | dict[str, int] | None":
    """The number of items of each task, or of all."""
    if not words:
        return None
    if len(words) == 1 and "=" not in words[0]:
        return _whole(words[0])
    return {name: _whole(value) for name, value in _by_task(words, "limit", names).items()}


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise OptionError.about("limit", text, "is not a number of items", "give a whole number from 1")
    return int(text)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print(table: "pd.DataFrame") -> None:
    counts = ", ".join(f"{n:,} items of {name}" for name, n in table.attrs["n_items"].items())
    typer.echo(f"\n{table.attrs['model']}: {counts}\n")
    heads = ("task", "arm", "score", "minus last", "won", "lost", "p", "p (Holm)", "tokens", "unscored")
    rows = []
    for row in table.to_dict("records"):
        is_last = row["arm"] == "last"
        rows.append(
            (
                row["task"],
                row["arm"],
                _percent(row, "score", ".1f"),
                "" if is_last else _percent(row, "difference", "+.1f"),
                *(("", "", "", "") if is_last else _won(row)),
                "" if row["generated_tokens"] != row["generated_tokens"] else f"{row['generated_tokens']:,.1f}",
                f"{row['unscored']:,}" if row["unscored"] else "",
            )
        )
    _show(heads, rows)
    if not table.attrs["is_complete"]:
        typer.echo("layerlens: the evaluation is not complete; repeat its command to continue it", err=True)


def _won(row: "Mapping[Any, Any]") -> tuple[str, str, str, str]:
    return f"{row['won']:,}", f"{row['lost']:,}", _probability(row["p"]), _probability(row["p_holm"])


def _print_explanation(out: Path) -> None:
    from layerlens.analysis.explanation import FEWEST, explanation_table

    table = explanation_table(out)
    if table.empty:
        typer.echo(f"\nno arm has {FEWEST} right and {FEWEST} wrong answers, which --explain needs")
        return
    typer.echo("\nhow well a measure tells right answers from wrong ones (AUROC; 0.5 says nothing)\n")
    rows = [
        (
            row["task"],
            row["arm"],
            row["measure"],
            f"{row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            f"{row['n_right']:,}",
            f"{row['n_wrong']:,}",
            _interval(row, "beats_length", "+.2f"),
            _interval(row, "beats_entropy", "+.2f"),
        )
        for row in table.to_dict("records")
    ]
    _show(("task", "arm", "measure", "AUROC", "right", "wrong", "above length", "above entropy"), rows)


def _print_power(out: Path, points: float) -> None:
    from layerlens.analysis.power import power_table

    table = power_table(out, points / 100)
    typer.echo(f"\nitems that show a difference of {points:g} points (5 % level, power 80 %)\n")
    rows = [
        (
            row["task"],
            row["arm"],
            f"{row['n_items']:,}",
            "" if row["correlation"] != row["correlation"] else f"{row['correlation']:.2f}",
            f"{100 * row['changed']:.1f}",
            f"{row['needed']:,} [{row['needed_low']:,}, {row['needed_high']:,}]",
            f"{100 * row['detectable']:.1f}",
        )
        for row in table.to_dict("records")
    ]
    _show(("task", "arm", "items", "correlation", "% changed", "items needed", "these show, points"), rows)


def _show(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Column, Table

    from layerlens.cli.grids import print_table

    shown = Table(*(Column(head, no_wrap=True) for head in heads), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        shown.add_row(*row)
    print_table(shown)


def _probability(p: float) -> str:
    return "" if p != p else "<0.001" if p < 0.001 else f"{p:.3f}"


def _percent(row: "Mapping[Any, Any]", name: str, digits: str) -> str:
    return _interval({key: 100 * row[key] for key in (name, f"{name}_low", f"{name}_high")}, name, digits)


def _interval(row: "Mapping[Any, Any]", name: str, digits: str) -> str:
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if mean != mean:
        return ""
    return f"{mean:{digits}}" + ("" if low != low else f" [{low:{digits}}, {high:{digits}}]")
