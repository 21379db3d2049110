"""Measure what the last layer does to the entropy under each lens, for the same tokens, in pairs.

python analyses/lenses.py LOGIT_RUN [LENS_RUN ...] OUT_DIR [--evaluation DIR ...]

The first run is read through the logit lens, the others through lenses with a transport; all hold the same tokens, as
runs decoded from the last layer do. Writes lenses.csv, .md and .tex, every number that docs/lenses.md quotes, with
its interval, and the figure curves.png, .pdf and .csv.

The groups "perturbed" and "unperturbed" are those of the lens itself. Rows about two lenses compare the same tokens,
with prompts resampled in pairs; "the logit lens's" are the tokens that are perturbed under the logit lens.

Each lens at L-1 has its own gap to the last layer, KL(L || L-1). *Surplus* is the mean surprise of p(L-1) at p(L), less
the surprise that p(L-1) expects. This is the cross entropy less H(L-1), or H(L) + KL(L || L-1) - H(L-1). It is 0 for a
lens that knows the mean of p(L) given what it reads. It is above 0 where the lens is too sure of its readings, and
below 0 where it is not sure enough. Where it is 0, the mean change of entropy is -KL, a fall, whatever the last layer
does.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis.ablation import ablation_table
from layerlens.analysis.decoding import steps
from layerlens.analysis.sample import Bools, Sample, sample
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import Sums, mean_difference, resample
from layerlens.errors import LayerlensError, RunError
from layerlens.plots import save as save_figure
from layerlens.plots import style
from layerlens.records.evaluation import read_answers
from layerlens.records.evaluation import read_manifest as read_evaluation
from layerlens.records.schema import HALF_ENTROPY, KL, NEXT_RANK
from layerlens.run import Run, open_run
from layerlens.tables.compose import Measured, beside
from layerlens.tables.save import save

LENSES = {
    "logit": ("#000000", "-"),
    "linear": ("#0072B2", (0, (4, 1.2))),
    "tuned": ("#D55E00", (0, (1.2, 0.8))),
    "jacobian": ("#009E73", (0, (4, 1, 1, 1))),
}
"""Colour and dashes of each kind of lens."""

MARKS = ("V_onset", "V*", "lowest")
LAST = 4
"""How many of the last layers are drawn a second time, with their half steps."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


def lens_of(manifest: dict[str, Any]) -> str:
    """The kind of lens by which a run or an evaluation read its layers."""
    return str(manifest.get("lens", {"kind": "logit"})["kind"])


def refuse_other_tokens(run: Run, other: Run) -> None:
    """RunError where two runs do not hold the same tokens of the same prompts, or do not count the same ones."""
    columns = ["prompt_id", "position", "token_id", "next_token_id", "is_generated"]
    ours, theirs = (one.positions[columns].iloc[sample(one).rows].reset_index(drop=True) for one in (run, other))
    if not ours.equals(theirs):
        raise RunError(
            f"{run.path} and {other.path} do not hold the same tokens: trace the same prompts by the same model from "
            "the last layer, on the same processor"
        )


class Change:
    """What the last layer does to the entropy of each token of a run, under the run's lens.

    Attributes:
        tokens: which tokens; the other attributes are in the order of its `rows`.
        change: H(L) - H(L-1) in nats, [tokens].
        rises: whether that is above 0: the token is perturbed.
    """

    def __init__(self, run: Run) -> None:
        self.tokens: Sample = sample(run)
        self.entropy: Floats = self.tokens.of(run.layers("entropy")).astype(np.float64)
        self.change: Floats = self.entropy[:, -1] - self.entropy[:, -2]
        self.rises: Bools = self.change > 0


def of_one(run: Run) -> Iterator[Measured]:
    """What a lens says of the tokens."""
    partition = run.partition().set_index("group")
    counts = partition[["n_tokens", "n_prompts"]]
    yield Measured("perturbed tokens", "%", *_ends(partition.loc["perturbed"], "share", 100), *counts.loc["all"])
    for group in ("perturbed", "unperturbed", "all"):
        ends = _ends(partition.loc[group], "entropy_change")
        yield Measured(f"entropy change at L, {group}", "nats", *ends, *counts.loc[group])
    for name, column in (("L-1", "entropy_before"), ("L", "entropy_last")):
        yield Measured(f"entropy at {name}, all", "nats", *_ends(partition.loc["all"], column), *counts.loc["all"])
    for row in run.valleys().to_dict("records"):
        if row["group"] in ("perturbed", "all"):
            found = _ends(row, "layer")
            yield Measured(f"{row['mark']}, {row['group']}", "layer", *found, row["n_tokens"], row["n_prompts"])
    statistics = run.valley_statistics().set_index("statistic")
    for name in ("valley_rate", "substitution_rate", "walk_depth", "walk_depth_of_valleys"):
        row = statistics.loc[name]
        scale, unit = (100, "%") if row["unit"] == "share" else (1, row["unit"])
        yield Measured(name.replace("_", " "), unit, *_ends(row, "value", scale), row["n_tokens"], row["n_prompts"])
    if run.has(NEXT_RANK.name):
        row = run.onset().set_index("words").loc["all"]
        yield Measured(
            "onset of the emitted token", "layer", *_ends(row, "onset"), int(row["n_tokens"]), int(row["n_prompts"])
        )
    if run.has(HALF_ENTROPY.name):
        yield from of_parts(run)
    if run.has(KL.name):
        yield from of_gap(run)


def of_parts(run: Run) -> Iterator[Measured]:
    """What attention and MLP of the last layer do under the lens."""
    parts = run.perturbation_parts().set_index("group")
    for group in ("perturbed", "all"):
        row = parts.loc[group]
        counts = (row["n_tokens"], row["n_prompts"])
        for name in ("attention", "mlp"):
            yield Measured(f"{name}'s part of the change at L, {group}", "nats", *_ends(row, name), *counts)
    row = parts.loc["perturbed"]
    for name in ("attention_alone", "mlp_alone", "both"):
        yield Measured(
            f"perturbed by {name.replace('_', ' ')}", "%", *_ends(row, name, 100), row["n_tokens"], row["n_prompts"]
        )


def of_gap(run: Run) -> Iterator[Measured]:
    """How far L-1 is from the last layer under the lens, and how much too sure it is there; see the beginning."""
    found = Change(run)
    tokens, kl = found.tokens, found.tokens.of(run.layers(KL.name))[:, -2].astype(np.float64)
    for group, among in (("perturbed", found.rises), ("all", np.ones_like(found.rises))):
        counts = (int(among.sum()), tokens.n_prompts_with(among))
        for name, values in (("KL(L || L-1)", kl), ("surplus at L-1", found.change + kl)):
            ends = tokens.mean("value", values, among).values()
            yield Measured(f"{name}, {group}", "nats", *ends, *counts)


def of_pair(logit: Run, lens: Run) -> Iterator[Measured]:
    """The same tokens under the logit lens and under another, in pairs."""
    refuse_other_tokens(logit, lens)
    ours, theirs = Change(logit), Change(lens)
    tokens, counts = ours.tokens, (len(ours.rises), ours.tokens.n_prompts)
    both = {
        "both lenses": ours.rises & theirs.rises,
        "the logit lens alone": ours.rises & ~theirs.rises,
        "this lens alone": ~ours.rises & theirs.rises,
        "neither lens": ~(ours.rises | theirs.rises),
    }
    for name, flags in both.items():
        yield Measured(f"perturbed under {name}", "%", *_share(tokens, flags), *counts)
    for name, among in (("the logit lens's", ours.rises), ("the others", ~ours.rises)):
        group = (int(among.sum()), tokens.n_prompts_with(among))
        yield Measured(f"perturbed under this lens, of {name}", "%", *_share(tokens, theirs.rises, among), *group)
        changes = tokens.mean("value", theirs.change, among).values()
        yield Measured(f"entropy change at L under this lens, of {name}", "nats", *changes, *group)
        pair = [tokens.sums_and_counts(one.change, among) for one in (ours, theirs)]
        difference = mean_difference(*pair, tokens.weights)
        yield Measured(
            f"entropy change at L, this lens less the logit lens, of {name}", "nats", *map(float, difference), *group
        )
    apart = [tokens.sums_and_counts(theirs.rises, among) for among in (~ours.rises, ours.rises)]
    yield _difference("perturbed under this lens, of the logit lens's less of the others", "%", *apart, tokens)
    for name, unit, pair in _of_both(logit, lens, ours, theirs):
        yield _difference(f"{name}, this lens less the logit lens", unit, *pair, tokens)


def _of_both(logit: Run, lens: Run, ours: Change, theirs: Change) -> Iterator[tuple[str, str, tuple[Sums, Sums]]]:
    """Name, unit and the sums and counts of each prompt under either lens."""
    tokens, walks = ours.tokens, [steps(run, ours.tokens) for run in (logit, lens)]

    def pair(*values: Any, among: Sequence[Bools | None] = (None, None)) -> tuple[Sums, Sums]:
        one, other = (tokens.sums_and_counts(*both) for both in zip(values, among, strict=True))
        return one, other

    yield "perturbed tokens", "%", pair(ours.rises, theirs.rises)
    yield "entropy change at L, perturbed", "nats", pair(ours.change, theirs.change, among=(ours.rises, theirs.rises))
    yield "entropy change at L, all", "nats", pair(ours.change, theirs.change)
    yield "valley rate", "%", pair(*(one.valley for one in walks))
    yield "substitution rate", "%", pair(*(one.substituted for one in walks))
    yield "walk depth", "layers", pair(*(one.depth.astype(np.float64) for one in walks))


def of_answers(folder: Path, beside_logit: Path) -> Iterator[Measured]:
    """Right answers from the valley by the lens of an evaluation, beside the last layer's and the logit lens's."""
    row = ablation_table(folder).set_index(["arm", "p"]).loc[("valley", 1.0)]
    right = {name: _right(folder, name) for name in ("last", "valley")}
    if not right["last"].equals(_right(beside_logit, "last")):
        raise RunError(f"{folder} and {beside_logit} differ in the last layer's answers: make both on one processor")
    n_items = int(row["n_items"])
    last = share_interval(right["last"].to_numpy(), np.ones(n_items), resample(n_items))
    yield Measured("right answers, last layer", "%", *(100 * float(end) for end in last), n_prompts=n_items)
    yield Measured("right answers, valley", "%", *_ends(row, "score", 100), n_prompts=n_items)
    yield Measured("answers of the valley that end", "%", *_ends(row, "finished", 100), n_prompts=n_items)
    yield Measured("right answers, valley less last layer", "%", *_ends(row, "difference", 100), n_prompts=n_items)
    if folder != beside_logit:
        pair = [(one.to_numpy(), np.ones(n_items)) for one in (_right(beside_logit, "valley"), right["valley"])]
        difference = (100 * float(end) for end in share_difference(pair[0], pair[1], resample(n_items)))
        yield Measured("right answers, valley, this lens less the logit lens", "%", *difference, n_prompts=n_items)


def _right(folder: Path, arm: str) -> "pd.Series[float]":
    """Whether each item is answered right, in the order of the items."""
    answers = read_answers(folder).to_pandas()
    ordered: pd.Series[float] = answers[answers["arm"] == arm].set_index("item")["score"].sort_index()
    return ordered


def curves(runs: dict[str, Run]) -> pd.DataFrame:
    """The data of `draw_curves`: one row per lens, group and layer, with the group's mean entropy under the lens.

    Columns: lens; group, "perturbed" or "unperturbed" under the logit lens, the same tokens for every lens; layer;
    entropy in nats with `_low` and `_high` (95 %, prompts resampled); half_entropy, between attention and MLP of the
    layer, likewise, NaN where the run or the layer has none; n_tokens; n_prompts.
    """
    perturbed = Change(runs["logit"]).rises
    frames = []
    for lens, run in runs.items():
        found = Change(run)
        measures = {"entropy": found.entropy, HALF_ENTROPY.name: np.full_like(found.entropy, np.nan)}
        if run.has(HALF_ENTROPY.name):
            measures[HALF_ENTROPY.name] = found.tokens.of(run.layers(HALF_ENTROPY.name))
        for group, among in (("perturbed", perturbed), ("unperturbed", ~perturbed)):
            columns: dict[str, Any] = {"lens": lens, "group": group, "layer": np.arange(1, run.n_layers + 1)}
            for name, values in measures.items():
                ends = found.tokens.estimate(found.tokens.per_prompt(values, among))
                columns |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
            columns |= {"n_tokens": int(among.sum()), "n_prompts": found.tokens.n_prompts_with(among)}
            frames.append(pd.DataFrame(columns))
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return table


def draw_curves(table: pd.DataFrame) -> Figure:
    """Mean entropy by layer under each lens: all layers above, the last ones with their half steps below."""
    with style.look():
        figure = Figure(figsize=(style.inches("two"), 4.6), layout="constrained")
        axes = figure.subplots(2, 2)
        for column, (group, rows) in enumerate(table.groupby("group", sort=False)):
            above, below = axes[:, column]
            said = "perturbed" if group == "perturbed" else "the others"
            above.set_title(f"{said} under the logit lens: {rows['n_tokens'].iloc[0]:,} tokens", loc="left")
            _draw_group(rows, above)
            n_layers = int(rows["layer"].max())
            style.layer_axis(above, n_layers)
            _draw_group(rows[rows["layer"] >= n_layers - LAST], below, half_steps=True)
            below.set_xticks(range(n_layers - LAST, n_layers + 1))
            below.set_xlabel("layer")
            for ax in (above, below):
                ax.set_ylim(bottom=0)
                ax.set_ylabel("entropy (nats)")
        handles = axes[0, 0].get_legend_handles_labels()[0]
        half = axes[1, 0].plot([], [], "o", markersize=2.5, markerfacecolor="white", color=style.GREY)
        half[0].set_label("between attention and MLP")
        figure.legend(handles=[*handles, *half], loc="outside lower center", ncols=len(handles) + 1)
    return figure


def _draw_group(rows: pd.DataFrame, ax: Axes, *, half_steps: bool = False) -> None:
    for lens, curve in rows.groupby("lens", sort=False):
        colour, dashes = LENSES[str(lens)]
        ax.plot(curve["layer"], curve["entropy"], color=colour, linestyle=dashes, label=str(lens), zorder=3)
        band: dict[str, Any] = {"color": colour, "alpha": 0.2, "linewidth": 0, "zorder": 2}
        ax.fill_between(curve["layer"], curve["entropy_low"], curve["entropy_high"], **band)
        if half_steps:
            inner = curve.iloc[1:]
            ends = [inner[HALF_ENTROPY.name] - inner[f"{HALF_ENTROPY.name}_low"]]
            ends += [inner[f"{HALF_ENTROPY.name}_high"] - inner[HALF_ENTROPY.name]]
            look: dict[str, Any] = {"markersize": 2.5, "markerfacecolor": "white", "elinewidth": 0.6, "zorder": 3}
            ax.errorbar(inner["layer"] - 0.5, inner[HALF_ENTROPY.name], yerr=ends, fmt="o", color=colour, **look)


def _ends(row: Any, name: str, scale: float = 1) -> tuple[float, ...]:
    """A value and its interval; NaN for what is absent."""
    found = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return tuple(float("nan") if pd.isna(value) else scale * float(value) for value in found)


def _share(tokens: Sample, flags: Bools, among: Bools | None = None) -> tuple[float, ...]:
    return tuple(100 * value for value in tokens.mean("share", flags, among).values())


def _difference(name: str, unit: str, ours: Sums, theirs: Sums, tokens: Sample) -> Measured:
    """Theirs less ours, in percent where the unit says so."""
    scale, difference = (100, share_difference) if unit == "%" else (1, mean_difference)
    ends = (scale * float(value) for value in difference(ours, theirs, tokens.weights))
    return Measured(name, unit, *ends, int(theirs[1].sum()), tokens.n_prompts)


parser = argparse.ArgumentParser(description="Ask what the last layer does to the entropy under each lens.")
parser.add_argument("logit", type=Path, help="the run read through the logit lens")
parser.add_argument("lenses", type=Path, nargs="*", help="runs of the same tokens, read through other lenses")
parser.add_argument("out_dir", type=Path, help="where lenses.csv and curves.csv, and what goes with them, go")
parser.add_argument(
    "--evaluation", type=Path, action="append", default=[], help="of the arm valley at p = 1; the logit lens's first"
)

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        opened = [open_run(path) for path in (options.logit, *options.lenses)]
        runs = {lens_of(run.manifest): run for run in opened}
        if len(runs) < len(opened) or next(iter(runs)) != "logit":
            raise RunError("the first run is to be of the logit lens, and the others of a kind of lens each")
        tables = []
        for lens, run in runs.items():
            rows = [*of_one(run), *(of_pair(runs["logit"], run) if lens != "logit" else ())]
            for folder in options.evaluation:
                if lens_of(read_evaluation(folder)) == lens:
                    rows += of_answers(folder, options.evaluation[0])
            tables.append(beside(rows).assign(lens=lens))
        table = pd.concat(tables, ignore_index=True)
        table = table[["lens", *(name for name in table if name not in ("lens", "reported", "difference"))]]
        title = f"{opened[0].manifest['model']['source']} on {opened[0].manifest['dataset']['name']}, by lens"
        drawn = curves(runs)
        paths = [*save(table, title, options.out_dir, "lenses")]
        paths += save_figure(draw_curves(drawn), drawn, options.out_dir, "curves")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
