"""Two runs of the same prompts side by side: instruct and base, two criteria, two windows."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.decoding import steps
from layerlens.analysis.sample import Sample, generated
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import Sums, mean_difference, mean_interval
from layerlens.errors import RunError

if TYPE_CHECKING:
    from layerlens.run import Run


def compare(run: "Run", other: "Run") -> pd.DataFrame:
    """One row per quantity of the generated tokens, in both runs, over the prompts that both have, paired by id.

    Quantities: valley_rate and substitution_rate, as in `valley_statistics`: what decoding from the valley does or
    would do; perturbed_rate; entropy, the mean at layer L; walk_depth; generated_tokens, the mean number for a prompt.

    Columns: quantity; unit (share, nats, layers or tokens); run and other, the two means; difference, other less run;
    each with `_low` and `_high`: 95 %, the common prompts resampled in pairs, so that what the two runs share cancels
    in the difference (shares of few prompts: see `analysis.shares`); n_tokens and n_tokens_other; n_prompts, the common
    ones that count in both. `attrs` counts in n_prompts_unpaired the prompts that count in only one of the runs.

    Raises:
        RunError: the runs have no prompt in common, or are of different datasets; one of them has no generated token,
            or a single layer.
    """
    first, second = _paired(run, other)
    rows = []
    for (quantity, unit, ours), (_, _, theirs) in zip(_quantities(run, first), _quantities(other, second), strict=True):
        row = {"quantity": quantity, "unit": unit} | _means(first, unit, ours, theirs)
        rows.append(row | {"n_tokens": len(first.rows), "n_tokens_other": len(second.rows)})
    table = first.frame([row | {"n_prompts": first.n_prompts} for row in rows])
    return _with_unpaired(table, run, other)


def compare_outputs(run: "Run", other: "Run") -> pd.DataFrame:
    """Two rows on how far the outputs of two runs are the same, over the prompts that both have, paired by id.

    Statistics: identical, the share of prompts whose generated token ids are the same to the end; common_prefix, how
    many tokens the outputs share from the start on, the mean over prompts.

    Columns: statistic; unit (share or tokens); value with value_low and value_high (95 %, prompts resampled); n_tokens
    of the first run; n_prompts in common. Where the runs' token ids mean different things both are NaN, and
    `attrs["note"]` says so.

    Raises:
        RunError: as in `compare`.
    """
    first, second = _paired(run, other)
    comparable = _same_vocabulary(run, other)
    ours, theirs = (_outputs(one, tokens) for one, tokens in ((run, first), (other, second)))
    prefixes = [_common_prefix(left, right) for left, right in zip(ours, theirs, strict=True)]
    identical = [len(left) == len(right) == n for left, right, n in zip(ours, theirs, prefixes, strict=True)]
    rows = []
    for statistic, unit, values in (("identical", "share", identical), ("common_prefix", "tokens", prefixes)):
        counted = np.full(first.n_prompts, float(comparable))
        estimated = share_interval if unit == "share" else mean_interval
        means = estimated(np.array(values) * counted, counted, first.weights)
        row: dict[str, Any] = {"statistic": statistic, "unit": unit}
        row |= dict(zip(("value", "value_low", "value_high"), map(float, means), strict=True))
        rows.append(row | {"n_tokens": len(first.rows), "n_prompts": first.n_prompts})
    table = _with_unpaired(first.frame(rows), run, other)
    if not comparable:
        table.attrs |= {"note": f"{run.path} and {other.path} name tokens by different ids: outputs are not compared"}
    return table


def _paired(run: "Run", other: "Run") -> tuple[Sample, Sample]:
    """The generated tokens of the prompts that count in both runs, in the same order of prompts."""
    _refuse_other_datasets(run, other)
    pair = [(one, generated(one)) for one in (run, other)]
    ids = [_prompt_ids(one, tokens) for one, tokens in pair]
    common = ids[0].intersection(ids[1])
    if common.empty:
        raise RunError(
            f"{run.path} and {other.path} have no prompt in common: trace both with the same --dataset or --prompts"
        )
    _refuse_other_references(run, other, common)
    first, second = (
        tokens.only(one.positions["prompt_id"].isin(common).to_numpy(dtype=bool)[tokens.rows]) for one, tokens in pair
    )
    return first, second


def _prompt_ids(run: "Run", tokens: Sample) -> "pd.Index[Any]":
    ids: pd.Index[Any] = pd.Index(run.positions["prompt_id"].iloc[tokens.rows[tokens.starts]])
    return ids


def _refuse_other_datasets(run: "Run", other: "Run") -> None:
    """Ids such as "1" say little: what they number must be the same."""
    names = [[one.manifest["dataset"].get(key) for key in ("name", "config", "split")] for one in (run, other)]
    digests = [one.manifest["dataset"].get("sha256") for one in (run, other)]
    if names[0] != names[1] and (digests[0] is None or digests[0] != digests[1]):
        raise RunError(
            f"{run.path} is of {names[0][0]} and {other.path} of {names[1][0]}, so that their prompts cannot be "
            "paired: trace both with the same --dataset or --prompts"
        )


def _refuse_other_references(run: "Run", other: "Run", common: "pd.Index[Any]") -> None:
    pair = [one.prompts.set_index("prompt_id")["reference"].loc[common] for one in (run, other)]
    known = pair[0].notna() & pair[1].notna()
    unlike = common[(known & (pair[0] != pair[1])).to_numpy(dtype=bool)]
    if len(unlike):
        raise RunError(
            f"prompt {unlike[0]!r} of {run.path} has another reference answer in {other.path}: trace both with the "
            "same --dataset or --prompts"
        )


def _with_unpaired(table: pd.DataFrame, run: "Run", other: "Run") -> pd.DataFrame:
    ids = [_prompt_ids(one, generated(one)) for one in (run, other)]
    table.attrs |= {"n_prompts_unpaired": len(ids[0].symmetric_difference(ids[1]))}
    return table


def _quantities(run: "Run", tokens: Sample) -> list[tuple[str, str, Sums]]:
    """Name, unit, and per-prompt sums and counts of what is compared."""
    found = steps(run, tokens)
    measures = [
        ("valley_rate", "share", found.valley),
        ("substitution_rate", "share", found.substituted),
        ("perturbed_rate", "share", found.perturbed),
        ("entropy", "nats", found.entropy),
        ("walk_depth", "layers", found.depth),
    ]
    lengths = tokens.by_prompt(np.ones(len(tokens.rows)))
    sums = [(name, unit, tokens.sums_and_counts(values)) for name, unit, values in measures]
    return [*sums, ("generated_tokens", "tokens", (lengths, np.ones_like(lengths)))]


def _means(tokens: Sample, unit: str, ours: Sums, theirs: Sums) -> dict[str, float]:
    """Both means and their difference, each with its interval, from the same resamples of prompts."""
    mean, difference = _ESTIMATES[unit == "share"]
    found = {name: mean(*sums, tokens.weights) for name, sums in (("run", ours), ("other", theirs))}
    found["difference"] = difference(ours, theirs, tokens.weights)
    return {
        name + end: float(value)
        for name, values in found.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }


_ESTIMATES = {False: (mean_interval, mean_difference), True: (share_interval, share_difference)}


def _same_vocabulary(run: "Run", other: "Run") -> bool:
    """Whether every id whose text both runs hold says the same in both."""
    common = run.words.index.intersection(other.words.index)
    same_size = run.manifest["model"]["n_vocab"] == other.manifest["model"]["n_vocab"]
    if common.empty:
        return bool(same_size)
    return bool((run.words.loc[common] == other.words.loc[common]).all())


def _outputs(run: "Run", tokens: Sample) -> list[np.ndarray[Any, Any]]:
    """The generated token ids of each prompt."""
    emitted = run.positions["next_token_id"].to_numpy(dtype=np.float64)[tokens.rows]
    return [emitted[prompt] for prompt in tokens.prompts]


def _common_prefix(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> int:
    """How many tokens two outputs share from the start on."""
    length = min(len(left), len(right))
    apart = np.flatnonzero(left[:length] != right[:length])
    return int(apart[0]) if len(apart) else length
