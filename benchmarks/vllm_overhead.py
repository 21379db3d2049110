"""What decoding from the valley, and tracing, cost inside vLLM, on two cores with SmolLM2 or on a GPU with any model.

    python benchmarks/vllm_overhead.py --model FOLDER [--requests 1 8 32] [--tokens N] [--rounds R] [--window K]
                                       [--dtype float32] [--compiled] [--out FILE]

Engines run in processes of their own and answer in turn, so that one works while the others wait: vLLM without
layerlens (`off`), with the valley as strategy, where requests choose the last layer (`last`) or the valley (`valley`),
and with traces of all layers (`traced`). layerlens' own loop on transformers decodes the same prompts from the valley
(`own loop`).

Each ratio is the median over rounds of the ratio to `off` within a round. `floor` is the ratio that an engine would
have if nothing but the head were added: the time of `off`, and for each token one product of all candidates but the
last with the unembedding, timed alone in the process of `off`. Where candidates are read one after the other, fewer are
read, and there is a floor for these too. Answers of `valley` are compared with those of the own
loop before anything is timed.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results" / "vllm_overhead.json"
WAYS = ("off", "last", "valley", "traced", "own loop")
_PROMPT = 16


def main() -> int:
    """The exit status: 1 where answers differ."""
    arguments = parsed()
    if arguments.process:
        serve(arguments)
        return 0
    processes = {name: Process(name, arguments) for name in ("off", "on", "traced", "own loop")}
    ways = {"off": "off", "last": "on", "valley": "on", "traced": "traced", "own loop": "own loop"}
    try:
        reports = []
        for n in arguments.requests:
            asked = {"prompts": drawn(n), "tokens": arguments.tokens}
            first = {way: processes[ways[way]].ask({"way": way, **asked}) for way in WAYS}  # and warms up
            agree = sum(a == b for a, b in zip(first["valley"]["tokens"], first["own loop"]["tokens"], strict=True))
            if arguments.dtype == "float32" and agree < n:
                print(f"{n - agree} of {n} answers differ from those of layerlens' own loop", file=sys.stderr)
                return 1
            rounds = [
                {way: processes[ways[way]].ask({"way": way, **asked})["seconds"] for way in WAYS}
                for _ in range(arguments.rounds)
            ]
            head = processes["off"].ask({"way": "head", "rows": n * (arguments.window - 1)})["seconds"]
            reports.append(
                report(n, arguments, rounds, head, first["valley"]["projections"]) | {"equal_answers": agree}
            )
            shown(reports[-1])
    finally:
        for process in processes.values():
            process.end()
    import torch

    from layerlens.bench.machine import machine

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    given = {name: getattr(arguments, name) for name in ("dtype", "window", "tokens", "rounds", "compiled")}
    whole = {"machine": machine(torch.device(kind)), "model": Path(arguments.model).name, **given, "cases": reports}
    out = arguments.out or RESULTS
    out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"written  {out}")
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=count, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=count, default=24)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--window", type=count, default=10)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--out", type=out_file)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    return parser.parse_args()


def drawn(n: int) -> list[list[int]]:
    """Prompts of the same length, the same in each run."""
    draw = random.Random(n)
    return [[draw.randrange(300, 20_000) for _ in range(_PROMPT)] for _ in range(n)]


def report(
    n: int, arguments: argparse.Namespace, rounds: list[dict[str, float]], head: float, projections: float
) -> dict[str, Any]:
    """The medians of one number of requests."""
    seconds = {way: statistics.median(one[way] for one in rounds) for way in WAYS}
    heads = arguments.tokens * head / seconds["off"]
    return {
        "requests": n,
        "seconds": seconds,
        "tokens_per_second": {way: n * arguments.tokens / of_way for way, of_way in seconds.items()},
        "ratio_to_off": {way: statistics.median(one[way] / one["off"] for one in rounds) for way in WAYS},
        "head_seconds": head,
        "floor": 1 + heads,
        "floor_of_layers_read": 1 + heads * (projections - 1) / (arguments.window - 1),
        "layers_read": projections,
    }


def shown(one: dict[str, Any]) -> None:
    """Print a case."""
    read, floors = one["layers_read"], (one["floor"], one["floor_of_layers_read"])
    print(f"{one['requests']} requests, {read:.1f} layers read; floors {floors[0]:.2f}, of layers read {floors[1]:.2f}")
    for way in WAYS:
        print(f"  {way:9} {one['tokens_per_second'][way]:8.1f} tokens/s  {one['ratio_to_off'][way]:6.2f}")


class Process:
    """A process that answers requests, one JSON object a line."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        words = [sys.executable, __file__, "--process", name, "--model", arguments.model, "--dtype", arguments.dtype]
        words += ["--window", str(arguments.window), "--requests", *map(str, arguments.requests)]
        words += ["--tokens", str(arguments.tokens), *(["--compiled"] if arguments.compiled else [])]
        settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
        environment = {**settings, **os.environ}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """The answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit("a process has ended; see its messages above")

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.wait()


def serve(arguments: argparse.Namespace) -> None:
    """Answer what comes on standard input."""
    answering = own_loop(arguments) if arguments.process == "own loop" else engine(arguments)
    for line in sys.stdin:
        print(json.dumps(answering(json.loads(line))), flush=True)


def own_loop(arguments: argparse.Namespace) -> Any:
    """layerlens' loop on transformers."""
    import layerlens as ll
    from layerlens.decode.batch import decode_batch
    from layerlens.decode.chooser import Chooser
    from layerlens.decode.options import GenerateOptions

    model = ll.load(arguments.model, dtype=arguments.dtype)

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        n = asked["tokens"]
        options = GenerateOptions(
            max_new_tokens=n, batch_size=len(asked["prompts"]), eos_token_id=-1, generation_config=False
        )
        started = time.perf_counter()
        chooser = Chooser(model, ll.Valley(window=arguments.window), 0)
        found = decode_batch(model, asked["prompts"], chooser, options, 0)
        return {"seconds": time.perf_counter() - started, "tokens": found.outputs}

    return answer


def engine(arguments: argparse.Namespace) -> Any:
    """An engine of vLLM."""
    import torch
    from vllm import LLM, SamplingParams

    ours = {"strategy": "valley", "window": arguments.window}
    options = {"off": {}, "on": {"layerlens": ours}, "traced": {"layerlens": {**ours, "traces": True}}}
    llm = LLM(
        arguments.model,
        additional_config=options[arguments.process],
        dtype=arguments.dtype,
        enforce_eager=not arguments.compiled,
        max_model_len=_PROMPT + arguments.tokens,
        max_num_seqs=max(arguments.requests),
        enable_prefix_caching=False,
    )

    def extra(way: str, row: int) -> dict[str, Any] | None:
        chosen = {"valley": {}, "last": {"strategy": "last"}, "traced": {"strategy": "last", "trace": "generated"}}
        return None if way == "off" else {"layerlens": {"id": str(row), **chosen[way]}}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["way"] == "head":
            return {"seconds": head_seconds(llm, asked["rows"])}
        prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=asked["tokens"],
                ignore_eos=True,
                detokenize=False,
                extra_args=extra(asked["way"], row),
            )
            for row in range(len(prompts))
        ]
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        records = {} if asked["way"] == "off" else llm.collective_rpc("layerlens_take")[0]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        read = [number for record in records.values() for number in record["projections"]]
        tokens = [list(one.outputs[0].token_ids) for one in outputs]
        return {"seconds": seconds, "tokens": tokens, "projections": statistics.mean(read) if read else 1.0}

    return answer


def head_seconds(llm: Any, rows: int) -> float:
    """Median seconds of the model's own logits of so many states."""
    import torch

    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    weight = next(model.parameters())
    states = torch.randn(rows, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        with torch.inference_mode():
            model.compute_logits(states)
        if states.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    run_main(main)
