"""`layerlens figure`: the paper's figures for a run."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.errors import OptionError


def figure(
    number: Annotated[str, typer.Argument(help="Number of a figure of the paper, or all.")],
    run: Annotated[Path, typer.Option(help="Run directory.")],
    out: Annotated[Path, typer.Option(help="Directory for the PNG, the PDF and the csv they draw.")],
) -> None:
    """Draw a figure of the paper from a run: PNG, PDF, and the numbers as csv."""
    import layerlens as ll

    if number != "all" and not (number.isascii() and number.isdigit()):
        raise OptionError(f"figure {number!r} is no number; give {', '.join(map(str, ll.plot.FIGURES))} or all")
    opened = ll.open_run(run)
    if not opened.is_complete:
        typer.echo(
            f"layerlens: {run} is not complete: {len(opened.prompts)} of {opened.manifest['dataset']['rows']} prompts",
            err=True,
        )
    for one in ll.plot.DISTINCT if number == "all" else (int(number),):
        for path in ll.plot.draw(one, opened, out):
            typer.echo(path)
