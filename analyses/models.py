"""Compare the runs of two models on the same prompts, in pairs.

python analyses/models.py RUN OTHER OUT_DIR [--skip-first]

Writes models.csv, models.md and models.tex. --skip-first leaves out the first position of each text, which is a sink of
attention: in a run with --positions all, its norm ratio alone can dominate a mean.
"""

import argparse
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from findings import of_last_run

from layerlens.analysis.comparison import paired_samples
from layerlens.analysis.layers import layer_kinds
from layerlens.analysis.sample import Sample, sample
from layerlens.analysis.shares import share_difference
from layerlens.analysis.uncertainty import mean_difference
from layerlens.errors import LayerlensError, RunError
from layerlens.run import Run, open_run
from layerlens.tables.compose import Measured, beside
from layerlens.tables.save import save

LAST = 4
"""How many of the last layers are reported one by one."""


class AfterFirst(Run):
    """A run without the first position of each text."""

    def __init__(self, whole: Run) -> None:
        super().__init__(whole.path)
        self._whole = whole
        self._kept = whole.positions["position"].to_numpy() > 0

    @cached_property
    def positions(self) -> pd.DataFrame:
        """As in `Run`, without the rows left out."""
        return self._whole.positions[self._kept].reset_index(drop=True)

    def pieces(self, most_tokens: int = 0) -> Iterator[Run]:
        """A single piece, without the first position of each text."""
        yield self

    def layers(self, column: str) -> np.ndarray[Any, Any]:
        """As in `Run`, without the rows left out."""
        values: np.ndarray[Any, Any] = self._whole.layers(column)[self._kept]
        return values


def of_one(run: Run) -> Iterator[Measured]:
    """What the layers do, and the entropy of the last ones."""
    yield from of_last_run(run)
    tokens = sample(run)
    entropy = tokens.of(run.layers("entropy")).astype(np.float64)
    for layer in range(run.n_layers - LAST + 1, run.n_layers + 1):
        yield _mean(tokens, f"entropy, layer {layer}", entropy[:, layer - 1])
    for layer in range(run.n_layers - LAST + 1, run.n_layers - 1):
        yield _mean(tokens, f"entropy change from layer {layer} to the last", entropy[:, -1] - entropy[:, layer - 1])
    yield _mean(tokens, "entropy change at L, all", entropy[:, -1] - entropy[:, -2])
    if len(set(layer_kinds(run))) > 1:
        for row in run.kind_jumps().to_dict("records"):
            values = (row[f"mean_jump{end}"] for end in ("", "_low", "_high"))
            name = f"entropy jump from layer to layer, {row['transitions']}, {row['stretch']}"
            yield Measured(name, "nats", *values, row["n_tokens"], row["n_prompts"])


def of_both(run: Run, other: Run) -> Iterator[Measured]:
    """The differences, other less run, of what the last layer does, over the prompts of both."""
    samples = paired_samples(run, other, sample)
    weights, n_prompts = samples[0].weights, samples[0].n_prompts
    if any(sample(one).n_prompts != n_prompts for one in (run, other)):
        raise RunError(f"{run.path} and {other.path} are not of the same prompts: trace both with the same --dataset")
    pair = zip((run, other), samples, strict=True)
    for (name, unit, ours), (_, _, theirs) in zip(*(_of_last_layer(*one) for one in pair), strict=True):
        scale, difference = (100, share_difference) if unit == "%" else (1, mean_difference)
        values = (scale * float(value) for value in difference(ours, theirs, weights))
        yield Measured(f"{name}, difference", unit, *values, n_prompts=n_prompts)


def _of_last_layer(run: Run, tokens: Sample) -> Iterator[tuple[str, str, tuple[Any, Any]]]:
    """Name, unit, and the sums and counts of each prompt, of what the last layer does."""
    entropy = tokens.of(run.layers("entropy")).astype(np.float64)
    change = entropy[:, -1] - entropy[:, -2]
    for name, unit, values in (
        ("perturbed tokens", "%", change > 0),
        ("entropy change at L, all", "nats", change),
        ("entropy, last layer", "nats", entropy[:, -1]),
        ("norm ratio, last layer", "", tokens.of(run.layers("norm_ratio")).astype(np.float64)[:, -1]),
        ("io cosine, last layer", "", tokens.of(run.layers("io_cosine")).astype(np.float64)[:, -1]),
    ):
        yield name, unit, tokens.sums_and_counts(values)


def _mean(tokens: Sample, name: str, values: np.ndarray[Any, Any]) -> Measured:
    return Measured(name, "nats", *tokens.mean("value", values).values(), len(values), tokens.n_prompts)


parser = argparse.ArgumentParser(description="Set runs of two models on the same prompts beside each other.")
parser.add_argument("run", type=Path, help="a run")
parser.add_argument("other", type=Path, help="the run of another model on the same prompts")
parser.add_argument("out_dir", type=Path, help="where models.csv, models.md and models.tex go")
parser.add_argument("--skip-first", action="store_true", help="leave out the first position of each text")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        runs = [open_run(path) for path in (options.run, options.other)]
        if options.skip_first:
            runs = [AfterFirst(run) for run in runs]
        names = [run.manifest["model"]["source"] for run in runs]
        tables = [(name, beside(of_one(run))) for name, run in zip(names, runs, strict=True)]
        tables.append((f"{names[1]} less {names[0]}", beside(of_both(*runs))))
        rows = pd.concat([table.assign(model=name) for name, table in tables], ignore_index=True)
        columns = ["model", *(name for name in rows if name not in ("model", "reported", "difference"))]
        paths = save(
            rows[columns], f"{' and '.join(names)} on {runs[0].manifest['dataset']['name']}", options.out_dir, "models"
        )
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
