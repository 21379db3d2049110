"""Check the claims of the paper's theory (section 3.3) on simulated entropies: a figure and a table of claims.

python analyses/theory.py OUT_DIR [--draws N] [--seed S] [--run RUN [--group all|perturbed|unperturbed]]

With a run, also writes what the theory would predict with that run's own parameters. No model is loaded.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import pi, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.theory import (
    DRAWS,
    PAPER,
    SEED,
    WINDOW,
    Parameters,
    algorithm_layers,
    critical_rise,
    dominance_table,
    expected_gain,
    first_step,
    forms_table,
    margins,
    parameters_table,
    prediction_table,
    premise_table,
    simulate,
    theorem_table,
)
from layerlens.errors import LayerlensError
from layerlens.plots import save
from layerlens.plots.theory import figure_theory
from layerlens.run import open_run

# the same descent of 11 layers throughout, so that rows differ only in what they name
EARLY = replace(PAPER, onset=25, valley=36)  # the same rise, spread over four layers
ENDS_LOWEST = replace(PAPER, onset=29, valley=40, rise=0.0)  # a token that the last layer makes surer
BOUND = 0.49  # relative to the least late rise: just under the half that Theorem 1 requires
NOISES = (PAPER.rise / 4, PAPER.rise, 4 * PAPER.rise, 10.0)  # nats; ln V is about 12
SHARE, UP, DOWN = 0.162, 0.37, -2.52  # perturbed tokens and the change at L of both groups, as the paper reports them

parser = argparse.ArgumentParser(
    description="Check the claims of the theory of valley decoding on simulated entropies."
)
parser.add_argument("out_dir", type=Path, help="where theory.png, .pdf and .csv, claims.csv and claims.md go")
parser.add_argument("--draws", type=int, default=DRAWS, help="simulated tokens at every point")
parser.add_argument("--seed", type=int, default=SEED, help="of the simulations")
parser.add_argument("--run", type=Path, help="also predict for this run: parameters.csv and prediction.csv")
parser.add_argument("--group", default="all", help="tokens of the run: all, perturbed or unperturbed")

Claim = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, draw, write; prints where the files are."""
    options = parser.parse_args(arguments)
    try:
        print(*write(options), sep="\n")
    except (LayerlensError, OSError) as error:
        parser.error(str(error))


def write(options: argparse.Namespace) -> list[Path]:
    """The paths of what was written."""
    tables: dict[str, pd.DataFrame] = {}
    if options.run is not None:
        run = open_run(options.run)
        tables["parameters"] = parameters_table(run, options.group)
        tables["prediction"] = prediction_table(run, options.group, n_draws=options.draws, seed=options.seed)
    tables["claims"] = pd.DataFrame(claims(options.draws, options.seed))
    paths = save(*figure_theory(n_draws=options.draws, seed=options.seed), options.out_dir, "theory")
    for name, table in tables.items():
        paths.append(options.out_dir / f"{name}.csv")
        table.to_csv(paths[-1], index=False, float_format="%.6g")
    paths.append(options.out_dir / "claims.md")
    paths[-1].write_text(markdown(tables["claims"]), encoding="utf-8")
    return paths


def claims(n_draws: int, seed: int) -> Iterator[Claim]:
    """One row a number: claim (its number in docs/theory.md), what, setting, value, low, high, expected, n, unit."""
    options = {"n_draws": n_draws, "seed": seed}
    yield from under_its_premise(options)
    yield from without_noise(options)
    yield from forms(options)
    yield from inside(options)
    yield from losses(options)
    yield from dominance(options)
    yield from selection(options)


def under_its_premise(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 1: under Theorem 1's premise (bounded noise, late rises above twice the bound), both forms find V*."""
    held = [premise_table(curve, [BOUND * margins(curve)[0]], **options) for curve in (PAPER, EARLY)]
    failed = premise_table(PAPER, [PAPER.rise, 2 * PAPER.rise], **options)
    for rows in [*held, failed[failed["noise"] == "even"]]:
        for row in rows.to_dict("records"):
            curve = EARLY if rows is held[1] else PAPER
            late = margins(curve)[0] / row["bound"]
            setting = f"V* = {curve.valley}, s = {descent(curve):.2f}, {row['noise']} noise ≤ b, late rise {late:.3g} b"
            counted = {"value": float(row["n_at"]), "n": row["n_draws"]}
            if row["holds"]:
                counted["expected"] = float(row["n_draws"])
            what = f"layer is V*, {RULE[row['rule']]}"
            yield claim(1, what, PAPER, "draws") | {"setting": setting} | counted
    every = pd.concat(held)
    for rule, rows in every.groupby("rule", sort=False):
        n = int(rows["n_draws"].sum())
        counted = {"value": float(rows["n_at"].sum()), "expected": float(n), "n": n}
        what = f"layer is V*, {RULE[str(rule)]}, wherever the premise holds"
        yield claim(1, what, PAPER, "draws") | {"setting": "V* = 39 and 36, even and extreme noise"} | counted


def without_noise(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 1, without noise: both forms find V*."""
    for parameters in (PAPER, EARLY, ENDS_LOWEST):
        found = at(theorem_table(parameters, windows=[WINDOW], **options), rule=["algorithm", "theorem"])
        for row in found:
            what = f"layer by {RULE[row['rule']]}, no noise"
            value = {"value": parameters.n_layers - row["depth"], "expected": float(parameters.valley), "n": 1}
            yield claim(1, what, parameters, "layer") | value


def forms(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 2: Theorem 1's V-hat is the layer of Algorithm 1."""
    for parameters, noises in ((PAPER, NOISES[:3]), (ENDS_LOWEST, NOISES[1:2])):
        for row in forms_table(parameters, noises, windows=[WINDOW], **options).to_dict("records"):
            here = noisy(parameters, row["noise"])
            found = taken(row, "differ", row["n_draws"]) | {"expected": row["differ_expected"]}
            yield claim(2, "tokens for which the two differ", here, "share") | found
            if row["n_differ"] > 1:
                yield claim(2, "layers apart, where they differ", here, "layers") | taken(
                    row, "layers_apart", row["n_differ"]
                )
    rows = forms_table(PAPER, NOISES, **options)
    checked = {"value": float(rows["contradicted"].sum()), "expected": 0.0, "n": int(rows["n_draws"].sum())}
    setting = {"setting": f"V* = 39, s = {descent(PAPER):.2f}, four σ, with and without window"}
    yield claim(2, "differ although H(L-1) < H(L), or agree although not", PAPER, "tokens") | checked | setting


def inside(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 3: the chosen layer lies in [V_onset, V*]."""
    for parameters, noises in ((PAPER, NOISES), (EARLY, NOISES[:2])):
        table = theorem_table(parameters, noises, windows=[WINDOW], **options)
        for row in at(table, rule=["algorithm", "theorem"]):
            here = noisy(parameters, row["noise"])
            exact = here.valley == here.n_layers - 1 and row["rule"] == "algorithm"
            found = taken(row, "inside", row["n_draws"]) | {"expected": first_step(here) if exact else np.nan}
            yield claim(3, f"in [V_onset, V*], {RULE[row['rule']]}", here, "share") | found
    varied = {"early_factor": replace(PAPER, early_factor=4.0), "correlation": replace(PAPER, correlation=0.8)}
    for name, parameters in varied.items():
        here = noisy(parameters, PAPER.rise)
        (row,) = at(theorem_table(here, windows=[WINDOW], **options), rule=["algorithm"])
        what = f"in [V_onset, V*], Algorithm 1, {name} {getattr(here, name):g}"
        found = taken(row, "inside", row["n_draws"]) | {"expected": first_step(here)}
        yield claim(3, what, here, "share") | found
    observed = simulate(noisy(PAPER, NOISES[-1]), **options)
    moved = algorithm_layers(observed, WINDOW) != algorithm_layers(observed)
    high = 1 - 0.05 ** (1 / len(moved)) if not moved.any() else np.nan  # the exact one-sided bound where none was seen
    found = {"value": float(moved.mean()), "low": 0.0, "high": high, "n": len(moved)}
    yield claim(3, "tokens whose layer changes without the window", noisy(PAPER, NOISES[-1]), "share") | found


def losses(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 4: walking back loses less than the last layer, and than the arg-min."""
    for parameters, noises in ((PAPER, NOISES[1:]), (EARLY, NOISES[1:2]), (ENDS_LOWEST, (0.0, NOISES[1]))):
        table = theorem_table(parameters, noises, windows=[WINDOW], **options)
        for row in at(table, rule=["last", "algorithm", "theorem", "argmin"]):
            here = noisy(parameters, row["noise"])
            expected = np.nan
            if row["rule"] == "algorithm":
                expected = float(np.ptp(here.noiseless[[-1, here.valley - 1]])) - expected_gain(here)
            found = taken(row, "loss", row["n_draws"]) | {"expected": expected}
            yield claim(4, f"loss, {RULE[row['rule']]}", here, "nats") | found
    table = theorem_table(PAPER, (PAPER.rise, NOISES[2]), windows=[WINDOW], **options)
    for row in at(table, rule=["last", "algorithm"]):
        found = taken(row, "loss_bare", row["n_draws"])
        what = f"loss if the rise is an artefact of the readout, {RULE[row['rule']]}"
        yield claim(4, what, noisy(PAPER, row["noise"]), "nats") | found


def dominance(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 5: where walking back beats staying at the last layer."""
    for rise in (0.0, 0.1, 1.0, 2.0):
        (row,) = dominance_table([rise], [1.0], **options).to_dict("records")
        setting = {"setting": f"d/σ = {rise:g}, s/σ = 1"}
        found = taken(row, "step", row["n_draws"]) | {"expected": row["first_step"]}
        yield claim(5, "the first step is taken", PAPER, "share") | found | setting
        found = taken(row, "gain", row["n_draws"]) | {"expected": row["gain_expected"]}
        yield claim(5, "gain over staying, in units of σ", PAPER, "σ") | found | setting
    descents = np.linspace(0.1, 3, 30)
    critical = np.array([critical_rise(descent) for descent in descents])
    worst = int(critical.argmax())
    setting = {"setting": f"s/σ = {descents[worst]:.1f}"}
    yield claim(5, "least d/σ that suffices at every s/σ", PAPER, "σ") | {"value": critical[worst]} | setting
    limit = 1e-3
    found = {"value": critical_rise(limit) / limit, "expected": 2 * np.e - 5}
    yield claim(5, "least d/s that suffices, as σ grows", PAPER, "share of s") | found | {"setting": "σ = 1,000 s"}
    found = {"value": PAPER.rise / descent(PAPER), "setting": f"V* = 39, s = {descent(PAPER):.2f}"}
    yield claim(5, "d/s of the paper's curve", PAPER, "share of s") | found
    found = {"value": break_even(), "setting": f"V* = 39, s = {descent(PAPER):.2f}"}
    yield claim(5, "σ above which walking back no longer pays", PAPER, "nats") | found


def break_even() -> float:
    """The noise at which walking back and staying lose the same on the paper's curve, in nats; within 1e-3."""
    low, high = PAPER.rise, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if expected_gain(noisy(PAPER, middle)) > 0 else (low, middle)
    return high


def selection(options: dict[str, int]) -> Iterator[Claim]:
    """Claim 6: a mean rise among perturbed tokens shows a late perturbation."""
    flat = noisy(replace(PAPER, rise=0.0), PAPER.rise)
    change = np.diff(simulate(flat, **options)[:, -2:])[:, 0]
    found = mean(change[change > 0]) | {"expected": 2 * flat.noise / sqrt(pi)}
    yield claim(6, "mean H(L) - H(L-1) of perturbed tokens, no late perturbation", flat, "nats") | found
    one = one_curve()
    change = np.diff(simulate(one, **options)[:, -2:])[:, 0]
    yield claim(6, "perturbed tokens", one, "share") | mean(change > 0) | {"expected": SHARE}
    yield claim(6, "mean H(L) - H(L-1) of perturbed tokens", one, "nats") | mean(change[change > 0]) | {"expected": UP}
    found = mean(change[change <= 0]) | {"expected": DOWN}
    yield claim(6, "mean H(L) - H(L-1) of the others", one, "nats") | found


def one_curve() -> Parameters:
    """One curve for all tokens, with another descent, that has the paper's share of perturbed tokens and the paper's
    rise among them."""
    normal = NormalDist()
    shift = normal.inv_cdf(SHARE)
    spread = UP / (shift + normal.pdf(shift) / SHARE)
    falls = ENDS_LOWEST.valley - ENDS_LOWEST.onset
    return replace(ENDS_LOWEST, plateau=ENDS_LOWEST.lowest - shift * spread * falls, noise=spread / sqrt(2))


RULE = {"last": "last layer", "algorithm": "Algorithm 1", "theorem": "Theorem 1", "argmin": "arg-min"}


def descent(parameters: Parameters) -> float:
    """s, how much H* falls from layer to layer between V_onset and V*, in nats."""
    return (parameters.plateau - parameters.lowest) / (parameters.valley - parameters.onset)


def noisy(parameters: Parameters, noise: float) -> Parameters:
    """The same curve with that noise."""
    return replace(parameters, noise=noise)


def claim(number: int, what: str, parameters: Parameters, unit: str) -> Claim:
    """A row of a claim, without its value."""
    setting = f"V* = {parameters.valley}, s = {descent(parameters):.2f}, σ = {parameters.noise:.3g}"
    empty = dict.fromkeys(("value", "low", "high", "expected", "n"), np.nan)
    return {"claim": number, "what": what, "setting": setting, **empty, "unit": unit}


def at(table: pd.DataFrame, rule: Sequence[str]) -> list[dict[Any, Any]]:
    """The rows of one or several rules."""
    return table[table["rule"].isin(rule)].to_dict("records")


def taken(row: dict[Any, Any], name: str, n: int) -> Claim:
    """A measure of a table with its interval."""
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"], "n": n}


def mean(values: np.ndarray[Any, Any]) -> Claim:
    """The mean over draws with its normal 95 % interval."""
    width = 1.96 * float(values.std(ddof=1)) / sqrt(len(values))
    centre = float(values.mean())
    return {"value": centre, "low": centre - width, "high": centre + width, "n": len(values)}


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown: value with its interval, the closed form or what the paper reports, n."""
    lines = ["| claim | what | setting | value [95 %] | closed form, or reported | n |", "|---|---|---|---|---|---|"]
    for row in table.to_dict("records"):
        certain = np.isnan(row["low"]) or row["low"] == row["high"]
        interval = "" if certain else f" [{number(row['low'])}, {number(row['high'])}]"
        expected = "" if np.isnan(row["expected"]) else number(row["expected"])
        n = "" if np.isnan(row["n"]) else f"{row['n']:,.0f}"
        value = f"{number(row['value'])}{interval}" + ("" if row["unit"] in ("share", "layer") else f" {row['unit']}")
        lines.append(f"| {row['claim']} | {row['what']} | {row['setting']} | {value} | {expected} | {n} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """A number with at most four decimals."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 4) + 0.0:g}"


if __name__ == "__main__":
    main()
