"""Whether an arm gains more on hard items: levels of difficulty, and what a second run of the last layer gains on them.

Tables 3 and 4 of arXiv 2606.21906 sort items by the share of answers that the baseline has right, and report the gain
of the valley at each level. Where the same answers choose the levels and are compared, chance makes a gain: an item at
which the baseline was unlucky counts as hard, and any other run does better there (regression to the mean). So the
levels come from an independent run here, and another independent run of the last layer is the control. `levels_table`
tells both: the levels of an independent run, and those of the compared answers themselves.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.evaluation import item_means
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import Floats, resample
from layerlens.errors import OptionError, RunError, spelled
from layerlens.paths import expanded
from layerlens.records import Manifest
from layerlens.records.disagreement import disagreement
from layerlens.records.evaluation import read_answers, read_manifest

N_LEVELS = 4
CONTROL = "last, again"
"""The name of the control arm: a second run of the last layer."""


def level_of(share: Floats) -> Floats:
    """The level 1..4 of items, [items], by the share of their answers that are right, 0..1.

    It is 1 above three quarters, and 4 up to one quarter. NaN stays NaN."""
    shares = np.asarray(share, dtype=float)
    levels = N_LEVELS - np.searchsorted([0.25, 0.5, 0.75], np.nan_to_num(shares), side="left")
    return np.where(np.isnan(shares), np.nan, levels)


def levels_table(
    evaluation: str | os.PathLike[str], levels: str | os.PathLike[str], control: str | os.PathLike[str]
) -> pd.DataFrame:
    """One row per task, way of choosing levels, level 1..4 and arm: its score, and the difference to the last layer.

    Columns: task; levels_from, "independent" (the run `levels`) or "itself" (the compared answers of the last layer);
    level; arm, where `CONTROL` is the last layer in `control`; n_items; score, with `_low` and `_high` (95 %);
    difference to the last layer of `evaluation` on the same items, with `_low` and `_high`. Items are the units, and
    shares are as in `analysis.shares`.

    Args:
        evaluation: the evaluation whose arms are compared.
        levels: another one, of the same items under the last layer with another seed; its answers choose the levels.
        control: a third one, likewise; its answers are the control.

    Raises:
        OptionError: two of the three are the same directory, or have the same seed.
        RunError: one of them has no answers of the last layer to a task of `evaluation`; or differs in its model, items
            or settings; or nothing is drawn.
    """
    folders = [expanded(one) for one in (evaluation, levels, control)]
    manifests = [read_manifest(folder) for folder in folders]
    seeds = [manifest["seed"] for manifest in manifests]
    for name, place in (("levels", 1), ("control", 2)):
        if any(folders[place].resolve() == other.resolve() for other in folders[:place]) or (
            seeds[place] in seeds[:place]
        ):
            what = "is not independent: another of the evaluations has the same answers or the same seed"
            raise OptionError.about(name, folders[place], what, "give an evaluation with a seed of its own")
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        _refuse_unlike(folder, manifest, manifests[0])
    frames = [read_answers(folder).to_pandas() for folder in folders]
    asked = manifests[0]["evaluation"]
    rows: list[dict[str, Any]] = []
    for task in dict.fromkeys(task for task, _ in asked["asked"]):
        items = asked["tasks"][task]["items"]
        last, chosen_by, again = (
            _by_item(frame, task, "last", items, folder) for frame, folder in zip(frames, folders, strict=True)
        )
        arms = {"last": last}
        arms |= {
            arm: _by_item(frames[0], task, arm, items, folders[0])
            for one, arm in asked["asked"]
            if one == task and arm != "last"
        }
        arms[CONTROL] = again
        for source, (sums, counts) in (("independent", chosen_by), ("itself", last)):
            with np.errstate(invalid="ignore"):
                level = level_of(sums / counts)
            for number in range(1, N_LEVELS + 1):
                here = {"task": task, "levels_from": source, "level": number}
                rows += [here | {"arm": arm} | _row(values, last, level == number) for arm, values in arms.items()]
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _refuse_unlike(folder: Path, manifest: Manifest, compared: Manifest) -> None:
    """RunError where an evaluation differs from the compared one in more than its seed, or has nothing of its own
    because nothing is drawn."""
    kept = ("format", "model", "lens", "generation")
    ours, theirs = ({name: one[name] for name in kept if name in one} for one in (compared, manifest))
    differs = disagreement(ours, theirs)
    tasks, others = (one["evaluation"]["tasks"] for one in (compared, manifest))
    for task in tasks.keys() & others.keys():
        here, there = ({**one[task], "config": _unseeded(one[task]["config"])} for one in (tasks, others))
        if differs is None and here != there:
            differs = f"other items or settings of the task {task}"
        if not here["config"].get("temperature"):
            problem = f"the answers to {task} are greedy, so that those of {folder} are the same and not independent"
            raise RunError(problem, f"evaluate with {spelled('temperature')} above 0", given=folder)
    if differs is not None:
        problem = f"{folder} cannot stand beside the compared evaluation: it was begun with {differs}"
        raise RunError(problem, "evaluate there as in the compared one, with another seed", given=folder)


def _unseeded(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "seed"}


def _by_item(frame: pd.DataFrame, task: str, arm: str, items: list[str], folder: Path) -> tuple[Floats, Floats]:
    """The mean score of each item, and 1 where it has one, [items] each."""
    means, counts = item_means(frame[(frame["task"] == task) & (frame["arm"] == arm)], items)
    if not counts.any():
        problem = f"{folder} has no answers of the arm {arm} to the items of {task}"
        raise RunError(problem, "evaluate the same items there", given=folder)
    return means, counts


def _row(ours: tuple[Floats, Floats], last: tuple[Floats, Floats], here: Any) -> dict[str, Any]:
    both = here & (ours[1] > 0) & (last[1] > 0)
    row: dict[str, Any] = {"n_items": int(both.sum())}
    if not both.any():
        ends = (np.nan, np.nan, np.nan)
        return row | _ends("score", ends) | _ends("difference", ends)
    weights = resample(int(both.sum()))
    (sums, counts), theirs = (tuple(part[both] for part in one) for one in (ours, last))
    row |= _ends("score", share_interval(sums, counts, weights))
    is_same = ours is last
    return row | _ends(
        "difference", (0.0, 0.0, 0.0) if is_same else share_difference((theirs[0], theirs[1]), (sums, counts), weights)
    )


def _ends(name: str, values: Any) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
