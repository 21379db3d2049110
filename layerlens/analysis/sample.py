"""The tokens of a run that analyses count, gathered by prompt. A long run is read piece by piece, so that memory does
not grow with its length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.shares import share_interval
from layerlens.analysis.uncertainty import Floats, mean_interval, ratio, resample
from layerlens.errors import RunError, spelled
from layerlens.records.reader import Records

Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class PerPrompt:
    """The sums from which a mean over some tokens, its interval and its spread are computed, [prompts, ...] each.

    Attributes:
        sums: of the values that are not NaN.
        counts: how many those are.
        squares: sums of their squared distances from the prompt's own mean.
        members: how many tokens of a prompt are considered, NaN or not, [prompts].
        are_flags: whether the mean is a share.
    """

    sums: Floats
    counts: Floats
    squares: Floats
    members: Floats
    are_flags: bool

    @property
    def n_tokens(self) -> int:
        """The number of tokens considered."""
        return int(self.members.sum())

    @property
    def n_prompts(self) -> int:
        """The number of prompts that have one of them."""
        return int((self.members > 0).sum())

    @property
    def spread(self) -> Floats:
        """Standard deviation over tokens of every column, [...]; NaN where there are no tokens."""
        n, means = self.counts.sum(axis=0), ratio(self.sums, self.counts)
        apart = np.where(self.counts > 0, means - ratio(self.sums.sum(axis=0), n), 0)
        return np.sqrt(ratio((self.squares + self.counts * np.square(apart)).sum(axis=0), n))

    @classmethod
    def joined(cls, parts: Sequence["PerPrompt"], order: np.ndarray[Any, Any]) -> "PerPrompt":
        """The same for the prompts of all parts, in a given order."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("sums", "counts", "squares", "members")
        }
        return cls(**arrays, are_flags=parts[0].are_flags)


class Prompts:
    """The prompts that an analysis rests on.

    Attributes:
        n_prompts: how many have tokens and count.
        left_out: how many are left out because a state or readout of theirs was not finite.
    """

    n_prompts: int
    left_out: int

    @cached_property
    def weights(self) -> Floats:
        """The resamples of these prompts, [resamples, prompts]; the same in every analysis of a run."""
        return resample(self.n_prompts)

    def estimate(self, per_prompt: PerPrompt) -> tuple[Floats, Floats, Floats]:
        """Mean, low and high of every column; flags have a share instead of a mean, see `share_interval`."""
        return (share_interval if per_prompt.are_flags else mean_interval)(
            per_prompt.sums, per_prompt.counts, self.weights
        )

    def entries(self, name: str, per_prompt: PerPrompt) -> dict[str, float]:
        """Three entries of a row: the mean under its name, and `_low` and `_high`."""
        return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, self.estimate(per_prompt)), strict=True))

    def frame(self, rows: Any, layers: tuple[str, ...] = ()) -> pd.DataFrame:
        """A table of results that carries in `attrs` how many prompts it rests on and how many were left out.

        Args:
            rows: anything a DataFrame can be made of.
            layers: columns that hold a layer, or NA where there is none.
        """
        table: pd.DataFrame = pd.DataFrame(rows).astype(dict.fromkeys(layers, "Int64"))
        table.attrs = {"n_prompts": self.n_prompts, "n_prompts_left_out": self.left_out}
        return table


@dataclass(frozen=True)
class Gathered(Prompts):
    """Sums over all of a run.

    Attributes:
        n_prompts, left_out: see `Prompts`.
        n_tokens: how many tokens these prompts have.
        by_name: sums by name.
    """

    n_prompts: int
    left_out: int
    n_tokens: int
    by_name: Mapping[str, PerPrompt]

    def __getitem__(self, name: str) -> PerPrompt:
        return self.by_name[name]


@dataclass(frozen=True)
class Sample(Prompts):
    """Tokens ordered by prompt id and position, so that the order in which prompts were run changes nothing.

    Attributes:
        rows: indices into `run.positions` and `run.layers(...)`, [tokens], those of one prompt together.
        starts: where in `rows` each prompt begins, [prompts].
        left_out: how many prompts are left out because a state or readout of theirs was not finite.
    """

    rows: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    left_out: int

    @property
    def n_prompts(self) -> int:  # type: ignore[override]
        """How many prompts have tokens and count."""
        return len(self.starts)

    @cached_property
    def prompts(self) -> list[slice]:
        """Where in `rows` the tokens of each prompt lie."""
        return [slice(*bounds) for bounds in pairwise([*self.starts.tolist(), len(self.rows)])]

    def prompt_ids(self, run: Records) -> np.ndarray[Any, Any]:
        """The id of each prompt, [prompts]; `run` is the run whose tokens these are."""
        ids: np.ndarray[Any, Any] = run.positions["prompt_id"].to_numpy()[self.rows[self.starts]]
        return ids

    def of(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The values of these tokens, [tokens, ...], from those of all positions of the run; no copy if all are."""
        whole = len(self.rows) == len(values) and bool((np.diff(self.rows) == 1).all())
        return values if whole else values[self.rows]

    def by_prompt(self, values: np.ndarray[Any, Any]) -> Floats:
        """Sums over the tokens of each prompt, [prompts, ...], of values in the order of `rows`, [tokens, ...]."""
        return np.stack([values[tokens].sum(axis=0, dtype=np.float64) for tokens in self.prompts])

    def sums_and_counts(self, values: np.ndarray[Any, Any], among: Bools | None = None) -> tuple[Floats, Floats]:
        """Per-prompt sums and counts, [prompts, ...], of the values that are not NaN, among some tokens or all."""
        per_prompt = self.per_prompt(values, among)
        return per_prompt.sums, per_prompt.counts

    def per_prompt(self, values: np.ndarray[Any, Any], among: Bools | None = None) -> PerPrompt:
        """The sums from which a mean of some of the values [tokens, ...] is computed."""
        if values.ndim == 1:
            return self._per_prompt_of_numbers(values, among)
        sums, counts, squares = np.zeros((3, self.n_prompts, *values.shape[1:]))
        members = np.zeros(self.n_prompts)
        are_flags = values.dtype == bool
        for index, tokens in enumerate(self.prompts):  # a prompt at a time stays within a processor's cache
            chosen = values[tokens] if among is None else values[tokens][among[tokens]]
            members[index] = len(chosen)
            if are_flags:
                sums[index] = chosen.sum(axis=0)
                counts[index] = len(chosen)
                continue
            sums[index] = chosen.sum(axis=0, dtype=np.float64)
            counts[index] = len(chosen)
            if np.isnan(sums[index]).any():
                missing = np.isnan(chosen)
                sums[index] = np.where(missing, 0, chosen).sum(axis=0, dtype=np.float64)
                counts[index] -= missing.sum(axis=0)
            if len(chosen):
                mean = ratio(sums[index], counts[index]).astype(chosen.dtype, copy=False)
                squares[index] = np.nan_to_num(np.square(chosen - mean)).sum(axis=0, dtype=np.float64)
        return PerPrompt(sums, counts, squares, members, are_flags)

    def _per_prompt_of_numbers(self, values: np.ndarray[Any, Any], among: Bools | None) -> PerPrompt:
        """The same for values of one number for each token, computed for all prompts at once."""
        among = np.ones(len(values), dtype=bool) if among is None else among
        there = among if values.dtype == bool else among & ~np.isnan(values)
        numbers = np.where(there, values, 0).astype(np.float64)
        sums, counts, members = (
            np.add.reduceat(column, self.starts, dtype=np.float64) for column in (numbers, there, among)
        )
        means = np.repeat(ratio(sums, counts), np.diff(self.starts, append=len(values)))
        squares = np.add.reduceat(np.where(there, np.square(numbers - means), 0), self.starts)
        return PerPrompt(sums, counts, squares, members, values.dtype == bool)

    def mean(self, name: str, values: np.ndarray[Any, Any], among: Bools | None = None) -> dict[str, float]:
        """Three entries of a row: the mean of some of the values [tokens] under its name, and `_low` and `_high`.

        Flags have a share instead of a mean; see `share_interval`.
        """
        return self.entries(name, self.per_prompt(values, among))

    def only(self, among: Bools) -> "Sample":
        """Some of the tokens; prompts that have none of them no longer count."""
        prompt = np.repeat(np.arange(self.n_prompts), [tokens.stop - tokens.start for tokens in self.prompts])[among]
        return Sample(self.rows[among], np.flatnonzero(np.diff(prompt, prepend=-1)), self.left_out)

    def in_order(self, places: Sequence[int]) -> "Sample":
        """Some of the prompts, by their places from 0, one or more, in this order."""
        chosen = [self.rows[self.prompts[place]] for place in places]
        starts = np.cumsum([0, *map(len, chosen[:-1])])
        return Sample(np.concatenate(chosen), starts, self.left_out)

    def n_prompts_with(self, among: Bools) -> int:
        """How many prompts have at least one of these tokens, [tokens]."""
        return int((self.by_prompt(among) > 0).sum())


def sample(run: Records) -> Sample:
    """The tokens of every prompt whose states and readouts were finite; RunError where there are none."""
    prompts = run.prompts
    unusable = set(prompts.loc[prompts["finish_reason"] == "non_finite", "prompt_id"])
    prompt_ids = run.positions["prompt_id"]
    if prompt_ids.empty:
        advice = f"continue it with {spelled('resume', True)}, or trace at least one prompt to its end"
        raise RunError(f"{run.path} holds no complete prompt", advice, given=run.path)
    kept = np.flatnonzero(~prompt_ids.isin(unusable))
    if not len(kept):
        problem = f"every prompt of {run.path} had NaN or infinite states"
        raise RunError(problem, f"trace again with another {spelled('dtype')}", option="dtype", given=run.path)
    codes, _ = pd.factorize(prompt_ids.iloc[kept], sort=True)
    order = np.lexsort((run.positions["position"].to_numpy()[kept], codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return Sample(kept[order], starts, len(unusable))


def generated(run: Records) -> Sample:
    """The tokens of `sample` whose states emitted a token; RunError where there are none."""
    tokens = sample(run)
    emitted = run.positions["is_generated"].to_numpy(dtype=bool)[tokens.rows]
    if not emitted.any():
        advice = f"trace with {spelled('max_new_tokens')} above 0"
        raise RunError(f"{run.path} holds no generated token", advice, given=run.path)
    return tokens.only(emitted)


def groups(run: Records, tokens: Sample) -> dict[str, Bools]:
    """Which tokens are perturbed, which are unperturbed, and all, [tokens] each, in the order of `tokens.rows`."""
    perturbed = run.positions["perturbed"].to_numpy(dtype=bool)[tokens.rows]
    return {"perturbed": perturbed, "unperturbed": ~perturbed, "all": np.ones_like(perturbed)}


def gathered(
    run: Records,
    sums_of: Callable[[Records, Sample], Mapping[str, PerPrompt]],
    tokens_of: Callable[[Records], Sample] = sample,
) -> Gathered:
    """Sums over the tokens of every prompt, in the order of prompt ids; a long run is summed up piece by piece.

    Args:
        run: the run.
        sums_of: maps a piece of the run, which is a run itself, and its tokens to sums by name.
        tokens_of: which tokens count.

    Raises:
        RunError: no token of the run can be counted.
    """
    ids, parts, n_tokens, left_out = [], [], 0, 0
    for piece, tokens in counted_pieces(run, tokens_of):
        ids.append(tokens.prompt_ids(piece))
        parts.append(sums_of(piece, tokens))
        n_tokens, left_out = n_tokens + len(tokens.rows), tokens.left_out
    order = np.argsort(np.concatenate(ids), kind="stable")
    joined = {name: PerPrompt.joined([part[name] for part in parts], order) for name in parts[0]}
    return Gathered(len(order), left_out, n_tokens, joined)


def counted_pieces(run: Records, tokens_of: Callable[[Records], Sample] = sample) -> Iterator[tuple[Records, Sample]]:
    """The pieces of a run that have tokens which count, each with these tokens; a short run is one piece.

    Raises:
        RunError: raised at the end, where no piece has such tokens.
    """
    none: RunError | None = None
    n_found = 0
    for piece in run.pieces():
        try:
            tokens = tokens_of(piece)
        except RunError as error:
            none = error  # of this piece; others may have some
            continue
        n_found += 1
        yield piece, tokens
    if none is not None and not n_found:
        raise none
