"""Tables 1, 2, 9 and 10: scores of benchmarks; tables 3 and 4: scores by difficulty."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import pandas as pd

from layerlens.analysis.evaluation import evaluation_table
from layerlens.analysis.levels import levels_table
from layerlens.analysis.reported import BENCHMARKS, reported, short_name
from layerlens.errors import OptionError, RunError

METHODS = {"valley": "confident"}
"""The paper's names of our arms; it calls the others as we do."""
_COLUMNS = (
    *("source", "model", "method", "benchmark", "measured", "low", "high", "gain", "gain_low", "gain_high", "p_holm"),
    *("n_items", "reported", "sd", "difference"),
)
_LEVELS = ("source", "model", "benchmark", "levels_from", "level", "method", "measured", "low", "high")
_GAINS = ("gain", "gain_low", "gain_high", "n_items", "reported", "reported_gain")


def scores_table(source: str, folders: Sequence[str | PathLike[str]]) -> pd.DataFrame:
    """One row per model, method and benchmark of table 1, 2, 9 or 10: what evaluations measured beside the paper.

    Columns: source; model; method and benchmark as the paper has them; measured, with low and high (95 %, by items);
    gain, measured less the last layer on the same items, with its interval; p_holm, of McNemar's test after Holm's rule
    over the tasks; n_items; reported, and its sd; difference, measured less reported. All values are in percent. A cell
    is empty where nothing was measured or reported; what was measured and is not in the paper comes last.

    Args:
        source: the number of the table.
        folders: of evaluations.

    Raises:
        RunError: a folder holds no evaluation, or no answer; or two evaluations measured the same.
    """
    measured: dict[tuple[str, str, str], dict[str, Any]] = {}
    for folder in folders:
        table = evaluation_table(folder)
        model = short_name(table.attrs["model"])
        for row in table.to_dict("records"):
            method = METHODS.get(row["arm"], row["arm"])
            key = (model, method, BENCHMARKS.get(row["task"], row["task"]))
            if key in measured:
                problem = f"{folder} measured {' '.join(key)}, as another of the evaluations did"
                raise RunError(problem, "give one of them", given=folder)
            measured[key] = _percent(row)
    told = reported(source)
    names = [tuple(row) for row in told[["model", "method", "benchmark"]].to_numpy()]
    rows = []
    for key, row in zip(names, told.to_dict("records"), strict=True):
        mine = measured.get(key, {})
        differs = {"difference": mine["measured"] - row["value"]} if mine else {}
        rows.append(_named(source, key) | mine | {"reported": row["value"], "sd": row["sd"]} | differs)
    rows += [_named(source, key) | values for key, values in measured.items() if key not in names]
    joined: pd.DataFrame = pd.DataFrame(rows, columns=_COLUMNS).astype({"n_items": "Int64"})
    return joined


def difficulty_table(source: str, folders: Sequence[str | PathLike[str]]) -> pd.DataFrame:
    """Table 3 or 4: scores and gains at each level of difficulty, beside the paper's.

    Columns: source; model; benchmark; levels_from, level and method, see `analysis.levels`; measured with low and high;
    gain over the last layer with its interval; n_items; reported, and reported_gain, which the paper measures with
    levels from the compared answers themselves. All values are in percent.

    Args:
        source: the number of the table.
        folders: three evaluations: the compared one, the one that chooses the levels, and the control.

    Raises:
        OptionError: there are not three, or they are not independent.
        RunError: they do not have the same items.
    """
    if len(folders) != 3:
        advice = "give three: the compared one, one that chooses the levels, and one more run of the last layer"
        raise OptionError.about("evaluation", [str(one) for one in folders], "are not three evaluations", advice)
    table = levels_table(*folders)
    model = short_name(evaluation_table(folders[0]).attrs["model"])
    told = {
        (row["model"], row["benchmark"], row["condition"], row["method"]): row["value"]
        for row in reported(source).to_dict("records")
    }
    rows = []
    for row in table.to_dict("records"):
        benchmark = {"math500": "MATH"}.get(row["task"], BENCHMARKS.get(row["task"], row["task"]))
        method = METHODS.get(row["arm"], row["arm"])
        here = (model, benchmark, f"level {row['level']}")
        in_paper = told.get((*here, method), float("nan"))
        rows.append(
            {"source": source, "model": model, "benchmark": benchmark, "method": method}
            | {name: row[name] for name in ("levels_from", "level", "n_items")}
            | {name: 100 * row[f"score{end}"] for name, end in (("measured", ""), ("low", "_low"), ("high", "_high"))}
            | {f"gain{end}": 100 * row[f"difference{end}"] for end in ("", "_low", "_high")}
            | {"reported": in_paper, "reported_gain": in_paper - told.get((*here, "last"), float("nan"))}
        )
    joined: pd.DataFrame = pd.DataFrame(rows, columns=[*_LEVELS, *_GAINS])
    return joined


def _named(source: str, key: tuple[str, str, str]) -> dict[str, Any]:
    return {"source": source, **dict(zip(("model", "method", "benchmark"), key, strict=True))}


def _percent(row: dict[Any, Any]) -> dict[str, Any]:
    ends = ("", "_low", "_high")
    values = {name: 100 * row[f"score{end}"] for name, end in zip(("measured", "low", "high"), ends, strict=True)}
    values |= {f"gain{end}": 100 * row[f"difference{end}"] for end in ends}
    return values | {"p_holm": row["p_holm"], "n_items": row["n_items"]}
