"""Measure how much of what the last layer does only shows how sure the lens is: read L-1 at a fitted temperature.

python analyses/temperature.py RUN OUT_DIR

The texts of the run are read again through the run's lens, and the logits of L-1 are divided by a temperature: the one
of TEMPERATURES with the least mean KL(L || L-1). It is chosen on every other prompt and used on the prompts between,
and the other way round, so that no token is read at a temperature that it helped to choose. A temperature does not
change the order of tokens: what it takes away from the rise was never in the state.

Writes temperature-LENS.csv, .md and .tex, with those rows of analyses/lenses.py that apply.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from criteria import replay
from lenses import Floats, lens_of
from torch import Tensor

import layerlens as ll
from layerlens.analysis.sample import Sample, sample
from layerlens.errors import LayerlensError, RunError
from layerlens.run import Run, open_run
from layerlens.tables.compose import Measured, beside
from layerlens.tables.save import save

TEMPERATURES = tuple(1.04**step for step in range(-8, 28))
AS_IT_IS = TEMPERATURES.index(1.0)


def read_again(run: Run, model: ll.Model, tokens: Sample) -> Iterator[tuple[Floats, Floats, Floats]]:
    """For each prompt, in nats: H(L), [tokens], then H(L-1) and KL(L || L-1) by temperature, [tokens, temperatures]."""
    lens = run.manifest.get("lens", {"kind": "logit"})
    transport = ll.open_lens(f"{lens['kind']}:{lens['source']}" if "source" in lens else lens["kind"], model)
    prompts = run.prompts.set_index("prompt_id")
    states = run.positions.iloc[tokens.rows].reset_index(drop=True)
    before = model.n_layers - 1
    for prompt, rows in zip(tokens.prompt_ids(run), tokens.prompts, strict=True):
        given = states.iloc[rows]
        ids = _ids(model, prompts.loc[prompt], run)
        ids += given["next_token_id"].tolist()[:-1]
        h = replay(model, ids, int(given["position"].iloc[0]), (before, model.n_layers))
        log_p = model.unembed.logits(h[:, 1]).float().log_softmax(-1)
        z = model.unembed.logits(transport(h[:, 0], before)).float()
        p = log_p.exp()
        entropy_last = -(p * log_p).sum(-1)
        found = [_at(z, temperature, p, entropy_last) for temperature in TEMPERATURES]
        entropy, kl = (torch.stack(column, 1).double().cpu().numpy() for column in zip(*found, strict=True))
        yield entropy_last.double().cpu().numpy(), entropy, kl


def _at(z: Tensor, temperature: float, p: Tensor, entropy_last: Tensor) -> tuple[Tensor, Tensor]:
    """H(L-1) and KL(L || L-1) at a temperature, [tokens] each."""
    log_q = (z / temperature).log_softmax(-1)
    cross = -(p * log_q).sum(-1)
    return -(log_q.exp() * log_q).sum(-1), cross - entropy_last


def _ids(model: ll.Model, prompt: "pd.Series[Any]", run: Run) -> list[int]:
    """The tokens of a prompt, with or without those that the tokenizer adds: whichever are as many as the run has."""
    for adds in (False, True):
        ids: list[int] = model.tokenizer(prompt["prompt"], add_special_tokens=adds)["input_ids"]
        if len(ids) == prompt["n_prompt_tokens"]:
            return ids
    raise RunError(f"{run.path} was tokenised otherwise than this model does it")


def chosen(kl: list[Floats]) -> list[int]:
    """The temperature at which each prompt is read: the one with the least mean KL on the prompts of the other half."""
    halves = [np.concatenate(kl[half::2]).mean(axis=0).argmin() for half in (0, 1)]
    return [int(halves[1 - index % 2]) for index in range(len(kl))]


def rows_of(run: Run, model: ll.Model) -> Iterator[Measured]:
    """Perturbed tokens, changes of entropy, KL and surplus, for the lens as it is and at the chosen temperatures."""
    tokens = sample(run)
    last, before, kl = (list(column) for column in zip(*read_again(run, model, tokens), strict=True))
    at = chosen(kl)
    for half, name in enumerate(("first, third, ...", "second, fourth, ...")):
        found = TEMPERATURES[at[half]]
        yield Measured(f"temperature of the {name} prompt", "1", found, n_prompts=len(at[half::2]))
    final = np.concatenate(last)
    for name, places in (("as the lens is", [AS_IT_IS] * len(at)), ("at its temperature", at)):
        entropy, gap = (
            np.concatenate([values[:, place] for values, place in zip(of, places, strict=True)]) for of in (before, kl)
        )
        change = final - entropy
        everything = np.ones(len(change), bool)
        yield Measured(
            f"perturbed tokens, {name}",
            "%",
            *(100 * value for value in tokens.mean("share", change > 0).values()),
            len(change),
            tokens.n_prompts,
        )
        for quantity, values, among in (
            ("entropy change at L, perturbed", change, change > 0),
            ("entropy change at L, all", change, everything),
            ("KL(L || L-1), all", gap, everything),
            ("surplus at L-1, all", change + gap, everything),
        ):
            ends = tokens.mean("value", values, among).values()
            yield Measured(f"{quantity}, {name}", "nats", *ends, int(among.sum()), tokens.n_prompts_with(among))


parser = argparse.ArgumentParser(description="Read L-1 at the temperature that suits it.")
parser.add_argument("run", type=Path, help="a run, whose model and lens are read again")
parser.add_argument("out_dir", type=Path, help="where temperature-LENS.csv, .md and .tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        run = open_run(options.run)
        source, lens = run.manifest["model"]["source"], lens_of(run.manifest)
        with torch.no_grad():
            table = beside(rows_of(run, ll.load(source)))
        title = f"{source} on {run.manifest['dataset']['name']}, {lens} lens at its temperature"
        paths = save(table.drop(columns=["reported", "difference"]), title, options.out_dir, f"temperature-{lens}")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
