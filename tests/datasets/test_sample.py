"""The shipped problems: every answer is derived again, independently."""

import contextlib
import datetime
import io
import itertools
import json
import math
import re
import string
from fractions import Fraction
from pathlib import Path

import pytest

import layerlens.datasets as ld

PATH = Path(__file__).resolve().parents[2] / "data" / "sample.jsonl"
PROBLEMS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
MODULES = {"datetime": datetime, "itertools": itertools, "math": math, "string": string, "Fraction": Fraction}


def only(values):
    (value,) = values
    return value


def printed(question):
    """What the program quoted in a question prints when it is run."""
    program = only(re.findall(r"```python\n(.*?)\n```", question, flags=re.DOTALL))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {"__name__": "__main__"})
    return out.getvalue().removesuffix("\n")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem["id"])
def test_the_check_derives_the_answer(problem):
    if problem["check"] is None:
        assert problem["topic"] == "science", "only plain knowledge goes without a check"
        return
    value = eval(problem["check"], {**MODULES, "only": only, "printed": printed, "question": problem["question"]})
    assert str(value) == problem["answer"]


def test_nearly_every_answer_has_a_check_and_few_answers_are_alike():
    assert sum(problem["check"] is None for problem in PROBLEMS) <= 5
    assert len({problem["answer"] for problem in PROBLEMS}) > 40
    assert not any(problem["check"] == problem["answer"] for problem in PROBLEMS)


def test_sixty_problems_twelve_of_each_topic():
    assert [problem["id"] for problem in PROBLEMS] == [f"sample-{n:02d}" for n in range(1, 61)]
    topics = [problem["topic"] for problem in PROBLEMS]
    assert {topic: topics.count(topic) for topic in topics} == dict.fromkeys(
        ["arithmetic", "logic", "units", "code", "science"], 12
    )
    assert all(list(problem) == ["id", "topic", "question", "answer", "check"] for problem in PROBLEMS)
    assert len({problem["question"] for problem in PROBLEMS}) == 60


def test_the_dataset_is_the_file():
    dataset = ld.dataset("sample")
    read = [(prompt.prompt_id, prompt.content, prompt.reference) for prompt in dataset]
    assert read == [(problem["id"], problem["question"], problem["answer"]) for problem in PROBLEMS]
    assert (dataset.name, dataset.config, dataset.split, dataset.revision) == ("sample", None, None, None)
