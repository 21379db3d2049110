"""What decoding from the valley does to the generated tokens, or would do: the statistics of section 6.1.

They follow from `valley_layer` and the readouts of the layers alone, so that a run decoded from its last layer has
them as a run decoded from the valley has. A token *has a valley* where its valley layer is below L; it *is substituted*
where the valley layer ranks another token first than layer L does. Under sampling, or with a strategy that does not
always take the valley, what was emitted may differ from both; `substitutions` counts what a run's own strategy did.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Sample, generated
from layerlens.analysis.uncertainty import Floats, holding, interval, mean_interval, ratio
from layerlens.errors import OptionError, RunError

if TYPE_CHECKING:
    from layerlens.run import Run

SURE = 0.01
"""Below this entropy at layer L, in nats, section 6.1 takes a token for sure."""
BANDS = (0.01, 0.05, 0.10)
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
"""For a `statistic` of `valley_statistics` the `quantity` under which the paper reports it, source S6.1 of its reported
values. Where the unit is "share" the paper prints a percentage: 100 times ours."""


@dataclass(frozen=True)
class Steps:
    """The generated tokens of a run, and what the walk back from layer L found for each, [tokens].

    Attributes:
        tokens: which tokens; the others are in the order of its `rows`.
        entropy: at layer L, in nats.
        entropy_before: at layer L-1.
        entropy_valley: at the valley layer; that at layer L where there is no valley.
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

    def rates(self, among: Bools) -> dict[str, Any]:
        """Entries of a row about some of the tokens: how many, and their valley and substitution rates."""
        return {
            **_counted(self.tokens, among),
            **self.tokens.mean("valley_rate", self.valley, among),
            **self.tokens.mean("substitution_rate", self.substituted, among),
        }


def steps(run: "Run", tokens: Sample | None = None) -> Steps:
    """The generated tokens of a run, or the given ones; RunError where there are none, or the model has one layer."""
    if run.n_layers < 2:
        raise RunError(f"{run.path} traces a single layer, and a valley lies below another: trace a model with more")
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


def valley_statistics(run: "Run") -> pd.DataFrame:
    """One row per statistic of section 6.1, over the generated tokens; see the module for valley and substitution.

    Statistics (H is the entropy, in nats; shares are 0..1):

    - decode_steps: how many generated tokens there are; a count, without an interval.
    - valley_rate, substitution_rate: share of the tokens. substitution_rate_of_valleys: share of those with a valley.
    - sure_rate_without_valley: share of the tokens without a valley whose H(L) is below 0.01.
    - entropy_drop_mean_of_ratios: the mean of (H(L) - H(valley)) / H(L) over the tokens that have a valley and the same
      first choice there; entropy_drop_ratio_of_means: the same two entropies, each averaged before the division. The
      paper's words, mean relative reduction, are read as the first; the second gives little weight to sure tokens.
    - entropy_at_substitutions, entropy_at_other_valleys, entropy_without_valley, entropy: mean H(L) of those tokens.
    - entropy_change_of_perturbed: mean H(L) - H(L-1) of the perturbed tokens.
    - walk_depth, walk_depth_of_valleys: mean L - valley layer, of all tokens and of those with a valley.
    - valley_rate_sd, substitution_rate_sd: the standard deviation (with n - 1) over sequences, one a prompt, of a
      sequence's rate. It holds the chance of few tokens as well as what sets sequences apart.
    - substitution_rate_band_1 .. 4 as in `by_entropy_band`; valley_rate_decile_1 .. 10 and
      substitution_rate_decile_1 .. 10 as in `by_relative_position`.

    Columns: statistic; unit (share, nats, layers or tokens); value with value_low and value_high (95 %, prompts
    resampled), NaN where no token counts; n_tokens that the value is a mean over; n_prompts that have such tokens.
    `REPORTED` says which of them the paper reports. `attrs["window"]` is the run's: with a window of 1 nothing walks.

    Raises:
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    found = steps(run)
    rows = [_row(found.tokens, *one) for one in _means(found)]
    rows += [_ratio_of_means(found)]
    rows += [_spread(found.tokens, f"{name}_sd", flags) for name, flags in _rates(found)]
    for number, band in enumerate(_in_bands(found, BANDS), start=1):
        rows += [_row(found.tokens, f"substitution_rate_band_{number}", "share", found.substituted, band)]
    deciles = list(_in_bins(found, DECILES))
    for name, flags in _rates(found):
        rows += [_row(found.tokens, f"{name}_decile_{k}", "share", flags, among) for k, among in enumerate(deciles, 1)]
    count = {"statistic": "decode_steps", "unit": "tokens", "value": float(len(found.entropy))}
    return _frame(run, found, [count | _counted(found.tokens, np.ones_like(found.valley)), *rows])


def by_entropy_band(run: "Run", edges: Sequence[float] = BANDS) -> pd.DataFrame:
    """One row per band of the entropy at layer L: how often there are valleys and substitutions, of generated tokens.

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
        raise OptionError(f"edges {given} do not divide entropies: give rising numbers of nats above 0")
    found = steps(run)
    rows = []
    bounds = pairwise([0.0, *given, np.inf])
    for (low, high), among in zip(bounds, _in_bands(found, given), strict=True):
        row = {"band": f"[{low:g}, {high:g})", "entropy_from": low, "entropy_to": high}
        rows.append(row | found.tokens.mean("share", among) | found.rates(among))
    return _frame(run, found, rows)


def by_relative_position(run: "Run", bins: int = DECILES) -> pd.DataFrame:
    """One row per part of the generated sequences: how often there are valleys and substitutions.

    Token i (from 0) of the n that were generated for its prompt falls into bin floor(bins * i / n), counted from 0. A
    sequence shorter than the number of bins has no token in some of them, and its first token is in the first.

    Columns: bin, from 1; position_from and position_to, the part of the sequence, 0..1; n_tokens; n_prompts that have
    such tokens; valley_rate and substitution_rate, 0..1, each with `_low` and `_high` (95 %, prompts resampled). A bin
    without tokens has rates of NaN.

    Raises:
        OptionError: not a whole number of bins, 1 or more.
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    if not isinstance(bins, int) or bins < 1:
        raise OptionError(f"{bins!r} bins cannot divide a sequence: give a whole number, 1 or more")
    found = steps(run)
    rows = [
        {"bin": place + 1, "position_from": place / bins, "position_to": (place + 1) / bins} | found.rates(among)
        for place, among in enumerate(_in_bins(found, bins))
    ]
    return _frame(run, found, rows)


def walk_depths(run: "Run") -> pd.DataFrame:
    """One row per depth of the walk back from layer L, 0 .. window - 1, over the generated tokens.

    Columns: depth, L less the valley layer, in layers; n_tokens; n_prompts that have such tokens; share of the
    generated tokens, 0..1, with share_low and share_high (95 %, prompts resampled). The shares add up to 1.

    Raises:
        RunError: no generated token of the run can be counted, or the model has a single layer.
    """
    found = steps(run)
    depths = range(max(min(run.manifest["window"], run.n_layers), int(found.depth.max()) + 1))
    rows = []
    for depth in depths:
        among = np.asarray(found.depth == depth)
        rows.append({"depth": depth} | _counted(found.tokens, among) | found.tokens.mean("share", among))
    return _frame(run, found, rows)


def _means(found: Steps) -> list[tuple[str, str, np.ndarray[Any, Any], Bools]]:
    """Name, unit, values and tokens counted of every statistic that is a mean over tokens."""
    every = np.ones_like(found.valley)
    other = found.valley & ~found.substituted
    drop = ratio(found.entropy - found.entropy_valley, found.entropy)
    sure = found.entropy < np.float32(SURE)
    return [
        ("valley_rate", "share", found.valley, every),
        ("sure_rate_without_valley", "share", sure, ~found.valley),
        ("substitution_rate", "share", found.substituted, every),
        ("substitution_rate_of_valleys", "share", found.substituted, found.valley),
        ("entropy_at_substitutions", "nats", found.entropy, found.substituted),
        ("entropy_at_other_valleys", "nats", found.entropy, other),
        ("entropy_without_valley", "nats", found.entropy, ~found.valley),
        ("entropy", "nats", found.entropy, every),
        ("entropy_change_of_perturbed", "nats", found.entropy - found.entropy_before, found.perturbed),
        ("walk_depth", "layers", found.depth, every),
        ("walk_depth_of_valleys", "layers", found.depth, found.valley),
        ("entropy_drop_mean_of_ratios", "share", drop, other),
    ]


def _rates(found: Steps) -> list[tuple[str, Bools]]:
    return [("valley_rate", found.valley), ("substitution_rate", found.substituted)]


def _in_bands(found: Steps, edges: Sequence[float]) -> Iterator[Bools]:
    """Which tokens lie in each band; the edges in the entropies' own precision, so that a recorded 0.01 is 0.01."""
    band = np.searchsorted(np.array(edges, dtype=found.entropy.dtype), found.entropy, side="right")
    return (np.asarray(band == number) for number in range(len(edges) + 1))


def _in_bins(found: Steps, bins: int) -> Iterator[Bools]:
    """Which tokens lie in each part of their sequences; see `by_relative_position`."""
    lengths = [tokens.stop - tokens.start for tokens in found.tokens.prompts]
    place = np.concatenate([bins * np.arange(length) // length for length in lengths])
    return (np.asarray(place == number) for number in range(bins))


def _row(tokens: Sample, statistic: str, unit: str, values: np.ndarray[Any, Any], among: Bools) -> dict[str, Any]:
    mean = tokens.mean("value", values, among)
    return {"statistic": statistic, "unit": unit} | mean | _counted(tokens, among)


def _ratio_of_means(found: Steps) -> dict[str, Any]:
    among = found.valley & ~found.substituted
    drop, whole = (
        found.tokens.by_prompt(np.where(among, values, 0))
        for values in (found.entropy - found.entropy_valley, found.entropy)
    )
    low_high = mean_interval(drop, whole, found.tokens.weights)
    value = dict(zip(("value", "value_low", "value_high"), map(float, low_high), strict=True))
    row = {"statistic": "entropy_drop_ratio_of_means", "unit": "share"}
    return row | value | _counted(found.tokens, among)


def _spread(tokens: Sample, statistic: str, flags: Bools) -> dict[str, Any]:
    rates = tokens.by_prompt(flags) / tokens.by_prompt(np.ones_like(flags))
    n = tokens.n_prompts
    draws = np.concatenate([np.ones((1, n)), tokens.weights])
    squares = draws @ np.square(rates - rates.mean()) - np.square(draws @ (rates - rates.mean())) / n
    sds = np.sqrt(ratio(np.maximum(squares, 0), np.asarray(n - 1)))
    low, high = holding(sds[0], *interval(sds[1:], n))
    row = {"statistic": statistic, "unit": "share", "value": float(sds[0])}
    return row | {"value_low": float(low), "value_high": float(high)} | _counted(tokens, np.ones_like(flags))


def _counted(tokens: Sample, among: Bools) -> dict[str, int]:
    return {"n_tokens": int(among.sum()), "n_prompts": tokens.n_prompts_with(among)}


def _frame(run: "Run", found: Steps, rows: list[dict[str, Any]]) -> pd.DataFrame:
    counts = ["n_tokens", "n_prompts"]
    table = found.tokens.frame(rows)
    ordered: pd.DataFrame = table[[name for name in table if name not in counts] + counts]
    ordered.attrs |= {"window": run.manifest["window"]}
    return ordered
