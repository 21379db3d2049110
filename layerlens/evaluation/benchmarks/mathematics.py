"""MATH-500 and Omni-MATH: competition mathematics whose answers a program can compare."""

import hashlib
from collections.abc import Mapping
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import math
from inspect_ai.solver import generate, prompt_template

from layerlens.datasets.source import Release
from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, Setting, text

PROMPT = "{prompt}\n\nExplain your steps, and put the final answer, and nothing else, into \\boxed{{}}."
_SECONDS = 20.0  # a shorter limit would score by the load of the machine


def math500(rows: Rows, setting: Setting) -> Task:
    """What the answer boxes must equal the reference, as mathematics."""
    return _task([_problem(row, text(row, "unique_id")) for row in rows])


def omni_math(rows: Rows, setting: Setting) -> Task:
    """What the answer boxes must equal the reference, as mathematics."""
    return _task([_problem(row, _id(text(row, "problem"))) for row in rows])


def _task(samples: list[Sample]) -> Task:
    return Task(dataset=samples, solver=[prompt_template(PROMPT), generate()], scorer=math(timeout=_SECONDS))


def _problem(row: Mapping[str, Any], identity: str) -> Sample:
    metadata = {name: row[name] for name in ("subject", "level", "difficulty", "domain", "source") if name in row}
    return Sample(input=text(row, "problem"), target=_closed(text(row, "answer")), id=identity, metadata=metadata)


def _closed(answer: str) -> str:
    """The answer with the braces closed that a release left open, as in \\frac{1}{2^{3}."""
    return answer + "}" * max(0, answer.count("{") - answer.count("}"))


def _id(problem: str) -> str:
    """The release has no ids, and rows of it come in other orders."""
    return hashlib.sha256(problem.encode()).hexdigest()[:12]


_SETTINGS = {"temperature": 0.0, "max_tokens": 32768}
MATH500 = Benchmark(
    "math500",
    "competition mathematics, 500 problems",
    Release("HuggingFaceH4/MATH-500", None, "test"),
    ("problem", "answer", "unique_id"),
    math500,
    _SETTINGS,
)
OMNI_MATH = Benchmark(
    "omni_math",
    "olympiad mathematics, the 2,821 problems that the authors grade by rule",
    None,
    ("problem", "answer"),
    omni_math,
    _SETTINGS,
    advice="the release has all 4,428 problems and does not say which of them the authors grade by rule; give their "
    "file omni_math_rule.jsonl",
)
