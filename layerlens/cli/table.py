"""`layerlens table`: the paper's tables, measured beside reported."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.each import each, opened, refuse_unknown, say_unfinished
from layerlens.errors import OptionError


def table(
    number: Annotated[str, typer.Argument(help="Table of the paper: 5, 7, 8, 6.1 (of section 6.1), or all.")],
    run: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    ablation: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of `layerlens ablate`, for table 7; can be given several times."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for csv, Markdown and LaTeX. [default: print]")] = None,
) -> None:
    """Show a run's numbers beside those that the paper reports: printed, or as csv, Markdown and LaTeX."""
    from layerlens.tables import LATER, TABLES, TITLES, composed, markdown, save

    if number in LATER:
        problem = f"table {number} reports benchmark scores, which come with a later version"
        raise OptionError(problem, "give 5, 6.1, 7 or 8", option="number", given=number)
    refuse_unknown("table", number, TABLES)
    shown, folders = opened(run), ablation or []
    for folder in folders:
        say_unfinished(folder)
    if number == "all" and run is not None and not folders:
        typer.echo("layerlens: table 7 shows ablations: give --ablation", err=True)

    def make(one: str) -> list[Path]:
        frame = composed(one, shown, folders)
        if out is None:
            typer.echo(markdown(frame, TITLES[one]))
            return []
        return save(frame, TITLES[one], out, f"table{one}")

    everything = [one for one in TABLES if (folders if one == "7" else run)]
    for path in each("table", number, everything, make):
        typer.echo(path)
