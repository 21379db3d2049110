"""Ablations that no model answered, with known answers; written as `ablate` writes them."""

import random
from pathlib import Path

from layerlens.records import new_manifest
from layerlens.records.answers import AnswersWriter, condition_name

Answer = tuple[bool, int, str]
"""Whether it is right, its tokens, how it ended."""
Answers = dict[tuple[str, float], dict[str, list[Answer]]]
"""Of each arm and p but those that are the last layer, of each item, one answer for every repeat."""


def write_ablation(
    folder: Path,
    answers: Answers,
    *,
    arms: list[str] | None = None,
    p: list[float] | None = None,
    items: list[str] | None = None,
    dataset: str = "gsm8k",
    temperature: float = 0.0,
    finish: bool = True,
    model: str = "made up",
    **parts: object,
) -> Path:
    """The ablation at `folder`, all items in one batch; ("last", 0.0) is among the answers.

    What else is given goes into the manifest.
    """
    arms = arms or list(dict.fromkeys(["last", *(arm for arm, _ in answers)]))
    p = p or sorted({0.0, *(value for _, value in answers)})
    items = items or sorted({item for given in answers.values() for item in given})
    manifest = new_manifest(
        seed=0,
        model={"source": model, "n_layers": 4},
        dataset={"name": dataset, "rows": len(items)},
        options={"temperature": temperature, "max_new_tokens": 99},
        ablation={
            "scoring": "last number",
            "arms": arms,
            "p": p,
            "repeats": max(len(given) for condition in answers.values() for given in condition.values()),
            "batches": [items],
        },
        **parts,
    )
    with AnswersWriter(folder, manifest) as writer:
        for (arm, value), given in answers.items():
            name = condition_name(arm, value)
            writer.write(name, 0, columns(given))
            if finish:
                writer.join(name)
        if finish:
            writer.finish({"answers": sum(map(len, answers.values()))})
    return folder


def columns(given: dict[str, list[Answer]]) -> dict[str, list[object]]:
    """The columns of a condition's answers, repeat by repeat of every item."""
    rows = [(item, repeat, *answer) for item, all in given.items() for repeat, answer in enumerate(all)]
    return {
        "prompt_id": [item for item, *_ in rows],
        "repeat": [repeat for _, repeat, *_ in rows],
        "reference": ["5"] * len(rows),
        "output": ["it is 5" if is_correct else "it is 6" for _, _, is_correct, *_ in rows],
        "is_correct": [is_correct for _, _, is_correct, *_ in rows],
        "n_generated_tokens": [n_tokens for *_, n_tokens, _ in rows],
        "finish_reason": [reason for *_, reason in rows],
        "seconds": [0.5] * len(rows),
    }


def drawn(shares: dict[tuple[str, float], float], *, n_items: int = 60, repeats: int = 1, seed: int = 0) -> Answers:
    """Answers that are right with these probabilities; an item that is easy for one condition is so for all."""
    generator = random.Random(seed)
    ease = {f"item-{index:03d}": generator.random() for index in range(n_items)}
    return {
        condition: {
            item: [
                (0.6 * hard + 0.4 * generator.random() < share, generator.randint(3, 99), generator.choice(ENDS))
                for _ in range(repeats if 0 < condition[1] < 1 else 1)
            ]
            for item, hard in ease.items()
        }
        for condition, share in shares.items()
    }


ENDS = ["stop", "length"]


def like_the_paper() -> dict[tuple[str, float], float]:
    """Shares whose curves have the shape of Figure 3."""
    ends = {"last-1": 0.03, "last-2": 0.02, "last-4": 0.0, "valley": 0.83}
    ends |= {"valley-2": 0.02, "valley-1": 0.08, "valley+1": 0.78, "valley+2": 0.76}
    shares = {("last", 0.0): 0.76}
    for arm, end in ends.items():
        for p in (0.2, 0.4, 0.6, 0.8, 1.0):
            shares[arm, p] = end + (0.76 - end) * (1 - p) ** (1 if end > 0.5 else 3)
    return shares
