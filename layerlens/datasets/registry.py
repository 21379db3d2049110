"""The table of datasets. A new one is a file with a SOURCE, and a line here."""

from layerlens.datasets import gpqa, gsm8k, math500, sample
from layerlens.datasets.source import Card, Source
from layerlens.errors import PromptError, did_you_mean, spelled

SOURCES: dict[str, Source] = {module.SOURCE.card.name: module.SOURCE for module in (sample, gsm8k, gpqa, math500)}


def names() -> list[Card]:
    """A card for every dataset: name, hub id, one-line description, licence, whether it is gated."""
    return [source.card for source in SOURCES.values()]


def find(name: str) -> Source:
    """The source of that name. If there is none, a PromptError lists the names."""
    if name not in SOURCES:
        raise PromptError(
            f"there is no dataset called {name!r}",
            did_you_mean(
                name,
                SOURCES,
                f"choose one of {', '.join(SOURCES)}, or give texts of your own as {spelled('prompts')}",
            ),
            option="dataset",
            given=name,
        )
    return SOURCES[name]
