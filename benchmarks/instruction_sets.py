"""Both limits on time in each instruction set: of the valley relative to the last layer, and of a trace to its floor.

    python benchmarks/instruction_sets.py [--rounds R] [--inner R] [--sets AVX2 AVX512 ...] [--out FILE]

Environment variables limit oneDNN, MKL and torch to an instruction set, in a process of its own. The processes take
turns, every second time in the opposite order. Within a process, the ways that are compared take turns too, so that a
ratio is of times measured close together. Prints medians with the least and the greatest, the least favourable first.
Writes them with a description of the machine. A process that is limited to AVX2 stands for a processor that has nothing
newer, but only in part: caches and memory are those of this machine, and MKL multiplies differently on processors of
another maker. Run it alone on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results" / "instruction_sets.json"
# what holds oneDNN, MKL and torch's own loops to each, and the processor's flag
SETS = {
    "AVX2": (("AVX2", "AVX2", "avx2"), "avx2"),
    "AVX512": (("AVX512_CORE", "AVX512", "avx512"), "avx512f"),
    "AVX512-BF16": (("AVX512_CORE_BF16", "AVX512", "avx512"), "avx512_bf16"),
}
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
BARS = {"valley_over_last": 1.05, "trace_over_floor": 1.2}


def main() -> None:
    """Measure, print, write."""
    arguments = _parse()
    if arguments.child:
        print(json.dumps(measured(arguments)))
        return
    names = arguments.sets or available()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(in_process(name, arguments))
    report = {
        "model": arguments.model,
        "rounds": arguments.rounds,
        "new_tokens": arguments.new_tokens,
        "trace_tokens": arguments.tokens,
        "bars": BARS,
        "sets": {name: summary(rounds) for name, rounds in found.items()},
        "machine": next(iter(found.values()))[0]["machine"],
    }
    print_table(report)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), help="[default: all that the processor has]")
    parser.add_argument("--rounds", type=count, default=3, help="processes of each set")
    parser.add_argument(
        "--inner", type=count, default=3, help="rounds of traces in each, and a third of those of decoding"
    )
    parser.add_argument("--new-tokens", type=count, default=48)
    parser.add_argument("--tokens", type=count, default=512, help="of the traced text")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=out_file, default=RESULTS)
    return parser.parse_args()


def available() -> list[str]:
    """The instruction sets of this processor, as Linux names them; AVX2 alone where that cannot be told."""
    cpus = Path("/proc/cpuinfo")
    flags = set(cpus.read_text().split()) if cpus.exists() else {"avx2"}
    return [name for name, (_, flag) in SETS.items() if flag in flags]


def in_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurements of a process that is limited to one instruction set."""
    options = {"model": arguments.model, "inner": arguments.inner, "new-tokens": arguments.new_tokens}
    words = [
        word
        for option, value in {**options, "tokens": arguments.tokens}.items()
        for word in (f"--{option}", str(value))
    ]
    held = dict(zip(VARIABLES, SETS[name][0], strict=True))
    command = [sys.executable, __file__, "--child", *words]
    done = subprocess.run(command, env={**os.environ, **held}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the process held to {name} ended with status {done.returncode}; what it said is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measured in this process: the seconds of each way, round by round, and the sets that the libraries report."""
    import torch
    from decode_cpu import make_ways, one_round, token_ids

    import layerlens as ll
    from layerlens.bench.machine import machine
    from layerlens.bench.tracing import measure_trace

    model = ll.load(arguments.model, dtype="float32", device="cpu")
    prompts = token_ids(model, 2, arguments.new_tokens)
    made = make_ways(model, arguments.new_tokens)
    ways = {name: made[name] for name in ("last", "valley, batched")}
    for way in ways.values():
        way(prompts[0])
    rounds = [one_round(ways, prompts, number) for number in range(3 * arguments.inner)]
    trace = measure_trace(model, arguments.tokens, arguments.inner)
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "decode": rounds,
        "trace": trace,
        "machine": machine(model.device),
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios of each round of each process, with the seconds."""
    decode = [one for process in rounds for one in process["decode"]]
    valley = [one["valley, batched"] / one["last"] for one in decode]
    traces = [process["trace"] for process in rounds]
    floors = {by: [trace["over_floor"][by] for trace in traces] for by in ("torch", "ours")}
    return {
        "capability": rounds[0]["capability"],
        "valley_over_last": spread(valley),
        "trace_over_floor": spread(floors["torch"]),
        "trace_over_floor_of_our_products": spread(floors["ours"]),
        "trace_seconds": {
            way: statistics.median(trace["seconds"][way] for trace in traces) for way in traces[0]["seconds"]
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def print_table(report: dict[str, Any]) -> None:
    """One line for each set and bar, the least favourable first."""
    hardware = report["machine"]
    print(
        f"{report['model']}, float32, {hardware['processor']}, {hardware['threads']} threads, torch {hardware['torch']}"
    )
    for bar, most in report["bars"].items():
        print(f"\n{bar.replace('_', ' ')}, at most {most}")
        for name, one in sorted(report["sets"].items(), key=lambda item: -item[1][bar]["median"]):
            value = one[bar]
            verdict = "met" if value["median"] <= most else "missed"
            print(f"  {name:<12} {value['median']:.2f} [{value['least']:.2f}, {value['most']:.2f}]  {verdict}")


if __name__ == "__main__":
    run_main(main)
