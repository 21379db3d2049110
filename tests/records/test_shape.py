"""A manifest is checked where it is read: each entry has its type and its range, and the one that has not is named."""

import json
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.records.manifest import read_manifest
from layerlens.records.shape import EVALUATION, RUN, misfit
from tests.refusals import refused

FIGURES = Path(__file__).resolve().parents[2] / "figures"


def committed():
    """Manifests of the runs behind the committed figures, from several versions of layerlens."""
    for path in FIGURES.rglob("manifest*.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "ablation" not in manifest:  # of a version whose directories are not read
            yield path.relative_to(FIGURES), manifest


def test_every_committed_manifest_is_taken():
    found = {}
    for path, manifest in committed():
        found[path] = misfit(manifest, EVALUATION if "evaluation" in manifest else RUN)
    assert len(found) > 30
    assert set(found.values()) == {None}, found


def test_options_of_an_engine_are_a_part_of_the_hardware(run):
    manifest = read_manifest(run)
    manifest["hardware"] |= {"engine_options": {"tensor_parallel_size": 2, "compilation_config": {"mode": 0}}}
    assert misfit(manifest, RUN) is None


@pytest.fixture
def run(tiny_llama, tmp_path):
    ll.trace(tiny_llama, ["a", "b"], out=tmp_path / "run", max_new_tokens=2, kl=True, progress=False)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("model.n_layers", True, "model.n_layers"),
        ("model.n_layers", 4.0, "model.n_layers"),
        ("model.n_layers", 0, "model.n_layers"),
        ("model.n_layers", 10**6, "model.n_layers"),
        ("model.n_vocab", "307", "model.n_vocab"),
        ("model.layer_kinds", ["full", 3], "model.layer_kinds[1]"),
        ("model.multiply_adds", {"forward": 1}, "model.multiply_adds.unembedding"),
        ("batches", {"a": 1}, "batches"),
        ("batches", [["0"], [1]], "batches[1][0]"),
        ("totals", 3, "totals"),
        ("totals", {"prompts": -1}, "totals.prompts"),
        ("totals", {"seconds": float("nan")}, "totals.seconds"),
        ("window", 2**63, "window"),
        ("options.kl", 1, "options.kl"),
        ("strategy.name", None, "strategy.name"),
        ("hardware", {"threads": "many"}, "hardware.threads"),
    ],
)
def test_an_entry_that_is_not_what_it_should_be_is_named(run, path, value, named):
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    *sections, name = path.split(".")
    place = manifest
    for section in sections:
        place = place[section]
    place[name] = value
    file.write_text(json.dumps(manifest))
    with refused(ll.RunError, given=run, problem=f" damaged: {named} is "):
        read_manifest(run)


def test_a_missing_entry_is_named(run):
    file = run / "manifest.json"
    whole = json.loads(file.read_text())
    needed = [name for name in RUN if not name.endswith("?")]
    assert {"model", "dataset", "strategy", "batches", "totals", "window"} <= set(needed)
    for name in needed:
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with refused(ll.RunError, given=run, problem=f" damaged: {name} is missing"):
            read_manifest(run)


def test_json_that_is_nested_too_deep_is_an_error_of_the_file(run):
    (run / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    with refused(ll.RunError, given=run, problem="nested too deep"):
        read_manifest(run)
