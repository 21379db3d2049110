"""At which layer something first holds of each emitted token: means, quartiles and curves over depth, by word class.

Everything follows from one count: for how many tokens of each prompt it first holds at layer 1, 2, ..., L, or at none.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from layerlens.analysis.sample import Bools, Gathered, PerPrompt, Sample, gathered, generated
from layerlens.analysis.shares import share_interval
from layerlens.analysis.uncertainty import Floats, effective_prompts, holding, interval, mean_interval, ratio
from layerlens.analysis.words import CLASSES, word_class
from layerlens.records.reader import Records

ALL = "all"
"""The name of the row about all emitted tokens; the other rows are named by word class."""

Ints = np.ndarray[Any, np.dtype[np.int64]]


def first_layers(run: Records, layers_of: Callable[[Records, Sample], Ints]) -> Gathered:
    """How many emitted tokens have each layer as their first, by word class; `ALL` alone without the tokens' texts.

    The sums of each class are [prompts, questions, L + 1]. The last axis has layers 1..L, then the tokens without a
    first layer.

    Args:
        run: what was traced.
        layers_of: maps a piece of the run and its tokens to their first layers, [tokens, questions]; L + 1 for none.

    Raises:
        RunError: no generated token of the run can be counted.
    """

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        layers = layers_of(piece, tokens)
        return {
            words: counted(tokens, layers, run.n_layers, among)
            for words, among in emitted_classes(run, piece, tokens).items()
        }

    return gathered(run, sums_of, generated)


def emitted_classes(run: Records, piece: Records, tokens: Sample) -> dict[str, Bools]:
    """Which tokens emitted a word of each class by `word_class`, [tokens] each, and `ALL`.

    `ALL` alone where the run does not hold the texts of its tokens; it holds them once it is complete.
    """
    classes = {ALL: np.ones(len(tokens.rows), dtype=bool)}
    if run.words.empty:
        return classes
    emitted = piece.positions["next_token_id"].iloc[tokens.rows].to_numpy(dtype=np.int64)
    distinct, which = np.unique(emitted, return_inverse=True)
    named = np.array([word_class(text) for text in run.text_of(distinct)])[which]
    return classes | {name: named == name for name in CLASSES}


def mean_layer(totals: Gathered, counted: PerPrompt) -> dict[str, Floats]:
    """The mean first layer of the tokens that have one, with `_low`, `_high` and the `_sd` over tokens, [questions]."""
    had = counted.sums[..., :-1]
    layers = np.arange(1, had.shape[-1] + 1)
    mean, low, high = mean_interval(had @ layers, had.sum(axis=-1), totals.weights)
    pooled = had.sum(axis=0)
    apart = ratio((pooled * np.square(layers - mean[:, None])).sum(axis=-1), pooled.sum(axis=-1))
    return {"": mean, "_low": low, "_high": high, "_sd": np.sqrt(apart)}


def quantile_layer(totals: Gathered, counted: PerPrompt, level: float) -> tuple[Floats, Floats, Floats]:
    """A quantile of the first layers of the tokens that have one, with low and high, [questions].

    NaN where none has one.
    """
    had = counted.sums[..., :-1]
    weights = np.concatenate([np.ones((1, totals.n_prompts)), totals.weights])  # the first is the estimate
    reached = np.cumsum(np.tensordot(weights, had, axes=1), axis=-1)
    at = 1.0 + (reached < level * reached[..., -1:]).sum(axis=-1)
    at[reached[..., -1] == 0] = np.nan
    return at[0], *holding(at[0], *interval(at[1:], effective_prompts(had.sum(axis=-1))))


def share_of(totals: Gathered, counted: PerPrompt, layers: slice) -> tuple[Floats, Floats, Floats]:
    """The share of all tokens whose first layer is among these, counted from 0, low and high, [questions]."""
    return share_interval(counted.sums[..., layers].sum(axis=-1), counted.counts[..., 0], totals.weights)


def share_by_layer(totals: Gathered, counted: PerPrompt) -> tuple[Floats, Floats, Floats]:
    """The share of all tokens that have a first layer of l or less, for l = 1..L, low and high, [questions, L].

    The share cannot fall from one layer to the next, so neither end of the interval may fall. The low end of a layer is
    at least that of every earlier layer, and its high end is at most that of every later layer.
    """
    reached = np.cumsum(counted.sums[..., :-1], axis=-1)
    share, low, high = share_interval(reached, counted.counts[..., :-1], totals.weights)
    return share, np.maximum.accumulate(low, axis=-1), np.minimum.accumulate(high[..., ::-1], axis=-1)[..., ::-1]


def share_after(totals: Gathered, counted: PerPrompt, layer: int) -> tuple[Floats, Floats, Floats]:
    """The share of all tokens with a first layer above one of 0..L, or none, low and high, [questions]."""
    if not layer:
        every, bound = (np.full(counted.sums.shape[1], 1.0 if counted.n_prompts >= n else np.nan) for n in (1, 2))
        return every, bound, bound
    share, low, high = (1 - end[..., layer - 1] for end in share_by_layer(totals, counted))
    return share, high, low


def counted(tokens: Sample, layers: Ints, n_layers: int, among: Bools) -> PerPrompt:
    """How many of some tokens have each layer as their first, [prompts, questions, L + 1].

    Args:
        tokens: of a run or a piece of it.
        layers: their first layers, [tokens, questions]; L + 1 for none.
        n_layers: L.
        among: which of the tokens count, [tokens].
    """
    prompt = np.repeat(np.arange(tokens.n_prompts), np.diff(tokens.starts, append=len(tokens.rows)))[among]
    shape = (tokens.n_prompts, layers.shape[1], n_layers + 1)
    question = np.arange(layers.shape[1])
    places = np.ravel_multi_index((prompt[:, None], question, layers[among] - 1), shape)
    sums = np.bincount(places.ravel(), minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
    members = np.bincount(prompt, minlength=tokens.n_prompts).astype(np.float64)
    counts = np.broadcast_to(members[:, None, None], shape)
    return PerPrompt(sums, counts, np.zeros(shape), members, are_flags=True)
