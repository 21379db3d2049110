"""Check on texts written by people whether layers L-1 and L are too sure of the next token.

python analyses/given.py RUN ... OUT_DIR

The runs trace given texts with --targets, each through a lens of its own. Surprise is the mean of -ln p(next token).
Its excess over the mean entropy says how much too sure a reading is. The text is the judge, and not the last layer: a
lens or a temperature that is fitted to the last layer may have learned what that layer does to all tokens. Tokens at
the beginning that all texts share are left out.

Writes given.csv, .md and .tex.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from lenses import lens_of

from layerlens.analysis.sample import Bools, Sample, sample
from layerlens.errors import LayerlensError
from layerlens.records.schema import NEXT_LOG_PROB
from layerlens.run import Run, open_run
from layerlens.tables.compose import Measured, beside
from layerlens.tables.save import save


def asked(run: Run, tokens: Sample) -> Bools:
    """Which tokens count: those that another token follows, after the beginning that all texts share."""
    ids = run.positions["token_id"].to_numpy()[tokens.rows]
    texts = [ids[rows] for rows in tokens.prompts]
    shortest = min(map(len, texts))
    differ = np.flatnonzero((np.stack([text[:shortest] for text in texts]) != texts[0][:shortest]).any(axis=0))
    first = int(differ[0]) if len(differ) else shortest
    counted = np.concatenate([np.arange(len(text)) >= first for text in texts])
    return np.asarray(counted & run.positions["next_token_id"].notna().to_numpy()[tokens.rows])


def of_run(run: Run) -> Iterator[Measured]:
    """Entropy, surprise, and how much too sure the reading is, at L-1 and at L."""
    tokens = sample(run)
    among = asked(run, tokens)
    entropy, surprise = (
        sign * tokens.of(run.layers(name)).astype(np.float64)
        for sign, name in ((1, "entropy"), (-1, NEXT_LOG_PROB.name))
    )
    counts = (int(among.sum()), tokens.n_prompts_with(among))
    for layer, place in (("L-1", -2), ("L", -1)):
        for name, values in (
            ("entropy", entropy),
            ("surprise at the next token", surprise),
            ("surprise less entropy", surprise - entropy),
        ):
            yield Measured(f"{name}, {layer}", "nats", *tokens.mean("value", values[:, place], among).values(), *counts)
    change = entropy[:, -1] - entropy[:, -2]
    share = (100 * value for value in tokens.mean("share", change > 0, among).values())
    yield Measured("perturbed tokens, given texts", "%", *share, *counts)
    worse = surprise[:, -1] - surprise[:, -2]
    for group, chosen in (("perturbed", among & (change > 0)), ("unperturbed", among & (change <= 0))):
        counts = (int(chosen.sum()), tokens.n_prompts_with(chosen))
        share = (100 * value for value in tokens.mean("share", worse > 0, chosen).values())
        yield Measured(f"next token less likely at L than at L-1, {group}", "%", *share, *counts)
        ends = tokens.mean("value", worse, chosen).values()
        yield Measured(f"change of surprise at L, {group}", "nats", *ends, *counts)


parser = argparse.ArgumentParser(description="Ask whether L-1 and L are as sure of given texts as they may be.")
parser.add_argument("runs", type=Path, nargs="+", help="runs of given texts, traced with --targets")
parser.add_argument("out_dir", type=Path, help="where given.csv, .md and .tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        opened = [open_run(path) for path in options.runs]
        table = pd.concat([beside(of_run(run)).assign(lens=lens_of(run.manifest)) for run in opened], ignore_index=True)
        table = table[["lens", *(name for name in table if name not in ("lens", "reported", "difference"))]]
        paths = save(table, f"{opened[0].manifest['model']['source']} on given texts", options.out_dir, "given")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
