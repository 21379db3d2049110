"""Ctrl-C during a trace through vLLM, whose engine has a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import layerlens as ll
from tests.interrupted import heed_interrupts

ENGINE = {"enforce_eager": "true", "max_model_len": "64", "max_num_seqs": "2"}
N_PROMPTS = 200


def trace(folder, prompts, out, *more):
    """The command, in a session of its own, as a terminal starts it."""
    words = ["trace", "--model", folder, "--prompts", prompts, "--out", out, "--backend", "vllm", "--dtype", "float32"]
    words += ["--strategy", "valley", "--window", "3", "--max-new-tokens", "40", "--batch-size", "4", *more]
    words += [word for name, value in ENGINE.items() for word in ("--engine-option", f"{name}={value}")]
    environment = dict(os.environ)
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    program = [sys.executable, "-m", "layerlens", *map(str, words)]
    return subprocess.Popen(
        program, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True, preexec_fn=heed_interrupts
    )


def in_session(session):
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has ended
        found += [int(stat.parent.name)] if int(of) == session and state != "Z" else []
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_what_was_complete_is_kept_no_process_is_left_and_the_run_is_resumed(folder_of, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(N_PROMPTS)))
    process = trace(folder_of("llama"), prompts, out)
    deadline = time.monotonic() + 400
    while not list(out.glob("**/*.parquet")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(in_session(process.pid)) > 1, "the engine has a process of its own"
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 130, said[-3000:]
    assert "Traceback" not in said
    # Python's tracker of shared memory can add a line where the engine had no time to give it back
    assert sum(line.startswith("layerlens: interrupted;") for line in said.splitlines()) == 1
    for _ in range(100):
        if not in_session(process.pid):
            break
        time.sleep(0.1)
    assert not in_session(process.pid)
    assert 0 < len(ll.open_run(out).prompts) < N_PROMPTS

    resumed = trace(folder_of("llama"), prompts, out, "--resume")
    said = resumed.communicate(timeout=400)[1]
    assert resumed.returncode == 0, said[-3000:]
    whole = trace(folder_of("llama"), prompts, tmp_path / "whole")
    assert whole.wait(400) == 0
    one, other = (ll.open_run(place) for place in (out, tmp_path / "whole"))
    tokens = [run.positions.sort_values(["prompt_id", "position"])["next_token_id"].tolist() for run in (one, other)]
    assert tokens[0] == tokens[1]
    assert sorted(one.prompts["prompt_id"]) == sorted(other.prompts["prompt_id"])
    order = [run.positions.reset_index(drop=True).sort_values(["prompt_id", "position"]).index for run in (one, other)]
    np.testing.assert_allclose(one.layers("entropy")[order[0]], other.layers("entropy")[order[1]], atol=1e-4)
