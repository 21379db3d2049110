"""Two runs of the same prompts side by side: instruct and base, two criteria, two windows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.decoding import steps
from layerlens.analysis.pairing import paired_ids, texts_of
from layerlens.analysis.sample import Sample, generated
from layerlens.analysis.shares import share_difference, share_interval
from layerlens.analysis.uncertainty import Sums, mean_difference, mean_interval
from layerlens.records.reader import Records


def compare(run: Records, other: Records) -> pd.DataFrame:
    """One row per quantity of the generated tokens, in both runs, over the prompts that both have; see `pairing`.

    Quantities: valley_rate and substitution_rate, as in `valley_statistics` (what decoding from the valley does or
    would do); perturbed_rate; entropy, the mean at layer L; walk_depth; generated_tokens, the mean number for a prompt.

    Columns: quantity; unit (share, nats, layers or tokens); run and other, the two means; difference, other less run;
    each of the three with `_low` and `_high` (95 %); n_tokens and n_tokens_other; n_prompts, the common prompts that
    count in both. For the intervals the common prompts are resampled in pairs, so that what the two runs share cancels
    in the difference; `analysis.shares` says what is done for shares of few prompts. `attrs["n_prompts_unpaired"]`
    counts the prompts that count in only one of the runs. `attrs["n_prompts_of_other_text"]` counts the common prompts
    whose texts differ because of another chat template, system message or date.

    Raises:
        RunError: the runs have no prompt in common, or have different reference answers to one; a run has no generated
            token, or a single layer.
    """
    first, second = paired_samples(run, other, generated)
    rows = []
    for (quantity, unit, ours), (_, _, theirs) in zip(_quantities(run, first), _quantities(other, second), strict=True):
        row = {"quantity": quantity, "unit": unit} | _means(first, unit, ours, theirs)
        rows.append(row | {"n_tokens": len(first.rows), "n_tokens_other": len(second.rows)})
    table = first.frame([row | {"n_prompts": first.n_prompts} for row in rows])
    return _with_pairs(table, (run, first), (other, second))


def compare_outputs(run: Records, other: Records) -> pd.DataFrame:
    """Two rows on how much the outputs of two runs are alike, over the prompts that both have; see `pairing`.

    Statistics: identical, the share of prompts whose generated token ids are the same to the end; common_prefix, the
    mean over prompts of how many tokens the two outputs share at the start.

    Columns: statistic; unit (share or tokens); value with value_low and value_high (95 %, prompts resampled); n_tokens
    of the first run; n_prompts in common. Where the runs' token ids mean different things both are NaN, and
    `attrs["note"]` says so.

    Raises:
        RunError: as in `compare`.
    """
    first, second = paired_samples(run, other, generated)
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
    table = _with_pairs(first.frame(rows), (run, first), (other, second))
    if not comparable:
        table.attrs |= {"note": f"{run.path} and {other.path} have different token ids: outputs are not compared"}
    return table


def paired_samples(run: Records, other: Records, tokens_of: Callable[[Records], Sample]) -> tuple[Sample, Sample]:
    """For either run, some tokens of the prompts that count in both, in the same order of prompts; see `pairing`."""
    first, second = tokens_of(run), tokens_of(other)
    ids, other_ids = first.prompt_ids(run).tolist(), second.prompt_ids(other).tolist()
    pairs = paired_ids(run, other, ids, other_ids)
    places, other_places = ({name: place for place, name in enumerate(names)} for names in (ids, other_ids))
    return first.in_order([places[name] for name, _ in pairs]), second.in_order([other_places[its] for _, its in pairs])


def _with_pairs(table: pd.DataFrame, *pair: tuple[Records, Sample]) -> pd.DataFrame:
    """The table; its `attrs` count the prompts without a partner and those whose partner has another text."""
    in_all = sum(generated(run).n_prompts for run, _ in pair)
    texts = [list(map(texts_of(run).get, tokens.prompt_ids(run))) for run, tokens in pair]
    table.attrs |= {
        "n_prompts_unpaired": in_all - 2 * table.attrs["n_prompts"],
        "n_prompts_of_other_text": sum(ours != theirs for ours, theirs in zip(*texts, strict=True)),
    }
    return table


def _quantities(run: Records, tokens: Sample) -> list[tuple[str, str, Sums]]:
    """Name, unit, and per-prompt sums and counts of what is compared."""
    walks = steps(run, tokens)
    measures = [
        ("valley_rate", "share", walks.valley),
        ("substitution_rate", "share", walks.substituted),
        ("perturbed_rate", "share", walks.perturbed),
        ("entropy", "nats", walks.entropy),
        ("walk_depth", "layers", walks.depth),
    ]
    lengths = tokens.by_prompt(np.ones(len(tokens.rows)))
    sums = [(name, unit, tokens.sums_and_counts(values)) for name, unit, values in measures]
    return [*sums, ("generated_tokens", "tokens", (lengths, np.ones_like(lengths)))]


def _means(tokens: Sample, unit: str, ours: Sums, theirs: Sums) -> dict[str, float]:
    """Both means and their difference, each with its interval, from the same resamples of prompts."""
    mean, difference = _ESTIMATES[unit == "share"]
    estimates = {name: mean(*sums, tokens.weights) for name, sums in (("run", ours), ("other", theirs))}
    estimates["difference"] = difference(ours, theirs, tokens.weights)
    return {
        name + end: float(value)
        for name, values in estimates.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }


_ESTIMATES = {False: (mean_interval, mean_difference), True: (share_interval, share_difference)}


def _same_vocabulary(run: Records, other: Records) -> bool:
    """Whether every token id whose text both runs hold has the same text in both."""
    common = run.words.index.intersection(other.words.index)
    same_size = run.manifest["model"]["n_vocab"] == other.manifest["model"]["n_vocab"]
    if common.empty:
        return bool(same_size)
    return bool((run.words.loc[common] == other.words.loc[common]).all())


def _outputs(run: Records, tokens: Sample) -> list[np.ndarray[Any, Any]]:
    """The generated token ids of each prompt."""
    emitted = run.positions["next_token_id"].to_numpy(dtype=np.float64)[tokens.rows]
    return [emitted[prompt] for prompt in tokens.prompts]


def _common_prefix(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> int:
    """How many tokens two outputs share at the start."""
    length = min(len(left), len(right))
    apart = np.flatnonzero(left[:length] != right[:length])
    return int(apart[0]) if len(apart) else length
