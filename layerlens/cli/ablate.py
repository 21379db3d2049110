"""`layerlens ablate`: from which layer tokens should come, and how often, measured by scored answers."""

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from layerlens.decode.strategies import Strategy


@options.grouped
def ablate(
    *,
    model: options.Model,
    dataset: Annotated[
        str, typer.Option(help="Name of a dataset whose answers can be scored; see `layerlens datasets`.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
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
    data_file: options.DataFile = None,
    limit: options.Limit = None,
    max_new_tokens: Annotated[int, typer.Option(help="Generate at most this many tokens for each item.")] = 256,
    decoding: options.Decoding,
    repeats: Annotated[
        int, typer.Option(help="How many answers each item gets, with a seed each, where tokens or layers are drawn.")
    ] = 1,
    window: options.Window = None,
    lens: options.Lens = None,
    batch_size: options.BatchSize = 1,
    loading: options.Loading,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the ablation at --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the ablation at --out as soon as the new one can begin.")
    ] = False,
) -> int:
    """Answer the same items with several strategies (arms), score the answers, and compare with the last layer.

    Every arm is tried at every probability p.
    """
    # refused before torch is imported: what is wrong with the items or the paths shows in a second
    import layerlens as ll
    from layerlens.evaluation.scoring import way_of_scoring
    from layerlens.records.answers import refuse_unless_free

    way_of_scoring(dataset)
    items = ll.dataset(dataset, limit=limit, data_file=data_file, seed=decoding.seed)
    refuse_unless_free(out, resume=resume, overwrite=overwrite)
    loading.refuse_unloadable(model, window)
    # and what needs torch
    names, grid = _listed(arms), probabilities(p)
    settings = decoding.settings(max_new_tokens=max_new_tokens, batch_size=batch_size)
    loading.refuse_unfit(model, *_strategies(names, grid, window, repeats, settings))
    options.refuse_no_lens(lens)

    try:
        table = ll.ablate(
            loading.load(model),
            items,
            out=out,
            arms=names,
            p=grid,
            window=window,
            repeats=repeats,
            lens=lens,
            resume=resume,
            overwrite=overwrite,
            **settings,
        )
    except KeyboardInterrupt:
        typer.echo(f"layerlens: interrupted; the answers so far are in {out}; continue with --resume", err=True)
        return 130
    _print(table)
    typer.echo(f"answers  {out}")
    return 0


def _strategies(
    arms: list[str], p: list[float], window: int | None, repeats: int, settings: dict[str, Any]
) -> "Iterable[Strategy]":
    """The strategies of the arms; OptionError where one of these options has a value that it cannot have."""
    from layerlens.decode.options import GenerateOptions, whole
    from layerlens.evaluation import plan

    strategies = plan.arm_strategies(arms, window)
    plan.probabilities(p)
    whole("repeats", repeats, 1)
    GenerateOptions(**settings)
    return strategies.values()


_LIST = "give numbers from 0 to 1, separated by commas"
_STEPS = "write it like 0,0.2,...,1"


def probabilities(text: str) -> list[float]:
    """Numbers from a text with commas. After two numbers, "..." goes on in equal steps to the next: 0,0.2,...,1.

    Raises:
        OptionError: an entry is not a number from 0 to 1, or the steps do not lead to the number after "...".
    """
    parts, values = _listed(text), list[Decimal]()
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


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print(table: "pd.DataFrame") -> None:
    from rich.table import Column, Table

    from layerlens.cli.grids import print_table

    attrs = table.attrs
    typer.echo(f"\n{attrs['n_items']:,} items of {attrs['dataset']}, scored by {attrs['scoring']}\n")
    heads = ("arm", "p", "% right", "minus last", "tokens", "% finished")
    shown = Table(*(Column(head, no_wrap=True) for head in heads), box=None, padding=(0, 2, 0, 0))
    for row in table[(table["p"] > 0) != (table["arm"] == "last")].to_dict("records"):
        is_last = row["arm"] == "last"
        shown.add_row(
            row["arm"],
            "" if is_last else f"{row['p']:g}",
            _percent(row, "accuracy", ".1f"),
            "" if is_last else _percent(row, "difference", "+.1f"),
            f"{row['generated_tokens']:,.1f}",
            f"{100 * row['finished']:.1f}",
        )
    print_table(shown)


def _percent(row: dict[Any, Any], name: str, digits: str) -> str:
    mean, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:{digits}}" + ("" if low != low else f" [{low:{digits}}, {high:{digits}}]")
