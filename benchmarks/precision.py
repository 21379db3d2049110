"""How far entropies are off with products in reduced precision: what each rounding costs, and what mends it.

States of every layer of a model, from several texts; entropies against those of products in float32.

    python benchmarks/precision.py [--model gemma3-270m]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from arguments import count, out_file, run_main

import layerlens as ll
from layerlens.bench.machine import machine
from layerlens.lens import coarse
from layerlens.models import Model, Unembed
from layerlens.models.hooks import watch_blocks

RESULTS = Path(__file__).parent / "results"
TEXTS = {
    "problems": " ".join(str(prompt.content) for prompt in ll.dataset("sample").prompts[:6]),
    "code": Path(coarse.__file__).read_text(encoding="utf-8"),
    "this page": str(__doc__) * 4,
    "a word over and over": "again " * 300,
    "German and Chinese": "Der Ball ist rund und das Spiel dauert neunzig Minuten. 北京是中国的首都。" * 15,
    "numbers": " ".join(str(number * 37 % 1000) for number in range(200)),
}
CHUNK = 200
Entropies = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    arguments = _parse()
    torch.set_grad_enabled(False)
    model = ll.load(arguments.model, dtype="float32", device="cpu")
    states, layer, text = sample(model, arguments.states)
    fine = by_rows(rounded()(model.unembed), states)
    report: dict[str, Any] = {"model": model.source, "states": len(states), "machine": machine(model.device)}
    print(f"{model.source}: {len(states):,} states of {model.n_layers} layers and {len(TEXTS)} texts")
    print(f"{'':44}{'mean':>9}{'99 %':>9}{'most':>9}{'worst text':>12}{'last layer':>12}   (of 99 %, nats)")
    for name, way in WAYS.items():
        miss = (by_rows(way(model.unembed), states) - fine).abs()
        of_texts = [high(miss[text == number]) for number in range(len(TEXTS))]
        found = [float(miss.mean()), high(miss), float(miss.max()), max(of_texts), high(miss[layer == model.n_layers])]
        report[name] = dict(zip(("mean", "p99", "most", "worst_text_p99", "last_layer_p99"), found, strict=True))
        print(
            f"{name:44}" + "".join(f"{value:{width}.4f}" for value, width in zip(found, (9, 9, 9, 12, 12), strict=True))
        )
    arguments.out = arguments.out or RESULTS / f"precision_{Path(arguments.model).name}.json"
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def sample(model: Model, n_states: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some of the states that leave the blocks: [states, d], with the layer and the text of each."""
    found, layers, texts = [], [], []
    for number, text in enumerate(TEXTS.values()):
        ids = model.tokenizer(text, return_tensors="pt").input_ids[:, :400]
        for layer, states in enumerate(_left(model, ids), start=1):
            found.append(states)
            layers += [layer] * len(states)
            texts += [number] * len(states)
    chosen = torch.randperm(len(layers), generator=torch.Generator().manual_seed(0))[:n_states]
    return torch.cat(found)[chosen], torch.tensor(layers)[chosen], torch.tensor(texts)[chosen]


def _left(model: Model, ids: torch.Tensor) -> list[torch.Tensor]:
    left: dict[int, torch.Tensor] = {}

    def keep(layer: int, _before: Any, after: Any, *_: Any) -> None:
        left[layer] = after[0]

    with watch_blocks(model.blocks, model.sublayers, keep):
        model.decoder(input_ids=ids, use_cache=False)
    return [left[layer] for layer in sorted(left)]


def by_rows(entropies: Entropies, states: torch.Tensor) -> torch.Tensor:
    """A few states at a time."""
    return torch.cat([entropies(rows) for rows in states.split(CHUNK)])


def high(misses: torch.Tensor) -> float:
    """The value that 99 of 100 do not exceed."""
    return float(misses.quantile(0.99))


def rounded(*, state: bool = False, weight: bool = False, logits: bool = False) -> Callable[[Unembed], Entropies]:
    """Products in float32 of inputs that were rounded to bfloat16, or products that are rounded themselves."""

    def way(unembed: Unembed) -> Entropies:
        words = _rounded(unembed.weight.float(), weight)

        def entropies(states: torch.Tensor) -> torch.Tensor:
            normed = _rounded(unembed.operand(unembed.normed(states)), state)
            found = unembed.finished(_rounded(normed @ words.t(), logits), slice(None)).double()
            log_probs = found.log_softmax(1)
            return -(log_probs.exp() * log_probs).sum(1)

        return entropies

    return way


def _rounded(values: torch.Tensor, really: bool) -> torch.Tensor:
    return values.bfloat16().float() if really else values


def coarse_head(n_exact: int, *, centred: bool = True, line: bool = True) -> Callable[[Unembed], Entropies]:
    """layerlens' own head in bfloat16, whole or without some of its corrections."""
    whole = coarse.CoarseHead._line

    def less(head: coarse.CoarseHead, normed: torch.Tensor) -> Any:
        found = whole(head, normed)
        center = found.center if centred else torch.zeros_like(found.center)
        return found._replace(center=center, gain=torch.ones_like(found.gain), base=center.float())

    def way(unembed: Unembed) -> Entropies:
        head = coarse.CoarseHead(unembed)

        def entropies(states: torch.Tensor) -> torch.Tensor:
            with (
                mock.patch.object(coarse, "_EXACT", n_exact),
                mock.patch.object(coarse.CoarseHead, "_line", whole if line else less),
            ):
                return head.read(states).entropy

        return entropies

    return way


WAYS = {
    "state in bfloat16": rounded(state=True),
    "unembedding in bfloat16": rounded(weight=True),
    "logits in bfloat16": rounded(logits=True),
    "all three": rounded(state=True, weight=True, logits=True),
    "and 8 words exact": coarse_head(8, centred=False, line=False),
    "and centred": coarse_head(8, line=False),
    "and the state's rounding taken off: shipped": coarse_head(8),
    "shipped, with 4 words exact": coarse_head(4),
    "shipped, with 16 words exact": coarse_head(16),
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--states", type=count, default=2000, help="at least 500 [2000]")
    parser.add_argument("--out", type=out_file, help="[benchmarks/results/precision_MODEL.json]")
    arguments = parser.parse_args()
    if arguments.states < 500:
        parser.error(f"--states {arguments.states} leaves texts or layers without any; give at least 500")
    return arguments


if __name__ == "__main__":
    run_main(main)
