"""What an ablation found: how often each arm is right at each p, and how much that differs from the last layer."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from layerlens.analysis.reported import BENCHMARKS, reported, short_name
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import Floats, mean_interval, resample
from layerlens.errors import OptionError, RunError, spelled, spelled_command
from layerlens.records.answers import condition_name, read_answers, read_manifest

MEASURES = ("accuracy", "generated_tokens", "finished")


def ablation_table(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per arm and p of the ablation at `folder`, complete or not, "last" first; p = 0 is the last layer.

    Columns: arm; p; accuracy, the share of answers that are right, 0..1; difference, to the accuracy of the last layer
    on the same items, −1..1; n_items; n_answers, more where answers were repeated; generated_tokens, the mean length of
    an answer with its end token; finished, the share of answers that ended of themselves, 0..1. Every mean and the
    difference have `_low` and `_high` (95 %). The interval of a share follows the rule of Clopper and Pearson. The
    interval of the difference follows the rule of Bonett and Price, on the items that both conditions have. The
    interval of the mean length comes from resampled items. Where six items or more have both right and wrong answers
    among their repeats, shares are resampled too (see `analysis.shares`). The last layer does not depend on p, so its
    rows repeat one measurement. Conditions without any answer are left out. `attrs` has the model, the kind of lens,
    dataset, scoring, temperature, n_items that were asked for, n_answers in all, and is_complete.

    Raises:
        RunError: there is no ablation, one of its files cannot be read, or it holds no answer yet.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    plan = manifest["ablation"]
    conditions = {(arm, float(p)): condition_name(arm, p) for arm in plan["arms"] for p in plan["p"]}
    answers = {name: read_answers(folder, name).to_pandas() for name in dict.fromkeys(conditions.values())}
    if not any(map(len, answers.values())):
        raise RunError(f"{folder} holds no answer yet", f"continue it with {spelled('resume', True)}", given=folder)
    items = sorted({prompt_id for batch in plan["batches"] for prompt_id in batch})
    weights = resample(len(items))
    by_item = {name: _by_item(frame, items) for name, frame in answers.items()}
    rows = [
        {"arm": arm, "p": p} | _row(by_item[name], by_item["last"], weights) | {"n_answers": len(answers[name])}
        for (arm, p), name in conditions.items()
        if len(answers[name])
    ]
    table: pd.DataFrame = pd.DataFrame(rows)
    table.attrs = {
        "model": manifest["model"]["source"],
        "lens": manifest.get("lens", {"kind": "logit"})["kind"],
        "dataset": manifest["dataset"]["name"],
        "scoring": plan["scoring"],
        "temperature": float(manifest["options"]["temperature"]),
        "n_items": len(items),
        "n_answers": sum(map(len, answers.values())),
        "is_complete": manifest["totals"] is not None,
    }
    return table


def table7(folders: Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
    """Accuracy of valley decoding by temperature and p in ablations, beside the paper's Table 7.

    Columns: source, method, condition ("T=0.0 p=0.2") and quantity as the paper has them; measured, with low and high
    (95 %, items resampled); n_items; reported; difference, measured less reported, empty where models or data differ;
    measured_model, measured_data, reported_model and reported_data. All values are in percent. A cell is empty where
    nothing was measured; measured conditions that the paper does not report come last.

    Args:
        folders: folders of ablations with the arm valley; each ablation has one temperature.

    Raises:
        RunError: a folder holds no ablation, no answer, or no answer of the arm valley.
        OptionError: two ablations measured the same condition.
    """
    measured: dict[str, dict[str, Any]] = {}
    for folder in folders:
        table = ablation_table(folder)
        for row in table[table["arm"] == "valley"].to_dict("records"):
            condition = f"T={_short(table.attrs['temperature'])} p={_short(row['p'])}"
            if condition in measured:
                raise OptionError(
                    f"{folder} measured {condition}, as another of the ablations did", "give one of them", given=folder
                )
            measured[condition] = _measured(row, table.attrs)
        if "valley" not in set(table["arm"]):
            advice = f"run {spelled_command('ablate')} with it among its {spelled('arms')}"
            raise RunError(f"{folder} has no answers of the arm valley", advice, option="arms", given=folder)
    names = {"value": "reported", "model": "reported_model", "benchmark": "reported_data"}
    told = reported("7").rename(columns=names).to_dict("records")
    others = [condition for condition in measured if condition not in {row["condition"] for row in told}]
    more = [{"source": "7", "method": "confident", "condition": name, "quantity": "accuracy"} for name in others]
    rows = [row | measured.get(row["condition"], {}) for row in [*told, *more]]
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


class _ByItem(NamedTuple):
    """Sums over the answers to each item, and how many answers there are, [items, measures] each."""

    sums: Floats
    counts: Floats

    def among(self, items: np.ndarray[Any, Any]) -> "_ByItem":
        """The same, where only some of the items count, [items]."""
        return _ByItem(np.where(items, self.sums, 0), np.where(items, self.counts, 0))

    def of(self, measure: str) -> tuple[Floats, Floats]:
        """Sums and counts of one measure, [items] each."""
        column = MEASURES.index(measure)
        return self.sums[:, column], self.counts[:, column]


def _by_item(answers: pd.DataFrame, items: list[str]) -> _ByItem:
    values = pd.DataFrame(
        {
            "accuracy": answers["is_correct"].astype(float),
            "generated_tokens": answers["n_generated_tokens"].astype(float),
            "finished": (answers["finish_reason"] == "stop").astype(float),
        }
    )[list(MEASURES)]
    grouped = values.groupby(answers["prompt_id"].to_numpy())
    sums, counts = (
        part.reindex(items, fill_value=0).to_numpy(dtype=float) for part in (grouped.sum(), grouped.count())
    )
    return _ByItem(sums, counts)


def _row(arm: _ByItem, last: _ByItem, weights: Floats) -> dict[str, Any]:
    estimates: dict[str, Any] = {}
    for name in MEASURES:
        estimate = mean_interval if name == "generated_tokens" else share_interval
        estimates[name] = estimate(*arm.of(name), weights)
    estimates["difference"] = (0.0, 0.0, 0.0)  # one measurement, whatever p
    if arm is not last:
        common = (arm.counts > 0) & (last.counts > 0)
        ours, theirs = (one.among(common).of("accuracy") for one in (last, arm))
        estimates["difference"] = share_difference(ours, theirs, weights)
    row: dict[str, Any] = {"n_items": int((arm.counts[:, 0] > 0).sum())}
    for name in ("accuracy", "difference", "generated_tokens", "finished"):
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, estimates[name]), strict=True))
    return row


def _measured(row: dict[Any, Any], attrs: dict[Any, Any]) -> dict[str, Any]:
    return {
        "measured": 100 * row["accuracy"],
        "low": 100 * row["accuracy_low"],
        "high": 100 * row["accuracy_high"],
        "n_items": row["n_items"],
        "measured_model": short_name(attrs["model"]),
        "measured_data": BENCHMARKS.get(attrs["dataset"], attrs["dataset"]),
    }


def _short(number: float) -> str:
    """A temperature or probability as the paper writes it: 0.0, 0.2, 1.0."""
    return f"{number:.1f}" if round(number, 1) == number else f"{number:g}"
