"""How far measures of a layer agree about what a draft can do without."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from layerlens.analysis.sample import PerPrompt, Sample, gathered
from layerlens.analysis.uncertainty import Floats, holding, interval, ratio, resample, resampled_means
from layerlens.errors import RunError
from layerlens.records.reader import Records
from layerlens.records.schema import CONFIDENCE, VOCAB_CONFIDENCE

_FEWEST_LAYERS = 3  # whose ranks can differ in more than their direction


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation over blocks, −1..1, with its interval over prompts."""

    rho: float
    low: float
    high: float
    n_blocks: int
    n_prompts: int


def rank_correlation(
    left: Floats, right: Floats, counts: Floats, weights: Floats, right_counts: Floats | None = None
) -> RankCorrelation:
    """Of the means of two measures, over blocks.

    Args:
        left: sums over the tokens of each prompt, [prompts, blocks].
        right: the same of the other measure.
        counts: tokens of each prompt, [prompts, 1] or [prompts, blocks].
        weights: from `resample`.
        right_counts: those that have the other measure; None: the same.
    """
    others = np.broadcast_to(counts if right_counts is None else right_counts, right.shape)
    counts = np.broadcast_to(counts, left.shape)
    rho = spearman(ratio(left.sum(0), counts.sum(0)), ratio(right.sum(0), others.sum(0)))
    draws = _correlations(resampled_means(left, counts, weights), resampled_means(right, others, weights))
    low, high = holding(rho, *interval(draws[:, np.newaxis], len(left)))
    return RankCorrelation(rho, float(low[0]), float(high[0]), left.shape[1], len(left))


def spearman(left: Floats, right: Floats) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks. NaN where one side has one value."""
    return float(_correlations(left[np.newaxis], right[np.newaxis])[0])


def _correlations(left: Floats, right: Floats) -> Floats:
    """Of each row, [rows] from [rows, values]."""
    ours, theirs = (ranks - ranks.mean(1, keepdims=True) for ranks in (_ranks(left), _ranks(right)))
    return ratio((ours * theirs).sum(1), np.sqrt((ours**2).sum(1) * (theirs**2).sum(1)))


def _ranks(values: Floats) -> Floats:
    """Within each row, [rows, values]."""
    below = (values[:, np.newaxis] < values[:, :, np.newaxis]).sum(2)
    equal = (values[:, np.newaxis] == values[:, :, np.newaxis]).sum(2)
    ranks: Floats = below + (equal + 1) / 2
    return ranks


def dispensable(run: Records) -> pd.DataFrame:
    """How far measures agree about which layers between the first and the last do least; one row per pair of measures.

    A layer does least by its norm ratio, by 1 − I/O cosine, by the change of the entropy, |entropy[l] − entropy[l−1]|,
    or by its confidence, where that is lowest; the confidences only in runs traced with `confidence`.

    Columns: measure, other; rho (Spearman's rank correlation over layers 2..L−1 of the means over tokens, −1..1) with
    `_low` and `_high` (95 %, prompts resampled); shared (of the quarter of these layers that each measure has lowest,
    how many are the same); n_lowest (how many those are); n_layers; n_prompts.

    Raises:
        RunError: no token of the run can be counted, or the model has fewer than 5 layers.
    """
    if run.n_layers < _FEWEST_LAYERS + 2:
        problem = f"{run.path} has {run.n_layers} layers, too few to compare those between the first and the last"
        raise RunError(problem, "give a run of a deeper model", given=run.path)
    names = [column.name for column in (CONFIDENCE, VOCAB_CONFIDENCE) if run.has(column.name)]

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        piece.read_layers("norm_ratio", "io_cosine", "entropy", *names)
        values = {name: piece.layers(name)[:, 1:-1] for name in ("norm_ratio", *names)}
        values["one_minus_cosine"] = 1 - piece.layers("io_cosine")[:, 1:-1]
        values["entropy_change"] = np.abs(np.diff(piece.layers("entropy"), axis=1))[:, :-1]
        return {name: tokens.per_prompt(tokens.of(of_layers)) for name, of_layers in values.items()}

    totals = gathered(run, sums_of)
    order = [name for name in ("norm_ratio", "one_minus_cosine", "entropy_change", *names) if _is_known(totals[name])]
    weights = resample(totals.n_prompts)
    rows = []
    for measure, other in combinations(order, 2):
        left, right = totals[measure], totals[other]
        own = rank_correlation(left.sums, right.sums, left.counts, weights, right.counts)
        lowest = [_lowest(one) for one in (left, right)]
        rows.append(
            {
                "measure": measure,
                "other": other,
                **{"rho": own.rho, "rho_low": own.low, "rho_high": own.high},
                "shared": len(lowest[0] & lowest[1]),
                "n_lowest": len(lowest[0]),
                "n_layers": own.n_blocks,
                "n_prompts": own.n_prompts,
            }
        )
    return totals.frame(rows)


def _is_known(measure: PerPrompt) -> bool:
    """Whether every layer has the measure."""
    return bool((measure.counts.sum(0) > 0).all())


def _lowest(measure: PerPrompt) -> set[int]:
    """The quarter of the layers, rounded up, where the mean is lowest."""
    means = ratio(measure.sums.sum(0), measure.counts.sum(0))
    return set(np.argsort(means, kind="stable")[: -(-len(means) // 4)].tolist())
