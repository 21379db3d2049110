import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens.datasets as ld
from layerlens.datasets.gsm8k import final_number


def test_the_real_test_split(real_file):
    path = real_file("gsm8k/test.jsonl")
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    dataset = ld.dataset("gsm8k", data_file=path)
    assert len(dataset) == 1319
    assert [prompt.content for prompt in dataset] == [row["question"] for row in rows]
    last_numbers = [re.findall(r"-?\d[\d,]*", row["answer"])[-1] for row in rows]
    assert [int(prompt.reference) for prompt in dataset] == [int(number.replace(",", "")) for number in last_numbers]
    assert [prompt.prompt_id for prompt in dataset] == [str(number) for number in range(1319)]


def test_a_limit_takes_the_first_ones_under_the_same_ids(real_file):
    path = real_file("gsm8k/test.jsonl")
    assert ld.dataset("gsm8k", data_file=path, limit=7).prompts == ld.dataset("gsm8k", data_file=path).prompts[:7]


@given(st.integers(-(10**12), 10**12), st.text().filter(lambda text: "####" not in text))
def test_the_number_after_the_last_marker(number, reasoning):
    assert final_number(f"{reasoning}\n#### 1\n#### {number:,}") == str(number)


@pytest.mark.parametrize("answer", ["it is 18", "####", "18 ####  "])
def test_an_answer_without_a_final_number(tmp_path, refused, answer):
    path = tmp_path / "copy.json"
    path.write_text(json.dumps([{"question": "a?", "answer": "#### 1"}, {"question": "b?", "answer": answer}]))
    with refused(path, "row 2", "####", "openai/gsm8k"):
        ld.dataset("gsm8k", data_file=path)
