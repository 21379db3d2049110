"""Compare two runs of the same problems, decoded from the last layer and from the valley, with the paper's claims.

python analyses/findings.py LAST_RUN VALLEY_RUN OUT_DIR

Writes claims.csv and claims.md: every number that docs/findings.md quotes, with its interval.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.decoding import steps
from layerlens.analysis.pairing import paired_ids
from layerlens.analysis.reported import reported_value
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import resample
from layerlens.errors import LayerlensError
from layerlens.evaluation.scoring import number_or_words
from layerlens.run import Run, open_run
from layerlens.tables.compose import Measured, beside
from layerlens.tables.save import save

_MARKS = {"V_onset": "V_onset", "V*": "V*, lowest of the final rise,", "lowest": "lowest layer"}
REPEATED = 4
"""A generated token counts as repeated if it ends a sequence of this many tokens that occurred before in the same
text."""


def of_last_run(run: Run) -> Iterator[Measured]:
    """What the layers do while the model decodes as it always does."""
    layers = run.by_layer().set_index("layer")
    for layer in (1, run.n_layers):
        for measure in ("norm_ratio", "io_cosine"):
            row = layers.loc[layer]
            figures = _bounded(row, measure)
            yield Measured(
                f"{measure.replace('_', ' ')}, layer {layer}", "", *figures, row["n_tokens"], row["n_prompts"]
            )
    phases = run.phases().set_index("phase")
    for phase in ("I", "II", "III"):
        row = phases.loc[phase]
        for end in ("first", "last"):
            layer = float("nan") if pd.isna(row[end]) else float(row[end])
            yield Measured(f"phase {phase}, {end} layer", "layer", layer, n_prompts=row["n_prompts"])
    plateau = layers.loc[phases.loc["II", "first"] : phases.loc["II", "last"]]
    for end in ("min", "max"):
        for measure in ("norm_ratio", "io_cosine"):
            row = plateau.loc[getattr(plateau[measure], f"idx{end}")()]
            name = f"{measure.replace('_', ' ')} in phase II, {end}, layer {row.name}"
            yield Measured(name, "", *_bounded(row, measure), row["n_tokens"], row["n_prompts"])
    partition = run.partition().set_index("group")
    told = reported_value("F4", quantity="perturbed percent")
    share, every = _bounded(partition.loc["perturbed"], "share", 100), partition.loc["all"]
    yield Measured("perturbed tokens", "%", *share, every["n_tokens"], every["n_prompts"], told)
    for group, quantity in (
        ("perturbed", "entropy rise of perturbed tokens, nats"),
        ("unperturbed", "entropy change of the others, nats"),
    ):
        row = partition.loc[group]
        change = _bounded(row, "entropy_change")
        told = reported_value("F4", quantity=quantity)
        yield Measured(f"entropy change at L, {group}", "nats", *change, row["n_tokens"], row["n_prompts"], told)
    for row in run.valleys().to_dict("records"):
        if row["group"] == "perturbed":
            found = _bounded(row, "layer")
            told = reported_value("F4", quantity=row["mark"])
            yield Measured(
                f"{_MARKS[row['mark']]} of perturbed tokens", "layer", *found, row["n_tokens"], row["n_prompts"], told
            )
    kept = run.earliest_agreement().set_index("reading").loc["kept"]
    earliest = _bounded(kept, "layer")
    yield Measured("earliest layer that keeps the final token", "layer", *earliest, kept["n_tokens"], kept["n_prompts"])


def of_both(last: Run, valley: Run) -> Iterator[Measured]:
    """What decoding from the valley changes, on the prompts that both runs have."""
    names = {"run": "last layer", "other": "valley", "difference": "valley less last layer"}
    for row in last.compare(valley).to_dict("records"):
        scale, unit = (100, "%") if row["unit"] == "share" else (1, row["unit"])
        for column, name in names.items():
            values = _bounded(row, column, scale)
            counts = {"run": row["n_tokens"], "other": row["n_tokens_other"], "difference": None}
            yield Measured(
                f"{row['quantity'].replace('_', ' ')}, {name}", unit, *values, counts[column], row["n_prompts"]
            )
    for row in last.compare_outputs(valley).to_dict("records"):
        scale, unit = (100, "%") if row["unit"] == "share" else (1, row["unit"])
        values = _bounded(row, "value", scale)
        yield Measured(f"outputs: {row['statistic'].replace('_', ' ')}", unit, *values, n_prompts=row["n_prompts"])
    for run, name in ((last, "last layer"), (valley, "valley")):
        yield from of_repetition(run, name)
    for name, of in {"right answers": right, "answers that end": ended, "repeated tokens": repeated}.items():
        yield from _paired(name, last, valley, of)


def of_repetition(run: Run, name: str) -> Iterator[Measured]:
    """Valleys, substitutions and depths, among the tokens that repeat their text and among the others."""
    found = steps(run)
    tokens = found.tokens
    ids = run.positions["next_token_id"].to_numpy(dtype=np.int64, na_value=-1)[tokens.rows]
    again = np.concatenate([_repeats(ids[prompt].tolist()) for prompt in tokens.prompts])
    for label, among in (("repeated", again), ("new", ~again)):
        for quantity, unit, values in (
            ("valley rate", "%", found.valley),
            ("substitution rate", "%", found.substituted),
            ("walk depth", "layers", found.depth.astype(float)),
        ):
            means = _bounded(tokens.mean("value", values, among), "value", 100 if unit == "%" else 1)
            counts = (int(among.sum()), tokens.n_prompts_with(among))
            yield Measured(f"{quantity} of {label} tokens, {name}", unit, *means, *counts)


def right(run: Run) -> tuple[pd.Series, pd.Series]:
    """How many answers of each prompt are right, and how many there are, by prompt id."""
    prompts = run.prompts.set_index("prompt_id")
    scores = [number_or_words(*texts) for texts in zip(prompts["output"], prompts["reference"], strict=True)]
    return pd.Series(scores, prompts.index, dtype=float), pd.Series(1.0, prompts.index)


def ended(run: Run) -> tuple[pd.Series, pd.Series]:
    """Answers that ended by themselves, before they had the most tokens allowed."""
    prompts = run.prompts.set_index("prompt_id")
    return prompts["finish_reason"].eq("stop").astype(float), pd.Series(1.0, prompts.index)


def repeated(run: Run) -> tuple[pd.Series, pd.Series]:
    """Generated tokens of each prompt that only repeat its text, and all of them."""
    ids = run.positions[run.positions["is_generated"]].groupby("prompt_id", sort=False)["next_token_id"]
    return ids.apply(lambda text: float(_repeats(text.tolist()).sum())), ids.size().astype(float)


def _bounded(row: Any, name: str, scale: float = 1) -> tuple[float, ...]:
    """A mean and its interval; NaN for what is absent."""
    found = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return tuple(float("nan") if pd.isna(value) else scale * float(value) for value in found)


def _repeats(text: list[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    seen: set[tuple[int, ...]] = set()
    again = np.zeros(len(text), dtype=bool)
    for end in range(REPEATED, len(text) + 1):
        here = tuple(text[end - REPEATED : end])
        again[end - 1] = here in seen
        seen.add(here)
    return again


def _paired(name: str, last: Run, valley: Run, of: Callable[[Run], tuple[pd.Series, pd.Series]]) -> Iterator[Measured]:
    (one, n_one), (two, n_two) = of(last), of(valley)
    common = zip(*paired_ids(last, valley, sorted(one.index), sorted(two.index)), strict=True)
    numbers = ((one, n_one), (two, n_two))
    pair = [
        (sums[list(ids)].to_numpy(), n[list(ids)].to_numpy()) for (sums, n), ids in zip(numbers, common, strict=True)
    ]
    n_prompts = len(pair[0][0])
    weights = resample(n_prompts)
    found = {label: share_interval(*sums, weights) for label, sums in zip(("last layer", "valley"), pair, strict=True)}
    found["valley less last layer"] = share_difference(*pair, weights)
    for label, values in found.items():
        yield Measured(f"{name}, {label}", "%", *(100 * float(value) for value in values), n_prompts=n_prompts)


parser = argparse.ArgumentParser(description="Hold two runs against the paper's claims.")
parser.add_argument("last", type=Path, help="the run decoded from the last layer")
parser.add_argument("valley", type=Path, help="the run of the same prompts decoded from the valley")
parser.add_argument("out_dir", type=Path, help="where claims.csv, claims.md and claims.tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        last, valley = open_run(options.last), open_run(options.valley)
        rows: list[Any] = [*of_last_run(last), *of_both(last, valley)]
        title = f"{last.manifest['model']['source']} on {last.manifest['dataset']['name']}"
        paths = save(beside(rows), title, options.out_dir, "claims")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
