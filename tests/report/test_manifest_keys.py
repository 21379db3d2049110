"""Every key of a manifest that is read from is one that a trace or an ablation writes."""

import json

import pytest

import layerlens as ll
from layerlens.records import manifest as manifests


class Watched(dict):
    """A mapping that notes which keys were asked for, by their path."""

    def __init__(self, content, asked, path=""):
        self._asked, self._path = asked, path
        super().__init__(
            {
                key: Watched(value, asked, f"{path}{key}.") if isinstance(value, dict) else value
                for key, value in content.items()
            }
        )

    def __getitem__(self, key):
        self._asked.add(f"{self._path}{key}")
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._asked.add(f"{self._path}{key}")
        return super().get(key, default)


def written(content, path=""):
    """The path of every key."""
    for key, value in content.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from written(value, f"{path}{key}.")


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
    ll.ablate(tiny_llama, given, out=tmp_path / "ablation", arms=["valley"], p=[1], max_new_tokens=3, progress=False)
    return tmp_path


def test_no_key_is_read_that_none_writes(traced, monkeypatch, cli):
    asked: set[str] = set()
    loads = json.loads

    def watched(text):
        found = loads(text)
        return Watched(found, asked) if isinstance(found, dict) and "format" in found else found

    known = {key for path in traced.glob("*/manifest.json") for key in written(loads(path.read_text()))}
    monkeypatch.setattr(manifests.json, "loads", watched)
    run, out = traced / "whole", traced / "out"
    for command in (
        ("report", run),
        ("figure", "all", "--run", run, "--out", out, "--ablation", traced / "ablation"),
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
    assert {"ablation.arms", "options.temperature", "model.multiply_adds", "dataset.sha256"} <= asked
    assert asked <= known
