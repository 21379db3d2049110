"""The sample problems that come with layerlens: 60 short ones, from trivial to hard, with reference answers.

Each line of data/sample.jsonl has an id, a topic, a question, an answer and a `check`: a Python expression that
computes the answer in another way (null where the answer is a known fact). The tests evaluate every check. It may use
`question`, `printed` (what the program quoted in a question prints), `only` (the one element of what it is given) and
some modules of the standard library.
"""

from layerlens.datasets.prompt import Prompt
from layerlens.datasets.source import Card, Row, Source


def to_prompt(row: Row, number: int, seed: int) -> Prompt:
    """The question as it stands, under the id of its line."""
    return Prompt(row["id"], row["question"], row["answer"])


SOURCE = Source(
    card=Card(
        "sample",
        None,
        "short reasoning problems, 60, shipped with layerlens",
        "Apache-2.0",
        gated=False,
    ),
    config=None,
    split=None,
    columns=("id", "question", "answer"),
    to_prompt=to_prompt,
)
