"""What the logs of inspect say of an evaluation, as columns of a table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, list_eval_logs, read_eval_log
from inspect_ai.scorer import Score, value_to_float

from layerlens.records.evaluation import MEASURES, SCORED

_TO_FLOAT = value_to_float()


def answers_in(
    folder: Path, tasks: Mapping[str, Mapping[str, Any]], asked: Sequence[tuple[str, str, int]]
) -> dict[str, Any]:
    """A list for each column of `SCORED`, from all logs of a folder.

    Args:
        folder: of the logs.
        tasks: by name, the ids of their "items" and the "best" score.
        asked: of each task and arm, how many answers each item gets. An answer that no log has is told as missing.
    """
    rows: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for log in logs_in(folder):
        task, arm = (log.eval.metadata or {})["benchmark"], (log.eval.metadata or {})["arm"]
        if not any(one[:2] == (task, arm) for one in asked):
            continue
        for sample in log.samples or []:
            key = (task, arm, str(sample.id), sample.epoch)
            row = _row(sample, tasks[task]["best"])
            if key not in rows or rows[key]["outcome"] != "scored":
                rows[key] = row
    columns: dict[str, Any] = {column.name: [] for column in SCORED}
    for task, arm, epochs in asked:
        for item in tasks[task]["items"]:
            for epoch in range(1, epochs + 1):
                row = rows.get((task, arm, item, epoch), _MISSING)
                for name, value in {"task": task, "item": item, "epoch": epoch, "arm": arm, **row}.items():
                    columns[name].append(value)
    return columns


_MEASURED = dict.fromkeys(MEASURES)
_MISSING: dict[str, Any] = {
    **{"score": None, "outcome": "missing", "stop_reason": "", "n_prompt_tokens": 0, "n_generated_tokens": 0},
    **_MEASURED,
}


def logs_in(folder: Path) -> Iterator[EvalLog]:
    """The logs of layerlens in a folder, the oldest first."""
    for info in sorted(list_eval_logs(str(folder)), key=lambda one: one.name):
        log = read_eval_log(info)
        if "arm" in (log.eval.metadata or {}):
            yield log


def unscored_in(log: EvalLog) -> list[EvalSample]:
    """The samples of a log that were answered and have no score, because the judge gave none."""
    return [sample for sample in log.samples or [] if _row(sample, 1.0)["outcome"] == "unscored"]


def _row(sample: EvalSample, best: float) -> dict[str, Any]:
    """Columns of one answer."""
    usage, output = sample.output.usage, sample.output
    measures = ((output.metadata or {}).get("measures") or [{}])[0]
    # "unknown" where logits were no numbers: a text that broke off there is neither right nor wrong
    failed = sample.error is not None or bool(output.choices and output.stop_reason == "unknown")
    score = None if failed else _score(sample.scores or {})
    outcome = "error" if failed else "unscored" if score is None else "scored"
    return {
        "score": None if score is None else score / best,
        "outcome": outcome,
        "stop_reason": output.stop_reason if output.choices else "",
        "n_prompt_tokens": usage.input_tokens if usage else 0,
        "n_generated_tokens": usage.output_tokens if usage else 0,
        **{name: measures.get(name) for name in MEASURES},
    }


def _score(scores: Mapping[str, Score]) -> float | None:
    """The number of the only score; None where nothing was said."""
    for score in scores.values():
        value = score.value.get("score") if isinstance(score.value, Mapping) else score.value
        if value is None or isinstance(value, list):
            return None
        number = float(_TO_FLOAT(value))
        return number if math.isfinite(number) else None
    return None
