"""Files that somebody wrote wrongly: what comes of each is a result, or one sentence."""

import json
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layerlens as ll
from layerlens.datasets import read_prompts
from layerlens.errors import LayerlensError
from tests.hard.doors import cases, knock, refused_or_done
from tests.hard.mutated import VALUES, changed, paths, shown

pytestmark = pytest.mark.filterwarnings("ignore")
_FUZZ = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}

texts = st.text(
    st.one_of(st.characters(), st.sampled_from("\0\x1b\r\n\u2028\u202e\u0301\ud800\udfff\ufeff{}[]\"',<|>")),
    max_size=30,
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
messages = st.lists(
    st.one_of(values, st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": values})),
    max_size=3,
)
rows = st.one_of(
    values,
    st.fixed_dictionaries({}, optional={"prompt": values, "messages": messages, "id": values, "reference": values}),
    st.fixed_dictionaries({"prompt": texts}, optional={"id": st.one_of(texts, st.integers()), "reference": texts}),
)


def as_line(row):
    return json.dumps(row, ensure_ascii=False)


contents = st.one_of(
    st.binary(max_size=200),
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    texts.map(lambda text: text.encode("utf-16", "surrogatepass")),
    st.lists(rows, max_size=4).map(lambda many: "\n".join(map(as_line, many)).encode("utf-8", "surrogatepass")),
    st.lists(rows, max_size=4).map(lambda many: b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, many)).encode()),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_files_of_prompts(tiny_llama, tmp_path, suffix):
    """What is taken is traced, and the records hold the texts as they were given."""
    path = tmp_path / f"prompts{suffix}"

    @settings(max_examples=cases(100, 2000), **_FUZZ)
    @given(contents)
    def one(content):
        path.write_bytes(content)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        refusal = ""
        try:
            found = read_prompts(path)
            run = ll.trace(tiny_llama, found, out=tmp_path / "run", max_new_tokens=1, progress=False)
        except LayerlensError as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal
            return
        assert run.prompts["prompt_id"].tolist() == [prompt.prompt_id for prompt in found]
        assert run.prompts["prompt"].tolist() == [prompt.content for prompt in found]
        assert len(run.positions) == len(found)

    one()


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_files_of_rows(tmp_path, suffix):
    """Rows of a benchmark: read as what they are, or refused."""
    from layerlens.datasets.files import read_rows

    path = tmp_path / f"rows{suffix}"

    @settings(max_examples=cases(100, 2000), **_FUZZ)
    @given(contents)
    def one(content):
        refused_or_done(lambda: read_rows(content, path))

    one()


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A model's folder that a test may change."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_files_of_a_model(folder, name):
    """An entry that is missing or of another type; the model is used, or the error is one sentence."""
    path = folder / name
    whole = json.loads(path.read_text())
    changes = [(entry, value) for entry in paths(whole) for value in VALUES]
    for entry, value in random.Random(name).sample(changes, min(len(changes), cases(12, 500))):
        path.write_text(json.dumps(changed(whole, entry, value)))
        try:
            knock("generate", "--model", folder, "--prompt", "abc", "--max-new-tokens", "2", "--device", "cpu")
        except Exception as error:
            raise AssertionError(f"{name}: {shown(entry, value)}") from error


def test_bytes_of_weights(folder):
    """Weights that are cut, or in whose header something is noise."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    chance = random.Random(0)
    for number in range(cases(15, 500)):
        content = bytearray(whole)
        if number % 3 == 0:
            content = content[: chance.randrange(len(content))]
        else:
            end = 8 if number % 3 == 1 else 2000
            start = chance.randrange(end)
            content[start : start + 4] = chance.randbytes(4)
        path.write_bytes(content)
        try:
            knock("generate", "--model", folder, "--prompt", "abc", "--max-new-tokens", "2", "--device", "cpu")
        except Exception as error:
            raise AssertionError(f"case {number}") from error


def test_lens_files(tiny_llama, tmp_path):
    """Entries and bytes of a fitted lens."""
    path = tmp_path / "lens.safetensors"
    ll.fit_lens(tiny_llama, [f"text {n} with words" for n in range(40)], out=path, progress=False)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    changes = [(entry, value) for entry in paths(header) for value in VALUES]
    chance = random.Random(0)
    for number in range(cases(60, 2000)):
        if number % 2:
            entry, value = chance.choice(changes)
            said = json.dumps(changed(header, entry, value)).encode()
            content = len(said).to_bytes(8, "little") + said + whole[8 + size :]
        else:
            noisy = bytearray(whole)
            start = chance.randrange(min(len(noisy), 8 + size))
            noisy[start : start + 3] = chance.randbytes(3)
            content, entry, value = bytes(noisy), ("byte", start), None
        path.write_bytes(content)
        try:
            refused_or_done(lambda: ll.open_lens(f"linear:{path}", tiny_llama))
        except Exception as error:
            raise AssertionError(f"case {number}: {shown(entry, value)}") from error


def test_skip_sets(tiny_llama, tmp_path):
    """Entries of a saved skip set."""
    path = tmp_path / "skips.json"
    ll.SkipSet.of_blocks([1, 2]).save(path, tiny_llama)
    whole = json.loads(path.read_text())
    for entry in paths(whole):
        for value in VALUES:
            path.write_text(json.dumps(changed(whole, entry, value)))
            try:
                refused_or_done(lambda: ll.generate(tiny_llama, "ab", max_new_tokens=3, draft=ll.FixedSkip(str(path))))
            except Exception as error:
                raise AssertionError(shown(entry, value)) from error
