"""What is needed to read a dataset: where it is, which columns it has, and how a row becomes a prompt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from layerlens.datasets.prompt import Prompt

Row = Mapping[str, str]
"""The columns that a source declares. Each is known to be a text."""


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
    """Whether access must be requested on the hub."""


@dataclass(frozen=True)
class Release:
    """Rows of a dataset on the hub."""

    hub_id: str
    config: str | None
    split: str | None
    gated: bool = False
    """Whether access must be requested on the hub."""
    files: tuple[str, ...] = ()
    """Files of JSON lines to read in place of the split, where the release has a script for it."""


@dataclass(frozen=True)
class Source:
    """One dataset that layerlens can read."""

    card: Card
    config: str | None
    split: str | None
    columns: tuple[str, ...]
    """The columns that to_prompt reads; there may be others."""
    to_prompt: Callable[[Row, int, int], Prompt]
    """(row, number of the row from 0, seed) -> prompt; a ValueError says what is wrong with the row's texts."""

    @property
    def release(self) -> Release | None:
        """Its rows on the hub; None for what is shipped with layerlens."""
        hub_id = self.card.hub_id
        return None if hub_id is None else Release(hub_id, self.config, self.split, self.card.gated)
