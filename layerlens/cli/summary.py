"""The table at the end of a trace."""

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table

from layerlens.analysis.valleys import marks_shown
from layerlens.cli.grids import print_table
from layerlens.cli.printable import echo

if TYPE_CHECKING:
    from layerlens.run import Run


def print_summary(run: "Run") -> None:
    """Print what the run found: its phases, the share of perturbed tokens and the valley, with 95 % intervals."""
    totals = run.manifest["totals"]
    rate = totals["positions"] / max(totals["seconds"], 1e-9)
    echo(
        f"\n{_count(totals['prompts'], 'prompt')}, {_count(totals['positions'], 'position')}, "
        f"{_count(run.n_layers, 'layer')}, "
        f"{totals['seconds']:,.0f} s ({rate:,.0f} positions/s)"
    )
    if totals["non_finite_prompts"]:
        broken = run.prompts.loc[run.prompts["finish_reason"] == "non_finite", "prompt_id"]
        names = ", ".join(broken[:10]) + (" ..." if len(broken) > 10 else "")
        echo(f"NaN or infinite states in {_count(len(broken), 'prompt')}, which the numbers below leave out: {names}")
    if totals["non_finite_prompts"] == totals["prompts"]:
        return
    if run.n_layers == 1:
        echo("the model has a single layer, so there are no phases and no earlier layer to compare with")
        return
    phases = run.phases()
    if phases["first"].notna().any():
        print_table(_phase_table(phases))
    if "note" in phases.attrs:
        echo(phases.attrs["note"])
    lines = [_partition_line(run.partition()), _agreement_line(run.earliest_agreement())]
    for line in [*lines, *_valley_lines(run.valleys())]:
        echo(line)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _phase_table(phases: pd.DataFrame) -> Table:
    table = Table("phase", "layers", "norm ratio", "I/O cosine", box=None, padding=(0, 3, 0, 0))
    for row in phases.to_dict("records"):
        if pd.isna(row["first"]):
            table.add_row(row["phase"], "none", "", "")
            continue
        layers = f"{row['first']}" if row["first"] == row["last"] else f"{row['first']}–{row['last']}"
        table.add_row(row["phase"], layers, _mean(row, "norm_ratio"), _mean(row, "io_cosine"))
    return table


def _partition_line(partition: pd.DataFrame) -> str:
    row = partition.set_index("group").loc["perturbed"].to_dict()
    if not row["n_tokens"]:
        return "perturbed  no token: the last layer raised no entropy"
    share = f"{row['share']:.1%}" + _interval(row, "share", ".1%")
    return f"perturbed  {share} of tokens, whose entropy the last layer raises by {_mean(row, 'entropy_change')} nats"


def _agreement_line(earliest: pd.DataFrame) -> str:
    row = earliest.set_index("reading").loc["kept"].to_dict()
    layer = f"layer {row['median']:.0f}" + _interval(row, "median", ".0f")
    return f"agreement  half of the tokens have the last layer's first choice from {layer} on"


def _valley_lines(valleys: pd.DataFrame) -> list[str]:
    rows = marks_shown(valleys)
    rows = rows[rows["group"] == "perturbed"].set_index("mark")
    lines = []
    for mark, meaning in (
        ("V*", " is the lowest of the final rise"),
        ("lowest", " is the lowest of all"),
        ("V_onset", " begins the descent"),
    ):
        if mark not in rows.index:
            continue
        row = rows.loc[mark].to_dict()
        valley = "none"
        if not pd.isna(row["layer"]):
            bounds = "" if pd.isna(row["layer_low"]) else f" [{row['layer_low']}, {row['layer_high']}]"
            valley = f"layer {row['layer']}{bounds}{meaning}"
        lines.append(f"{mark:<9}  {valley} in the mean entropy of perturbed tokens")
    return lines


def _mean(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]:.2f}" + _interval(row, name, ".2f")


def _interval(row: dict[Any, Any], name: str, digits: str) -> str:
    if pd.isna(row[f"{name}_low"]):
        return ""
    return f" [{row[f'{name}_low']:{digits}}, {row[f'{name}_high']:{digits}}]"
