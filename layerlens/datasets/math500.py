"""MATH-500: competition mathematics. The reference is the content of the solution's box, as LaTeX."""

from layerlens.datasets.prompt import Prompt
from layerlens.datasets.source import Card, Row, Source


def to_prompt(row: Row, number: int, seed: int) -> Prompt:
    """The problem as it stands, under the id of the release."""
    return Prompt(row["unique_id"], row["problem"], row["answer"])


SOURCE = Source(
    card=Card(
        "math500",
        "HuggingFaceH4/MATH-500",
        "competition mathematics, 500 problems",
        "MIT",
        gated=False,
    ),
    config=None,
    split="test",
    columns=("problem", "answer", "unique_id"),
    to_prompt=to_prompt,
)
