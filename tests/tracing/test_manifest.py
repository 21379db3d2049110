"""A manifest is made from what describes a model, in a process that has none."""

import json
import subprocess
import sys
from pathlib import Path

import layerlens as ll
from layerlens.records.manifest import read_manifest
from layerlens.tracing.manifest import described
from tests.conftest import tiny

TEXTS = ["Hello there", "and you"]
# what a generation config would set is given, because reading it takes a model
SETTLED = {"min_new_tokens": 0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "generation_config": False}
OPTIONS = {"window": 4, "max_new_tokens": 3, "batch_size": 1, **SETTLED}
# what an engine does whose model lies in other processes: it has a description, and the prompts' tokens
PROGRAM = """
import json, sys
import layerlens as ll
from transformers import PreTrainedModel
PreTrainedModel.__init__ = None  # none can be made
from layerlens.datasets import from_prompts
from layerlens.decode.prompts import TokenizedPrompt
from layerlens.tracing.manifest import trace_manifest
given = json.loads(sys.stdin.read())
dataset = from_prompts(given["texts"])
batches = [[TokenizedPrompt(**prompt) for prompt in batch] for batch in given["batches"]]
options = ll.TraceOptions(**given["options"]).settled(given["model"]["n_layers"], False)
manifest = trace_manifest(given["model"], given["hardware"], dataset, batches, options, ll.Valley(), None)
print(json.dumps(manifest))
"""


def test_it_is_that_of_the_trace(tmp_path):
    model = tiny("llama")
    strategy = ll.Valley()
    run = ll.trace(model, TEXTS, out=tmp_path / "run", strategy=strategy, progress=False, **OPTIONS)
    traced = read_manifest(Path(run.path))
    prompts = run.prompts.reset_index()
    batches = [
        [{"prompt_id": row.prompt_id, "text": row.prompt, "token_ids": [], "reference": None}]
        for row in prompts.itertuples()
    ]
    given = {
        "texts": TEXTS,
        "options": OPTIONS,
        "batches": batches,
        "model": described(model),
        "hardware": model.hardware(),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    differing = {key for key in traced.keys() | made.keys() if traced.get(key) != made.get(key)}
    assert differing <= {"created", "command", "totals", "options"}
    assert {**made["options"], "generation_config": None} == {**traced["options"], "generation_config": None}
    assert made["model"]["n_layers"] == model.n_layers
