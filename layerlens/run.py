"""A run directory, opened: its tables as pandas frames and the analyses of them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layerlens import analysis, records
from layerlens.notebook import Framed, as_html
from layerlens.records import store

_PIECE = 500_000  # tokens, of which 40 layers of a measure are 80 MB

Floats = np.ndarray[Any, np.dtype[np.float32]]


class Run:
    """What one trace recorded. Reads only what is asked for, and only once.

    Attributes:
        path: the run directory.
        manifest: what made the run.
        sums: over prompts, which several analyses need; by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.manifest: dict[str, Any] = records.read_manifest(self.path)
        self.sums: dict[str, Any] = {}
        self._layers: dict[str, np.ndarray[Any, Any]] = {}
        self._parts: list[Path] | None = None

    def __repr__(self) -> str:
        model, dataset = self.manifest["model"], self.manifest["dataset"]
        strategy = " ".join(f"{name} {value}" for name, value in self.manifest["strategy"].items() if name != "name")
        of_all = "" if self.is_complete else f" of {dataset['rows']}"
        lines = [
            f"Run {self.path}",
            f"{model['source']} ({', '.join(str(model[key]) for key in ('family', 'dtype') if key in model)}), "
            f"{self.n_layers} layers",
            f"{len(self.prompts)}{of_all} prompts of {dataset['name']}",
            f"{len(self.positions):,} positions, {int(self.positions['is_generated'].sum()):,} of them generated",
            f"strategy {self.manifest['strategy']['name']}{f' ({strategy})' if strategy else ''}, mode "
            f"{self.manifest['mode']}",
        ]
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        return as_html(repr(self))

    @property
    def n_layers(self) -> int:
        """L, the number of blocks."""
        return int(self.manifest["model"]["n_layers"])

    @property
    def is_complete(self) -> bool:
        """Whether every prompt of the run is there."""
        return self.manifest["totals"] is not None

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """One row per complete prompt; columns as declared in `records.PROMPTS`."""
        frame: pd.DataFrame = store.read_prompts_table(self.path).to_pandas()
        return frame

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per traced position; columns as declared in `records.TOKENS`."""
        frame: pd.DataFrame = store.read_tokens_table(self.path, parts=self._parts).to_pandas()
        return frame

    @cached_property
    def words(self) -> "pd.Series[str]":
        """What each token id that occurs in the run says, by id; empty for a run that is not complete."""
        frame: pd.DataFrame = store.read_words_table(self.path).to_pandas()
        words: pd.Series[str] = frame.set_index("token_id")["text"]
        return words

    @cached_property
    def _texts(self) -> dict[int, str]:
        return dict(zip(self.words.index.tolist(), self.words.tolist(), strict=True))

    @cached_property
    def positions(self) -> pd.DataFrame:
        """`tokens` without the per-layer columns: quick to read, however many layers there are."""
        names = [column.name for column in records.TOKENS if not column.per_layer]
        frame: pd.DataFrame = store.read_tokens_table(self.path, names, self._parts).to_pandas()
        return frame

    def text_of(self, token_ids: Iterable[int]) -> list[str]:
        """The text of each id; "#123" for one whose text the run does not hold."""
        return [str(self._texts.get(int(token_id), f"#{token_id}")) for token_id in token_ids]

    def layers(self, column: str) -> np.ndarray[Any, Any]:
        """A per-layer column as an array [positions, L], rows as in `positions`; NaN where a block has no such part."""
        self.read_layers(column)
        return self._layers[column]

    def pieces(self, most_tokens: int = _PIECE) -> Iterator["Run"]:
        """The run itself or, of a long one, runs of whole prompts, one after the other, of about so many tokens."""
        groups = store.token_groups(self.path, most_tokens) if self._parts is None else [self._parts]
        if len(groups) == 1:
            yield self
            return
        for group in groups:
            piece = Run(self.path)
            piece.prompts, piece._parts = self.prompts, group
            yield piece

    def read_layers(self, *columns: str) -> None:
        """Read several per-layer columns at once, which is quicker than one after the other as `layers` is asked."""
        missing = [column for column in columns if column not in self._layers]
        if missing:
            self._layers |= store.read_layers(self.path, missing, self.n_layers, self._parts)

    def show(self, height: int = 720) -> Framed:
        """The token explorer of `layerlens report`, for the last line of a notebook's cell; height in pixels."""
        from layerlens.report import explorer_html

        return Framed(explorer_html(self), height)

    def by_layer(self) -> pd.DataFrame:
        """One row per layer with the mean of every measure; see `analysis.by_layer`."""
        return analysis.by_layer(self)

    def phases(self, rule: str = "plateau") -> pd.DataFrame:
        """Phases I, II and III by the rule "plateau" or "paper"; see `analysis.phases`."""
        return analysis.phases(self, rule)

    def partition(self) -> pd.DataFrame:
        """Perturbed, unperturbed and all tokens, counted and averaged; see `analysis.partition`."""
        return analysis.partition(self)

    def valleys(self) -> pd.DataFrame:
        """V_onset, V* and the lowest layer of the mean entropy curves; see `analysis.valleys`."""
        return analysis.valleys(self)

    def substitutions(self) -> pd.DataFrame:
        """Generated tokens at which the valley ranks another one first than layer L; see `analysis.substitutions`."""
        return analysis.substitutions(self)

    def replacements(self) -> pd.DataFrame:
        """Tokens whose selected layer ranks another one first than the last layer; see `analysis.replacements`."""
        return analysis.replacements(self)

    def valley_statistics(self) -> pd.DataFrame:
        """What decoding from the valley does to tokens, or would do; see `analysis.valley_statistics`."""
        return analysis.valley_statistics(self)

    def by_entropy_band(self, edges: Sequence[float] = analysis.BANDS) -> pd.DataFrame:
        """Valleys and substitutions by how sure the last layer is; see `analysis.by_entropy_band`."""
        return analysis.by_entropy_band(self, edges)

    def by_relative_position(self, bins: int = 10) -> pd.DataFrame:
        """Valleys and substitutions from the beginning to the end of texts; see `analysis.by_relative_position`."""
        return analysis.by_relative_position(self, bins)

    def walk_depths(self) -> pd.DataFrame:
        """How far walks back from the last layer go; see `analysis.walk_depths`."""
        return analysis.walk_depths(self)

    def agreement(self) -> pd.DataFrame:
        """One row per layer: how often it agrees with the last one about the next token; see `analysis.agreement`."""
        return analysis.agreement(self)

    def earliest_agreement(self) -> pd.DataFrame:
        """The mean earliest layer that has the last layer's first choice; see `analysis.earliest_agreement`."""
        return analysis.earliest_agreement(self)

    def kind_jumps(self) -> pd.DataFrame:
        """Jumps of entropy between layers of different kinds and elsewhere; see `analysis.kind_jumps`."""
        return analysis.kind_jumps(self)

    def substitution_pairs(self, k: int = 20) -> pd.DataFrame:
        """The most frequent pairs of a standard and a confident token; see `analysis.substitution_pairs`."""
        return analysis.substitution_pairs(self, k)

    def substituted_tokens(self, method: str, k: int = 20) -> pd.DataFrame:
        """The most frequent standard ("last") or "confident" tokens; see `analysis.substituted_tokens`."""
        return analysis.substituted_tokens(self, method, k)

    def class_shares(self, whole_words: bool = False, by: str = "class") -> pd.DataFrame:
        """What kinds of words are substituted; see `analysis.class_shares`."""
        return analysis.class_shares(self, whole_words, by)

    def overhead(self) -> pd.DataFrame:
        """What walking back costs beside the forward pass; see `analysis.overhead`."""
        return analysis.overhead(self)

    def compare(self, other: "Run") -> pd.DataFrame:
        """Another run of the same prompts beside this one, paired by prompt; see `analysis.compare`."""
        return analysis.compare(self, other)

    def compare_outputs(self, other: "Run") -> pd.DataFrame:
        """How far the outputs of two runs of the same prompts are the same; see `analysis.compare_outputs`."""
        return analysis.compare_outputs(self, other)


def merge(runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str]) -> Run:
    """One run of the prompts of several, written to `out`; see `records.merge_runs`."""
    return Run(records.merge_runs(runs, out))


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run at `path`, complete or not; RunError where there is none or its format is not this one."""
    return Run(path)
