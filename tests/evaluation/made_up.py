"""Ablations that no model answered, with known answers; written as `ablate` writes them."""

import random
from pathlib import Path

from layerlens.records import new_manifest
from layerlens.records.evaluation import MEASURES, SCORED, EvaluationWriter, arm_name

Answer = tuple[bool | None, int, str]
"""Whether it is right (None: no score), its tokens, why it ended."""
Answers = dict[tuple[str, float], dict[str, list[Answer]]]
"""Of each arm and p but those that are the last layer, of each item, one answer for every epoch."""


def write_ablation(
    folder: Path,
    answers: Answers,
    *,
    arms: list[tuple[str, float]] | None = None,
    items: list[str] | None = None,
    dataset: str = "gsm8k",
    temperature: float = 0.0,
    finish: bool = True,
    model: str = "made up",
    **parts: object,
) -> Path:
    """The ablation at `folder`; ("last", 0.0) is among the answers.

    Args:
        folder: to write.
        answers: those there are.
        arms: what was asked; by default what was answered.
        items: what was asked; by default what was answered.
        dataset: name of the task.
        temperature: of all answers.
        finish: whether it is complete.
        model: its name.
        parts: what else goes into the manifest.
    """
    asked = dict.fromkeys([*(arms or []), *answers])
    names = {pair: "last" if pair[0] == "last" else arm_name(*pair) for pair in asked}
    options = {name: {"strategy": arm, **({"p": p} if 0 < p < 1 else {})} for (arm, p), name in names.items()}
    items = items or sorted({item for given in answers.values() for item in given})
    task = {"items": items, "items_sha256": "", "best": 1.0, "config": {"temperature": temperature, "max_tokens": 99}}
    manifest = new_manifest(
        seed=0,
        model={"source": model, "n_layers": 4},
        options={"epochs": max(len(given) for of_arm in answers.values() for given in of_arm.values())},
        evaluation={"tasks": {dataset: task}, "arms": options, "asked": [[dataset, name] for name in options]},
        **parts,
    )
    columns: dict[str, list[object]] = {column.name: [] for column in SCORED}
    for pair, name in names.items():
        for item in items:
            given = answers.get(pair, {}).get(item, [])
            for epoch, (is_right, n_tokens, reason) in enumerate(given or [MISSING], start=1):
                row = dict.fromkeys(MEASURES) | {
                    "task": dataset,
                    "item": item,
                    "epoch": epoch,
                    "arm": name,
                    "score": None if is_right is None else float(is_right),
                    "outcome": "missing" if not given else "unscored" if is_right is None else "scored",
                    "stop_reason": reason,
                    "n_prompt_tokens": 10,
                    "n_generated_tokens": n_tokens,
                }
                for column, value in row.items():
                    columns[column].append(value)
    with EvaluationWriter(folder, manifest) as writer:
        writer.finish(columns, {"answers": len(columns["item"])} if finish else None)
    return folder


MISSING: Answer = (None, 0, "")


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


ENDS = ["stop", "max_tokens"]


def like_the_paper() -> dict[tuple[str, float], float]:
    """Shares whose curves have the shape of Figure 3."""
    ends = {"last-1": 0.03, "last-2": 0.02, "last-4": 0.0, "valley": 0.83}
    ends |= {"valley-2": 0.02, "valley-1": 0.08, "valley+1": 0.78, "valley+2": 0.76}
    shares = {("last", 0.0): 0.76}
    for arm, end in ends.items():
        for p in (0.2, 0.4, 0.6, 0.8, 1.0):
            shares[arm, p] = end + (0.76 - end) * (1 - p) ** (1 if end > 0.5 else 3)
    return shares
