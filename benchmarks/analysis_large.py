"""Statistics, figures, tables and the page of a run of 20 million tokens and 40 layers, read piece by piece.

    python benchmarks/analysis_large.py FOLDER [--tokens N] [--out FILE] [--shown FILE]

Writes a made-up run with prompts of 4,096 tokens to FOLDER (20 GB; it stays there and is used again). Prints how long
its statistics take and the peak memory of the process, from `layerlens bench analysis`. With --shown it also draws all
figures, writes all tables, and makes the page, each in a process of its own, and writes their times and peak memories.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from arguments import count, out_file, out_folder, run_main

from layerlens.bench.machine import machine
from layerlens.records import RunWriter, new_manifest

N_LAYERS, N_VOCAB, WINDOW = 40, 248_320, 10
PROMPT, PROMPTS_PER_PART = 4096, 16
FORMS = (" the", "cat", ",", " of", "x1", " valley", "ing")


def main() -> None:
    """Write the run if it is missing, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=out_folder)
    parser.add_argument("--tokens", type=count, default=20_000_000)
    parser.add_argument("--out", type=out_file, help="file to write, as JSON")
    parser.add_argument(
        "--shown", type=out_file, help="file to write, as JSON, with what figures, tables and page need"
    )
    options = parser.parse_args()
    if not (options.folder / "prompts.parquet").exists():
        started = time.perf_counter()
        write(options.folder, options.tokens)
        print(f"written in {time.perf_counter() - started:.0f} s", flush=True)
    command = "from layerlens.cli import main; main()"
    asked = ["bench", "analysis", "--run", str(options.folder), *(["--json", str(options.out)] if options.out else [])]
    subprocess.run([sys.executable, "-c", command, *asked], check=True)
    if options.shown:
        options.shown.write_text(json.dumps(shown(options.folder, options.tokens), indent=1) + "\n")


def shown(folder: Path, n_tokens: int) -> dict[str, object]:
    """Seconds and peak memory of all that is made of a run, each in a process of its own."""
    made = {}
    with tempfile.TemporaryDirectory() as out:
        for name, words in {
            "figures": ("figure", "all", "--run", folder, "--out", f"{out}/figures"),
            "tables": ("table", "all", "--run", folder, "--out", f"{out}/tables"),
            "page": ("report", folder, "--out", f"{out}/report.html"),
        }.items():
            began = time.perf_counter()
            child = subprocess.Popen([sys.executable, "-m", "layerlens", *map(str, words)], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(child.pid, 0)
            assert status == 0, f"{name}: {status}"
            made[name] = {"seconds": round(time.perf_counter() - began, 1), "peak_bytes": used.ru_maxrss * 1024}
            print(f"{name:10}{made[name]['seconds']:8.1f} s {made[name]['peak_bytes'] / 2**30:6.2f} GiB", flush=True)
    return {"machine": machine(torch.device("cpu")), "tokens": n_tokens, "layers": N_LAYERS, "made": made}


def write(folder: Path, n_tokens: int) -> None:
    """A run whose tokens are drawn once for one part, and used again, shifted, for the other parts."""
    random = np.random.default_rng(0)
    rows = PROMPT * PROMPTS_PER_PART
    n_parts = -(-n_tokens // rows)
    names = [[f"p{part:05d}-{place:02d}" for place in range(PROMPTS_PER_PART)] for part in range(n_parts)]
    model = {"source": "made up", "family": "made_up", "n_layers": N_LAYERS, "d_model": 8, "n_vocab": N_VOCAB}
    manifest = new_manifest(
        seed=0,
        model=model | {"layer_kinds": ["full" if layer % 4 == 0 else "linear" for layer in range(1, N_LAYERS + 1)]},
        dataset={"name": "made up", "rows": n_parts * PROMPTS_PER_PART},
        strategy={"name": "last"},
        mode="generate",
        options={"positions": "generated", "kl": False},
        window=WINDOW,
        batches=names,
    )
    columns = drawn(random, rows)
    with mock.patch("os.fsync", return_value=None), RunWriter(folder, manifest) as writer:
        for part, ids in enumerate(names):
            shift = int(random.integers(rows))
            moved = {name: np.roll(values, shift, axis=0) for name, values in columns.items()}
            moved["prompt_id"] = np.repeat(ids, PROMPT)
            moved["position"] = np.tile(np.arange(PROMPT, dtype=np.int32), PROMPTS_PER_PART)
            writer.write(part, moved, prompt_rows(ids))
        words = {number: FORMS[number % len(FORMS)] for number in range(1000)}
        writer.finish({"prompts": n_parts * PROMPTS_PER_PART}, words)


def drawn(random: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Every column but the ids and positions."""
    shape = (rows, N_LAYERS)
    entropy = (8 * np.exp(random.normal(-1, 1, shape))).clip(0, 12).astype(np.float32)
    falls = entropy[:, -2 : -WINDOW - 1 : -1] < entropy[:, :-WINDOW:-1]
    valley = N_LAYERS - np.logical_and.accumulate(falls, axis=1).sum(axis=1)
    ids = random.integers(0, 1000, shape).astype(np.int32)
    ids = np.where(random.random(shape) < 0.7, ids[:, -1:], ids)  # layers agree on most first choices
    ratios = {
        name: random.random(shape, dtype=np.float32) for name in ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio")
    }
    return {
        "token_id": ids[:, 0],
        "next_token_id": ids[:, -1],
        "is_generated": np.ones(rows, dtype=bool),
        "entropy": entropy,
        "top_token_id": ids,
        "valley_layer": valley.astype(np.int16),
        "selected_layer": np.full(rows, N_LAYERS, dtype=np.int16),
        "perturbed": entropy[:, -1] > entropy[:, -2],
        **ratios,
    }


def prompt_rows(ids: list[str]) -> dict[str, list[object]]:
    """One row for each prompt."""
    same = {
        "prompt": "a prompt",
        "reference": None,
        "output": "words",
        "n_prompt_tokens": 1,
        "n_generated_tokens": PROMPT,
        "finish_reason": "length",
        "seconds": 1.0,
    }
    return {"prompt_id": list(ids)} | {name: [value] * len(ids) for name, value in same.items()}


if __name__ == "__main__":
    run_main(main)
