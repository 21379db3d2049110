"""How early the layers agree with the last one about the next token."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.layers import layer_kinds
from layerlens.analysis.sample import Bools, Sample, sample
from layerlens.analysis.uncertainty import mean_interval, share_interval
from layerlens.records import KL, token_columns

if TYPE_CHECKING:
    from layerlens.run import Run


def agreement(run: "Run") -> pd.DataFrame:
    """One row per layer 1..L: how many tokens have the last layer's first choice there; all traced tokens count.

    Columns: layer; kind; agreement, the share of tokens for which this layer ranks the same token first as layer L;
    flip, the share for which it ranks another token first than the layer before, NaN at layer 1; settled, the share for
    which it is the earliest layer from which on every layer agrees with L, so that the column adds up to 1. Shares are
    0..1, each with `_low` and `_high` (95 %, prompts resampled). n_tokens; n_prompts.

    A run traced with --kl has one more measure: kl_last_to_layer, the mean KL(p_L ‖ p_l) of the readouts in nats, with
    `_low`, `_high` and `_sd` (over tokens). It is how much is lost by coding what layer L predicts with layer l.

    Raises:
        RunError: no token of the run can be counted.
    """
    tokens = sample(run)
    top = tokens.of(run.layers("top_token_id"))
    agrees, kept = _agreement(top)
    before = np.concatenate([np.zeros_like(kept[:, :1]), kept[:, :-1]], axis=1)
    columns: dict[str, Any] = {"layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    columns |= _shares(tokens, "agreement", agrees)
    if tokens.n_prompts > 1:
        columns["agreement_low"][-1] = 1.0  # the last layer's own, by definition
    flips = _shares(tokens, "flip", top[:, 1:] != top[:, :-1])
    columns |= {name: np.concatenate([[np.nan], values]) for name, values in flips.items()}
    columns |= _shares(tokens, "settled", kept & ~before)
    if KL in token_columns(run.manifest):
        columns |= _divergence(tokens, tokens.of(run.layers(KL.name)))
    return tokens.frame(columns | {"n_tokens": len(tokens.rows), "n_prompts": tokens.n_prompts})


def earliest_agreement(run: "Run") -> pd.DataFrame:
    """Two rows: the mean earliest layer with the last layer's first choice; all traced tokens count.

    Readings: "first", the first layer that ranks that token first, even if a later one does not; "kept", the first from
    which on every layer does. Both are 1..L, and the first is never the later.

    Columns: reading; layer, the mean, with layer_low and layer_high (95 %, prompts resampled) and layer_sd (over
    tokens); n_tokens; n_prompts.

    Raises:
        RunError: no token of the run can be counted.
    """
    tokens = sample(run)
    agrees, kept = _agreement(tokens.of(run.layers("top_token_id")))
    layers = {"first": 1 + agrees.argmax(axis=1), "kept": 1 + kept.argmax(axis=1)}
    rows = [
        {
            "reading": reading,
            **tokens.mean("layer", layer),
            "layer_sd": float(layer.std()),
            "n_tokens": len(tokens.rows),
            "n_prompts": tokens.n_prompts,
        }
        for reading, layer in layers.items()
    ]
    return tokens.frame(rows)


def _agreement(top: np.ndarray[Any, Any]) -> tuple[Bools, Bools]:
    """Whether each layer agrees with the last one, and whether it and all later ones do, [tokens, L]."""
    agrees = np.asarray(top == top[:, -1:])
    return agrees, np.logical_and.accumulate(agrees[:, ::-1], axis=1)[:, ::-1]


def _divergence(tokens: Sample, values: np.ndarray[Any, Any]) -> dict[str, Any]:
    means = mean_interval(*tokens.sums_and_counts(values), tokens.weights)
    ends = zip(("", "_low", "_high", "_sd"), (*means, values.std(axis=0, dtype=np.float64)), strict=True)
    return {f"{KL.name}{end}": column for end, column in ends}


def _shares(tokens: Sample, name: str, flags: Bools) -> dict[str, Any]:
    sums = tokens.by_prompt(flags)
    counts = tokens.by_prompt(np.ones(len(flags)))[:, None]
    means = share_interval(sums, np.broadcast_to(counts, sums.shape), tokens.weights)
    return dict(zip((name, f"{name}_low", f"{name}_high"), means, strict=True))
