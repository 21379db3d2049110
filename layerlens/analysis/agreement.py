"""How early the layers agree with the last one about the next token."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.depths import counted, quantile_layer
from layerlens.analysis.layers import layer_kinds
from layerlens.analysis.sample import Bools, Gathered, PerPrompt, Sample, gathered
from layerlens.records import KL, token_columns
from layerlens.records.reader import Records

_BY_LAYER = "{} by layer"


def agreement(run: Records) -> pd.DataFrame:
    """One row per layer 1..L: how many tokens have the last layer's first choice there; all traced tokens count.

    Columns: layer; kind; agreement, the share of tokens for which this layer ranks the same token first as layer L;
    flip, the share for which its first choice differs from that of the layer before, NaN at layer 1; settled, the share
    for which this is the earliest layer such that it and every later layer agree with L, so that the column adds up to
    1; kept, the share for which this layer and every later one agree with L, which is the sum of settled so far. Shares
    are 0..1, each with `_low` and `_high` (95 %, prompts resampled). n_tokens; n_prompts.

    A run traced with `kl` has one more measure: kl_last_to_layer, the mean KL(p_L ‖ p_l) of the readouts in nats, with
    `_low`, `_high` and `_sd` (over tokens). It is the extra code length if the tokens that layer L predicts are coded
    with the prediction of layer l.

    Raises:
        RunError: no token of the run can be counted.
    """
    with_kl = KL in token_columns(run.manifest)

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        top = tokens.of(piece.layers("top_token_id"))
        agrees, kept = _agreement(top)
        before = np.concatenate([np.zeros_like(kept[:, :1]), kept[:, :-1]], axis=1)
        shares = {"agreement": agrees, "flip": top[:, 1:] != top[:, :-1], "settled": kept & ~before}
        shares["kept"] = kept
        sums = {name: tokens.per_prompt(np.asarray(flags)) for name, flags in shares.items()}
        return sums | ({KL.name: tokens.per_prompt(tokens.of(piece.layers(KL.name)))} if with_kl else {})

    totals = gathered(run, sums_of)
    columns: dict[str, Any] = {"layer": np.arange(1, run.n_layers + 1), "kind": layer_kinds(run)}
    columns |= _estimates(totals, "agreement")
    if totals.n_prompts > 1:
        columns["agreement_low"][-1] = 1.0  # the last layer's own, by definition
    columns |= {name: np.concatenate([[np.nan], values]) for name, values in _estimates(totals, "flip").items()}
    columns |= _estimates(totals, "settled") | _estimates(totals, "kept")
    if totals.n_prompts > 1:
        columns["kept_low"] = np.maximum.accumulate(columns["kept_low"])  # as the share itself, they cannot fall
        columns["kept_high"] = np.minimum.accumulate(columns["kept_high"][::-1])[::-1]
        columns["kept_low"][-1] = 1.0
    if with_kl:
        columns |= _estimates(totals, KL.name) | {f"{KL.name}_sd": totals[KL.name].spread}
    return totals.frame(columns | {"n_tokens": totals.n_tokens, "n_prompts": totals.n_prompts})


def earliest_agreement(run: Records) -> pd.DataFrame:
    """Two rows: the mean earliest layer with the last layer's first choice; all traced tokens count.

    Readings: "first", the first layer that ranks that token first, even if a later layer does not; "kept", the earliest
    layer such that it and every later layer rank that token first. Both are in 1..L, and "first" is never later than
    "kept".

    Columns: reading; layer, the mean, with layer_low and layer_high (95 %, prompts resampled) and layer_sd (over
    tokens); median, the first layer by which half of the tokens have it, with median_low and median_high; n_tokens;
    n_prompts.

    Raises:
        RunError: no token of the run can be counted.
    """

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        agrees, kept = _agreement(tokens.of(piece.layers("top_token_id")))
        layers = {"first": 1 + agrees.argmax(axis=1), "kept": 1 + kept.argmax(axis=1)}
        every = np.ones(len(tokens.rows), dtype=bool)
        means = {reading: tokens.per_prompt(layer.astype(np.float64)) for reading, layer in layers.items()}
        by_layer = {reading: counted(tokens, layer[:, None], run.n_layers, every) for reading, layer in layers.items()}
        return means | {_BY_LAYER.format(reading): counts for reading, counts in by_layer.items()}

    totals = gathered(run, sums_of)
    medians = {one: quantile_layer(totals, totals[_BY_LAYER.format(one)], 0.5) for one in ("first", "kept")}
    rows = [
        {
            "reading": reading,
            **totals.entries("layer", totals[reading]),
            "layer_sd": float(totals[reading].spread),
            **{f"median{end}": float(value[0]) for end, value in zip(("", "_low", "_high"), median, strict=True)},
            "n_tokens": totals.n_tokens,
            "n_prompts": totals.n_prompts,
        }
        for reading, median in medians.items()
    ]
    return totals.frame(rows)


def _agreement(top: np.ndarray[Any, Any]) -> tuple[Bools, Bools]:
    """Whether each layer agrees with the last one, and whether it and all later ones do, [tokens, L]."""
    agrees = np.asarray(top == top[:, -1:])
    return agrees, np.logical_and.accumulate(agrees[:, ::-1], axis=1)[:, ::-1]


def _estimates(totals: Gathered, name: str) -> dict[str, Any]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), totals.estimate(totals[name]), strict=True))
