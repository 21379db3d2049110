"""Prompts that the user wrote: lists in Python, text files, JSON lines."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens as ll
import layerlens.datasets as ld
from layerlens.datasets.files import read_rows
from tests.refusals import refused

CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "hello"}]

no_surrogates = st.characters(exclude_categories=["Cs"])
a_text = st.text(no_surrogates, min_size=1).filter(str.strip)
a_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"))


def test_texts_chats_and_prompts_from_python():
    mine = ld.Prompt("mine", "a text", "42")
    dataset = ld.from_prompts(["text", CHAT, mine, tuple(CHAT)])
    assert dataset.prompts == (
        ld.Prompt("0", "text"),
        ld.Prompt("1", tuple(CHAT)),
        mine,
        ld.Prompt("3", tuple(CHAT)),
    )
    fields = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    del fields["prompts"]
    assert fields == {"name": "prompts", "config": None, "split": None, "revision": None, "sha256": None, "part": None}


@given(st.lists(a_text, min_size=1), st.integers(1, 10))
def test_from_python_keeps_order_and_numbers_by_index(texts, limit):
    dataset = ld.from_prompts(iter(texts), limit=limit)
    assert [(int(prompt.prompt_id), prompt.content) for prompt in dataset] == list(enumerate(texts))[:limit]


def test_messages_are_copied():
    chat = [dict(message) for message in CHAT]
    dataset = ld.from_prompts([chat])
    chat[1]["content"] = "changed"
    assert dataset.prompts[0].content[1]["content"] == "hello"


def test_prompts_and_datasets_cannot_be_changed():
    dataset = ld.from_prompts(["a"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.prompts[0].content = "b"


@pytest.mark.parametrize(
    ("items", "pieces"),
    [
        ([], ["is empty", "give at least one"]),
        ("one text", ["of type str", "give a list"]),
        (5, ["the number 5", "give a list"]),
        (None, ["missing", "give a list"]),
        (CHAT[1], ["of type dict", "give a list"]),
        (ld.Prompt("a", "b"), ["of type Prompt", "give a list"]),
        (["a", 5], ["prompts[1]", "the number 5", "give a text"]),
        (["a", None], ["prompts[1]", "give a text"]),
        (["a", b"b"], ["prompts[1]", "bytes", "give a text"]),
        (CHAT, ["prompts[0] is a dict", "list of messages"]),
        (["a", " \n"], ["prompts[1]", "' \\n'", "empty"]),
        ([CHAT, []], ["prompts[1]", "[]", "have no text"]),
        ([["a"]], ["prompts[0], message 1", "'a'", '"role"']),
        ([[*CHAT, {"role": "user"}]], ["prompts[0], message 3", "lacks a role or a content"]),
        ([[{"role": "", "content": "a"}]], ["prompts[0], message 1", "lacks a role or a content"]),
        ([[{"role": "user", "content": None}]], ["prompts[0], message 1", "not an object of texts"]),
        ([ld.Prompt("1", "a"), "b"], ["prompts[1]", "'1'", "prompts[0]"]),
        ([ld.Prompt(1, "a")], ["prompts[0]", "the id 1", "not a text"]),
        ([ld.Prompt("1", "a", 5)], ["prompts[0]", "the reference 5", "not a text"]),
        ([ld.Prompt("1", "")], ["prompts[0]", "empty"]),
    ],
)
def test_what_is_refused_from_python(items, pieces, refused):
    with refused(*pieces):
        ld.from_prompts(items)


@given(
    st.lists(a_line).filter(lambda lines: any(line.strip() for line in lines)), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_a_text_file_holds_a_prompt_per_line(tmp_path_factory, lines, end):
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_bytes(end.join(lines).encode())
    expected = {str(number): line for number, line in enumerate(lines, start=1) if line.strip()}
    dataset = ld.read_prompts(path)
    assert {prompt.prompt_id: prompt.content for prompt in dataset} == expected
    assert len(dataset) == len(expected)


def test_ids_are_line_numbers_also_after_blank_lines_and_under_a_limit(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\nfirst\n\n  second \n   \nthird\n")
    dataset = ld.read_prompts(str(path), limit=2)
    assert dataset.prompts == (ld.Prompt("2", "first"), ld.Prompt("4", "  second "))
    assert (dataset.name, dataset.sha256) == ("mine.txt", hashlib.sha256(path.read_bytes()).hexdigest())
    assert (dataset.config, dataset.split, dataset.revision) == (None, None, None)


def test_json_lines(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "a", "more": [1]},
        {"messages": CHAT, "id": "x", "reference": "r"},
        {"prompt": "c", "id": 8, "reference": None},
        {"prompt": "d", "id": None, "reference": 2.5},
    ]
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert ld.read_prompts(path).prompts == (
        ld.Prompt("1", "a"),
        ld.Prompt("x", tuple(CHAT), "r"),
        ld.Prompt("8", "c"),
        ld.Prompt("7", "d", "2.5"),
    )


@given(st.lists(a_text, min_size=1, max_size=5))
def test_json_lines_hold_every_text(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("json") / "mine.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [prompt.content for prompt in ld.read_prompts(path)] == texts


GOOD = b'{"prompt": "fine"}\n'


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        (b"not json", ["not JSON", "column 1"]),
        (b'{"prompt": "a"} {"prompt": "b"}', ["not JSON", "one JSON object per line"]),
        (b'"a"', ["not an object"]),
        (b"[]", ["not an object"]),
        (b'{"text": "a"}', ["neither a prompt nor messages"]),
        (b'{"prompt": "a", "messages": []}', ["both a prompt and messages"]),
        (b'{"prompt": 5}', ["the number 5", "give a text"]),
        (b'{"prompt": null}', ["missing", "give a text"]),
        (b'{"prompt": ""}', ["''", "empty"]),
        (b'{"prompt": "\\ud800"}', ["surrogates", "UTF-8"]),
        (b'{"messages": "a"}', ["of type str", '"role"']),
        (b'{"messages": []}', ["have no text"]),
        (b'{"messages": [{"role": "user", "content": " "}]}', ["have no text"]),
        (b'{"messages": [5]}', ["message 1", "5", '"role"']),
        (b'{"messages": [{"content": "a"}]}', ["message 1", "lacks a role"]),
        (b'{"messages": [{"role": "user", "content": ["a"]}]}', ["message 1", "not an object of texts"]),
        (b'{"prompt": "a", "id": "1"}', ["the id '1'", "line 1"]),
        (b'{"prompt": "a", "id": ["x"]}', ["the id ['x']", "neither a text nor a number"]),
        (b'{"prompt": "a", "id": ""}', ["the id ''", "leave it out"]),
        (b'{"prompt": "a", "reference": true}', ["the reference True", "neither a text nor a number"]),
        (b'{"prompt": "\xff"}', ["UTF-8"]),
        (b"[" * 100_000, ["cannot be used"]),
    ],
)
def test_what_is_refused_in_json_lines(tmp_path, refused, line, pieces):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with refused(f"{path}, line 3", *pieces):
        ld.read_prompts(path, limit=1)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\n \n", "only blank lines"), (b"\xef\xbb\xbf\n", "only blank lines")]
)
@pytest.mark.parametrize("name", ["mine.txt", "mine.jsonl"])
def test_an_empty_file(tmp_path, refused, name, content, said):
    (tmp_path / name).write_bytes(content)
    with refused(tmp_path / name, said):
        ld.read_prompts(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path, refused):
    with refused("no file", tmp_path / "none.txt"):
        ld.read_prompts(tmp_path / "none.txt")
    with refused(tmp_path, "is a directory"):
        ld.read_prompts(tmp_path)
    with refused("cannot be read", "Not a directory"):
        (tmp_path / "file").write_text("a")
        ld.read_prompts(tmp_path / "file" / "in_a_file.txt")
    (tmp_path / "mine.csv").write_text("a")
    with refused(tmp_path / "mine.csv", "'.csv'", ".txt", ".jsonl"):
        ld.read_prompts(tmp_path / "mine.csv")
    (tmp_path / "utf16.txt").write_bytes("first\nsecond".encode("utf-16"))
    with refused(tmp_path / "utf16.txt", "line 1", "UTF-8"):
        ld.read_prompts(tmp_path / "utf16.txt")


def test_a_header_of_many_columns_is_read_at_once():
    """Names are compared with each other, which must not take the square of their number."""
    many = [f"c{number}" for number in range(300_000)]
    content = (",".join([*many, "c7"]) + "\n").encode()
    began = time.perf_counter()
    with refused(ll.PromptError, given=Path("rows.csv"), problem="'c7'"):
        read_rows(content, Path("rows.csv"))
    assert time.perf_counter() - began < 10
