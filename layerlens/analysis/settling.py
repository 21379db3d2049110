"""When readouts come close to that of the last layer: settling depth and deep-thinking ratio of arXiv 2602.13517.

For each emitted token t the paper computes D(t, l), the Jensen-Shannon divergence between the readouts of layer l and
of the last layer. It then takes the least D of the layers up to l. The settling depth c is the first layer where this
least D is at most g (its Eq. 2 to 4). A token is deep-thinking where c >= ⌈rho L⌉ (Eq. 5), and the share of such tokens
in a text is the text's deep-thinking ratio (Eq. 6). The least D so far first reaches g where D itself does. So a token
counts as settled even if later layers move away from the last layer again.

The paper does not name the base of the logarithm. It sweeps g over 0.25, 0.5 and 0.75 and finds ratios above 0 for
each. In nats no divergence exceeds ln 2 = 0.693, so 0.75 would settle every token at layer 1. Its g must therefore be
in bits, where the bound is 1. Our g is in bits too, unless nats are asked for; 0.5 nats are 0.721 bits. Its Algorithm 1
prints ⌈(1 - rho) L⌉ where Eq. 5 has ⌈rho L⌉. We follow Eq. 5, because by the other formula nearly every layer would be
deep. Its Eq. 1 reads a state by the unembedding alone. A run has read it through the final norm too, and perhaps
through a lens.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.depths import Ints, first_layers, mean_layer, share_after, share_by_layer
from layerlens.analysis.sample import Gathered, PerPrompt, Sample
from layerlens.analysis.shares import share_interval
from layerlens.analysis.uncertainty import Floats, ratio
from layerlens.errors import OptionError, did_you_mean, is_number
from layerlens.records.reader import Records
from layerlens.records.schema import JS

THRESHOLDS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
"""A sweep over g in bits; the paper's three are among them."""
BIT = math.log(2)
"""One bit in nats. It is also the greatest possible Jensen-Shannon divergence."""

_UNITS = ("bits", "nats")


def settling(run: Records, g: float | Sequence[float] = 0.5, rho: float = 0.85, *, unit: str = "bits") -> pd.DataFrame:
    """One row per threshold and class of words: settling depth and deep-thinking ratio of the emitted tokens.

    The module docstring has the definitions, and says why g is in bits. A g that suits one model need not suit another.
    So give several, such as `layerlens.analysis.THRESHOLDS`, and see whether your finding holds for all of them.

    Columns: g, in bits, and g_nats, the same in nats; words ("all", or a class of `word_class` by its rule "paper", of
    the token's own text; "all" alone where the run does not hold the texts of its tokens, which it holds once it is
    complete); settling_depth, the mean layer, 1..L, with `_low` and `_high` (95 %, prompts resampled) and `_sd` (over
    tokens); relative_depth, the mean of layer / L; deep_from, the first layer of the deep-thinking regime;
    deep_thinking_ratio, the share of all tokens that settle there, 0..1; ratio_of_prompts, the mean over prompts of the
    ratio of each prompt, which long answers do not dominate; these three with `_low` and `_high`; n_tokens; n_prompts
    that have such tokens. A class without tokens has NaN.

    Args:
        run: a run traced with `js`.
        g: the divergence from the last layer's readout at which a token counts as settled; one or several.
        rho: where the deep-thinking regime begins, as a share of the depth; above 0, at most 1.
        unit: of g, "bits" or "nats".

    Raises:
        OptionError: g is not a number from 0 to the greatest possible divergence, 1 bit or ln 2 nats; rho is not a
            number above 0 and at most 1; or there is no such unit.
        RunError: the run was traced without `js`, or none of its generated tokens can be counted.
    """
    thresholds, deep_from = _thresholds(g, unit), _first_deep(rho, run.n_layers)
    totals = _settled(run, thresholds)
    columns_of = {}
    for words, counted in totals.by_name.items():
        mean = mean_layer(totals, counted)
        columns = {f"settling_depth{end}": value for end, value in mean.items()}
        columns |= {f"relative_depth{end}": mean[end] / run.n_layers for end in ("", "_low", "_high")}
        columns |= _named("deep_thinking_ratio", share_after(totals, counted, deep_from - 1))
        columns_of[words] = columns | _named("ratio_of_prompts", _share_of_prompts(totals, counted, deep_from))
    rows = [
        {"g": threshold.bits, "g_nats": threshold.nats}
        | {"words": words, "deep_from": deep_from}
        | {name: float(values[k]) for name, values in columns_of[words].items()}
        | {"n_tokens": counted.n_tokens, "n_prompts": counted.n_prompts}
        for k, threshold in enumerate(thresholds)
        for words, counted in totals.by_name.items()
    ]
    return totals.frame(rows)


def settling_by_layer(run: Records, g: float | Sequence[float] = THRESHOLDS, *, unit: str = "bits") -> pd.DataFrame:
    """One row per threshold, class of words as in `settling` and layer 1..L: the share of tokens settled by then.

    Columns: g, in bits; g_nats; words; layer; relative_layer, layer / L; share of all tokens of the class with `_low`
    and `_high` (95 %, prompts resampled), 1 at L; n_tokens; n_prompts.

    Raises:
        OptionError, RunError: as `settling`.
    """
    thresholds = _thresholds(g, unit)
    totals = _settled(run, thresholds)
    shares_of = {words: share_by_layer(totals, counted) for words, counted in totals.by_name.items()}
    layers = np.arange(1, run.n_layers + 1)
    frames = []
    for k, threshold in enumerate(thresholds):
        for words, counted in totals.by_name.items():
            columns: dict[str, Any] = {"g": threshold.bits, "g_nats": threshold.nats, "words": words, "layer": layers}
            columns |= {"relative_layer": layers / run.n_layers}
            columns |= _named("share", [values[k] for values in shares_of[words]])
            if counted.n_prompts > 1:
                columns["share_low"][-1] = 1.0  # the last layer's divergence from itself is 0, by definition
            frames.append(pd.DataFrame(columns | {"n_tokens": counted.n_tokens, "n_prompts": counted.n_prompts}))
    return totals.frame(pd.concat(frames, ignore_index=True))


@dataclass(frozen=True)
class Threshold:
    """A divergence in both units. The given value is kept as it was given, and the other is computed from it."""

    bits: float
    nats: float


def _settled(run: Records, thresholds: list[Threshold]) -> Gathered:
    def settled_of(piece: Records, tokens: Sample) -> Ints:
        divergence = tokens.of(piece.layers(JS.name))
        layers = np.empty((len(divergence), len(thresholds)), dtype=np.int64)
        for k, threshold in enumerate(thresholds):
            near = divergence <= threshold.nats
            near[:, -1] = True  # 0 by definition, whatever rounding left there
            layers[:, k] = 1 + near.argmax(axis=1)
        return layers

    return first_layers(run, settled_of)


def _share_of_prompts(totals: Gathered, counted: PerPrompt, deep_from: int) -> tuple[Floats, Floats, Floats]:
    """The mean over prompts of each prompt's share of tokens that settle so deep, with low and high, [questions]."""
    shares = ratio(counted.sums[..., deep_from - 1 :].sum(axis=-1), counted.counts[..., 0])
    return share_interval(np.nan_to_num(shares), (~np.isnan(shares)).astype(np.float64), totals.weights)


def _thresholds(g: float | Sequence[float], unit: str) -> list[Threshold]:
    if unit not in _UNITS:
        advice = did_you_mean(unit, _UNITS, f"choose from {', '.join(_UNITS)}")
        raise OptionError.about("unit", unit, "is not a unit of g", advice)
    given = list(g) if isinstance(g, Iterable) and not isinstance(g, str) else [g]
    greatest = 1.0 if unit == "bits" else BIT
    wrong = [one for one in given if not is_number(one) or not 0 <= one <= greatest]
    if wrong or not given:
        what = f"is not a divergence in {unit}: the greatest is {greatest:.3g}"
        raise OptionError.about("g", wrong[0] if wrong else given, what, f"give numbers from 0 to {greatest:.3g}")
    values = [float(one) for one in given]
    if unit == "bits":
        return [Threshold(bits=value, nats=value * BIT) for value in values]
    return [Threshold(bits=value / BIT, nats=value) for value in values]


def _first_deep(rho: float, n_layers: int) -> int:
    """⌈rho L⌉. Where rounding, even to 32 bits, put the product just above a whole number, that number is taken."""
    if not is_number(rho) or not 0 < rho <= 1:
        raise OptionError.about("rho", rho, "is not a share of the depth", "give a number above 0, at most 1")
    return max(1, math.ceil(float(rho) * n_layers * (1 - 1e-7)))


def _named(name: str, estimate: Sequence[Floats]) -> dict[str, Floats]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
