"""The tokens of a run that analyses count, gathered by prompt."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerlens.analysis.uncertainty import Floats, mean_interval, resample, share_interval
from layerlens.errors import RunError

if TYPE_CHECKING:
    from layerlens.run import Run

Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Sample:
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
    def n_prompts(self) -> int:
        """Prompts that have tokens and count."""
        return len(self.starts)

    @cached_property
    def weights(self) -> Floats:
        """The resamples of these prompts, [resamples, prompts]; the same in every analysis of a run."""
        return resample(self.n_prompts)

    @cached_property
    def prompts(self) -> list[slice]:
        """Where in `rows` the tokens of each prompt lie."""
        return [slice(*bounds) for bounds in pairwise([*self.starts.tolist(), len(self.rows)])]

    def of(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The values of these tokens, [tokens, ...] from those of all positions of the run; no copy if all are."""
        whole = len(self.rows) == len(values) and bool((np.diff(self.rows) == 1).all())
        return values if whole else values[self.rows]

    def by_prompt(self, values: np.ndarray[Any, Any]) -> Floats:
        """Sums over the tokens of each prompt, [prompts, ...], of values in the order of `rows`, [tokens, ...]."""
        return np.stack([values[tokens].sum(axis=0, dtype=np.float64) for tokens in self.prompts])

    def sums_and_counts(self, values: np.ndarray[Any, Any], among: Bools | None = None) -> tuple[Floats, Floats]:
        """Per-prompt sums and counts, [prompts, ...], of the values that are not NaN, among some tokens or all."""
        sums, counts = np.zeros((2, self.n_prompts, *values.shape[1:]))
        for index, tokens in enumerate(self.prompts):  # a prompt at a time stays within a processor's cache
            chosen = values[tokens] if among is None else values[tokens][among[tokens]]
            missing = np.isnan(chosen)
            sums[index] = np.where(missing, 0, chosen).sum(axis=0, dtype=np.float64)
            counts[index] = len(chosen) - missing.sum(axis=0)
        return sums, counts

    def mean(self, name: str, values: np.ndarray[Any, Any], among: Bools | None = None) -> dict[str, float]:
        """Three entries of a row: the mean of some of the values [tokens] under its name, and `_low` and `_high`.

        Flags have a share instead of a mean; see `share_interval`.
        """
        estimated = share_interval if values.dtype == bool else mean_interval
        means = estimated(*self.sums_and_counts(values, among), self.weights)
        return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, means), strict=True))

    def only(self, among: Bools) -> "Sample":
        """Some of the tokens; prompts that have none of them no longer count."""
        prompt = np.repeat(np.arange(self.n_prompts), [tokens.stop - tokens.start for tokens in self.prompts])[among]
        return Sample(self.rows[among], np.flatnonzero(np.diff(prompt, prepend=-1)), self.left_out)

    def n_prompts_with(self, among: Bools) -> int:
        """How many prompts have at least one of these tokens, [tokens]."""
        return int((self.by_prompt(among) > 0).sum())

    def frame(self, rows: Any, layers: tuple[str, ...] = ()) -> pd.DataFrame:
        """A table of results that carries in `attrs` how many prompts it rests on and how many were left out.

        Args:
            rows: anything a DataFrame can be made of.
            layers: columns that hold a layer, or NA where there is none.
        """
        table: pd.DataFrame = pd.DataFrame(rows).astype(dict.fromkeys(layers, "Int64"))
        table.attrs = {"n_prompts": self.n_prompts, "n_prompts_left_out": self.left_out}
        return table


def sample(run: "Run") -> Sample:
    """The tokens of every prompt whose states and readouts were finite; RunError where there are none."""
    prompts = run.prompts
    unusable = set(prompts.loc[prompts["finish_reason"] == "non_finite", "prompt_id"])
    prompt_ids = run.positions["prompt_id"]
    if prompt_ids.empty:
        raise RunError(
            f"{run.path} holds no complete prompt; continue it with --resume, or trace at least one prompt to its end"
        )
    kept = np.flatnonzero(~prompt_ids.isin(unusable))
    if not len(kept):
        raise RunError(f"every prompt of {run.path} had NaN or infinite states; trace again with another --dtype")
    codes, _ = pd.factorize(prompt_ids.iloc[kept], sort=True)
    order = np.lexsort((run.positions["position"].to_numpy()[kept], codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return Sample(kept[order], starts, len(unusable))


def generated(run: "Run") -> Sample:
    """The tokens of `sample` whose states emitted a token; RunError where there are none."""
    tokens = sample(run)
    emitted = run.positions["is_generated"].to_numpy(dtype=bool)[tokens.rows]
    if not emitted.any():
        raise RunError(f"{run.path} holds no generated token: trace with --max-new-tokens above 0")
    return tokens.only(emitted)


def groups(run: "Run", tokens: Sample) -> dict[str, Bools]:
    """Which tokens are perturbed, unperturbed and any of the two, [tokens] each, in the order of `tokens.rows`."""
    perturbed = run.positions["perturbed"].to_numpy(dtype=bool)[tokens.rows]
    return {"perturbed": perturbed, "unperturbed": ~perturbed, "all": np.ones_like(perturbed)}
