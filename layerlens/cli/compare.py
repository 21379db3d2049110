"""`layerlens compare`: two runs of the same prompts side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli.each import say_incomplete
from layerlens.cli.printable import echo
from layerlens.errors import OptionError
from layerlens.paths import expanded

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_DIGITS = {"share": 1, "nats": 2, "layers": 2, "tokens": 1}


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of the same prompts.")],
    out: Annotated[Path | None, typer.Option(help="Directory for comparison.csv and outputs.csv.")] = None,
) -> None:
    """Compare two runs of the same prompts, such as those of an instruct and a base model, or of two strategies.

    Prompts are compared in pairs. Two prompts are a pair where their texts are equal. Prompts of the same dataset or
    file are also a pair where their ids are equal.
    """
    import layerlens as ll
    from layerlens.analysis import comparison
    from layerlens.cli.grids import print_table

    runs = [ll.open_run(path) for path in (first, second)]
    for run in runs:
        say_incomplete(run)
    quantities, outputs = comparison.compare(*runs), comparison.compare_outputs(*runs)
    paths = [] if out is None else _save(out, {"comparison": quantities, "outputs": outputs})
    by_lens = {run.lens for run in runs} != {"logit"}
    for name, path, run in zip(("run", "other"), (first, second), runs, strict=True):
        echo(f"{name:<5}  {path}{f', read through {run.lens}' if by_lens else ''}")
    print_table(_table(quantities))
    echo(_sentence(quantities, outputs))
    for path in paths:
        echo(path)


def _table(quantities: "pd.DataFrame") -> "Table":
    from rich.table import Table

    table = Table("", "run", "other", "other - run", box=None, padding=(0, 1, 0, 0))
    for row in quantities.to_dict("records"):
        table.add_row(_name(row), *(_mean(row, name) for name in ("run", "other", "difference")))
    return table


def _name(row: dict[Any, Any]) -> str:
    unit = "" if row["unit"] in ("share", "tokens") else f", {row['unit']}"
    where = " of the last layer" if row["quantity"] == "entropy" else ""  # which no lens of earlier layers changes
    return str(row["quantity"]).replace("_", " ") + where + unit


def _sentence(quantities: "pd.DataFrame", outputs: "pd.DataFrame") -> str:
    """How many prompts the two runs share, and how far their outputs are the same."""
    number, unpaired = outputs.attrs["n_prompts"], outputs.attrs["n_prompts_unpaired"]
    tokens = " and ".join(f"{quantities[name].iloc[0]:,}" for name in ("n_tokens", "n_tokens_other"))
    said = f"{number:,} common prompt{'' if number == 1 else 's'} with {tokens} generated tokens"
    said += f", {unpaired:,} in one run only" if unpaired else ""
    worded = outputs.attrs["n_prompts_of_other_text"]
    said += f"; in {worded:,} of them the texts of the runs differ (template, system message or date)" if worded else ""
    if "note" in outputs.attrs:
        return f"{said}; {outputs.attrs['note']}"
    identical, prefix = outputs.to_dict("records")
    return (
        f"{said}. Outputs are identical for {_mean(identical, 'value')} of the prompts, and equal in the first "
        f"{_mean(prefix, 'value')} tokens on average."
    )


def _mean(row: dict[Any, Any], name: str) -> str:
    """A mean with its interval, which one prompt does not have; a difference with its sign."""
    scale, percent = (100, "%") if row["unit"] == "share" else (1, "")
    form = f"{'+' if name == 'difference' else ''}.{_DIGITS[row['unit']]}f"
    mean, low, high = (format(scale * row[name + end], form) for end in ("", "_low", "_high"))
    return mean + percent if row[f"{name}_low"] != row[f"{name}_low"] else f"{mean}{percent} [{low}, {high}]"


def _save(out: Path, tables: dict[str, "pd.DataFrame"]) -> list[Path]:
    from layerlens.sheets import write_csv

    out = expanded(out)
    paths = [out / f"{stem}.csv" for stem in tables]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, table in zip(paths, tables.values(), strict=True):
            write_csv(table, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError.about("out", out, f"cannot be written ({reason})", "name another directory") from error
    return paths
