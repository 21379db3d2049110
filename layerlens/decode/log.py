"""What a strategy decided at every step, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerlens.decode.strategies import Choice

_NONE = -1
_NUMBERS = ("last_token_id", "selected_layer", "valley_layer", "projections")
_FINITE = len(_NUMBERS)
COLUMNS = ("call", "row", "position", "next_token_id", *_NUMBERS)
"""The columns of the log, beside the column of the criterion's values."""


@dataclass(frozen=True)
class Decisions:
    """The decisions about the rows of one pass, or about the tokens of one text.

    Attributes:
        numbers: last layer's token, selected layer, valley layer (−1 for none), projections made, and 1 where the
            logits that a token is drawn from are finite (see `is_finite`).
        values: the criterion of the layers of the window, L last; NaN where a layer was not read.
    """

    numbers: Int[Tensor, "rows 5"]
    values: Float[Tensor, "rows window"]

    @property
    def selected_layer(self) -> Int[Tensor, " rows"]:
        """The layer whose logits the token was sampled from, 1..L."""
        return self.numbers[:, _NUMBERS.index("selected_layer")]

    @property
    def valley_layer(self) -> Int[Tensor, " rows"]:
        """The layer where the walk ended, 1..L; −1 where there was no walk."""
        return self.numbers[:, _NUMBERS.index("valley_layer")]

    @property
    def projections(self) -> Int[Tensor, " rows"]:
        """How many states went through the unembedding."""
        return self.numbers[:, _NUMBERS.index("projections")]

    @property
    def is_finite(self) -> Bool[Tensor, " rows"]:
        """Whether the greatest of the logits is a number: no token can be drawn where it is NaN or infinite."""
        return self.numbers[:, _FINITE] == 1

    @classmethod
    def of(
        cls, choice: Choice, projections: Int[Tensor, " rows"], greatest: Float[Tensor, " rows"] | None = None
    ) -> "Decisions":
        """The choice of one step, packed so that only two tensors leave the device.

        Args:
            choice: of all rows.
            projections: how many states of each row went through the unembedding.
            greatest: the greatest of the logits of each row that a token is drawn from; None where they are known to be
                finite.
        """
        valley = torch.full_like(choice.selected_layer, _NONE) if choice.valley_layer is None else choice.valley_layer
        finite = torch.ones_like(valley) if greatest is None else greatest.abs() < torch.inf
        numbers = torch.stack([choice.last_token_id, choice.selected_layer, valley, projections, finite], dim=1)
        values = numbers.new_empty(len(numbers), 0, dtype=torch.float32) if choice.values is None else choice.values
        return cls(numbers.int(), values.float())

    @classmethod
    def joined(cls, parts: Sequence["Decisions"]) -> "Decisions":
        """The decisions of all parts, one after the other."""
        return cls(torch.cat([part.numbers for part in parts]), torch.cat([part.values for part in parts]))

    @classmethod
    def of_texts(cls, passes: Sequence["Decisions"], lengths: Sequence[int]) -> list["Decisions"]:
        """The decisions of each row, on the host, from passes over the same rows; each pass emitted one token a row.

        Args:
            passes: in order.
            lengths: how many tokens each row emitted until it ended.
        """
        numbers, values = (
            torch.stack(tensors).cpu() for tensors in zip(*((one.numbers, one.values) for one in passes), strict=True)
        )
        return [cls(numbers[:length, row], values[:length, row]) for row, length in enumerate(lengths)]


class DecodingLog:
    """What a strategy decided at every step of every call.

    Attributes:
        criterion: what the strategy compared, "entropy" (in nats) or the name of another criterion.
    """

    def __init__(self, criterion: str = "entropy") -> None:
        self.criterion = criterion
        self._frames: list[pd.DataFrame] = []
        self._n_calls = 0

    def __len__(self) -> int:
        return sum(map(len, self._frames))

    def __repr__(self) -> str:
        return f"DecodingLog of {len(self):,} tokens in {self._n_calls} calls; see .steps"

    @property
    def steps(self) -> pd.DataFrame:
        """One row per emitted token, row by row of the batch.

        call, row            which call of the model's `generate`, and which row of its batch, from 0
        position             index of the state in the row's own sequence, from 0, padding not counted
        next_token_id        the token that was emitted
        last_token_id        arg-max of the last layer's logits
        selected_layer       1..L, whose logits the sampler got
        valley_layer         1..L, where the walk ended; null where the strategy does not walk
        projections          single states that went through the unembedding for it
        entropy              list: nats of the window's layers, L last, NaN where not read; another criterion's values
                             stand under its own name
        """
        empty = _frame(0, 0, 0, [], None, self.criterion)
        table: pd.DataFrame = pd.concat(self._frames or [empty], ignore_index=True)
        return table

    def add_call(self, emitted: Sequence[Sequence[int]], firsts: Sequence[int], decisions: Sequence[Decisions]) -> None:
        """Add one call of `generate`.

        Args:
            emitted: the tokens of each row until it ended.
            firsts: position of the state that emitted each row's first token.
            decisions: for each row, one decision for each of its tokens.
        """
        for row, (tokens, first, decided) in enumerate(zip(emitted, firsts, decisions, strict=True)):
            self._frames.append(_frame(self._n_calls, row, first, tokens, decided, self.criterion))
        self._n_calls += 1


def _frame(
    call: int, row: int, first: int, tokens: Sequence[int], decisions: Decisions | None, criterion: str
) -> pd.DataFrame:
    n_steps = len(tokens)
    numbers = np.zeros((0, len(_NUMBERS)), dtype=np.int32)
    values: Any = []
    if decisions is not None:
        numbers = decisions.numbers.numpy()
        values = list(decisions.values.numpy())
    columns: dict[str, Any] = {
        "call": np.full(n_steps, call, dtype=np.int32),
        "row": np.full(n_steps, row, dtype=np.int32),
        "position": np.arange(first, first + n_steps, dtype=np.int32),
        "next_token_id": np.array(tokens, dtype=np.int32),
        **{name: numbers[:, index] for index, name in enumerate(_NUMBERS)},
        criterion: values,
    }
    frame: pd.DataFrame = pd.DataFrame(columns)
    frame["valley_layer"] = frame["valley_layer"].astype("Int32").mask(frame["valley_layer"] == _NONE)
    return frame
