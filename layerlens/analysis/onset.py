"""From which layer on the emitted token is among the first vocabulary entries of every readout."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.depths import (
    Ints,
    first_layers,
    mean_layer,
    quantile_layer,
    share_after,
    share_by_layer,
    share_of,
)
from layerlens.analysis.sample import Gathered, Sample
from layerlens.errors import OptionError, is_whole
from layerlens.records.reader import Records
from layerlens.records.schema import NEXT_RANK

_QUARTILES = {"onset_q25": 0.25, "onset_median": 0.5, "onset_q75": 0.75}


def onset(run: Records, rank: int = 1) -> pd.DataFrame:
    """One row for all emitted tokens and one per word class: from which layer on a token is among the first `rank`.

    The onset of an emitted token is the earliest layer l such that in each of the layers l..L fewer than `rank`
    vocabulary entries have a greater logit than the token. A token that is not among the first `rank` entries of layer
    L itself has no onset. Such a token was sampled, decoded from another layer or changed by a penalty. It is counted
    in `outside`, and in no mean or quartile.

    Columns: words ("all", or a class of `word_class` by its rule "paper", of the token's own text; "all" alone where
    the run does not hold the texts of its tokens, which it holds once it is complete); onset, the mean layer, 1..L,
    with `_low` and `_high` (95 %, prompts resampled) and `_sd` (over tokens); relative_onset, the mean of layer / L,
    with `_low` and `_high`, to compare models of different depths; onset_median with `_low` and `_high`, onset_q25 and
    onset_q75, the median and the quartiles of the onsets; at_last, the share of all tokens whose onset is L, and
    outside, the share without onset, both with `_low` and `_high`; n_tokens; n_prompts that have such tokens. A class
    without tokens has NaN.

    Args:
        run: a run traced with `targets`.
        rank: how many of the first vocabulary entries; 1 asks for the first alone. Entries that are as likely as the
            token do not count as before it.

    Raises:
        OptionError: the rank is not a whole number between 1 and the size of the vocabulary.
        RunError: the run was traced without `targets`, or none of its generated tokens can be counted.
    """
    totals = _onsets(run, rank)
    rows = []
    for words, counted in totals.by_name.items():
        row: dict[str, Any] = {"words": words}
        mean = {end: float(value[0]) for end, value in mean_layer(totals, counted).items()}
        row |= {f"onset{end}": value for end, value in mean.items()}
        row |= {f"relative_onset{end}": mean[end] / run.n_layers for end in ("", "_low", "_high")}
        for name, level in _QUARTILES.items():
            quantile = _named(name, quantile_layer(totals, counted, level))
            row |= quantile if level == 0.5 else {name: quantile[name]}
        row |= _named("at_last", share_of(totals, counted, slice(run.n_layers - 1, run.n_layers)))
        row |= _named("outside", share_after(totals, counted, run.n_layers))
        rows.append(row | {"n_tokens": counted.n_tokens, "n_prompts": counted.n_prompts})
    return totals.frame(rows)


def onset_by_layer(run: Records, rank: int = 1) -> pd.DataFrame:
    """One row per class of words as in `onset` and layer 1..L: the share of tokens with an onset at or before it.

    Columns: words; layer; relative_layer, layer / L; share of all tokens of the class (tokens without onset count among
    all), with `_low` and `_high` (95 %, prompts resampled); n_tokens; n_prompts. At L the share is 1 less `outside` of
    `onset`.

    Raises:
        OptionError, RunError: as `onset`.
    """
    totals = _onsets(run, rank)
    layers = np.arange(1, run.n_layers + 1)
    frames = []
    for words, counted in totals.by_name.items():
        columns: dict[str, Any] = {"words": words, "layer": layers, "relative_layer": layers / run.n_layers}
        shares = share_by_layer(totals, counted)
        columns |= {name: value[0] for name, value in zip(("share", "share_low", "share_high"), shares, strict=True)}
        frames.append(pd.DataFrame(columns | {"n_tokens": counted.n_tokens, "n_prompts": counted.n_prompts}))
    return totals.frame(pd.concat(frames, ignore_index=True))


def _onsets(run: Records, rank: int) -> Gathered:
    n_vocab = int(run.manifest["model"]["n_vocab"])
    if not is_whole(rank) or not 1 <= rank <= n_vocab:
        raise OptionError.about(
            "rank",
            rank,
            f"is not a rank in a vocabulary of {n_vocab:,}",
            f"give a whole number between 1 and {n_vocab}",
        )

    def onsets_of(piece: Records, tokens: Sample) -> Ints:
        ranks = tokens.of(piece.layers(NEXT_RANK.name))
        within = (ranks >= 0) & (ranks < rank)  # −1 where no rank is known
        kept: Ints = np.logical_and.accumulate(within[:, ::-1], axis=1).sum(axis=1, dtype=np.int64)
        return 1 + run.n_layers - kept[:, None]

    return first_layers(run, onsets_of)


def _named(name: str, values: Any) -> dict[str, float]:
    """Estimate, low and high, where there is one question, as three entries of a row."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), (float(value[0]) for value in values), strict=True))
