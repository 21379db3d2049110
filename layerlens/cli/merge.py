"""`layerlens merge`: one run from the shards of a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.printable import echo


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Complete runs of the same model and dataset.")],
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
) -> int:
    """Join runs of different prompts of one dataset, such as its shards, into one run."""
    from layerlens.run import merge

    run = merge(runs, out=out)
    echo(f"merged   {len(runs)} runs, {len(run.prompts):,} prompts, {len(run.positions):,} positions")
    echo(f"run      {run.path}")
    return 0
