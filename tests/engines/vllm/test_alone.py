"""Two ranks, and the model runner that vLLM uses on GPUs: in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import layerlens as ll
from tests.engines.vllm.engines import Answers, assert_same, ours, ragged
from tests.engines.vllm.test_traces import assert_traced

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ragged(8)
MIX = (
    ({}, ll.Valley(window=4)),
    ({"strategy": "last"}, ll.Last()),
    ({"window": 2}, ll.Valley(window=2)),
    ({"strategy": "last-1"}, ll.Fixed(1)),
    ({"p": 0.0}, ll.Last()),
    ({"strategy": "dola", "candidates": [1, 2], "per": "row"}, ll.DoLa(candidates=(1, 2), per="row")),
    ({"trace": "all"}, ll.Valley(window=4)),
    ({"trace": "generated"}, ll.Valley(window=4)),
)


@pytest.mark.parametrize(
    ("given", "v2"),
    [
        pytest.param({"tensor_parallel_size": 2, "traces": True}, False, id="two ranks"),
        pytest.param({"traces": True}, True, id="V2"),
        pytest.param({"max_num_batched_tokens": 8, "traces": {"targets": True}}, True, id="V2, prompts in parts"),
        pytest.param({"tensor_parallel_size": 2, "traces": {"targets": True}}, True, id="V2, two ranks"),
    ],
)
def test_tokens_layers_and_entropies_are_those_of_our_own_loop(given, v2, folder_of, tmp_path):
    folder = folder_of("qwen3")
    extras = [extra for extra, _ in MIX]
    out = tmp_path / "answers.json"
    arguments = [str(out), folder, *map(json.dumps, (PROMPTS, extras, given)), *(["--v2"] if v2 else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "WARNING"}
    program = [sys.executable, str(Path(__file__).with_name("alone.py")), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "exchanged between ranks" not in done.stderr, "the vocabulary was not read in parts"
    found = json.loads(out.read_text())
    assert found["v2"] == v2
    assert found["ranks"] == given.get("tensor_parallel_size", 1)
    by_engine = Answers(found["token_ids"], found["records"])
    for row, (_, strategy) in enumerate(MIX):
        assert_same(by_engine, ours(folder, PROMPTS, strategy, 8), [row])
    assert_traced(by_engine, folder, PROMPTS, [6], first=0)
    assert_traced(by_engine, folder, PROMPTS, [7])
