"""What decoding from the valley does to the generated tokens, or would do: the statistics of section 6.1.

They follow from `valley_layer` and the readouts of the layers alone. So a run that was decoded from its last layer has
them too, just like a run decoded from the valley. A token *has a valley* where its valley layer is below L. It *is
substituted* where the first choice of the valley layer differs from that of layer L. Under sampling, or with a strategy
that does not always take the valley, what was emitted may differ from both; `replacements` lists what a run's own
strategy did.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Gathered, PerPrompt, Sample, gathered, generated
from layerlens.analysis.uncertainty import Floats, holding, interval, mean_interval, ratio
from layerlens.errors import OptionError, RunError
from layerlens.records.reader import Records

SURE = 0.01
"""Section 6.1 takes the model to be sure of a token whose entropy at layer L, in nats, is below this."""
ENTROPY_BANDS = (0.01, 0.05, 0.10)
"""The inner edges of section 6.1's bands of entropy, in nats."""
DECILES = 10

REPORTED = {
    "decode_steps": "decode steps",
    "valley_rate": "valley percent",
    "sure_rate_without_valley": "final entropy under 0.01, percent of the tokens without a valley",
    "substitution_rate_of_valleys": "argmax changed, percent of valley tokens",
    "substitution_rate": "substitution percent",
    "entropy_drop_mean_of_ratios": "mean entropy reduction where the argmax survives, percent",
    "entropy_at_substitutions": "final entropy at substitutions, nats",
    "entropy_at_other_valleys": "final entropy at other valleys, nats",
    "entropy": "final entropy, all tokens, nats",
    "substitution_rate_band_1": "substitution percent, final entropy under 0.01",
    "substitution_rate_band_3": "substitution percent, final entropy 0.05-0.10",
    "substitution_rate_band_4": "substitution percent, final entropy over 0.10",
    "valley_rate_decile_1": "valley percent, first decile",
    "valley_rate_decile_7": "valley percent, decile 60-70",
    "valley_rate_decile_10": "valley percent, last decile",
    "substitution_rate_decile_1": "substitution percent, first decile",
    "substitution_rate_decile_7": "substitution percent, decile 60-70",
    "substitution_rate_decile_10": "substitution percent, last decile",
    "walk_depth": "mean walk depth, layers",
    "substitution_rate_sd": "sd over sequences of the substitution percent",
}
"""Maps a `statistic` of `valley_statistics` to the `quantity` under which the paper reports it (source S6.1 of the
reported values). Where the unit is "share", the paper prints a percentage, which is 100 times our value."""


@dataclass(frozen=True)
class Steps:
    """The generated tokens of a run, and what the walk back from layer L found for each, [tokens].

    Attributes:
        tokens: which tokens; all other attributes are in the order of its `rows`.
        entropy: at layer L, in nats.
        entropy_before: at layer L-1.
        entropy_valley: at the valley layer, or at layer L where there is no valley.
        depth: L less the valley layer, 0..window-1.
        substituted: whether the two layers rank different tokens first.
        perturbed: whether layer L raises the entropy.
    """

    tokens: Sample
    entropy: Floats
    entropy_before: Floats
    entropy_valley: Floats
    depth: np.ndarray[Any, np.dtype[np.int64]]
    substituted: Bools
    perturbed: Bools

    @cached_property
    def valley(self) -> Bools:
        """Whether there is a valley."""
        return np.asarray(self.depth > 0)


def steps(run: Records, tokens: Sample | None = None) -> Steps:
    """The generated tokens of a run, or the given ones; RunError where there are none, or the model has one layer."""
    if run.n_layers < 2:
        raise RunError(
            f"{run.path} has a single layer, and a valley lies below another layer",
            "trace a model with more layers",
            given=run.path,
        )
    tokens = generated(run) if tokens is None else tokens
    layer = run.positions["valley_layer"].to_numpy(dtype=np.int64)[tokens.rows]
    entropy, top = run.layers("entropy"), run.layers("top_token_id")
    return Steps(
        tokens,
        entropy[tokens.rows, -1],
        entropy[tokens.rows, -2],
        entropy[tokens.rows, layer - 1],
        run.n_layers - layer,
        top[tokens.rows, layer - 1] != top[tokens.rows, -1],
        run.positions["perturbed"].to_numpy(dtype=bool)[tokens.rows],
    )


def valley_statistics(run: Records) -> pd.DataFrame:
    """One row per statistic of section 6.1, over the generated tokens; see the module for valley and substitution.

    Statistics (H is the entropy, in nats; shares are 0..1):

    - decode_steps: how many generated tokens there are; a count, without an interval.
    - valley_rate, substitution_rate: share of the tokens. substitution_rate_of_valleys: share of those with a valley.
    - sure_rate_without_valley: share of the tokens without a valley whose H(L) is below 0.01.
    - entropy_drop_mean_of_ratios: the mean of (H(L) - H(valley)) / H(L) over the tokens that have a valley and the same
      first choice there; entropy_drop_ratio_of_means: the same two entropies, each averaged before the division. We
      take the paper's "mean relative reduction" to be the first. The second gives little weight to sure tokens.
    - entropy_at_substitutions, entropy_at_other_valleys, entropy_without_valley, entropy: mean H(L) of those tokens.
    - entropy_change_of_perturbed: mean H(L) - H(L-1) of the perturbed tokens.
    - walk_depth, walk_depth_of_valleys: mean L - valley layer, of all tokens and of those with a valley.
    - valley_rate_sd, substitution_rate_sd: the standard deviation (with n - 1) of the rate of a sequence, over
      sequences, one for each prompt. It has two sources: sequences differ, and a sequence of few tokens has a rate that
      varies by chance.
    - substitution_rate_band_1 .. 4 as in `by_entropy_band`; valley_rate_decile_1 .. 10 and
      substitution_rate_decile_1 .. 10 as in `by_relative_position`.

    Columns: statistic; unit (share, nats, layers or tokens); value with value_low and value_high (95 %, prompts
    resampled), NaN where no token counts; n_tokens that the value is a mean over; n_prompts that have such tokens.
    `REPORTED` says which of them the paper reports. `attrs["window"]` is the run's: with a window of 1 nothing walks.

    Raises:
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    totals = _gathered(run, _columns)
    rows = {
        name: {"statistic": name, "unit": _unit(name), **totals.entries("value", per_prompt), **_counted(per_prompt)}
        for name, per_prompt in totals.by_name.items()
        if name not in ("drop", "whole")
    }
    means = [row for name, row in rows.items() if "_band_" not in name and "_decile_" not in name]
    others = [row for name, row in rows.items() if "_band_" in name or "_decile_" in name]
    apart = [_spread_of_rates(totals, name) for name in ("valley_rate", "substitution_rate")]
    count = {"statistic": "decode_steps", "unit": "tokens", "value": float(totals.n_tokens)}
    count |= _counted(totals["valley_rate"])
    return _frame(run, totals, [count, *means, _ratio_of_means(totals), *apart, *others])


def by_entropy_band(run: Records, edges: Sequence[float] = ENTROPY_BANDS) -> pd.DataFrame:
    """One row per band of the entropy at layer L: how often generated tokens have valleys and substitutions.

    Args:
        run: the run.
        edges: where bands meet, in nats, rising and above 0; an entropy on an edge belongs to the band above it.

    Columns: band, such as "[0.01, 0.05)"; entropy_from and entropy_to, its edges, 0 first and infinity last; n_tokens;
    n_prompts that have such tokens; share of all generated tokens, valley_rate and substitution_rate of the band, each
    0..1 with `_low` and `_high` (95 %, prompts resampled). A band without tokens has rates of NaN.

    Raises:
        OptionError: the edges do not rise, or are not finite numbers above 0.
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    given = list(edges)
    if not given or not np.isfinite(given).all() or any(low >= high for low, high in pairwise([0.0, *given])):
        raise OptionError(
            f"edges {given} do not make bands of entropy",
            "give rising numbers above 0, in nats",
            option="edges",
            given=given,
        )
    totals = _gathered(run, lambda piece: _rates_of(piece, _in_bands(piece, given)))
    rows = []
    for number, (low, high) in enumerate(pairwise([0.0, *given, np.inf])):
        row = {"band": f"[{low:g}, {high:g})", "entropy_from": low, "entropy_to": high}
        rows.append(row | totals.entries("share", totals[f"share {number}"]) | _rates(totals, number))
    return _frame(run, totals, rows)


def by_relative_position(run: Records, bins: int = DECILES) -> pd.DataFrame:
    """One row per part of the generated sequences: how often there are valleys and substitutions.

    Token i (from 0) of the n that were generated for its prompt falls into bin floor(bins * i / n), counted from 0. A
    sequence that is shorter than the number of bins has no token in some bins. The first token of a sequence is always
    in the first bin.

    Columns: bin, from 1; position_from and position_to, the part of the sequence, 0..1; n_tokens; n_prompts that have
    such tokens; valley_rate and substitution_rate, 0..1, each with `_low` and `_high` (95 %, prompts resampled). A bin
    without tokens has rates of NaN.

    Raises:
        OptionError: not a whole number of bins, 1 or more.
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    if not isinstance(bins, int) or bins < 1:
        raise OptionError(
            f"{bins!r} bins cannot divide a sequence", "give a whole number, 1 or more", option="bins", given=bins
        )
    totals = _gathered(run, lambda piece: _rates_of(piece, _in_bins(piece, bins)))
    rows = [
        {"bin": place + 1, "position_from": place / bins, "position_to": (place + 1) / bins} | _rates(totals, place)
        for place in range(bins)
    ]
    return _frame(run, totals, rows)


def walk_depths(run: Records) -> pd.DataFrame:
    """One row per depth of the walk back from layer L, 0 .. window - 1, over the generated tokens.

    Columns: depth, L less the valley layer, in layers; n_tokens; n_prompts that have such tokens; share of the
    generated tokens, 0..1, with share_low and share_high (95 %, prompts resampled). The shares add up to 1.

    Raises:
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    totals = _gathered(run, lambda piece: ((str(depth), piece.depth == depth, None) for depth in range(run.n_layers)))
    reached = [int(depth) for depth, per_prompt in totals.by_name.items() if per_prompt.sums.any()]
    depths = range(max(min(run.manifest["window"], run.n_layers), max(reached) + 1))
    rows = []
    for depth in depths:
        per_prompt = totals[str(depth)]
        counted = {"n_tokens": int(per_prompt.sums.sum()), "n_prompts": int((per_prompt.sums > 0).sum())}
        rows.append({"depth": depth} | counted | totals.entries("share", per_prompt))
    return _frame(run, totals, rows)


Columns = Iterable[tuple[str, np.ndarray[Any, Any], Bools | None]]
"""Name, values and, where not all tokens count, those that do."""


def _gathered(run: Records, columns_of: Callable[[Steps], Columns]) -> Gathered:
    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        columns = columns_of(steps(piece, tokens))
        return {name: tokens.per_prompt(np.asarray(values), among) for name, values, among in columns}

    return gathered(run, sums_of, generated)


def _columns(walks: Steps) -> Columns:
    """Everything that `valley_statistics` averages."""
    other = walks.valley & ~walks.substituted
    fall = walks.entropy - walks.entropy_valley
    yield from (
        ("valley_rate", walks.valley, None),
        ("sure_rate_without_valley", walks.entropy < np.float32(SURE), ~walks.valley),
        ("substitution_rate", walks.substituted, None),
        ("substitution_rate_of_valleys", walks.substituted, walks.valley),
        ("entropy_at_substitutions", walks.entropy, walks.substituted),
        ("entropy_at_other_valleys", walks.entropy, other),
        ("entropy_without_valley", walks.entropy, ~walks.valley),
        ("entropy", walks.entropy, None),
        ("entropy_change_of_perturbed", walks.entropy - walks.entropy_before, walks.perturbed),
        ("walk_depth", walks.depth.astype(np.float64), None),
        ("walk_depth_of_valleys", walks.depth.astype(np.float64), walks.valley),
        ("entropy_drop_mean_of_ratios", ratio(fall, walks.entropy), other),
        ("drop", fall, other),
        ("whole", walks.entropy, other),
    )
    for number, band in enumerate(_in_bands(walks, ENTROPY_BANDS), start=1):
        yield f"substitution_rate_band_{number}", walks.substituted, band
    deciles = list(_in_bins(walks, DECILES))
    for name, flags in (("valley_rate", walks.valley), ("substitution_rate", walks.substituted)):
        yield from ((f"{name}_decile_{number}", flags, among) for number, among in enumerate(deciles, start=1))


def _unit(statistic: str) -> str:
    if statistic.startswith("walk_depth"):
        return "layers"
    return "nats" if statistic.startswith("entropy") and "_drop_" not in statistic else "share"


def _rates_of(walks: Steps, parts: Iterable[Bools]) -> Columns:
    """The share of each part of the tokens, and its valley and substitution rates."""
    for number, among in enumerate(parts):
        yield f"share {number}", among, None
        yield f"valley {number}", walks.valley, among
        yield f"substitution {number}", walks.substituted, among


def _rates(totals: Gathered, number: int) -> dict[str, Any]:
    """Entries of a row about a part of the tokens: their number, and their valley and substitution rates."""
    valley, substitution = totals[f"valley {number}"], totals[f"substitution {number}"]
    rates = totals.entries("valley_rate", valley) | totals.entries("substitution_rate", substitution)
    return _counted(valley) | rates


def _in_bands(walks: Steps, edges: Sequence[float]) -> Iterator[Bools]:
    """Which tokens lie in each band. Edges are rounded as the entropies were, so that a recorded 0.01 equals 0.01."""
    band = np.searchsorted(np.array(edges, dtype=walks.entropy.dtype), walks.entropy, side="right")
    return (np.asarray(band == number) for number in range(len(edges) + 1))


def _in_bins(walks: Steps, bins: int) -> Iterator[Bools]:
    """Which tokens lie in each part of their sequences; see `by_relative_position`."""
    lengths = [tokens.stop - tokens.start for tokens in walks.tokens.prompts]
    place = np.concatenate([bins * np.arange(length) // length for length in lengths])
    return (np.asarray(place == number) for number in range(bins))


def _ratio_of_means(totals: Gathered) -> dict[str, Any]:
    low_high = mean_interval(totals["drop"].sums, totals["whole"].sums, totals.weights)
    value = dict(zip(("value", "value_low", "value_high"), map(float, low_high), strict=True))
    row = {"statistic": "entropy_drop_ratio_of_means", "unit": "share"}
    return row | value | _counted(totals["drop"])


def _spread_of_rates(totals: Gathered, name: str) -> dict[str, Any]:
    rates = totals[name].sums / totals[name].counts
    n = totals.n_prompts
    draws = np.concatenate([np.ones((1, n)), totals.weights])
    squares = draws @ np.square(rates - rates.mean()) - np.square(draws @ (rates - rates.mean())) / n
    sds = np.sqrt(ratio(np.maximum(squares, 0), np.asarray(n - 1)))
    low, high = holding(sds[0], *interval(sds[1:], n))
    row = {"statistic": f"{name}_sd", "unit": "share", "value": float(sds[0])}
    return row | {"value_low": float(low), "value_high": float(high)} | _counted(totals[name])


def _counted(per_prompt: PerPrompt) -> dict[str, int]:
    return {"n_tokens": per_prompt.n_tokens, "n_prompts": per_prompt.n_prompts}


def _frame(run: Records, totals: Gathered, rows: list[dict[str, Any]]) -> pd.DataFrame:
    counts = ["n_tokens", "n_prompts"]
    table = totals.frame(rows)
    ordered: pd.DataFrame = table[[name for name in table if name not in counts] + counts]
    ordered.attrs |= {"window": run.manifest["window"]}
    return ordered
