"""GPQA Diamond: the samples, prompt and scorer of inspect_evals; the options of a question are ordered by its id."""

from collections.abc import Mapping
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice
from inspect_evals.gpqa.gpqa import record_to_sample

from layerlens.datasets.gpqa import LETTERS, OPTION_COLUMNS, option_order
from layerlens.datasets.source import Release
from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, Setting, text


def task(rows: Rows, setting: Setting) -> Task:
    """The letter of the last line that says ANSWER must be that of the correct option."""
    return Task(
        dataset=[_sample(row, setting.seed) for row in rows],
        solver=multiple_choice(cot=True),
        scorer=choice(),
    )


def _sample(row: Mapping[str, Any], seed: int) -> Sample:
    text(row, "Question")
    sample = record_to_sample(dict(row))
    order = option_order(text(row, "Record ID"), seed)
    sample.choices = [text(row, OPTION_COLUMNS[place]).strip() for place in order]
    sample.target = LETTERS[order.index(0)]
    return sample


BENCHMARK = Benchmark(
    "gpqa",
    "graduate science, 198 questions, four options",
    Release("Idavidrein/gpqa", "gpqa_diamond", "train", gated=True),
    ("Record ID", "Question", *OPTION_COLUMNS, "High-level domain", "Subdomain"),
    task,
    {"temperature": 0.0, "max_tokens": 32768},
)
