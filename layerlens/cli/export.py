"""`layerlens export`: a run as one long table for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.each import say_incomplete
from layerlens.cli.printable import echo


def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[Path, typer.Option(help="The file to write, .csv or .parquet.")],
) -> None:
    """Write a run as one table with one row per token and layer, and with the texts of the tokens."""
    import layerlens as ll
    from layerlens.records.tidy import refuse_unless_tidy, write_tidy

    opened = ll.open_run(run)
    refuse_unless_tidy(opened.path, out)
    say_incomplete(opened)
    echo(write_tidy(opened, out))
