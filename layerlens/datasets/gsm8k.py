"""GSM8K: school arithmetic in words. The reference is the number that a solution gives after its last `####`."""

from layerlens.datasets.prompt import Prompt
from layerlens.datasets.source import Card, Row, Source


def to_prompt(row: Row, number: int, seed: int) -> Prompt:
    """The question as it stands; its id is the number of its row, because the release has no ids."""
    return Prompt(str(number), row["question"], final_number(row["answer"]))


def final_number(solution: str) -> str:
    """The number after the last `####`, without thousands separators: "... #### 2,125" gives "2125"."""
    _, marker, number = solution.rpartition("####")
    if not marker or not number.strip():
        raise ValueError("its answer does not end with '#### ' and a number")
    return number.strip().replace(",", "")


SOURCE = Source(
    card=Card(
        "gsm8k",
        "openai/gsm8k",
        "school arithmetic in words, 1,319 questions",
        "MIT",
        gated=False,
    ),
    config="main",
    split="test",
    columns=("question", "answer"),
    to_prompt=to_prompt,
)
