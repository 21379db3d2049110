"""What has to be known about a dataset to read it: where it lies, its columns, and how a row becomes a prompt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from layerlens.datasets.prompt import Prompt

Row = Mapping[str, str]
"""The columns that a source declares, every one of them known to be a text."""

Scoring = Literal["last number", "chosen letter", "exact", "number or words"]
"""How an answer is compared with its reference; see `layerlens.evaluation.scoring`."""


@dataclass(frozen=True)
class Card:
    """What a user wants to know about a dataset before choosing it."""

    name: str
    """What it is called on the command line."""
    hub_id: str | None
    """Its id on the hub; None for what is shipped with layerlens."""
    description: str
    """One line."""
    licence: str
    gated: bool
    """Access has to be asked for on the hub."""
    scoring: Scoring | None
    """How answers are scored; None where no rule can."""


@dataclass(frozen=True)
class Source:
    """One dataset that layerlens can read."""

    card: Card
    config: str | None
    split: str | None
    columns: tuple[str, ...]
    """The columns that to_prompt reads; others may be there."""
    to_prompt: Callable[[Row, int, int], Prompt]
    """(row, number of the row from 0, seed) -> prompt; a ValueError says what is wrong with the row's texts."""
