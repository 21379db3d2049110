"""An evaluation with made-up answers, as `layerlens eval` would write it."""

from pathlib import Path
from typing import Any

from layerlens.records import new_manifest
from layerlens.records.evaluation import MEASURES, SCORED, EvaluationWriter


def write(
    folder: Path, scores: dict[tuple[str, str], list[list[float | None]]], temperature: float = 0.0, **columns: Any
) -> Path:
    """Write one.

    Args:
        folder: to write.
        scores: of each task and arm, for each item those of its epochs; None: no score.
        temperature: of all answers.
        columns: functions of (task, arm, item, epoch, score) that give a column; 40 tokens and no measures otherwise.
    """
    asked, config = [list(pair) for pair in scores], {"temperature": temperature}
    tasks = {
        task: {"items": [f"{task}-{n}" for n in range(len(items))], "items_sha256": "", "best": 1.0, "config": config}
        for (task, _), items in scores.items()
    }
    evaluation = {"tasks": tasks, "arms": {arm: {"strategy": arm} for _, arm in scores}, "asked": asked}
    manifest = new_manifest(model={"source": "made up"}, evaluation=evaluation, options={"epochs": 1}, seed=0)
    answers: dict[str, list[Any]] = {column.name: [] for column in SCORED}
    for (task, arm), items in scores.items():
        for number, epochs in enumerate(items):
            for epoch, score in enumerate(epochs, start=1):
                row = dict.fromkeys(MEASURES) | {
                    "task": task,
                    "item": f"{task}-{number}",
                    "epoch": epoch,
                    "arm": arm,
                    "score": score,
                    "outcome": "unscored" if score is None else "scored",
                    "stop_reason": "stop",
                    "n_prompt_tokens": 10,
                    "n_generated_tokens": 40,
                }
                row |= {name: column(task, arm, number, epoch, score) for name, column in columns.items()}
                for name, value in row.items():
                    answers[name].append(value)
    with EvaluationWriter(folder, manifest) as writer:
        writer.finish(answers, {"answers": len(answers["item"])})
    return folder
