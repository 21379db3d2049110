"""`layerlens report`: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.each import say_incomplete
from layerlens.cli.printable import echo


def report(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    beside: Annotated[
        Path | None,
        typer.Option(help="Run of the same prompts with another strategy, lens or model, to show beside this run."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write. [default: report.html in the run directory]")
    ] = None,
) -> None:
    """Write one HTML file with the findings of a run and an explorer of its tokens."""
    import layerlens as ll
    from layerlens.report import write_report

    opened = ll.open_run(run)
    other = None if beside is None else ll.open_run(beside)
    for one in (opened, other):
        if one is not None:
            say_incomplete(one)
    echo(write_report(opened, opened.path / "report.html" if out is None else out, beside=other))
