"""How long it takes to start: the import, `--help` of every command, and loading a model.

    python benchmarks/start.py FOLDER [--rounds R] [--out FILE]

Every start is a process of its own. Loading the checkpoint in FOLDER, with its tokenizer, is timed from the first
import on, in turn with transformers alone. Prints medians, with the least and the most.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import typer
from arguments import count, out_file, run_main

from layerlens.bench.machine import machine
from layerlens.bench.timing import in_turns
from layerlens.cli import app

RESULTS = Path(__file__).parent / "results" / "start.json"
LAYERLENS = """
import time; started = time.perf_counter()
import sys, layerlens
layerlens.load(sys.argv[1], device="cpu")
print(time.perf_counter() - started)
"""
TRANSFORMERS = """
import time; started = time.perf_counter()
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
print(time.perf_counter() - started)
"""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a checkpoint in safetensors")
    parser.add_argument("--rounds", type=count, default=5, help="[5]")
    parser.add_argument("--out", type=out_file, default=RESULTS, help=f"[{RESULTS.relative_to(RESULTS.parents[2])}]")
    arguments = parser.parse_args()
    if not (arguments.folder / "config.json").exists():
        parser.error(f"{arguments.folder} holds no checkpoint; give a folder with a config.json")
    python = [sys.executable, "-c"]
    whole = {"import layerlens": [*python, "import layerlens"]}
    for command in ([], *([name] for name in typer.main.get_command(app).commands)):  # type: ignore[attr-defined]
        whole[" ".join(["layerlens", *command, "--help"])] = [sys.executable, "-m", "layerlens", *command, "--help"]
    loading = {
        "load by layerlens": [*python, LAYERLENS, str(arguments.folder)],
        "load by transformers": [*python, TRANSFORMERS, str(arguments.folder)],
    }
    ways = {name: partial(seconds_of_process, command) for name, command in whole.items()}
    ways |= {name: partial(seconds_said, command) for name, command in loading.items()}
    rounds = list(in_turns(ways, arguments.rounds, lambda way: way()))
    seconds = {name: [one[name] for one in rounds] for name in ways}
    report = {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "least_and_most": {name: [min(values), max(values)] for name, values in seconds.items()},
        "rounds": arguments.rounds,
        "machine": machine(torch.device("cpu")),
    }
    for name, (least, most) in report["least_and_most"].items():
        print(f"{name:<28} {report['seconds'][name]:.2f} s [{least:.2f}, {most:.2f}]")
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def seconds_of_process(command: list[str]) -> float:
    """From its start to its end."""
    started = time.perf_counter()
    done(command)
    return time.perf_counter() - started


def seconds_said(command: list[str]) -> float:
    """What it prints in its last line."""
    return float(done(command).splitlines()[-1])


def done(command: list[str]) -> str:
    """What it prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


if __name__ == "__main__":
    run_main(main)
