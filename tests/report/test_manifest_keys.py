"""Every key of a manifest that is read from is one that a trace or an evaluation writes."""

import json

import pytest

import layerlens as ll
from layerlens.records import manifest as manifests
from tests.needs_inspect import needs_inspect
from tests.thorough import thorough


def path_of(path, key):
    """The path of a key; one star stands for the names of all tasks, and of all arms."""
    return f"{path}*" if path in ("evaluation.tasks.", "evaluation.arms.") else f"{path}{key}"


class Watched(dict):
    """A mapping that notes which keys were asked for, by their path."""

    def __init__(self, content, asked, path=""):
        self._asked, self._path = asked, path
        super().__init__(
            {
                key: Watched(value, asked, f"{path_of(path, key)}.") if isinstance(value, dict) else value
                for key, value in content.items()
            }
        )

    def __getitem__(self, key):
        self._asked.add(path_of(self._path, key))
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._asked.add(path_of(self._path, key))
        return super().get(key, default)


def written(content, path=""):
    """The path of every key."""
    for key, value in content.items():
        yield path_of(path, key)
        if isinstance(value, dict):
            yield from written(value, f"{path_of(path, key)}.")


@pytest.fixture
def traced(tiny_llama, tmp_path):
    """A run of a shard, another of the rest, and both merged."""
    given = ll.Dataset(
        "gsm8k", "main", "test", None, None, tuple(ll.Prompt(f"q{n}", f"{n}?", str(n)) for n in range(4))
    )
    few = {"max_new_tokens": 12, "batch_size": 2, "progress": False, "kl": True}
    for number in (1, 2):
        ll.trace(tiny_llama, given.shard(number, 2), out=tmp_path / f"{number}", strategy=ll.Valley(window=3), **few)
    ll.merge([tmp_path / "1", tmp_path / "2"], out=tmp_path / "whole")
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """The keys of manifests that are read from now on."""
    found: set[str] = set()
    loads = json.loads

    def watched(text, **options):
        content = loads(text, **options)
        return Watched(content, found) if isinstance(content, dict) and "format" in content else content

    monkeypatch.setattr(manifests.json, "loads", watched)
    return found


def known(folder):
    """Every key of the manifests in a folder."""
    return {key for path in folder.rglob("manifest.json") for key in written(json.loads(path.read_text()))}


@thorough
def test_no_key_is_read_that_no_trace_writes(traced, asked, cli):
    run, out = traced / "whole", traced / "out"
    for command in (
        ("report", run),
        ("figure", "all", "--run", run, "--out", out),
        ("table", "all", "--run", run),
        ("compare", run, run),
        ("export", run, "--out", traced / "rows.csv"),
    ):
        cli(*command)
    opened = ll.open_run(run)
    repr(opened)
    for name in ("by_layer", "phases", "partition", "valleys", "valley_statistics", "overhead"):
        getattr(opened, name)()
    assert {"hardware.processor", "strategy.name", "window", "model.layer_kinds", "dataset.name"} <= asked
    assert {"model.multiply_adds", "dataset.sha256"} <= asked
    assert asked <= known(traced)


@needs_inspect
def test_no_key_is_read_that_no_evaluation_writes(tiny_llama, tmp_path, asked, cli):
    folder = tmp_path / "ablation"
    few = {"arms": ["valley", "valley+1"], "p": [0.5, 1], "limit": 2, "max_new_tokens": 3}
    ll.ablate(tiny_llama, ["sample"], out=folder, trace={}, progress=False, **few)
    asked.clear()
    for command in (
        ("ablate", "--out", folder),
        ("eval", "--out", folder, "--explain", "--power", "5"),
        ("figure", "3", "--evaluation", folder, "--out", tmp_path / "out"),
        ("figure", "explanation", "--evaluation", folder, "--out", tmp_path / "out"),
        *(("table", number, "--evaluation", folder) for number in ("1", "7")),
    ):
        cli(*command)
    assert {"evaluation.arms", "evaluation.asked", "evaluation.tasks.*.items", "lens.kind", "totals"} <= asked
    assert {"evaluation.tasks.*.config.temperature", "evaluation.arms.*.p", "evaluation.arms.*"} <= asked
    assert asked <= known(tmp_path)
