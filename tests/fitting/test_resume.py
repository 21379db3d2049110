"""A fit that was killed goes on where it was, and ends with the same lens."""

import json
import time
from copy import deepcopy

import pytest

import layerlens as ll
from layerlens.fitting import workplace
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.fitting.test_linear import fitted, same_tensors, texts
from tests.killed import kill_while_working
from tests.refusals import refused
from tests.thorough import thorough

pytestmark = pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")


def fit_slowly(out):
    """A fit that saves after every batch and takes its time, in a process of its own."""
    workplace._SECONDS_BETWEEN = 0.0
    save = workplace.Workplace.save

    def slow(self, done, tensors, part):
        save(self, done, tensors, part)
        self._took = 0.0
        time.sleep(0.05)

    workplace.Workplace.save = slow
    model = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    ll.fit_lens(model, texts(200), out=out, resume=True, progress=False)


def n_batches(out):
    path = workplace.folder_of(out) / "sums.snapshot"
    if not path.exists():
        return 0
    header = path.read_bytes()[:400]
    start = header.index(b'{"batches"')
    return int(json.loads(header[start : header.index(b"}", start) + 1])["batches"])


@thorough
def test_a_killed_fit_ends_with_the_same_lens_bit_for_bit(tmp_path):
    whole = fitted(tiny("llama"), tmp_path, texts(200))
    out = tmp_path / "broken.safetensors"
    for kill in (1, 3):
        kill_while_working(fit_slowly, out, after=(kill, lambda: n_batches(out)), then=0.02)
        assert not out.exists()
    done = n_batches(out)
    again = fitted(tiny("llama"), tmp_path, texts(200), name="broken", resume=True)
    assert done >= 3
    same_tensors(whole.path, again.path)
    assert again.gain.equals(whole.gain)
    assert not workplace.folder_of(out).exists()


def test_what_was_added_before_is_not_added_again(tmp_path, monkeypatch):
    """Of a fit that stops after its sums: the texts that were summed up are not read again."""
    out = tmp_path / "lens.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("layerlens.fitting.linear.Ridge", None)
        with pytest.raises(TypeError):
            fitted(tiny("llama"), tmp_path)
    read = []
    monkeypatch.setattr("layerlens.fitting.linear.states_of", states_counted(read))
    fitted(tiny("llama"), tmp_path, resume=True)
    assert not read
    same_tensors(fitted(tiny("llama"), tmp_path, name="whole").path, out)


def states_counted(read):
    from layerlens.fitting.states import states_of

    def counted(model, text, skip):
        read.append(text)
        return states_of(model, text, skip)

    return counted


def test_an_unfinished_fit_is_not_begun_anew_by_accident_nor_continued_as_another(tmp_path, monkeypatch):
    out = tmp_path / "lens.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("layerlens.fitting.linear.Ridge", None)
        with pytest.raises(TypeError):
            fitted(tiny("llama"), tmp_path)
    with refused(ll.OptionError, "out", out, advice="resume=True"):
        fitted(tiny("llama"), tmp_path)
    for other, changed in (
        ({"prompts": texts(20, seed=1)}, "texts"),
        ({"skip_first": 2}, "skip_first 1"),
        ({"seed": 1}, "seed 0"),
        ({"model": ll.load(deepcopy(tiny("llama").hf).bfloat16(), tokenizer=tiny("llama").tokenizer)}, "float32"),
        ({"model": tiny("qwen3")}, "model"),
    ):
        model = other.pop("model", tiny("llama"))
        with refused(ll.OptionError, "out", out, problem=changed):
            fitted(model, tmp_path, resume=True, **other)


def test_resuming_a_fit_that_is_complete_changes_nothing(tmp_path):
    first = fitted(tiny("llama"), tmp_path)
    before = first.path.read_bytes()
    again = fitted(tiny("llama"), tmp_path, resume=True)
    assert again.path.read_bytes() == before
    assert again.gain.equals(first.gain)
    with refused(ll.OptionError, "out", first.path, problem="skip_first 1"):
        fitted(tiny("llama"), tmp_path, resume=True, skip_first=2)


def test_what_lies_where_a_fit_would_work_is_kept(tmp_path):
    notes = workplace.folder_of(tmp_path / "lens.safetensors") / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with refused(ll.RunError, "out", notes.parent):
        fitted(tiny("llama"), tmp_path, texts(20), name="lens")
    assert notes.read_text() == "mine"
