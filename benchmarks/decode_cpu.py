"""What the valley strategy costs on a CPU: SmolLM2-135M-Instruct in float32, one prompt at a time.

    python benchmarks/decode_cpu.py [--threads N] [--rounds R] [--prompts P] [--new-tokens N] [--out FILE]

Four ways decode the same prompts in one process: transformers' `generate`, `Last()`, and the valley over 10 layers,
read out in one product or layer by layer. Within a round they take turns prompt by prompt, each time in another order.
Prints the medians over rounds of tokens per second and of each round's ratios, with the least and the greatest. Writes
them with a description of the machine. Run it alone on the machine.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results" / "decode_cpu.json"
WINDOW = 10


def main() -> None:
    """Measure, print, write."""
    arguments = _parse()
    import torch

    torch.set_num_threads(arguments.threads)
    import layerlens as ll
    from layerlens.bench.machine import machine

    model = ll.load(arguments.model, dtype="float32", device="cpu")
    prompts = token_ids(model, arguments.prompts, arguments.new_tokens)
    ways = make_ways(model, arguments.new_tokens)
    made = {name: [way(prompt) for prompt in prompts] for name, way in ways.items()}  # the warm-up
    rounds = [one_round(ways, prompts, number) for number in range(arguments.rounds)]
    report = {
        "model": model.source,
        "dtype": "float32",
        "window": WINDOW,
        "prompts": len(prompts),
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "new_tokens": arguments.new_tokens,
        "rounds": len(rounds),
        "ways": {
            name: _summary(name, rounds, made[name], model.n_layers, len(prompts) * arguments.new_tokens)
            for name in ways
        },
        "machine": machine(model.device),
    }
    print_table(report)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="[default: one a core]")
    parser.add_argument("--rounds", type=count, default=8)
    parser.add_argument("--prompts", type=count, default=4)
    parser.add_argument("--new-tokens", type=count, default=48)
    parser.add_argument("--out", type=out_file, default=RESULTS)
    return parser.parse_args()


def token_ids(model: Any, n_prompts: int, n_new: int) -> list[list[int]]:
    """The first of the shipped problems, as a user would give them."""
    import layerlens as ll
    from layerlens.decode.options import GenerateOptions, settle_chat_template
    from layerlens.decode.prompts import tokenize

    has_template = bool(getattr(model.tokenizer, "chat_template", None))
    options = settle_chat_template(GenerateOptions(max_new_tokens=n_new), has_template)
    prompts = ll.dataset("sample", limit=n_prompts).prompts
    return [list(prompt.token_ids) for prompt in tokenize(model, prompts, options)]


def make_ways(model: Any, n_new: int) -> dict[str, Callable[[list[int]], Any]]:
    """The ways; each decodes one prompt, and returns what was decided if there is something to decide."""
    import layerlens as ll
    from layerlens.bench.decoding import decoding_way, generate_way
    from layerlens.decode.generation_config import with_generation_config
    from layerlens.decode.options import GenerateOptions

    window = min(WINDOW, model.n_layers)
    options = with_generation_config(GenerateOptions(max_new_tokens=n_new, min_new_tokens=n_new), model)

    def loop(strategy: Any) -> Callable[[list[int]], Any]:
        return lambda prompt: decoding_way(model, strategy, [prompt], options)()

    return {
        "generate": lambda prompt: generate_way(model, [prompt], options)(),
        "last": loop(ll.Last()),
        "valley, batched": loop(ll.Valley(window, scan="batched")),
        "valley, lazy": loop(ll.Valley(window, scan="lazy")),
    }


def one_round(ways: dict[str, Callable[[list[int]], Any]], prompts: list[list[int]], number: int) -> dict[str, float]:
    """Seconds of each way over all prompts."""
    seconds = dict.fromkeys(ways, 0.0)
    names = list(ways)
    for index, prompt in enumerate(prompts):
        first = (number + index) % len(names)
        order = names[first:] + names[:first]
        for name in order if number % 2 == 0 else reversed(order):
            started = time.perf_counter()
            ways[name](prompt)
            seconds[name] += time.perf_counter() - started
    return seconds


def _summary(
    name: str, rounds: list[dict[str, float]], made: list[Any], n_layers: int, n_tokens: int
) -> dict[str, Any]:
    from layerlens.bench.decoding import mean_depth

    speeds = [n_tokens / one[name] for one in rounds]
    summary: dict[str, Any] = {"tokens_per_second": statistics.median(speeds)}
    for other in ("generate", "last"):
        ratios = [one[other] / one[name] for one in rounds]
        summary[f"over_{other}"] = statistics.median(ratios)
        summary[f"over_{other}_least_and_most"] = [min(ratios), max(ratios)]
    if made[0] is not None:
        numbers = [decisions.projections.float().mean() for decisions in made]
        summary["projections_per_token"] = float(sum(numbers) / len(numbers))
        depths = [mean_depth(decisions, n_layers) for decisions in made]
        summary["mean_depth"] = None if None in depths else sum(depths) / len(depths)
    return summary


def print_table(report: dict[str, Any]) -> None:
    """One line for each way."""
    hardware = report["machine"]
    print(
        f"{report['model']}, float32, window {WINDOW}, {report['prompts']} prompts x {report['new_tokens']} tokens, "
        f"medians of {report['rounds']} rounds\n{hardware['processor']}, {hardware['threads']} threads, "
        f"torch {hardware['torch']}, transformers {hardware['transformers']}\n"
    )
    print(f"{'':<16} {'tokens/s':>9} {'of generate':>12} {'of last':>24} {'unembeddings':>13} {'mean depth':>11}")
    for name, way in report["ways"].items():
        low, high = way["over_last_least_and_most"]
        of_last = f"{way['over_last']:.3f} [{low:.3f}, {high:.3f}]"
        made, depth = way.get("projections_per_token"), way.get("mean_depth")
        print(
            f"{name:<16} {way['tokens_per_second']:>9.2f} {way['over_generate']:>12.3f} {of_last:>24} "
            f"{'' if made is None else f'{made:.3f}':>13} {'' if depth is None else f'{depth:.3f}':>11}"
        )


if __name__ == "__main__":
    run_main(main)
