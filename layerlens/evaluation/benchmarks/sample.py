"""The problems that come with layerlens, or a file of one's own in the same form."""

from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, Setting
from layerlens.evaluation.scoring import number_or_words
from layerlens.sources.shipped import shipped_file


def task(rows: Rows, setting: Setting) -> Task:
    """The question as it stands; the answer is a number or words."""
    samples = []
    for row in rows:
        question, answer = (str("" if row[name] is None else row[name]) for name in ("question", "answer"))
        if not question.strip() or not answer.strip() or not number_or_words(answer, answer):
            raise ValueError("its question is empty, or its answer is no number and no words")
        samples.append(Sample(input=question, target=answer, id=str(row["id"])))
    return Task(dataset=samples, solver=generate(), scorer=a_number_or_words())


@scorer(metrics=[accuracy(), stderr()])
def a_number_or_words() -> Scorer:
    """Right where `number_or_words` finds the reference in the answer."""

    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion
        return Score(value=CORRECT if number_or_words(said, target.text) else INCORRECT, answer=said)

    return score


BENCHMARK = Benchmark(
    "sample",
    "short reasoning problems, 60, shipped with layerlens",
    None,
    ("id", "question", "answer"),
    task,
    {"temperature": 0.0, "max_tokens": 256},
    shipped=lambda: shipped_file("sample.jsonl"),
)
