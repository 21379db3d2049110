"""Misspelt names, as a stranger types them: each is answered with the right one, in a moment."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import layerlens as ll
from tests.conftest import tiny
from tests.made_up_run import write_run

SECONDS = 2.0
TRACE = "trace --model smollm2-135m-instruct --dataset sample --out OUT"

COMMANDS = {
    "trase --model smollm2-135m-instruct": "trace",
    "fit-lens linaer --model smollm2-135m-instruct": "linear",
    "trace --model smollm2-135m-instrct --dataset sample --out OUT": "smollm2-135m-instruct",
    "trace --model smollm2-135m-instruct --dataset gsm8 --out OUT": "gsm8k",
    f"{TRACE} --strategy vally": "valley",
    f"{TRACE} --strategy troug-m1": "trough-m1",
    f"{TRACE} --mode repla": "replay",
    f"{TRACE} --positions generate": "generated",
    f"{TRACE} --max-new-token 8": "--max-new-tokens",
    "ablate --model smollm2-135m-instruct --tasks math-500 --out OUT": "math500",
    "table 61 --run OUT": "6.1",
    "figure onest --run OUT --out OUT": "onset",
}

CALLS: dict[str, tuple[Callable[[Path], object], str]] = {
    "named_strategy": (lambda at: ll.named_strategy("valey"), "valley"),
    "an option of a strategy": (lambda at: ll.named_strategy("valley", windows=5), "window"),
    "dataset": (lambda at: ll.dataset("sampel"), "sample"),
    "load": (lambda at: ll.load("gemma3-270"), "gemma3-270m"),
    "backend": (lambda at: ll.load("smollm2-135m-instruct", backend="transformer"), "transformers"),
    "dtype": (lambda at: ll.load("smollm2-135m-instruct", dtype="bfloat"), "bfloat16"),
    "column": (lambda at: ll.open_run(at / "run").layers("entrpy"), "entropy"),
    "figure": (lambda at: ll.plot.draw("setling", ll.open_run(at / "run"), at), "settling"),
    "colour": (lambda at: ll.plot.lens_grid(ll.open_run(at / "run"), colour="probabilty"), "probability"),
    "rule": (lambda at: ll.open_run(at / "run").phases("platau"), "plateau"),
    "kind of words": (lambda at: ll.open_run(at / "run").class_shares(by="frequncy"), "frequency"),
    "trace": (lambda at: ll.trace(tiny("llama"), ["a"], out=at / "out", max_new_token=3), "max_new_tokens"),
    "an argument of trace": (lambda at: ll.trace(tiny("llama"), ["a"], out=at / "out", strategie="valley"), "strategy"),
    "positions": (lambda at: ll.trace(tiny("llama"), ["a"], out=at / "out", positions="al"), "all"),
    "generate": (lambda at: ll.generate(tiny("llama"), "a", temprature=0.5), "temperature"),
    "criterion": (lambda at: ll.Valley(criterion="shanon"), "shannon"),
    "lens": (lambda at: ll.generate(tiny("llama"), "a", lens="linaer:lens.safetensors"), "linear"),
    "lens to fit": (lambda at: ll.fit_lens(tiny("llama"), ["a"], "jacobi", out=at / "lens.pt"), "jacobian"),
    "arm": (lambda at: ll.ablate(tiny("llama"), ["sample"], out=at / "out", arms=["vally-1"]), "valley-1"),
}


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("at")
    write_run(folder / "run", {"a": {"entropy": np.array([[2.0, 1.0, 3.0], [2.0, 1.0, 0.5]])}})
    tiny("llama")
    return folder


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_misspelt_command_is_answered_with_the_right_name(typed, tmp_path, monkeypatch):
    """In a process of its own, whose processor time is counted: seconds on the clock depend on what else runs."""
    words = [str(tmp_path / "out") if word == "OUT" else word for word in shlex.split(typed)]
    program = (
        "import os, sys; from layerlens.cli import run; code = run(sys.argv[1:]); print(sum(os.times()[:2]), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    seconds, code = done.stdout.split()
    said = done.stderr.removeprefix("layerlens: ").rstrip("\n")
    assert code == "2"
    assert "\n" not in said
    meant = said.rpartition("did you mean ")[2].rstrip("?").split(" or ")
    assert COMMANDS[typed] in meant, said
    assert float(seconds) < SECONDS
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", CALLS)
def test_a_misspelt_call_is_answered_with_the_right_name(at, call):
    do, name = CALLS[call]
    began = time.process_time()
    with pytest.raises(ll.LayerlensError) as caught:
        do(at)
    assert time.process_time() - began < SECONDS
    assert name in caught.value.advice.rpartition("did you mean ")[2].rstrip("?").split(" or ")
    assert "--" not in str(caught.value)
    assert not (at / "out").exists()


def test_a_name_of_the_package_or_of_a_run_is_completed_by_python(at):
    program = "import layerlens as ll\nll.datset('sample')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.rstrip().endswith("Did you mean: 'dataset'?")
    program = f"import layerlens as ll\nll.open_run({str(at / 'run')!r}).agrement()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.rstrip().endswith("Did you mean: 'agreement'?")


def test_there_are_ten_of_each():
    assert min(len(COMMANDS), len(CALLS)) >= 10
