"""Prompts of two runs are paired by what they say, not by what they are called."""

import json
import re

import numpy as np
import pytest

import layerlens as ll
from layerlens.analysis.comparison import compare, compare_outputs
from layerlens.analysis.pairing import paired_ids
from layerlens.errors import RunError
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.records.manifest import read_manifest
from layerlens.run import open_run
from tests.made_up_run import write_run
from tests.refusals import refused


def written(folder, texts, manifest=None, lengths=None, **dataset):
    """A run of these texts by id; its first prompt has entropy 1 in every token, the second 2, and so on."""
    prompts = {
        name: {"entropy": np.full(((lengths or {}).get(name, 3), 4), 1.0 + number)} for number, name in enumerate(texts)
    }
    run = write_run(folder, prompts, texts=texts)
    said = read_manifest(run.path) | (manifest or {})
    said["dataset"] |= dataset
    (run.path / "manifest.json").write_text(json.dumps(said))
    return open_run(run.path)


def pairs_of(run, other):
    return paired_ids(run, other, *(sorted(one.prompts["prompt_id"]) for one in (run, other)))


FILE = {"1": "What is two and two?", "2": "Name a river.", "3": "Is it late?"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"name": "p.jsonl", "sha256": "a"}, {"name": "p.jsonl", "sha256": "b"}),  # two files of one name
        ({"name": "prompts"}, {"name": "prompts"}),  # two lists in Python
        ({"name": "gsm8k", "revision": "1"}, {"name": "gsm8k", "revision": "2"}),
        ({"name": "gsm8k"}, {"name": "math500"}),
    ],
)
def test_equal_ids_of_other_texts_are_no_pairs(tmp_path, ours, theirs):
    run = written(tmp_path / "a", FILE, **ours)
    other = written(tmp_path / "b", {"1": "Who?", "2": "Why?", "3": "When?"}, **theirs)
    for comparison in (compare, compare_outputs):
        with refused(RunError, given=run.path, problem="'Who?'"):
            comparison(run, other)


def test_equal_texts_of_other_ids_are_pairs(tmp_path):
    """Another file, other numbers, another order; what is in one only is counted and not compared."""
    run = written(tmp_path / "a", FILE, name="p.jsonl", sha256="a")
    texts = {"1": FILE["3"], "2": "Why?", "x": FILE["1"]}
    other = written(tmp_path / "b", texts, lengths={"1": 5}, name="q.jsonl", sha256="b")
    assert pairs_of(run, other) == [("1", "x"), ("3", "1")]
    table = compare(run, other)
    row = table.set_index("quantity").loc["entropy"]
    assert table.attrs["n_prompts_unpaired"] == 2
    assert (row["n_prompts"], row["n_tokens"], row["n_tokens_other"]) == (2, 6, 8)
    assert row["run"] == pytest.approx((1 + 3) / 2)
    assert row["other"] == pytest.approx((3 * 3 + 5 * 1) / 8)
    outputs = compare_outputs(run, other).set_index("statistic")["value"]
    assert outputs.to_dict() == {"identical": 0.5, "common_prefix": 3}, "the third has two tokens more"


def test_a_text_that_is_there_twice_is_paired_by_its_id(tmp_path):
    run = written(tmp_path / "a", {"1": "Why?", "2": "Why?", "3": "When?"}, name="prompts")
    other = written(tmp_path / "b", {"1": "When?", "2": "Why?", "4": "Why?"}, name="prompts")
    assert pairs_of(run, other) == [("2", "2"), ("3", "1")]
    once = written(tmp_path / "c", {"8": "When?", "9": "Why?"}, name="prompts")
    assert pairs_of(run, once) == [("3", "8")], "either of two could be meant"


def test_no_prompt_is_in_two_pairs(tmp_path):
    """ "b" of the first is "a" of the second, which has its partner by id."""
    run = written(tmp_path / "a", {"a": "<u>Why?</u>", "b": "[Why?]"}, sha256="a")
    other = written(tmp_path / "b", {"a": "[Why?]", "c": "When?"}, sha256="a")
    assert pairs_of(run, other) == [("a", "a")]


@pytest.mark.parametrize(
    ("source", "their_source", "manifest"),
    [
        ({"name": "a.jsonl", "sha256": "a"}, {"name": "copy.jsonl", "sha256": "a"}, {"chat_template_sha256": "t"}),
        ({"name": "gsm8k", "split": "test"}, {"name": "gsm8k", "split": "test"}, {"chat_template_sha256": "t"}),
        ({"name": "gsm8k"}, {"name": "gsm8k"}, {}),  # a template that writes the date
    ],
)
def test_the_same_problems_in_another_template_are_paired_by_id(tmp_path, source, their_source, manifest):
    run = written(tmp_path / "a", {name: f"<u>{text}</u>" for name, text in FILE.items()}, **source)
    other = written(tmp_path / "b", {name: f"[{text}]" for name, text in FILE.items()}, manifest, **their_source)
    assert pairs_of(run, other) == [("1", "1"), ("2", "2"), ("3", "3")]
    assert compare(run, other).attrs["n_prompts_of_other_text"] == 3
    assert compare(run, run).attrs["n_prompts_of_other_text"] == 0


def test_what_differs_far_into_a_text_is_shown(tmp_path):
    texts = [{"1": 500 * "the same " + end} for end in ("but cats", "but dogs")]
    run, other = (written(tmp_path / texts[k]["1"][-4:], texts[k], name="prompts") for k in range(2))
    with pytest.raises(RunError) as caught:
        pairs_of(run, other)
    assert caught.value.given == run.path
    assert re.findall("cats|dogs", caught.value.problem.rpartition(":")[2]) == ["cats", "dogs"]
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("options", [{"system": "Be brief."}, {"chat_template_args": {"enable_thinking": False}}])
def test_lists_in_python_with_another_message_or_argument_are_paired(tmp_path, options):
    run = written(tmp_path / "a", FILE, name="prompts")
    texts = {name: f"Be brief. {text}" for name, text in FILE.items()}
    other = written(tmp_path / "b", texts, {"options": {"positions": "generated"} | options}, name="prompts")
    assert pairs_of(run, other) == [("1", "1"), ("2", "2"), ("3", "3")]


def test_lists_in_python_are_paired_where_a_template_holds_the_text(tmp_path):
    run = written(tmp_path / "a", FILE, name="prompts")
    texts = {"1": f"<u>{FILE['1']}</u>", "2": "<u>Why?</u>", "3": f"<u>{FILE['3']}</u>"}
    other = written(tmp_path / "b", texts, {"chat_template_sha256": "t"}, name="prompts")
    assert pairs_of(run, other) == [("1", "1"), ("3", "3")]
    same_template = written(tmp_path / "c", texts, name="prompts")
    with refused(RunError, problem="different texts"):
        pairs_of(run, same_template)


def test_real_runs_of_other_texts_are_refused_and_of_the_same_paired(tmp_path):
    model = ll.load(tiny_model("llama"), tiny_tokenizer())
    lists = [f"hello world {i}" for i in range(4)], [f"something else, number {i * 7}" for i in range(4)]
    options = {"max_new_tokens": 4, "batch_size": 4, "progress": False}
    runs = [ll.trace(model, texts, out=tmp_path / str(k), **options) for k, texts in enumerate(lists)]
    with refused(RunError, problem="'something else"):
        runs[0].compare(runs[1])
    turned = ll.trace(model, lists[0][::-1], out=tmp_path / "turned", **options)
    table = runs[0].compare(turned)
    assert table["n_prompts"].tolist() == [4] * 6
    assert table["difference"].abs().max() < 1e-5
    assert runs[0].compare_outputs(turned).set_index("statistic").loc["identical", "value"] == 1
