"""What an evaluation found: how each arm scores on each task, and whether that differs from the last layer."""

import os
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.paired import holm, mcnemar
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import Floats, mean_difference, mean_interval, resample
from layerlens.paths import expanded
from layerlens.records.evaluation import read_answers, read_manifest

EQUAL = 1e-9
"""Scores of an item that differ by less are the same but for rounding."""


def evaluation_table(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per task and arm of the evaluation at `folder`, complete or not, "last" first.

    Columns: task; arm; n_items, those with a score; n_answers; score, the mean over items, 0..1; difference, to the
    mean of the last layer on the items that both have, −1..1; won and lost, the items whose score is higher or lower
    than the last layer's; p, of the exact test of McNemar on won and lost; p_holm, the same after Holm's rule over the
    tasks of this arm; generated_tokens, the mean length of an answer; finished, the share of answers that ended of
    themselves, 0..1; projections, states that went through the
    unembedding for a token on average, NaN where it was not told; unscored, answers without a score, because the judge
    did not give one, there was an error, or the answer is missing. Scores, differences, lengths and finished have
    `_low` and `_high` (95 %): shares as in `analysis.shares`, other means by resampling items. Epochs of an item are
    one unit. `attrs` has the model, the kind of lens, the temperature and n_items asked, by task, is_complete, and
    too_long: by task the answers that the model's context had no room for, or not to their end.

    Raises:
        RunError: there is no evaluation, one of its files cannot be read, or it holds no answer yet.
    """
    folder = expanded(folder)
    manifest = read_manifest(folder)
    answers = read_answers(folder).to_pandas()
    said = manifest["evaluation"]
    rows = []
    for task, arm in said["asked"]:
        of_task = answers[answers["task"] == task]
        items = said["tasks"][task]["items"]
        last, ours = (_ByItem(of_task[of_task["arm"] == name], items) for name in ("last", arm))
        is_share = bool(of_task["score"].dropna().isin((0.0, 1.0)).all())
        rows.append({"task": task, "arm": arm} | _row(ours, last, is_last=arm == "last", is_share=is_share))
    table: pd.DataFrame = pd.DataFrame(rows)
    for arm in table["arm"].unique():
        chosen = table["arm"] == arm
        table.loc[chosen, "p_holm"] = holm(table.loc[chosen, "p"].tolist())
    table.attrs = {
        "model": manifest["model"]["source"],
        "lens": manifest.get("lens", {"kind": "logit"})["kind"],
        "temperature": {name: float(one["config"].get("temperature", 0)) for name, one in said["tasks"].items()},
        "n_items": {name: len(one["items"]) for name, one in said["tasks"].items()},
        "is_complete": manifest["totals"] is not None,
        "too_long": answers.loc[answers["stop_reason"] == "model_length", "task"].value_counts().to_dict(),
    }
    return table


class _ByItem:
    """The answers of one arm to the items of a task.

    Attributes:
        scores, n_scores: the mean score of each item over its epochs, and 1 where it has a score, else 0, [items] each.
        n_answers: answers with a score.
        ended: how many ended of themselves, [items].
        frame: the answers.
    """

    def __init__(self, frame: pd.DataFrame, items: list[str]) -> None:
        self.frame = frame
        self.scores, self.n_scores = item_means(frame, items)
        self.n_answers = int(frame["score"].count())
        there = frame[frame["outcome"].isin(("scored", "unscored"))]
        lengths = there.groupby("item")["n_generated_tokens"]
        self.tokens: Floats = lengths.sum().reindex(items, fill_value=0).to_numpy(dtype=float)
        self.n_lengths: Floats = lengths.count().reindex(items, fill_value=0).to_numpy(dtype=float)
        ended = (there["stop_reason"] == "stop").groupby(there["item"]).sum()
        self.ended: Floats = ended.reindex(items, fill_value=0).to_numpy(dtype=float)

    def among(self, chosen: Any) -> tuple[Floats, Floats]:
        """Scores and their numbers, where only some items count."""
        return np.where(chosen, self.scores, 0), np.where(chosen, self.n_scores, 0)


def _row(ours: _ByItem, last: _ByItem, *, is_last: bool, is_share: bool) -> dict[str, Any]:
    weights = resample(len(ours.scores))
    estimate, differ = (share_interval, share_difference) if is_share else (mean_interval, mean_difference)
    row: dict[str, Any] = {
        "n_items": int((ours.n_scores > 0).sum()),
        "n_answers": ours.n_answers,
        "unscored": len(ours.frame) - ours.n_answers,
    }
    row |= _ends("score", _known(estimate(ours.scores, ours.n_scores, weights), is_share=is_share))
    both = (ours.n_scores > 0) & (last.n_scores > 0)
    if is_last or not both.any():
        row |= _ends("difference", (0.0, 0.0, 0.0) if is_last else (np.nan, np.nan, np.nan))
        row |= {"won": 0, "lost": 0, "p": np.nan}
    else:
        difference = differ(last.among(both), ours.among(both), weights)
        row |= _ends("difference", _known(difference, is_share=is_share))
        change = ours.scores[both] - last.scores[both]
        won, lost = int((change > EQUAL).sum()), int((change < -EQUAL).sum())
        row |= {"won": won, "lost": lost, "p": mcnemar(won, lost)}
    row |= {"p_holm": np.nan}
    row |= _ends("generated_tokens", mean_interval(ours.tokens, ours.n_lengths, weights))
    row |= _ends("finished", share_interval(ours.ended, ours.n_lengths, weights))
    row |= {"projections": float(ours.frame["projections"].mean())}
    return row


def item_means(frame: pd.DataFrame, items: list[str]) -> tuple[Floats, Floats]:
    """The mean score of each item over the answers that have one, 0 where none has, and how many means there are: 1 or
    0; [items] each. So an item counts once, however many of its epochs have a score."""
    means = frame.groupby("item")["score"].mean().reindex(items).to_numpy(dtype=float)
    return np.nan_to_num(means), (~np.isnan(means)).astype(float)


def _known(values: Any, *, is_share: bool) -> tuple[float, float, float]:
    """A mean with its low and high; these are NaN where grades of all items are equal, which resampling takes for
    certainty."""
    value, low, high = map(float, values)
    return (value, low, high) if is_share or high > low else (value, np.nan, np.nan)


def _ends(name: str, values: Any) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
