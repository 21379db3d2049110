"""Judge every claim on docs/findings.md by one rule, from the committed tables: verdicts.csv and .md.

python analyses/verdicts.py FIGURES_DIR

The tables are those that recipe.py made; no run is opened. Each claim is one or more statements about numbers with 95 %
intervals:

- a *side*: a number is above (or below) a bound. The statement holds where the whole interval lies on that side. It is
  reversed where the whole interval lies on the other side. Otherwise it cannot be told.
- a side of *another number* that has an interval of its own: the same rule, where the two intervals do not overlap.
- *found*: there is such a layer or phase. It holds, or it is not found.
- a *size*: the paper's number. The verdict is "more" or "less" where the interval lies above or below it, else "as
  much".

A claim of several statements holds where all hold, and is reversed where all are reversed. It does not hold where one
is reversed or not found. Otherwise it cannot be told. Sizes are added after that. An interval over fewer than 8 prompts
tells nothing. A verdict is about these models and texts, never about the paper's.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from layerlens.errors import LayerlensError, RunError
from layerlens.tables.save import save

FEWEST = 8
HOLDS, REVERSED, UNTOLD, NOT_FOUND, FAILS = "holds", "reversed", "cannot be told", "not found", "does not hold"
MORE, LESS, AS_MUCH = "more", "less", "as much"


class Number(NamedTuple):
    """A committed number with its interval; NaN where there is none."""

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n_prompts: float = float("nan")

    @property
    def tells(self) -> bool:
        """Whether there is an interval, over enough prompts."""
        return self.low == self.low and self.n_prompts >= FEWEST


class Statement(NamedTuple):
    """What a claim says of a number: its side of a bound or another number, that it is found, or the paper's size."""

    number: Number
    says: str
    """"above", "below", "found" or "size"."""
    bound: float | Number = float("nan")

    @property
    def against(self) -> Number:
        """What the number is compared with; a bound is a number whose interval has no width."""
        if isinstance(self.bound, Number):
            return self.bound
        return Number("", self.bound, self.bound, self.bound, FEWEST)

    def verdict(self) -> str:
        """The verdict by the rule in the module docstring."""
        number, against = self.number, self.against
        if self.says == "found":
            return HOLDS if number.value == number.value else NOT_FOUND
        if not (number.tells and against.tells):
            return UNTOLD
        above, below = number.low > against.high, number.high < against.low
        if self.says == "size":
            return MORE if above else LESS if below else AS_MUCH
        if not above and not below:
            return UNTOLD
        return HOLDS if above == (self.says == "above") else REVERSED


def together(verdicts: list[str]) -> str:
    """The verdict of a claim from the verdicts of its statements: first of its sides, then of its sizes."""
    sides = [verdict for verdict in verdicts if verdict in (HOLDS, REVERSED, UNTOLD, NOT_FOUND)]
    sizes = [verdict for verdict in verdicts if verdict in (MORE, LESS, AS_MUCH)]
    return ", ".join(dict.fromkeys([*_of_sides(set(sides)), *sizes]))


def _of_sides(sides: set[str]) -> list[str]:
    if sides <= {HOLDS} or sides == {REVERSED}:
        return list(sides)
    return [FAILS if sides & {REVERSED, NOT_FOUND} else UNTOLD]


class Tables:
    """The committed tables of one directory."""

    def __init__(self, folder: Path) -> None:
        self._read: Callable[[str], pd.DataFrame] = cache(lambda name: _table(folder / name))

    def row(self, table: str, quantity: str, unit: str | None = None, model: str | None = None) -> Number:
        """The row of a quantity in a table; where its name contains a layer, a unique beginning of it is enough."""
        rows = self._read(table)
        if model is not None:
            rows = rows[rows["model"] == model]
        if unit is not None:
            rows = rows[rows["unit"] == unit]
        chosen = rows[rows["quantity"] == quantity]
        chosen = rows[rows["quantity"].str.startswith(quantity)] if chosen.empty else chosen
        if len(chosen) != 1:
            raise RunError(f"{table} has {len(chosen)} rows {quantity!r} and not one; make it again")
        row = chosen.iloc[0]
        return Number(str(row["quantity"]), *(float(row[name]) for name in ("measured", "low", "high", "n_prompts")))

    def arm(self, table: str, arm: str, p: float, measure: str) -> Number:
        """A measure of an arm of Figure 3, in percent or percentage points."""
        rows = self._read(table)
        (row,) = rows[(rows["arm"] == arm) & (rows["p"] == p)].to_dict("records")
        values = (100 * float(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
        return Number(f"{measure} of {arm} at p = {p:g}", *values, n_prompts=float(row["n_items"]))


def instruct(tables: Tables) -> Iterator[tuple[str, list[Statement]]]:
    """The claims compared with SmolLM2, in the order of the page."""
    claims, valley = "smollm2-gsm8k/claims.csv", "smollm2-gsm8k/valley/"
    decoding, words, cost = (f"{valley}table{number}.csv" for number in ("6.1", "8", "5"))
    figure3 = "smollm2-sample/ablation/figure3.csv"

    def of(quantity: str) -> Number:
        return tables.row(claims, quantity)

    def decoded(quantity: str) -> Number:
        return tables.row(decoding, quantity)

    yield (
        "three phases: reading in, plateau, writing out",
        [
            Statement(of("phase I, first layer"), "found"),
            Statement(of("phase III, first layer"), "found"),
            Statement(of("norm ratio, layer 30"), "above", of("norm ratio in phase II, max")),
            Statement(of("io cosine, layer 30"), "below", of("io cosine in phase II, min")),
        ],
    )
    perturbed = of("perturbed tokens")
    yield (
        "the last layer makes some tokens less sure (16.2 %)",
        [Statement(perturbed, "above", 0.0), Statement(perturbed, "size", 16.2)],
    )
    yield (
        "a high plateau, then a descent from V_onset to V*",
        [Statement(of("V_onset of perturbed tokens"), "found"), Statement(of("V*"), "found")],
    )
    yield (
        "a valley is rare: 11.5 % of tokens, 0.116 layers deep on average",
        [Statement(decoded("valley rate"), "size", 11.5), Statement(decoded("walk depth"), "size", 0.116)],
    )
    sure = decoded("sure rate without valley")
    yield (
        "most tokens without a valley are sure (72 % below 0.01 nats)",
        [Statement(sure, "above", 50.0), Statement(sure, "size", 72.0)],
    )
    yield "substitutions are rare (2.47 %)", [Statement(decoded("substitution rate"), "size", 2.47)]
    above, bands = decoded("substitution rate band 4"), ("substitution rate band 1", "substitution rate band 2")
    yield "substitutions fall on unsure tokens", [Statement(above, "above", decoded(band)) for band in bands]
    for kind in ("valley", "substitution"):
        peak, first, last = (decoded(f"{kind} rate decile {number}") for number in (7, 1, 10))
        yield (
            f"{'valleys' if kind == 'valley' else 'substitutions'} peak at 60–70 % of the text",
            [Statement(peak, "above", first), Statement(peak, "above", last)],
        )
    kinds = {name: [tables.row(words, f"{side} token, {name}") for side in ("confident", "standard")] for name in KINDS}
    yield (
        "the valley puts content words where the last layer has function words and punctuation",
        [
            Statement(kinds["content"][0], "above", kinds["content"][1]),
            *(Statement(kinds[name][0], "below", kinds[name][1]) for name in ("function", "punctuation")),
        ],
    )
    yield (
        "accuracy rises with p (76.3 to 82.8 %)",
        [Statement(tables.row("smollm2-sample/claims.csv", "right answers, valley less last layer"), "above", 0.0)],
    )
    fixed = [tables.arm(figure3, f"last-{layers}", 1.0, "difference") for layers in (1, 2, 4)]
    yield "fixed layers are worse than the last", [Statement(number, "below", 0.0) for number in fixed]
    best = tables.arm(figure3, "valley", 1.0, "score")
    neighbours = [tables.arm(figure3, f"valley{shift:+d}", 1.0, "score") for shift in (-2, -1, 1, 2)]
    yield "layers beside the valley are worse than it", [Statement(number, "below", best) for number in neighbours]
    extra = tables.row(cost, "lazily, 1 + depth", "% of last")
    yield "walking back costs next to nothing (+0.87 % FLOPs)", [Statement(extra, "size", 0.87)]
    yield (
        "decoding from the valley gives better answers",
        [Statement(of("right answers, valley less last layer"), "above", 0.0)],
    )


def base(tables: Tables) -> Iterator[tuple[str, list[Statement]]]:
    """The claims compared with Gemma 3, in the order of the page."""
    claims, texts = "gemma3-sample/claims.csv", "gemma3-sample/texts/models.csv"

    def of(quantity: str) -> Number:
        return tables.row(claims, quantity)

    def given(quantity: str) -> Number:
        return tables.row(texts, quantity, model="gemma3-270m")

    yield "three phases", [Statement(given(f"phase {phase}, first layer"), "found") for phase in ("I", "III")]
    perturbed = given("perturbed tokens")
    yield (
        "the last layer makes some tokens less sure",
        [Statement(perturbed, "above", 0.0), Statement(perturbed, "size", 16.2)],
    )
    yield (
        "a plateau of entropy, a descent, V*",
        [Statement(given("V_onset of perturbed tokens"), "found"), Statement(given("V*"), "found")],
    )
    yield (
        "valleys are rare and shallow",
        [
            Statement(of("valley rate, valley"), "size", 11.5),
            Statement(of("walk depth, valley"), "size", 0.116),
        ],
    )
    yield "substitutions are rare", [Statement(of("substitution rate, valley"), "size", 2.47)]
    yield (
        "decoding from the valley gives better answers",
        [Statement(of("right answers, valley less last layer"), "above", 0.0)],
    )


KINDS = ("content", "function", "punctuation")
MODELS = {"SmolLM2-135M-Instruct": instruct, "Gemma 3 270M": base}


def verdicts(folder: Path) -> pd.DataFrame:
    """One row for each statement: model, claim, quantity, measured with low and high, what the claim says of it, what
    it is compared with (with low and high), n_prompts, verdict, and the claim's verdict."""
    rows = []
    for model, claims in MODELS.items():
        for claim, statements in claims(Tables(folder)):
            found = [statement.verdict() for statement in statements]
            for statement, verdict in zip(statements, found, strict=True):
                rows.append(_row(model, claim, statement) | {"verdict": verdict, "claim_verdict": together(found)})
    return pd.DataFrame(rows)


def _row(model: str, claim: str, statement: Statement) -> dict[str, Any]:
    number, against = statement.number, statement.against
    row: dict[str, Any] = {"model": model, "claim": claim, "quantity": number.name}
    row |= {"measured": number.value, "low": number.low, "high": number.high, "says": statement.says}
    row |= {"against": against.name, "against_value": against.value}
    row |= {"against_low": against.low if against.name else float("nan")}
    row |= {"against_high": against.high if against.name else float("nan")}
    return row | {"n_prompts": number.n_prompts}


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); make it again") from error


parser = argparse.ArgumentParser(description="Say of every claim what the committed tables say of it.")
parser.add_argument("figures", type=Path, help="the directory of the committed figures and tables")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(
            verdicts(options.figures), "What the committed numbers say of each claim", options.figures, "verdicts"
        )
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
