"""The same seed, machine and versions give the same bytes: records, csv, figures, tables and lenses."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from tests.thorough import some


def run(folder, *arguments, hash_seed):
    """A command in a process of its own, whose sets have another order."""
    done = subprocess.run(
        [sys.executable, "-m", "layerlens", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "strategy",
    some(
        [("--strategy", "valley", "--window", "3", "--temperature", "0.8", "--p", "0.5"), ("--strategy", "dola-low")], 1
    ),
    ids=["sampled valley", "dola"],
)
def test_the_same_command_writes_the_same_bytes(tiny_folder, tmp_path, strategy):
    model = tiny_folder("llama")
    found = []
    for number in ("1", "2"):
        folder = tmp_path / number
        folder.mkdir()
        few = ("--limit", "4", "--max-new-tokens", "12", "--batch-size", "2", "--kl", "--seed", "3", "--device", "cpu")
        run(
            folder,
            "trace",
            "--model",
            model,
            "--dataset",
            "sample",
            *few,
            *strategy,
            "--out",
            "run",
            hash_seed=number,
        )
        for command in (
            ("figure", "all", "--run", "run", "--out", "figures"),
            ("table", "all", "--run", "run", "--out", "tables"),
            ("export", "run", "--out", "rows.csv"),
            ("export", "run", "--out", "rows.parquet"),
        ):
            run(folder, *command, hash_seed=number)
        found.append(written(folder))
    first, second = found
    assert first.keys() == second.keys()
    assert any(name.endswith(".pdf") for name in first)
    assert any(name.endswith(".png") for name in first)
    different = [name for name in first if first[name] != second[name]]
    assert different == []


def written(folder):
    """The bytes of every file; of prompts and manifests what is no time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            totals = {key: one for key, one in manifest.pop("totals").items() if not key.endswith("seconds")}
            found[name] = str({key: one for key, one in manifest.items() if key != "created"} | totals)
        elif path.name == "prompts.parquet":
            found[name] = str(pd.read_parquet(path).drop(columns="seconds").to_dict("list"))
        elif path.is_file() and path.name != ".lock":
            found[name] = path.read_bytes()
    return found
