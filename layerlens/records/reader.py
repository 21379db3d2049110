"""An open run directory. Its tables are pandas frames, each of which is read when it is first asked for."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from layerlens.errors import OptionError
from layerlens.paths import expanded
from layerlens.records import store
from layerlens.records.manifest import read_manifest
from layerlens.records.schema import TOKENS, token_columns

_PIECE = 500_000  # tokens, of which 40 layers of a measure are 80 MB


class Records:
    """What one trace recorded. It reads only what is asked for, and only once.

    Attributes:
        path: the run directory.
        manifest: what made the run.
        sums: sums over prompts that several analyses need, by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expanded(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self.sums: dict[str, Any] = {}
        self._layers: dict[str, np.ndarray[Any, Any]] = {}
        self._parts: list[Path] | None = None

    @property
    def n_layers(self) -> int:
        """L, the number of blocks."""
        return int(self.manifest["model"]["n_layers"])

    @property
    def lens(self) -> str:
        """The lens through which layers were read, as an option names it: "logit", "linear:lens.safetensors", ..."""
        lens = self.manifest.get("lens", {"kind": "logit"})
        return str(lens["kind"]) if lens["kind"] == "logit" else f"{lens['kind']}:{lens.get('source')}"

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
        """One row per traced position; columns as declared in `records.TOKENS`, lists of L values among them.

        Look at `Run.by_token` in a notebook, and compute with `layers`.
        """
        frame: pd.DataFrame = store.read_tokens_table(self.path, parts=self._parts).to_pandas()
        return frame

    @cached_property
    def words(self) -> "pd.Series[str]":
        """The text of each token id that occurs in the run, by id; empty for a run that is not complete."""
        frame: pd.DataFrame = store.read_words_table(self.path).to_pandas()
        words: pd.Series[str] = frame.set_index("token_id")["text"]
        return words

    @cached_property
    def _texts(self) -> dict[int, str]:
        return dict(zip(self.words.index.tolist(), self.words.tolist(), strict=True))

    @cached_property
    def positions(self) -> pd.DataFrame:
        """`tokens` without the per-layer columns: quick to read, however many layers there are."""
        names = [column.name for column in TOKENS if not column.per_layer]
        frame: pd.DataFrame = store.read_tokens_table(self.path, names, self._parts).to_pandas()
        return frame

    @cached_property
    def lengths(self) -> dict[str, int]:
        """How many positions each prompt has; only prompts that have any, in the order of `positions`."""
        lengths: Counter[str] = Counter()
        for counted in self._lengths_by_part.values():
            lengths.update(counted)
        return dict(lengths)

    @cached_property
    def n_generated(self) -> int:
        """How many positions were generated."""
        table = store.read_tokens_table(self.path, ["is_generated"], self._parts)
        return int(pc.sum(table.column(0), min_count=0).as_py())

    @cached_property
    def _lengths_by_part(self) -> dict[Path, dict[str, int]]:
        found = {}
        for part in store.token_parts(self.path, self._parts):
            ids = store.read_tokens_table(self.path, ["prompt_id"], [part]).column(0)
            found[part] = {str(one["values"]): int(one["counts"]) for one in ids.value_counts().to_pylist()}
        return found

    def of_prompts(self, prompt_ids: Iterable[str]) -> "Records":
        """The parts of the run in which these prompts lie, with other prompts perhaps; itself, if that is all of it."""
        wanted = set(prompt_ids)
        parts = [part for part, lengths in self._lengths_by_part.items() if not wanted.isdisjoint(lengths)]
        return self if len(parts) == len(self._lengths_by_part) else self._of_parts(parts)

    def has(self, column: str) -> bool:
        """Whether the run has a column of tokens. It lacks the columns of options that were not asked for."""
        return column in {one.name for one in token_columns(self.manifest)}

    def text_of(self, token_ids: Iterable[int]) -> list[str]:
        """The text of each id; "#123" for one whose text the run does not hold."""
        return [str(self._texts.get(int(token_id), f"#{token_id}")) for token_id in token_ids]

    def layers(self, column: str) -> np.ndarray[Any, Any]:
        """A per-layer column as an array [positions, L], or [positions, L, K] where each layer has K tokens.

        Rows are as in `positions`. A value that is absent, such as a part that a block does not have, is NaN, or −1
        among whole numbers.
        """
        if not isinstance(column, str):
            raise OptionError.about("column", column, "is not the name of a column", "ask for one column at a time")
        self.read_layers(column)
        return self._layers[column]

    def pieces(self, most_tokens: int = _PIECE) -> Iterator["Records"]:
        """The run itself, or a long run in pieces of whole prompts with about `most_tokens` tokens each."""
        groups = store.token_groups(self.path, most_tokens) if self._parts is None else [self._parts]
        if len(groups) == 1:
            yield self
            return
        for group in groups:
            yield self._of_parts(group)

    def _of_parts(self, parts: list[Path]) -> "Records":
        piece = Records(self.path)
        piece.prompts, piece._parts = self.prompts, parts
        return piece

    def read_layers(self, *columns: str) -> None:
        """Read several per-layer columns at once, which is faster than one call of `layers` after the other."""
        missing = [column for column in columns if column not in self._layers]
        if missing:
            self._layers |= store.read_layers(self.path, missing, self.n_layers, self._parts)
