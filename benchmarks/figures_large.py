"""Statistics and figures of two runs of 200,000 tokens and 40 layers, with a vocabulary of several languages.

    python benchmarks/figures_large.py FOLDER [--tokens N] [--parts PART ...] [--out FILE]

Writes made-up runs of one model, decoded from the valley and from the last layer, to FOLDER (they stay there and are
used again). Prints what three things cost, each in a process of its own: the statistics of one run, the comparison of
both, and all figures of both. Seconds are processor time, which depends less on other work on the machine than wall
time does. The aims are 10 s for the statistics, and 2 GiB for each of the three.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from arguments import count, out_file, out_folder, run_main

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.made_up_run import hybrid_curves, hybrid_kinds, write_run

N_LAYERS, N_VOCAB, N_WORDS = 40, 248_320, 40_000
SHORTEST, LONGEST = 50, 400  # of the generated texts, in tokens
MOST_DRAWN = 40_000  # tokens, of which every text is a passage
WINDOW = 10
PARTS = ("statistics", "comparison", "figures")

MEASURED = """
import json, sys, time
from layerlens.bench.run_statistics import STATISTICS
from layerlens.bench.memory import MIB, peak_of_process
from layerlens.cli import run
from layerlens.run import open_run

def statistics(valley, last, out):
    opened = open_run(valley)
    for name in STATISTICS:
        getattr(opened, name)()

def comparison(valley, last, out):
    open_run(valley).compare(open_run(last))
    open_run(valley).compare_outputs(open_run(last))

def figures(valley, last, out):
    assert run(["figure", "all", "--run", valley, "--beside", last, "--out", out]) == 0

globals()[sys.argv[1]](*sys.argv[2:])
print(json.dumps({"seconds": time.process_time(), "peak_mib": peak_of_process() / MIB}))
"""


def main() -> None:
    """Write the runs if they are missing; measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=out_folder)
    parser.add_argument("--tokens", type=count, default=200_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=out_file, help="file to write, as JSON")
    options = parser.parse_args()
    runs = [options.folder / name for name in ("valley", "last")]
    for seed, run in enumerate(runs, start=1):
        if not (run / "prompts.parquet").exists():
            large_run(run, run.name, seed, options.tokens)
    report = {part: measured(part, *runs, options.folder / "figures") for part in options.parts}
    for part, cost in report.items():
        print(f"{part:<12}{cost['seconds']:>8.1f} s{cost['peak_mib']:>9,.0f} MiB")
    if options.out is not None:
        options.out.write_text(json.dumps({"tokens": options.tokens, **report}, indent=1) + "\n")


def measured(part: str, *paths: Path) -> dict[str, float]:
    """Seconds of processor time and peak memory of a process."""
    program = [sys.executable, "-c", MEASURED, part, *map(str, paths)]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def vocabulary(random: np.random.Generator) -> list[str]:
    """Token texts like those of a run in several languages: words after a space, parts of words, Chinese, numbers."""
    letters = random.choice(list("etaoinshrdlcumwfgypbvk"), (N_WORDS, 9))
    words = ["".join(row[:length]) for row, length in zip(letters, random.integers(1, 10, N_WORDS), strict=True)]
    chinese = ["".join(map(chr, row)) for row in random.integers(0x4E00, 0x9FA0, (N_WORDS, 2))]
    signs = ["".join(row) for row in random.choice(list(".,;:!?()[]{}*#/\"'$\\\n "), (N_WORDS, 2))]
    forms = ([f" {word}" for word in words], words, chinese, [str(number) for number in range(N_WORDS)], signs)
    return [forms[form][at] for at, form in enumerate(random.choice(5, N_WORDS, p=[0.55, 0.25, 0.1, 0.05, 0.05]))]


def drawn_tokens(random: np.random.Generator, ids: np.ndarray, n_drawn: int) -> dict[str, np.ndarray]:
    """Tokens whose measures vary from token to token and layer to layer, and whose ids follow Zipf's law."""
    curves, shape = hybrid_curves(N_LAYERS), (n_drawn, N_LAYERS)
    perturbed = random.random((n_drawn, 1)) < 0.2
    noise = np.exp(0.2 * random.normal(size=(4, *shape))).astype(np.float32)
    entropy = np.where(perturbed, curves["perturbed"], curves["unperturbed"]).astype(np.float32) * noise[0]
    falls = entropy[:, -2 : -WINDOW - 1 : -1] < entropy[:, :-WINDOW:-1]
    valley = N_LAYERS - np.logical_and.accumulate(falls, axis=1).sum(axis=1)
    tokens = {
        name: curves[name].astype(np.float32) * noise[place]
        for place, name in enumerate(("norm_ratio", "attn_ratio", "mlp_ratio"), start=1)
    }
    tokens["io_cosine"] = np.clip(curves["io_cosine"] - 0.01 * noise[0], -1, 1)
    chances = 1 / np.arange(3, len(ids) + 3)
    top = random.choice(ids, shape, p=chances / chances.sum())
    settled = np.arange(1, N_LAYERS + 1) >= random.integers(N_LAYERS // 2, N_LAYERS - WINDOW, (n_drawn, 1))
    agrees = settled & ~(random.random((n_drawn, 1)) < 0.15)  # the others have a first choice at each layer
    top = np.where(agrees, top[:, -1:], top)
    return tokens | {"entropy": entropy, "top_token_id": top, "valley_layer": valley.astype(np.int16)}


def large_run(folder: Path, strategy: str, seed: int, n_tokens: int) -> None:
    """Texts of different lengths, every one a passage of the same tokens; the vocabulary is that of all seeds."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    ids = np.sort(fixed.choice(N_VOCAB, N_WORDS, replace=False)).astype(np.int32)
    words = dict(zip(ids.tolist(), vocabulary(fixed), strict=True))
    n_drawn = min(MOST_DRAWN, n_tokens + LONGEST)
    tokens = drawn_tokens(random, fixed.permutation(ids), n_drawn)
    spoke = tokens["valley_layer"] if strategy == "valley" else np.full(n_drawn, N_LAYERS, dtype=np.int16)
    emitted = tokens["top_token_id"][np.arange(n_drawn), spoke - 1]
    tokens |= {"selected_layer": spoke, "next_token_id": emitted, "token_id": np.roll(emitted, 1)}
    prompts, left = {}, n_tokens
    while left:
        length = min(left, int(random.integers(SHORTEST, LONGEST + 1)))
        begin = int(random.integers(0, n_drawn - length))
        prompts[f"p{len(prompts):04d}"] = {name: column[begin : begin + length] for name, column in tokens.items()}
        left -= length
    model = {"layer_kinds": hybrid_kinds(N_LAYERS), "n_vocab": N_VOCAB}
    with mock.patch("os.fsync", return_value=None):  # thousands of parts need not outlive a failure of power
        write_run(folder, prompts, **model, window=WINDOW, strategy=strategy, words=words)


if __name__ == "__main__":
    run_main(main)
