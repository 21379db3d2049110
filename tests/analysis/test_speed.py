"""Runs of 200,000 tokens and 40 layers: how long statistics and figures take, and how much memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.made_up_run import hybrid_curves, hybrid_kinds, write_run

N_TOKENS, N_LAYERS, N_VOCAB, N_WORDS = 200_000, 40, 248_320, 40_000
SHORTEST, LONGEST = 50, 400  # of the generated texts, in tokens
N_DRAWN = 40_000  # tokens, of which every text is a passage
WINDOW = 10

# Not getrusage's peak: a process that another starts takes over the peak of its parent there.
PEAK = """
from pathlib import Path

def peak_gigabytes():
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 2**20
"""

# Seconds of processor time, which other work on the machine stretches less than the clock on the wall, but stretches.
# On two cores that three to four other processes used, 3.8 to 5.5 s until the first table, 10 to 14 s for all (the aim
# on a machine at rest is 10) and 27 to 37 s for all figures were measured.
STATISTICS = (
    PEAK
    + """
import json, sys, time
from layerlens import analysis
from layerlens.run import open_run

began = time.process_time()
run = open_run(sys.argv[1])
layers = run.by_layer()
opened = time.process_time() - began
seconds = {}
for name in (
    "phases", "partition", "valleys", "substitutions", "entropy_curves", "valley_statistics", "by_entropy_band",
    "by_relative_position", "walk_depths", "agreement", "earliest_agreement", "kind_jumps", "substitution_pairs",
    "class_shares",
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
    "gigabytes": peak_gigabytes(),
}))
"""
)

FIGURES = (
    PEAK
    + """
import json, sys, time
from layerlens.cli import run

valley, last, out = sys.argv[1:]
code = run(["figure", "all", "--run", valley, "--beside", last, "--out", out])
print(json.dumps({
    "code": code,
    "all": time.process_time(),
    "gigabytes": peak_gigabytes(),
}))
"""
)


def vocabulary(random):
    """Texts as a run in several languages has them: words behind a space, parts of words, Chinese, numbers, signs."""
    letters = random.choice(list("etaoinshrdlcumwfgypbvk"), (N_WORDS, 9))
    words = ["".join(row[:length]) for row, length in zip(letters, random.integers(1, 10, N_WORDS), strict=True)]
    chinese = ["".join(map(chr, row)) for row in random.integers(0x4E00, 0x9FA0, (N_WORDS, 2))]
    signs = ["".join(row) for row in random.choice(list(".,;:!?()[]{}*#/\"'$\\\n "), (N_WORDS, 2))]
    forms = ([f" {word}" for word in words], words, chinese, [str(number) for number in range(N_WORDS)], signs)
    return [forms[form][at] for at, form in enumerate(random.choice(5, N_WORDS, p=[0.55, 0.25, 0.1, 0.05, 0.05]))]


def drawn_tokens(random, ids):
    """Tokens whose measures vary from token to token and layer to layer, and whose ids follow Zipf's law."""
    curves, shape = hybrid_curves(N_LAYERS), (N_DRAWN, N_LAYERS)
    perturbed = random.random((N_DRAWN, 1)) < 0.2
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
    settled = np.arange(1, N_LAYERS + 1) >= random.integers(N_LAYERS // 2, N_LAYERS - WINDOW, (N_DRAWN, 1))
    agrees = settled & ~(random.random((N_DRAWN, 1)) < 0.15)  # the others have a first choice at each layer
    top = np.where(agrees, top[:, -1:], top)
    return tokens | {"entropy": entropy, "top_token_id": top, "valley_layer": valley.astype(np.int16)}


def large_run(folder: Path, strategy: str, seed: int):
    """Texts of different lengths, every one a passage of the same tokens; the vocabulary is that of all seeds."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    ids = np.sort(fixed.choice(N_VOCAB, N_WORDS, replace=False)).astype(np.int32)
    words = dict(zip(ids.tolist(), vocabulary(fixed), strict=True))
    tokens = drawn_tokens(random, fixed.permutation(ids))
    spoke = tokens["valley_layer"] if strategy == "valley" else np.full(N_DRAWN, N_LAYERS, dtype=np.int16)
    emitted = tokens["top_token_id"][np.arange(N_DRAWN), spoke - 1]
    tokens |= {"selected_layer": spoke, "next_token_id": emitted, "token_id": np.roll(emitted, 1)}
    prompts, left = {}, N_TOKENS
    while left:
        length = min(left, int(random.integers(SHORTEST, LONGEST + 1)))
        begin = int(random.integers(0, N_DRAWN - length))
        prompts[f"p{len(prompts):04d}"] = {name: column[begin : begin + length] for name, column in tokens.items()}
        left -= length
    model = {"layer_kinds": hybrid_kinds(N_LAYERS), "n_vocab": N_VOCAB}
    return write_run(folder, prompts, **model, window=WINDOW, strategy=strategy, words=words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run decoded from the valley, and one of the same prompts from the last layer."""
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)  # thousands of parts need not outlive a failure of power
        return [large_run(folder / name, name, seed) for seed, name in enumerate(("valley", "last"), start=1)]


def measured(program, *arguments):
    """What the program prints in its last line, and the lines before; it runs in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0
    assert all("figure 3 shows an ablation" in line for line in done.stderr.splitlines()), done.stderr
    *before, last = done.stdout.splitlines()
    return json.loads(last), before


@pytest.fixture(scope="module")
def statistics(runs):
    """Tokens, seconds until the first table, of each other, until the last, and peak memory."""
    return measured(STATISTICS, runs[0].path)[0]


def test_opening_a_large_run_and_its_first_table(statistics):
    assert statistics["tokens"] == N_TOKENS
    assert statistics["opened"] < 8, statistics


def test_all_statistics_of_a_large_run(statistics):
    assert statistics["all"] < 16, statistics
    assert statistics["gigabytes"] < 2


def test_all_figures_of_two_large_runs_with_their_texts(runs, tmp_path):
    took, files = measured(FIGURES, *(run.path for run in runs), tmp_path)
    assert took["code"] == 0
    numbers = (1, 2, 4, *range(7, 13))
    assert [Path(file).name for file in files] == [f"figure{n}.{end}" for n in numbers for end in ("png", "pdf", "csv")]
    assert took["all"] < 60, took
    assert took["gigabytes"] < 2
