"""Whether the last layer's answers in an evaluation are those of transformers' own greedy generation, token for token.

    python analyses/greedy.py DIR OUT [--limit N]

DIR is a directory of `layerlens eval`; its model is loaded by layerlens, and answers the same conversations with
`model.hf.generate`, in batches and without anything of layerlens' loop. OUT/greedy.csv has a row for each task: items,
those whose tokens are all the same, and for the others the largest distance of the two tokens' logits where they first
differ: a near tie, which rounding decides.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

import layerlens as ll
from layerlens.evaluation.logs import logs_in
from layerlens.models import Model
from layerlens.records.evaluation import read_manifest

BATCH = 16


def main() -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Compare answers of the last layer with transformers' own.")
    parser.add_argument("evaluation", type=Path, help="directory of `layerlens eval`")
    parser.add_argument("out", type=Path, help="folder for greedy.csv")
    parser.add_argument("--limit", type=int, help="only the first N items of each task")
    options = parser.parse_args()
    manifest = read_manifest(options.evaluation)
    model = ll.load(manifest["model"]["source"], dtype=manifest["model"]["dtype"])
    rows = []
    for task, (samples, most) in answers_of_last(options.evaluation, manifest).items():
        chosen = samples[: options.limit]
        gaps = list(differences(model, chosen, most))
        rows.append(
            {"task": task, "items": len(chosen), "same": len(chosen) - len(gaps), "largest_gap": max(gaps, default=0.0)}
        )
        print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out / "greedy.csv", index=False, float_format="%.6g")
    return 0


def answers_of_last(folder: Path, manifest: dict[str, Any]) -> dict[str, tuple[list[Any], int]]:
    """The samples of the arm "last" by task, in the order of the items, and how many tokens an answer can have."""
    found: dict[str, dict[str, Any]] = {}
    for log in logs_in(folder / "logs"):
        said = log.eval.metadata or {}
        if said["arm"] == "last":
            found.setdefault(said["benchmark"], {}).update(
                {str(one.id): one for one in log.samples or [] if not one.error}
            )
    tasks = manifest["evaluation"]["tasks"]
    return {
        task: ([samples[item] for item in tasks[task]["items"] if item in samples], tasks[task]["config"]["max_tokens"])
        for task, samples in found.items()
    }


def differences(model: Model, samples: Sequence[Any], most: int) -> Iterator[float]:
    """For each answer that transformers gives otherwise, the distance of two logits where the answers part."""
    tokenizer, hf = model.tokenizer, cast(Any, model.hf)
    end = tokenizer.eos_token_id
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        chats = [
            [{"role": one.role, "content": one.text} for one in sample.messages if one.role != "assistant"]
            for sample in part
        ]
        is_chat = bool(
            tokenizer.chat_template
        )  # else the text of the one message is continued, after what begins a text
        prompts = [
            str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
            if is_chat
            else tokenizer.decode(tokenizer(chat[0]["content"])["input_ids"])
            for chat in chats
        ]
        read = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.no_grad():
            written = hf.generate(
                **read, max_new_tokens=most, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        for row, sample in enumerate(part):
            ours = list(sample.output.metadata["tokens"][0]["ids"])
            theirs = written[row, read["input_ids"].shape[1] :].tolist()
            theirs = theirs[: theirs.index(end) + 1] if end in theirs else theirs
            if ours != theirs:
                place = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
                yield float("inf") if place is None else gap(model, prompts[row], ours, theirs, place)


def gap(model: Model, prompt: str, ours: Sequence[int], theirs: Sequence[int], place: int) -> float:
    """How far the logits of both tokens are apart, in one pass over the text before them, alone."""
    ids = model.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"][0].tolist()
    with torch.no_grad():
        logits = model.hf(torch.tensor([[*ids, *ours[:place]]])).logits[0, -1].float()
    return abs(float(logits[ours[place]] - logits[theirs[place]]))


if __name__ == "__main__":
    sys.exit(main())
