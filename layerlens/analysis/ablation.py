"""What an ablation found: how often each arm is right at each p, and how much that differs from the last layer."""

import os
from collections.abc import Sequence
from typing import Any

import pandas as pd

from layerlens.analysis.evaluation import evaluation_table
from layerlens.analysis.reported import BENCHMARKS, reported, short_name
from layerlens.errors import RunError, spelled, spelled_command
from layerlens.paths import expanded
from layerlens.records.evaluation import arm_parts, read_manifest


def ablation_table(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per task, arm and p of the evaluation at `folder`, complete or not, "last" first.

    Columns: task; arm, the strategy; p; and the others of `evaluation_table`, with its `attrs`. At p = 0 every arm is
    the last layer. An arm without a p always acts, as at p = 1. The last layer does not depend on p, so its rows repeat
    one measurement. Conditions without any answer are left out.

    Raises:
        RunError: there is no evaluation, one of its files cannot be read, or it holds no answer yet.
    """
    folder = expanded(folder)
    options = read_manifest(folder)["evaluation"]["arms"]
    table = evaluation_table(folder)
    there = table[table["n_answers"] > 0]
    rows: list[dict[Any, Any]] = []
    for task, of_task in there.groupby("task", sort=False):
        measured = {arm_parts(row["arm"], options[row["arm"]]): row for row in of_task.to_dict("records")}
        last = measured.pop(("last", 1.0), None)
        at_0 = {} if last is None else {(arm, 0.0): last for arm in ["last", *(arm for arm, _ in measured)]}
        grid = sorted({p for _, p in [*at_0, *measured]})
        found = at_0 | measured | ({} if last is None else {("last", p): last for p in grid})
        arms = list(dict.fromkeys(arm for arm, _ in found))
        rows += [{**found[arm, p], "task": task, "arm": arm, "p": p} for arm in arms for p in grid if (arm, p) in found]
    columns = ["task", "arm", "p", *(name for name in table if name not in ("task", "arm", "p"))]
    grown: pd.DataFrame = pd.DataFrame(rows, columns=columns)
    grown.attrs = table.attrs
    return grown


def table7(folders: Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
    """Accuracy of valley decoding by temperature and p in evaluations, beside the paper's Table 7.

    Columns: source, method, condition ("T=0.0 p=0.2") and quantity as the paper has them; measured, with low and high
    (95 %, by items); n_items; reported; difference, measured less reported, empty where models or data differ;
    measured_model, measured_data, reported_model and reported_data. All values are in percent. A cell is empty where
    nothing was measured; measured conditions that the paper does not report come last. Where several benchmarks have a
    condition of the paper, its own benchmark is beside it, or else the first.

    Args:
        folders: of evaluations with the arm valley, such as `layerlens ablate` writes for one temperature.

    Raises:
        RunError: a folder holds no evaluation, no answer, or no answer of the arm valley; or two measured the same.
    """
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in folders:
        table = ablation_table(folder)
        of_valley = table[table["arm"] == "valley"]
        if of_valley.empty:
            advice = f"run {spelled_command('ablate')} with it among its {spelled('arms')}"
            raise RunError(f"{folder} has no answers of the arm valley", advice, option="arms", given=folder)
        for row in of_valley.to_dict("records"):
            condition = f"T={_short(table.attrs['temperature'][row['task']])} p={_short(row['p'])}"
            one = _measured(row, table.attrs)
            key = (condition, one["measured_data"])
            if key in measured:
                problem = f"{folder} measured {condition} on {key[1]}, as another of the evaluations did"
                raise RunError(problem, "give one of them", given=folder)
            measured[key] = one
    names = {"value": "reported", "model": "reported_model", "benchmark": "reported_data"}
    rows = []
    for row in reported("7").rename(columns=names).to_dict("records"):
        of_condition = [key for key in measured if key[0] == row["condition"]]
        of_condition.sort(key=lambda key: key[1] != row["reported_data"])
        rows.append(row | (measured.pop(of_condition[0]) if of_condition else {}))
    rest = {"source": "7", "method": "confident", "quantity": "accuracy"}
    rows += [{**rest, "condition": condition, **one} for (condition, _), one in measured.items()]
    joined: pd.DataFrame = pd.DataFrame(rows, columns=_TABLE7).astype({"n_items": "Int64"})
    same = pd.concat([joined[f"measured_{of}"] == joined[f"reported_{of}"] for of in ("model", "data")], axis=1).all(
        axis=1
    )
    joined["difference"] = (joined["measured"] - joined["reported"]).where(same)
    return joined


_TABLE7 = [
    *("source", "method", "condition", "quantity", "measured", "low", "high", "n_items", "reported", "difference"),
    *("measured_model", "measured_data", "reported_model", "reported_data"),
]


def _measured(row: dict[Any, Any], attrs: dict[Any, Any]) -> dict[str, Any]:
    return {
        "measured": 100 * row["score"],
        "low": 100 * row["score_low"],
        "high": 100 * row["score_high"],
        "n_items": row["n_items"],
        "measured_model": short_name(attrs["model"]),
        "measured_data": BENCHMARKS.get(row["task"], row["task"]),
    }


def _short(number: float) -> str:
    """A temperature or probability as the paper writes it: 0.0, 0.2, 1.0."""
    return f"{number:.1f}" if round(number, 1) == number else f"{number:g}"
