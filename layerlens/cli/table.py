"""`layerlens table`: the paper's tables, measured beside reported."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.each import each, opened, refuse_unknown, say_unfinished
from layerlens.cli.printable import echo, note


def table(
    number: Annotated[str, typer.Argument(help="Table of the paper: 1 to 10, 6.1 (of section 6.1), or all.")],
    run: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directory of `layerlens eval` or `layerlens ablate`, for tables 1, 2, 7, 9 and 10; can be given "
            "several times. Tables 3 and 4 need three: the compared one, one that chooses the levels, and one more run "
            "of the last layer."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for csv, Markdown and LaTeX. [default: print]")] = None,
) -> None:
    """Show what was measured beside what the paper reports: printed, or as csv, Markdown and LaTeX."""
    from layerlens.tables import LEVELS, SCORES, TABLES, TITLES, composed, markdown, save

    refuse_unknown("table", number, TABLES)
    shown, folders = opened(run), evaluation or []
    for folder in folders:
        say_unfinished(folder)
    if number == "all" and run is not None and not folders:
        others = ", ".join(one for one in TABLES if one in (*SCORES, *LEVELS))
        note(f"tables {others} show scored answers: give --evaluation")

    def make(one: str) -> list[Path]:
        frame = composed(one, shown, folders)
        if out is None:
            echo(markdown(frame, TITLES[one]))
            return []
        return save(frame, TITLES[one], out, f"table{one}")

    made_from = {
        **dict.fromkeys(TABLES, bool(run)),
        **dict.fromkeys(SCORES, bool(folders)),
        **dict.fromkeys(LEVELS, len(folders) == 3),
    }
    everything = [one for one in TABLES if made_from[one]]
    for path in each("table", number, everything, make):
        echo(path)
