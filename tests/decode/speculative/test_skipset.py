"""Sets of what a draft leaves out, the files that they are saved in, and the files that are refused."""

import json
import random
from itertools import product

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import ModelError, OptionError
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.refusals import refused


@pytest.fixture
def model():
    return tiny("llama", num_hidden_layers=9)


def drawn(n_layers, seed):
    """Attention modules and MLPs of blocks after the first."""
    draw = random.Random(seed)
    return [frozenset(number for number in range(1, n_layers) if draw.random() < 0.4) for _ in range(2)]


@pytest.mark.parametrize("seed", range(8))
def test_a_set_says_what_is_left_out(seed):
    """Every block is whole, in part or not in it; the order is that of the model."""
    attention, mlp = drawn(9, seed)
    skips = ll.SkipSet(attention, mlp)
    words, parts, n = [], [], 0
    for number in range(9):
        missing = (number in attention, number in mlp)
        n += sum(missing)
        if missing == (True, True):
            words.append(f"{number}")
    for name, missing in (("attention", attention - mlp), ("MLP", mlp - attention)):
        parts += [f"{number} {name}" for number in sorted(missing)]
    assert str(skips) == ", ".join(words + parts)
    assert skips.blocks == {int(word) for word in words}
    assert len(skips) == n
    assert skips.share(9) == pytest.approx(n / 18)
    assert skips.is_of_blocks == (not parts)
    assert bool(skips) == (n > 0)


def test_a_set_in_words():
    assert str(ll.SkipSet(frozenset({10, 2, 3}), frozenset({2, 7, 10}))) == "2, 10, 3 attention, 7 MLP"
    assert str(ll.SkipSet.of_blocks([4, 11, 5])) == "4, 5, 11"
    assert str(ll.SkipSet()) == "nothing"
    assert ll.SkipSet().share(9) == 0
    assert ll.SkipSet.of_blocks(range(9)).share(9) == 1
    assert not ll.SkipSet()


def test_sets_are_equal_however_they_were_found():
    one, other = ll.SkipSet.of_blocks([1, 2], policy="a"), ll.SkipSet(frozenset({2, 1}), frozenset({1, 2}))
    assert (one, hash(one)) == (other, hash(other))
    assert (one.found, other.found) == ({"policy": "a"}, {})
    assert one != ll.SkipSet(frozenset({1, 2}))
    assert one != ll.SkipSet.of_blocks([1])


@pytest.mark.parametrize("seed", range(5))
def test_a_set_is_read_as_it_was_written(model, tmp_path, seed):
    found = {"policy": "swift", "cosine": 0.25, "weights": {"attention": 2}, "über": None}
    skips = ll.SkipSet(*drawn(9, seed), found)
    for path in (tmp_path / "a.json", str(tmp_path / "ü b")):
        skips.save(path, model)
        again = ll.SkipSet.load(path, model)
        assert (again, again.found) == (skips, found)
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["attention"] == sorted(skips.attention)
    assert content["mlp"] == sorted(skips.mlp)
    about = {"source": model.source, "family": "llama", "n_layers": 9, "fingerprint": model.fingerprint()}
    assert content["model"] == about
    assert content["found"] == found


def test_a_file_that_is_there_is_replaced(model, tmp_path):
    path = tmp_path / "a.json"
    ll.SkipSet.of_blocks(range(1, 9)).save(path, model)
    ll.SkipSet.of_blocks([3]).save(path, model)
    assert ll.SkipSet.load(path, model) == ll.SkipSet.of_blocks([3])


def test_a_path_can_begin_with_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ll.SkipSet.of_blocks([2]).save("~/a.json", model)
    assert (tmp_path / "a.json").is_file()
    assert ll.SkipSet.load("~/a.json", model).blocks == {2}


@pytest.mark.parametrize("seed", range(3))
def test_what_a_search_found_can_be_used_by_a_later_process(model, tmp_path, seed):
    """The same model, loaded again; a fixed policy drafts with the set, and nothing changes in the text."""
    attention, mlp = drawn(9, seed)
    ll.SkipSet(attention, mlp).save(tmp_path / "a.json", model)
    later = ll.load(tiny_model("llama", num_hidden_layers=9), tokenizer=tiny_tokenizer())
    for path in (tmp_path / "a.json", str(tmp_path / "a.json")):
        drafter = ll.Drafter(later, ll.FixedSkip(path))
        assert drafter.skips == ll.SkipSet(attention, mlp)
    found = ll.generate(later, "hello", max_new_tokens=12, draft=drafter)
    assert found.token_ids == ll.generate(model, "hello", max_new_tokens=12).token_ids
    assert drafter.rounds["drafted"].max() > 0


def test_a_set_is_not_for_another_model(model, tmp_path):
    """Of other weights, of another depth, of another family."""
    path = str(tmp_path / "a.json")
    ll.SkipSet.of_blocks([1]).save(path, model)
    others = [
        ll.load(tiny_model("llama", num_hidden_layers=9, seed=1), tokenizer=tiny_tokenizer()),
        tiny("llama"),
        tiny("qwen3"),
    ]
    for other in others:
        with refused(OptionError, "skipped", path, problem="9 layers", advice=f"{other.n_layers} layers"):
            ll.SkipSet.load(path, other)
        with refused(OptionError, "skipped", path, problem=repr(model.source)):
            ll.FixedSkip(path).search(other)
    assert ll.SkipSet.load(path, model).blocks == {1}


@pytest.fixture
def content(model, tmp_path):
    """What `save` writes."""
    ll.SkipSet(frozenset({1, 2}), frozenset({2}), {"policy": "a"}).save(tmp_path / "content.json", model)
    return json.loads((tmp_path / "content.json").read_text(encoding="utf-8"))


def written(path, content):
    """The path of a file with this content."""
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


NO_JSON = [b"", b"{", b"\xff\xfe", b"not json", b'{"a": 1}}', b"[" * 100_000, b"[" + b"1" * 5000 + b"]"]
OTHERS = [b"[]", b"3", b"null", b'"layerlens skip set 1"', b'["format"]', b"{}", b'{"format": "layerlens skip set 2"}']


@pytest.mark.parametrize("text", [*NO_JSON, *OTHERS], ids=lambda text: ascii(text[:20]))
def test_what_is_no_skip_set_is_refused(model, tmp_path, text):
    path = written(tmp_path / "a.json", text)
    why = "not JSON" if text in NO_JSON else "format"
    with refused(OptionError, "skipped", path, problem=why):
        ll.SkipSet.load(path, model)


@pytest.mark.parametrize("name", ["model", "attention", "mlp", "format"])
def test_nothing_may_be_missing(model, tmp_path, content, name):
    del content[name]
    with refused(OptionError, "skipped", str(tmp_path / "a.json"), problem="holds no skip set"):
        ll.SkipSet.load(written(tmp_path / "a.json", content), model)


@pytest.mark.parametrize("name", ["n_layers", "fingerprint"])
def test_the_model_must_be_known(model, tmp_path, content, name):
    del content["model"][name]
    with refused(OptionError, "skipped", str(tmp_path / "a.json"), problem=name):
        ll.SkipSet.load(written(tmp_path / "a.json", content), model)


def test_how_it_was_found_may_be_missing(model, tmp_path, content):
    del content["found"]
    found = ll.SkipSet.load(written(tmp_path / "a.json", content), model)
    assert (found, found.found) == (ll.SkipSet(frozenset({1, 2}), frozenset({2})), {})


WRONG = [
    *product(["attention", "mlp"], [None, 3, "12", {"1": 2}, [1.0], ["1"], [True], [None], [[1]], [2.5]]),
    *product(["found"], [None, 3, "a", [1]]),
    *product(["model"], [None, 3, "a", [], ["n_layers"]]),
    *product(["format"], [None, 1, ["layerlens skip set 1"], "Layerlens skip set 1"]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_other_types_are_refused(model, tmp_path, content, name, value):
    content[name] = value
    with refused(OptionError, "skipped", str(tmp_path / "a.json"), problem="holds no skip set"):
        ll.SkipSet.load(written(tmp_path / "a.json", content), model)


@pytest.mark.parametrize(("name", "value"), [("n_layers", 8), ("n_layers", "9"), ("n_layers", None), ("source", 3)])
def test_a_model_of_other_types_is_another_one(model, tmp_path, content, name, value):
    content["model"][name] = value
    if name == "source":  # it is there to be read by people
        assert ll.SkipSet.load(written(tmp_path / "a.json", content), model)
        return
    with refused(OptionError, "skipped", str(tmp_path / "a.json"), problem=repr(value)):
        ll.SkipSet.load(written(tmp_path / "a.json", content), model)


@pytest.mark.parametrize("name", ["attention", "mlp"])
@pytest.mark.parametrize("number", [-1, 9, 10**30])
def test_blocks_that_the_model_does_not_have_are_refused(model, tmp_path, content, name, number):
    content[name] = [3, number]
    with refused(OptionError, "skipped", problem=f"block {number},", advice="0..8"):
        ll.SkipSet.load(written(tmp_path / "a.json", content), model)


@pytest.mark.parametrize("name", ["attention", "mlp"])
def test_the_first_block_is_refused_when_it_is_to_be_left_out(model, tmp_path, content, name):
    content[name] = [0, 2]
    path = written(tmp_path / "a.json", content)
    with refused(OptionError, "skipped", problem="block 0,"):
        ll.FixedSkip(path).search(model)
    with refused(OptionError, "skipped", problem="block 0,"):
        ll.generate(model, "a", draft=ll.FixedSkip(path), max_new_tokens=2)


def test_a_file_that_is_too_large_is_not_read(model, tmp_path, content):
    """Whatever is in it, such as a set with much white space."""
    text = json.dumps(content)
    for size, is_fine in ((1 << 20, True), ((1 << 20) + 1, False)):
        path = written(tmp_path / "a.json", text + " " * (size - len(text)))
        if is_fine:
            assert ll.SkipSet.load(path, model).attention == {1, 2}
            continue
        with refused(OptionError, "skipped", path, problem="too large"):
            ll.SkipSet.load(path, model)


def test_a_file_that_cannot_be_read(model, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a", encoding="utf-8")
    missing, folder, within = (str(tmp_path / name) for name in ("missing.json", "folder", "file/a.json"))
    for path in (missing, folder, within, ""):
        with refused(OptionError, "skipped", path, problem="cannot be read"):
            ll.SkipSet.load(path, model)
        with refused(OptionError, "skipped", path, problem="cannot be read"):
            ll.generate(model, "a", draft=ll.FixedSkip(path), max_new_tokens=2)


def test_a_file_that_cannot_be_written(model, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (str(tmp_path / "folder"), str(tmp_path / "missing" / "a.json")):
        with refused(OptionError, "path", path, problem="could not be written"):
            ll.SkipSet.of_blocks([1]).save(path, model)
    path = str(tmp_path / ("a" * 300))
    with refused(OptionError, None, path, problem="no name of a file"):
        ll.SkipSet.of_blocks([1]).save(path, model)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_path_that_no_file_can_have(model):
    """A NUL ends names of files."""
    with refused(OptionError, None, "a\0b", problem="no name of a file"):
        ll.SkipSet.load("a\0b", model)
    with refused(OptionError, None, "a\0b", problem="no name of a file"):
        ll.SkipSet.of_blocks([1]).save("a\0b", model)


def test_what_a_set_was_found_by_need_not_be_utf8(model, tmp_path):
    """The path of a run can hold bytes that are not, which Python writes as surrogates."""
    skips = ll.SkipSet.of_blocks([1], run="run\udcff")
    skips.save(tmp_path / "a.json", model)
    again = ll.SkipSet.load(tmp_path / "a.json", model)
    assert (again, again.found) == (skips, {"run": "run\udcff"})


def test_parts_of_blocks_are_for_families_whose_blocks_have_some(tmp_path):
    """Whole blocks can be left out in every family."""
    bloom = tiny("bloom")
    ll.SkipSet(frozenset({1}), frozenset({2})).save(tmp_path / "parts", bloom)
    ll.SkipSet.of_blocks([1]).save(tmp_path / "blocks", bloom)
    with refused(ModelError, given=bloom.source, problem="as a whole only"):
        ll.FixedSkip(tmp_path / "parts").search(bloom)
    assert ll.FixedSkip(tmp_path / "blocks").search(bloom).skips == ll.SkipSet.of_blocks([1])


@pytest.mark.parametrize("blocks", [np.array([1, 4]), [np.int64(1), np.uint8(4)], (1, 4), {1, 4}, range(1, 5, 3)])
def test_numbers_of_every_whole_kind_name_blocks(model, tmp_path, blocks):
    """And are written as such."""
    path = tmp_path / "set.json"
    ll.SkipSet.of_blocks(blocks).save(path, model)
    assert json.loads(path.read_text())["mlp"] == [1, 4]
    assert ll.SkipSet(blocks, blocks) == ll.SkipSet.load(path, model) == ll.SkipSet.of_blocks([1, 4])
    assert ll.Drafter(model, ll.FixedSkip(blocks)).skips == ll.SkipSet.of_blocks([1, 4])


@pytest.mark.parametrize("blocks", [[1.0], [True], ["1"], [None], 3, np.array([1.5])])
def test_what_is_no_number_of_a_block_is_refused(blocks):
    with refused(OptionError, "attention"):
        ll.SkipSet(blocks)
    with refused(OptionError, "blocks"):
        ll.SkipSet.of_blocks(blocks)
    with refused(OptionError, "skipped"):
        ll.FixedSkip(blocks)


def test_a_set_is_saved_for_a_model_that_has_its_blocks_and_in_no_run(model, tmp_path):
    path = tmp_path / "set.json"
    with refused(OptionError, "skipped", problem="block 77"):
        ll.SkipSet.of_blocks([77]).save(path, model)
    with refused(OptionError, "model", "smollm2"):
        ll.SkipSet.of_blocks([1]).save(path, "smollm2")
    run = ll.trace(model, ["abc"], out=tmp_path / "run", max_new_tokens=1, progress=False)
    with refused(OptionError, "path", run.path / "manifest.json"):
        ll.SkipSet.of_blocks([1]).save(run.path / "manifest.json", model)
    assert ll.open_run(run.path).is_complete
    assert not path.exists()


@pytest.mark.parametrize("value", [None, "abc", [1]])
def test_a_lambda_that_is_no_number_is_left_out_of_the_table(model, value):
    skips = ll.SkipSet(frozenset([3]), frozenset([3]), {"lambda": value})
    drafter = ll.Drafter(model, ll.FixedSkip(skips, patience=None))
    ll.generate(model, "abcdefgh", draft=drafter, max_new_tokens=9)
    assert drafter.sets["lambda"].isna().all()
