"""GSM8K without examples: the prompt, the samples and the scorer of inspect_evals."""

from collections.abc import Mapping
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate, prompt_template
from inspect_evals.gsm8k.gsm8k import GSM8K_DATASET_REVISION, MATH_PROMPT_TEMPLATE, record_to_sample

from layerlens.datasets.source import Release
from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, Setting, text

_MARK = "####"


def task(rows: Rows, setting: Setting) -> Task:
    """The last number of an answer must be that of the solution."""
    return Task(
        dataset=[_sample(row) for row in rows],
        solver=[prompt_template(MATH_PROMPT_TEMPLATE), generate()],
        scorer=match(numeric=True),
    )


def _sample(row: Mapping[str, Any]) -> Sample:
    text(row, "question")
    if not text(row, "answer").rpartition(_MARK)[1]:
        raise ValueError(f"its answer has no {_MARK} before the number")
    return record_to_sample(dict(row))


BENCHMARK = Benchmark(
    "gsm8k",
    "school arithmetic in words, 1,319 questions",
    Release("openai/gsm8k", "main", "test"),
    ("question", "answer"),
    task,
    {"temperature": 0.0, "max_tokens": 2048},
    revision=GSM8K_DATASET_REVISION,
)
