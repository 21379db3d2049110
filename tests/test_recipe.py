"""The recipe of figures/ against what is committed there: how runs were made, which files come out, what pages say."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import layerlens as ll
from analyses import recipe
from layerlens.models import tiny_model, tiny_tokenizer
from tests.evaluation.made_up import write_ablation
from tests.thorough import thorough

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
MANIFESTS = sorted(FIGURES.rglob("manifest*.json"))


def every_command():
    return [words for folder in recipe.FOLDERS for words in recipe.commands(folder, Path("runs"), Path("figures"))]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(FIGURES)))
def test_every_committed_run_was_made_by_the_command_of_the_recipe(path):
    manifest = json.loads(path.read_text())
    made = manifest["command"]
    assert not [word for word in made if word.startswith(("/", "~"))], "a path of one machine"
    local = next((place for place, word in enumerate(made) if word.endswith("gsm8k/test.jsonl")), None)
    made = made if local is None else made[: local - 1] + made[local + 1 :]
    copied = ["cp", f"{made[made.index('--out') + 1]}/manifest.json", str(path.relative_to(ROOT))]
    earlier = [
        shlex.split(f"layerlens {asked} --out {{runs}}/{name}".format(runs="runs"))
        for name, asked in recipe.EARLIER.items()
    ]
    assert made in [*every_command(), *earlier]
    assert copied in every_command()


def test_every_run_of_the_recipe_is_committed():
    copied = {words[2] for words in every_command() if words[0] == "cp" and words[1].endswith("manifest.json")}
    assert copied == {str(path.relative_to(ROOT)) for path in MANIFESTS}
    assert len(copied) == len(recipe.RUNS)


def test_the_questions_are_those_that_were_asked(tmp_path):
    recipe.write_questions(tmp_path / "qa.jsonl")
    asked = {json.loads(path.read_text())["dataset"]["sha256"] for path in FIGURES.glob("*/answers/*/manifest.json")}
    assert asked == {hashlib.sha256((tmp_path / "qa.jsonl").read_bytes()).hexdigest()}


def test_the_page_of_findings_shows_commands_of_the_recipe():
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n)+", page, re.MULTILINE)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    known = {recipe.shown(words) for words in every_command()}
    assert len(lines) > 15
    for line in lines:
        if not line.startswith("python analyses/recipe.py runs"):
            assert line in known


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a tiny model and ablations, complete, under the names of the recipe."""
    folder = tmp_path_factory.mktemp("recipe") / "runs"
    model = ll.load(tiny_model("llama", num_hidden_layers=12, max_position_embeddings=512), tokenizer=tiny_tokenizer())
    for name, strategy in (("last", ll.Last()), ("valley", ll.Valley(window=6))):
        options = {"max_new_tokens": 12, "batch_size": 4, "progress": False}
        ll.trace(model, ll.dataset("sample", limit=8), out=folder / f"sample-{name}", strategy=strategy, **options)
    answer = [(True, 3, "stop")]
    for temperature in (0.0, *map(float, recipe.TEMPERATURES)):
        name = "ablation-sample" + (f"-T{temperature}" if temperature else "")
        answers = {condition: {"a": answer, "b": answer} for condition in (("last", 0.0), ("valley", 1.0))}
        write_ablation(folder / name, answers, dataset="sample", temperature=temperature)
    return folder


@pytest.mark.parametrize("folder", [pytest.param("smollm2-sample", marks=thorough), "smollm2-sample/ablation"])
def test_the_recipe_makes_the_files_that_are_committed(folder, runs, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    done = subprocess.run(
        [sys.executable, ROOT / "analyses" / "recipe.py", runs, folder, "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before
    others = [other for other in recipe.FOLDERS if other.startswith(f"{folder}/")]
    committed = {path.relative_to(FIGURES) for path in (FIGURES / folder).rglob("*") if path.is_file()}
    committed = {path for path in committed if not any(path.is_relative_to(other) for other in others)}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == committed


def test_every_committed_folder_has_a_recipe():
    folders = {path.parent.relative_to(FIGURES) for path in FIGURES.rglob("*.csv")}
    names = set(recipe.FOLDERS) - {"verdicts"}
    assert {str(folder) for folder in folders if folder.name not in ("last", "valley", "")} == names


def test_a_command_that_fails_ends_the_recipe(tmp_path):
    (tmp_path / "sample-last").mkdir()
    (tmp_path / "sample-last" / "manifest.json").write_text('{"totals": {}}')
    (tmp_path / "sample-valley").mkdir()
    (tmp_path / "sample-valley" / "manifest.json").write_text('{"totals": {}}')
    done = subprocess.run(
        [sys.executable, ROOT / "analyses" / "recipe.py", tmp_path, "smollm2-sample", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "findings.py" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "smollm2-sample" / "figure1.csv").exists()


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        recipe.subprocess, "run", lambda words: asked.append(words) or subprocess.CompletedProcess([], 0)
    )
    words = shlex.split(f"layerlens trace --model m --out {tmp_path}")
    for totals, expected in ((None, [*words[1:], "--resume"]), ({"prompts": 1}, None)):
        (tmp_path / "manifest.json").write_text(json.dumps({"totals": totals}))
        asked.clear()
        recipe.carry_out(words, tmp_path)
        assert [one[3:] for one in asked] == ([] if expected is None else [expected])


def test_a_folder_that_there_is_not_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "analyses" / "recipe.py", tmp_path, "smollm3"], capture_output=True, text=True
    )
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert "'smollm3'" in said
    assert "theory, " in said
