"""Manifests in which somebody, or a disk, changed an entry: every command takes them, or says what is wrong."""

import json
import random
import shutil

import pytest

import layerlens as ll
from tests.hard.doors import cases, knock, refused_or_done
from tests.hard.mutated import VALUES, changed, paths, shown

DOORS = (
    ("table", "all", "--run", "RUN"),
    ("report", "RUN", "--out", "OUT/report.html"),
    ("figure", "1", "--run", "RUN", "--out", "OUT/figures"),
    ("figure", "grid", "--run", "RUN", "--out", "OUT/figures"),
    ("export", "RUN", "--out", "OUT/rows.csv"),
    ("merge", "RUN", "OTHER", "--out", "OUT/merged"),
    ("merge", "OTHER", "RUN", "--out", "OUT/merged"),
    ("compare", "RUN", "OTHER", "--out", "OUT/compared"),
    ("compare", "OTHER", "RUN", "--out", "OUT/compared"),
    ("resume", "RUN"),
    ("repr", "RUN"),
)


@pytest.fixture(scope="module")
def traced(tiny_llama, tmp_path_factory):
    """Two runs of different prompts with the same options, and the manifest of the first."""
    folder = tmp_path_factory.mktemp("tampered")
    few = {"max_new_tokens": 4, "strategy": ll.Valley(window=3), "kl": True, "batch_size": 1, "progress": False}
    for name in ("run", "other"):
        ll.trace(tiny_llama, [f"{name} 1", f"{name} 2"], out=folder / name, **few)
    return folder


def opened(run):
    """What a notebook does with a run."""
    found = ll.open_run(run)
    repr(found)
    for name in ("tokens", "prompts", "positions", "words"):
        getattr(found, name)
    for name in ("by_layer", "phases", "partition", "valleys", "valley_statistics", "overhead"):
        getattr(found, name)()


def go(door, traced, tiny_llama):
    """Go through a door with the tampered run."""
    name, *rest = door
    out = traced / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if name == "repr":
        refused_or_done(lambda: opened(traced / "run"))
    elif name == "resume":
        few = {"max_new_tokens": 4, "strategy": ll.Valley(window=3), "kl": True, "batch_size": 1, "progress": False}
        prompts = ["run 1", "run 2"]
        refused_or_done(lambda: ll.trace(tiny_llama, prompts, out=traced / "run", resume=True, **few))
    else:
        places = {"RUN": traced / "run", "OTHER": traced / "other"}
        knock(name, *(places.get(word, word.replace("OUT", str(out))) for word in rest))


def test_every_command_takes_a_tampered_manifest_or_says_what_is_wrong(traced, tiny_llama):
    path = traced / "run" / "manifest.json"
    whole = path.read_bytes()
    manifest = json.loads(whole)
    changes = [(entry, value) for entry in paths(manifest) for value in VALUES]
    chosen = random.Random(0).sample(changes, min(len(changes), cases(80, 2000)))
    try:
        for number, (entry, value) in enumerate(chosen):
            content = json.dumps(changed(manifest, entry, value))
            path.write_bytes(content.encode())
            try:
                go(DOORS[number % len(DOORS)], traced, tiny_llama)
            except Exception as error:
                raise AssertionError(f"{DOORS[number % len(DOORS)]} with {shown(entry, value)}") from error
    finally:
        path.write_bytes(whole)
