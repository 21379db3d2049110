"""LongBench v2: questions with four options about texts that can be longer than a model's context."""

from collections.abc import Mapping
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice

from layerlens.datasets.source import Release
from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, Setting
from layerlens.evaluation.benchmarks.benchmark import text as text_in

_LETTERS = "ABCD"
_DIRECT = (
    "Read this text, and answer the question about it.\n\n{question}\n\n{choices}\n\n"
    "Say nothing but one line of the form 'ANSWER: LETTER', where LETTER is one of {letters}."
)
_STEPS = (
    "Read this text, and answer the question about it.\n\n{question}\n\n{choices}\n\n"
    "Think step by step, and end with a line of the form 'ANSWER: LETTER', where LETTER is one of {letters}."
)
_ID = "_id"
_QUESTION = "<text>\n{}\n</text>\n\nQuestion: {}"
_AROUND = 64  # tokens of the chat template


def direct(rows: Rows, setting: Setting) -> Task:
    """The letter must be that of the reference, without steps before it."""
    return _task(rows, setting, _DIRECT, cot=False)


def in_steps(rows: Rows, setting: Setting) -> Task:
    """The letter must be that of the reference, at the end of an answer in steps."""
    return _task(rows, setting, _STEPS, cot=True)


def _task(rows: Rows, setting: Setting, template: str, *, cot: bool) -> Task:
    return Task(
        dataset=[_sample(row, setting, template) for row in rows],
        solver=multiple_choice(template=template, cot=cot),
        scorer=choice(),
    )


def _sample(row: Mapping[str, Any], setting: Setting, template: str) -> Sample:
    choices = [text_in(row, f"choice_{letter}") for letter in _LETTERS]
    if row["answer"] not in tuple(_LETTERS):
        raise ValueError(f"its answer is {row['answer']!r}")
    asked = text_in(row, "question").strip()
    text = text_in(row, "context").strip()
    if setting.fit is not None and setting.context is not None:
        # the answer gets half of a short context at most
        options = "\n".join(f"{letter}) {option}" for letter, option in zip(_LETTERS, choices, strict=True))
        around = template.format(question=_QUESTION.format("", asked), choices=options, letters=",".join(_LETTERS))
        room = setting.context - min(setting.max_new_tokens, setting.context // 2) - _AROUND
        text = setting.fit(text, max(0, room - setting.length(around)))
    return Sample(
        input=_QUESTION.format(text, asked),
        choices=choices,
        target=row["answer"],
        id=str(row[_ID]),
        metadata={name: row[name] for name in ("domain", "sub_domain", "difficulty", "length") if name in row},
    )


_RELEASE = Release("THUDM/LongBench-v2", None, "train")
_COLUMNS = (_ID, "question", *(f"choice_{letter}" for letter in _LETTERS), "answer", "context")
DIRECT = Benchmark(
    "longbench_v2",
    "questions about long texts, 503, answered at once (0shot)",
    _RELEASE,
    _COLUMNS,
    direct,
    {"temperature": 0.0, "max_tokens": 128},
)
IN_STEPS = Benchmark(
    "longbench_v2_cot",
    "questions about long texts, 503, answered in steps (0shot_cot)",
    _RELEASE,
    _COLUMNS,
    in_steps,
    {"temperature": 0.0, "max_tokens": 32768},
)
