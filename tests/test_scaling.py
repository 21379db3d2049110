"""The recipe for Ray Data on the page about many machines runs as it stands."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.thorough import thorough

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(find_spec("ray") is None, reason='ray is not installed: pip install "ray[data]"')
@thorough
def test_the_ray_recipe_gives_the_run_of_the_whole_dataset(tmp_path):
    """With a tiny model in place of the real one, three shards and four tokens."""
    model, tokenizer = tiny_model("llama", max_position_embeddings=512), tiny_tokenizer()
    tokenizer.model_max_length = 512
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for real, small in {
        "smollm2-135m-instruct": str(tmp_path / "model"),
        "max_new_tokens=64": "max_new_tokens=4",
        "N_SHARDS, RUNS = 8": "N_SHARDS, RUNS = 3",
    }.items():
        assert code.count(real) == 1
        code = code.replace(real, small)
    (tmp_path / "recipe.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "recipe.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "60 prompts of sample" in done.stdout
    run = ll.open_run(tmp_path / "runs" / "sample")
    alone = ll.trace(
        ll.load(tmp_path / "model"), ll.dataset("sample"), out=tmp_path / "alone", max_new_tokens=4, progress=False
    )
    assert run.positions.equals(alone.positions)
    assert run.prompts["output"].equals(alone.prompts["output"])
