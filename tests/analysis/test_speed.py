"""A run of 200,000 tokens and 40 layers: how long its statistics take, and how much memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.made_up_run import hybrid_curves, hybrid_kinds, write_run

N_PROMPTS, N_TOKENS, N_LAYERS = 200, 1000, 40
WINDOW = 10

# Seconds of processor time, which other work on the machine stretches less than the clock on the wall. On two cores
# that two to eight other processes used, 2.3 to 4.3 s until the first table and 6.2 to 8.6 s for all were measured.
MEASURE = """
import json, resource, sys, time
from layerlens import analysis
from layerlens.run import open_run

began = time.process_time()
run = open_run(sys.argv[1])
layers = run.by_layer()
opened = time.process_time() - began
seconds = {}
for name in (
    "phases", "partition", "valleys", "substitutions", "entropy_curves", "valley_statistics", "by_entropy_band",
    "by_relative_position", "walk_depths", "agreement", "earliest_agreement", "kind_jumps",
):
    started = time.process_time()
    getattr(analysis, name)(run)
    seconds[name] = time.process_time() - started
for name in ("compare", "compare_outputs"):
    started = time.process_time()
    getattr(analysis, name)(run, run)
    seconds[name] = time.process_time() - started
print(json.dumps({
    "tokens": int(layers["n_tokens"].iloc[0]),
    "opened": opened,
    "each": seconds,
    "all": time.process_time() - began,
    "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def large_run(folder: Path):
    """Tokens of ten kinds of prompts, over and over; every measure varies from token to token and layer to layer."""
    random = np.random.default_rng(0)
    curves, shape = hybrid_curves(N_LAYERS), (N_TOKENS, N_LAYERS)
    kinds = []
    for _ in range(10):
        perturbed = random.random((N_TOKENS, 1)) < 0.2
        noise = np.exp(0.2 * random.normal(size=(4, *shape))).astype(np.float32)
        entropy = np.where(perturbed, curves["perturbed"], curves["unperturbed"]).astype(np.float32) * noise[0]
        falls = entropy[:, -2 : -WINDOW - 1 : -1] < entropy[:, :-WINDOW:-1]
        depth = np.logical_and.accumulate(falls, axis=1).sum(axis=1)
        measures = {
            name: curves[name].astype(np.float32) * noise[place]
            for place, name in enumerate(("norm_ratio", "attn_ratio", "mlp_ratio"), start=1)
        }
        measures["io_cosine"] = np.clip(curves["io_cosine"] - 0.01 * noise[0], -1, 1)
        tokens = {"top_token_id": random.integers(0, 5000, shape).astype(np.int32)}
        kinds.append(measures | tokens | {"entropy": entropy, "valley_layer": (N_LAYERS - depth).astype(np.int16)})
    prompts = {f"p{number:03d}": kinds[number % 10] for number in range(N_PROMPTS)}
    return write_run(folder, prompts, layer_kinds=hybrid_kinds(N_LAYERS), n_vocab=248320, window=WINDOW)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Tokens, seconds until the first table, of each other, until the last, and peak memory; in its own process."""
    run = large_run(tmp_path_factory.mktemp("large") / "run")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(run.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_opening_a_large_run_and_its_first_table(measured):
    assert measured["tokens"] == N_PROMPTS * N_TOKENS
    assert measured["opened"] < 5, measured


def test_all_statistics_of_a_large_run(measured):
    assert measured["all"] < 12, measured
    assert measured["gigabytes"] < 2
