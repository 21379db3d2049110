"""Datasets by name: local copies in every form, limits, and what is refused."""

import csv
import hashlib
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens.datasets as ld
from layerlens.datasets.registry import SOURCES
from layerlens.errors import OptionError

# Texts that a reader which guesses types, or splits lines where it should not, would change.
ROWS = [
    {"problem": "007", "answer": "None", "unique_id": "1"},
    {"problem": 'one\u2028line, "quoted"\r\nand a second\nand a third', "answer": "1.50", "unique_id": "01"},
    {"problem": "ünï \x85 𝕏", "answer": "NaN", "unique_id": "true"},
]


def written(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


SUFFIXES = [".json", ".jsonl", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_local_copy_in_any_form_gives_its_texts_untouched(tmp_path, suffix):
    path = written(tmp_path / f"copy{suffix}", ROWS)
    dataset = ld.dataset("math500", data_file=str(path))
    assert [(p.content, p.reference, p.prompt_id) for p in dataset] == [tuple(row.values()) for row in ROWS]
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (dataset.name, dataset.split, dataset.revision) == ("math500", "test", None)


a_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(a_text, a_text), min_size=1, max_size=5), limit=st.integers(1, 8), data=st.data())
def test_every_form_holds_every_text(tmp_path_factory, rows, limit, data):
    path = tmp_path_factory.mktemp("copy") / f"copy{data.draw(st.sampled_from(SUFFIXES))}"
    written(path, [{"problem": p, "answer": a, "unique_id": str(n)} for n, (p, a) in enumerate(rows)])
    dataset = ld.dataset("math500", data_file=path, limit=limit)
    assert [(prompt.content, prompt.reference) for prompt in dataset] == rows[:limit]
    assert len(dataset) == min(limit, len(rows))


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    path = tmp_path / "copy.csv"
    path.write_bytes(b"\xef\xbb\xbfproblem,answer,unique_id\r\n1+1,2,a\r\n")
    assert ld.dataset("math500", data_file=path).prompts == (ld.Prompt("a", "1+1", "2"),)


def test_the_table_of_datasets():
    cards = {card.name: card for card in ld.names()}
    assert list(cards) == ["sample", "gsm8k", "gpqa", "math500"]
    assert {card.hub_id for card in cards.values()} == {
        None,
        "openai/gsm8k",
        "Idavidrein/gpqa",
        "HuggingFaceH4/MATH-500",
    }
    assert [card.name for card in cards.values() if card.gated] == ["gpqa"]
    assert {card.licence for card in cards.values()} == {"Apache-2.0", "MIT", "CC-BY-4.0"}
    assert all(card.description and "\n" not in card.description for card in cards.values())


def test_an_unknown_name_lists_the_known_ones(refused):
    with refused("'essays'", *SOURCES, option="dataset", given="essays"):
        ld.dataset("essays")


@pytest.mark.parametrize("limit", [0, -3, True, 2.0, "5"])
def test_a_limit_that_is_not_a_whole_number_from_1(tmp_path, refused, limit):
    path = tmp_path / "p.txt"
    path.write_text("a prompt")
    calls = [
        lambda: ld.dataset("sample", limit=limit),
        lambda: ld.read_prompts(path, limit=limit),
        lambda: ld.from_prompts(["a prompt"], limit=limit),
    ]
    for call in calls:
        with refused("whole number from 1", error=OptionError, option="limit", given=limit):
            call()


def test_a_limit_beyond_the_end_gives_everything():
    assert len(ld.dataset("sample", limit=61)) == 60
    assert len(ld.dataset("sample", limit=60)) == 60
    assert len(ld.dataset("sample", limit=1)) == 1


def test_a_revision_of_what_is_not_on_the_hub(tmp_path, refused):
    path = written(tmp_path / "copy.json", ROWS)
    with refused("data_file", error=OptionError, option="revision", given="abc"):
        ld.dataset("math500", data_file=path, revision="abc")
    with refused("sample", error=OptionError, option="revision", given="abc"):
        ld.dataset("sample", revision="abc")


@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        ("copy.json", b"{", ["not JSON", "list of objects"]),
        ("copy.json", b'{"data": []}', ["not a list of objects"]),
        ("copy.json", b"[1]", ["not a list of objects"]),
        ("copy.json", b"[]", ["no rows"]),
        ("copy.json", b"", ["is empty"]),
        ("copy.jsonl", b'{"problem": "a"}\nnot json', ["line 2", "not JSON", "column 1"]),
        ("copy.jsonl", b"\n\n[1]", ["line 3", "not an object"]),
        ("copy.jsonl", b'{"a": 1}\n\xff', ["line 2", "UTF-8"]),
        ("copy.csv", b'problem,answer,unique_id\n"a', ["not CSV", "header"]),
        ("copy.csv", b"problem,answer,unique_id\n", ["no rows"]),
        ("copy.csv", b"problem,answer,unique_id\na,b\n", ["row 1", "unique_id", "missing"]),
        ("copy.parquet", b"PAR1 not really", ["not Parquet"]),
        ("copy.tsv", b"a\tb", [".tsv", ".json, .jsonl, .csv, .parquet"]),
        ("copy", b"a", ["''", ".json, .jsonl, .csv, .parquet"]),
        ("copy.json", b'[{"question": "a", "answer": "b"}]', ["row 1", "'problem', 'unique_id'", "'question'"]),
        ("copy.json", b'[{"problem": "a", "answer": 2, "unique_id": "1"}]', ["row 1", "answer", "number 2"]),
        ("copy.json", b'[{"problem": " ", "answer": "2", "unique_id": "1"}]', ["row 1", "problem", "empty"]),
    ],
)
def test_a_local_copy_that_cannot_be_used(tmp_path, refused, name, content, pieces):
    path = tmp_path / name
    path.write_bytes(content)
    with refused(path, *pieces):
        ld.dataset("math500", data_file=path)


def test_a_local_copy_that_is_not_there(tmp_path, refused):
    with refused("no file", tmp_path / "none.json"):
        ld.dataset("gsm8k", data_file=tmp_path / "none.json")
    with refused("is a directory", tmp_path):
        ld.dataset("gsm8k", data_file=tmp_path)


def test_nothing_heavy_is_imported_until_it_is_needed():
    heavy = {"torch", "datasets", "pandas", "pyarrow", "numpy", "huggingface_hub", "transformers"}
    program = (
        f"import sys, layerlens.datasets as ld; ld.dataset('sample'); ld.names(); print({heavy} & set(sys.modules))"
    )
    run = [sys.executable, "-c", program]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "set()"
    run[-1] = "import pyarrow; " + program
    assert "pyarrow" in subprocess.run(run, capture_output=True, text=True, check=True).stdout, "this test can fail"


def test_the_public_names_are_there():
    assert ld.__all__ == sorted(ld.__all__)
    assert set(ld.__all__) == {"Prompt", "Dataset", "dataset", "from_prompts", "read_prompts", "names"}
    assert all(getattr(ld, name).__doc__ for name in ld.__all__)


def test_half_a_surrogate_pair_in_json_is_refused(tmp_path, refused):
    path = tmp_path / "rows.json"
    path.write_text('[{"question": "\\ud800?", "answer": "#### 1"}]')
    with refused(str(path), "not JSON"):
        ld.dataset("gsm8k", data_file=path)


def test_a_long_field_of_a_csv_file_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "x" * 300_000 + ",#### 5\n")
    assert len(ld.dataset("gsm8k", data_file=path).prompts[0].content) == 300_000


def test_a_parquet_file_with_text_that_is_not_utf8(tmp_path, refused):
    broken = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    table = pyarrow.table({"question": broken, "answer": ["#### 3"]})
    pyarrow.parquet.write_table(table, tmp_path / "broken.parquet")
    with refused("broken.parquet", "not Parquet"):
        ld.dataset("gsm8k", data_file=tmp_path / "broken.parquet")
