"""Shards of a dataset, traced apart and merged, are the run of the whole dataset."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layerlens as ll
from layerlens.errors import OptionError, RunError
from tests.conftest import tiny
from tests.refusals import refused

TEXTS = ["Hello", "What is it?", "x", "one two", "And then", "no", "seven is enough"]
OPTIONS = {
    "max_new_tokens": 5,
    "progress": False,
    "temperature": 0.8,
    "seed": 3,
    "strategy": ll.Valley(window=3, p=0.5),
}


def prompts_of(texts):
    prompts = tuple(ll.Prompt(f"id-{text}", text) for text in texts)
    return ll.Dataset("made up", None, None, None, None, prompts)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The run of all texts, and those of three shards."""
    home = tmp_path_factory.mktemp("shards")
    ll.trace(tiny("llama"), prompts_of(TEXTS), out=home / "whole", **OPTIONS)
    for number in (1, 2, 3):
        ll.trace(tiny("llama"), prompts_of(TEXTS).shard(number, 3), out=home / f"shard{number}", **OPTIONS)
    return home


def names(home, *numbers):
    return [home / f"shard{number}" for number in numbers]


@given(st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None)
def test_every_prompt_is_in_one_shard_in_its_order(n_prompts, of):
    whole = prompts_of([str(n) for n in range(n_prompts)])
    of = min(of, n_prompts)
    parts = [whole.shard(number, of) for number in range(1, of + 1)]
    assert sorted(p.prompt_id for part in parts for p in part) == sorted(p.prompt_id for p in whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for part in parts:
        assert [whole.prompts[part.place_of(index)] for index in range(len(part))] == list(part)


def test_a_folder_of_somebody_else_beside_the_merged_run_is_kept(shards, tmp_path):
    notes = tmp_path / "merged.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with refused(RunError, "out", notes.parent):
        ll.merge(names(shards, 1, 2, 3), out=tmp_path / "merged")
    assert notes.read_text() == "mine"
    notes.unlink()
    (notes.parent / "manifest.json").write_text("what a killed merge left")
    assert ll.merge(names(shards, 1, 2, 3), out=tmp_path / "merged").is_complete


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_merged_shards_are_the_run_of_the_whole_dataset(shards, tmp_path, order):
    """Row for row, although tokens and layers are drawn; in any order of the runs."""
    whole, merged = ll.open_run(shards / "whole"), ll.merge(names(shards, *order), out=tmp_path / "merged")
    drop = "seconds"
    assert merged.prompts.drop(columns=drop).equals(whole.prompts.drop(columns=drop))
    assert merged.positions.equals(whole.positions)
    for name in ("entropy", "norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "top_token_id"):
        np.testing.assert_array_equal(merged.layers(name), whole.layers(name))
    assert merged.words.to_dict() == whole.words.to_dict()
    assert merged.is_complete
    assert merged.by_layer().equals(whole.by_layer())
    there, here = whole.manifest, merged.manifest
    assert here["dataset"] == there["dataset"]
    assert here["batches"] == there["batches"]
    for name in ("prompts", "positions", "generated_tokens", "non_finite_prompts"):
        assert here["totals"][name] == there["totals"][name]
    assert [part["totals"]["prompts"] for part in here["merged_from"]] == [[3, 2, 2][number - 1] for number in order]
    assert not list(tmp_path.glob("*.partial"))


def test_the_draws_of_shards_differ(shards):
    """Otherwise the test above could not tell a shard from another."""
    outputs = [ll.open_run(folder).prompts["output"].tolist() for folder in names(shards, 1, 2, 3)]
    alone = ll.trace(tiny("llama"), prompts_of(TEXTS[1::3]), out=shards / "alone", **OPTIONS)
    assert alone.prompts["output"].tolist() != outputs[1], "seeds that forgot the place in the whole dataset"


def test_runs_that_are_no_shards_follow_one_another(tmp_path):
    for name, texts in (("a", TEXTS[:2]), ("b", TEXTS[2:5])):
        ll.trace(tiny("llama"), prompts_of(texts), out=tmp_path / name, batch_size=2, **OPTIONS)
    merged = ll.merge([tmp_path / "b", tmp_path / "a"], out=tmp_path / "merged")
    assert merged.prompts["prompt"].tolist() == TEXTS[2:5] + TEXTS[:2]
    assert merged.manifest["batches"] == [["id-x", "id-one two"], ["id-And then"], ["id-Hello", "id-What is it?"]]


def test_what_does_not_belong_together_is_refused(shards, tmp_path):
    out = tmp_path / "merged"
    with refused(RunError, "runs", names(shards, 1, 3), problem="shards 2/3"):
        ll.merge(names(shards, 1, 3), out=out)
    with refused(OptionError, "runs", shards / "shard1", problem="twice"):
        ll.merge(names(shards, 1, 1, 3), out=out)
    with refused(OptionError, "runs", names(shards, 1), advice="two"):
        ll.merge(names(shards, 1), out=out)
    shutil.copytree(shards / "shard1", tmp_path / "copy")
    with refused(RunError, "runs", [*names(shards, 1, 2, 3), tmp_path / "copy"], problem="twice"):
        ll.merge([*names(shards, 1, 2, 3), tmp_path / "copy"], out=out)
    with refused(RunError, "runs", shards / "alone", problem="prompt 'id-"):
        ll.merge([shards / "whole", shards / "alone"], out=out)
    ll.trace(tiny("llama"), prompts_of(TEXTS).shard(2, 3), out=tmp_path / "other", **OPTIONS | {"seed": 4})
    with refused(RunError, "runs", tmp_path / "other", problem=" seed 4,"):
        ll.merge([*names(shards, 1, 3), tmp_path / "other"], out=out)
    ll.trace(tiny("llama"), prompts_of(TEXTS[::-1]).shard(2, 3), out=tmp_path / "reordered", **OPTIONS)
    with refused(RunError, "runs", tmp_path / "reordered", problem="other prompts"):
        ll.merge([*names(shards, 1, 3), tmp_path / "reordered"], out=out)
    assert not out.exists()


def test_an_incomplete_run_and_an_occupied_place_are_refused(shards, tmp_path):
    shutil.copytree(shards / "shard2", tmp_path / "half")
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(manifest | {"totals": None}))
    with refused(RunError, "runs", tmp_path / "half", advice="resume=True"):
        ll.merge([*names(shards, 1, 3), tmp_path / "half"], out=tmp_path / "merged")
    with refused(RunError, "out", shards / "whole"):
        ll.merge(names(shards, 1, 2, 3), out=shards / "whole")
    (tmp_path / "merged.partial" / "tokens").mkdir(parents=True)  # of a merge that was killed
    assert ll.merge(names(shards, 1, 2, 3), out=tmp_path / "merged").is_complete


def test_on_the_command_line(tiny_folder, tmp_path, cli):
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    trace = ("trace", "--model", tiny_folder("llama"), "--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 3)
    for number in (1, 2):
        assert cli(*trace, "--shard", f"{number}/2", "--out", tmp_path / f"s{number}")[0] == 0
    code, out, _ = cli("merge", tmp_path / "s1", tmp_path / "s2", "--out", tmp_path / "all")
    assert code == 0
    assert "2 runs, 3 prompts, 9 positions" in out
    assert ll.open_run(tmp_path / "all").prompts["prompt"].tolist() == ["one", "two", "three"]
    for text, said in {
        "5": "not a shard",
        "0/2": "from 1",
        "3/2": "from 1",
        "4/9": "the dataset has only 3",
        "a/b": "2/4",
    }.items():
        code, _, error = cli(*trace, "--shard", text, "--out", tmp_path / "bad")
        assert code == 2
        assert f"--shard {text}" in error
        assert said in error
    code, _, error = cli(*trace, "--shard", "2/2", "--resume", "--out", tmp_path / "s1")
    assert code == 2
    assert re.findall(r"--shard \S+", error) == ["--shard 1/2,", "--shard 2/2;"]
