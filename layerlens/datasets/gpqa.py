"""GPQA Diamond: graduate science with four options. The reference is the letter of the correct one."""

import hashlib
from itertools import permutations

from layerlens.datasets.prompt import Prompt
from layerlens.datasets.source import Card, Row, Source

OPTION_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"
ORDERS = tuple(permutations(range(len(LETTERS))))

ENDING = 'Think it through, and end with a line of its own that says "Answer: " and the letter of your choice.'


def to_prompt(row: Row, number: int, seed: int) -> Prompt:
    """The question with its options in the order of this seed and record, and how the answer has to end."""
    order = option_order(row["Record ID"], seed)
    options = [f"({letter}) {row[OPTION_COLUMNS[i]].strip()}" for letter, i in zip(LETTERS, order, strict=True)]
    content = "\n".join([row["Question"].strip(), "", *options, "", ENDING])
    return Prompt(row["Record ID"], content, LETTERS[order.index(0)])


def option_order(record_id: str, seed: int) -> tuple[int, ...]:
    """Which of OPTION_COLUMNS stands at A, B, C, D; each of the 24 orders is about equally likely over records.

    The order is a function of the seed and the record alone. It is drawn from a digest. `random` may shuffle
    differently in another version of Python, and `hash` differs between processes.
    """
    digest = hashlib.sha256(f"{seed}:{record_id}".encode()).digest()
    return ORDERS[int.from_bytes(digest, "big") % len(ORDERS)]


SOURCE = Source(
    card=Card(
        "gpqa",
        "Idavidrein/gpqa",
        "graduate science, 198 questions, four options",
        "CC-BY-4.0",
        gated=True,
    ),
    config="gpqa_diamond",
    split="train",
    columns=("Record ID", "Question", *OPTION_COLUMNS),
    to_prompt=to_prompt,
)
