"""LiveCodeBench: programs that must pass every test of a problem, run where they can do no harm."""

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import anyio.to_thread
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from layerlens.datasets import files
from layerlens.datasets.source import Release
from layerlens.errors import PromptError
from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, Setting
from layerlens.evaluation.sandbox import Limits, run_function, run_program

_COLUMNS = (
    *("question_id", "question_content", "starter_code", "difficulty", "platform", "contest_date"),
    *("public_test_cases", "private_test_cases", "metadata"),
)
_MOST_TESTS = 1 << 30  # bytes of the unpacked tests of a problem
_SECONDS = 10.0
_STANDARD = (
    "Write a Python program that reads its input from standard input and writes the answer to standard output. "
    "Put the whole program into one block that begins with ```python and ends with ```."
)
_FUNCTION = (
    "Complete the following Python code. Put all of it into one block that begins with ```python and ends with ```.\n\n"
    "```python\n{starter}\n```"
)


def task(rows: Rows, setting: Setting) -> Task:
    """The last block of code of an answer must pass all public and private tests."""
    tests = {str(row["question_id"]): _all_tests(row) for row in rows}
    return Task(dataset=[_sample(row) for row in rows], solver=generate(), scorer=passes_tests(tests))


def _sample(row: Mapping[str, Any]) -> Sample:
    starter = str(row["starter_code"] or "")
    ending = _FUNCTION.format(starter=starter) if starter.strip() else _STANDARD
    function = json.loads(row["metadata"] or "{}").get("func_name", "")
    if starter.strip() and not function:
        raise ValueError("its metadata name no function")
    return Sample(
        input=f"{row['question_content']}\n\n{ending}",
        target="",
        id=str(row["question_id"]),
        metadata={
            "difficulty": row["difficulty"],
            "platform": row["platform"],
            "contest_date": str(row["contest_date"]),
            "function": function if starter.strip() else "",
        },
    )


def _all_tests(row: Mapping[str, Any]) -> list[dict[str, str]]:
    tests = [*tests_of(row["public_test_cases"]), *tests_of(row["private_test_cases"])]
    if not tests:
        raise ValueError("it has no tests")
    return tests


def tests_of(packed: str) -> list[dict[str, str]]:
    """The tests of a column: JSON, or JSON that was pickled, compressed and written in base64.

    Raises:
        ValueError: it is neither, or would unpack to more than a gigabyte, or to objects other than a text.
    """
    try:
        tests = json.loads(packed)
    except ValueError:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(packed), _MOST_TESTS + 1)
        if len(unpacked) > _MOST_TESTS:
            raise ValueError("its tests are too large") from None
        try:
            tests = json.loads(_Texts(io.BytesIO(unpacked)).load())
        except (pickle.UnpicklingError, EOFError, TypeError, IndexError) as error:
            raise ValueError(f"its tests cannot be read ({error})") from error
    return [{"input": str(test["input"]), "output": str(test["output"])} for test in tests]


class _Texts(pickle.Unpickler):
    """Reads pickled texts, lists and numbers; an object of any class would run code of its file."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def passes_tests(tests: Mapping[str, list[dict[str, str]]]) -> Scorer:
    """Right where the last block of code passes all tests of the problem.

    Args:
        tests: by the id of the problem. They are not among the sample's metadata, because every log would hold them.
    """

    @scorer(name="passes_tests", metrics=[accuracy(), stderr()])
    def made() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:
            code = code_in(state.output.completion)
            if code is None:
                return Score(value=INCORRECT, explanation="no block of code", reason="invalid_response_format")
            own = tests[str(state.sample_id)]
            for number, test in enumerate(own, start=1):
                why = await anyio.to_thread.run_sync(_failure, code, state.metadata["function"], test)
                if why is not None:
                    return Score(value=INCORRECT, answer=code, explanation=f"test {number} of {len(own)}: {why}")
            return Score(value=CORRECT, answer=code, explanation=f"all {len(own)} tests")

        return score

    return made()


_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def code_in(text: str) -> str | None:
    """The last closed block of code; None where there is none."""
    blocks: list[str] = _BLOCK.findall(text)
    return blocks[-1] if blocks and blocks[-1].strip() else None


def _failure(code: str, function: str, test: Mapping[str, str]) -> str | None:
    """Why a program does not pass a test; None where it does."""
    limits = Limits(seconds=_SECONDS)
    if function:
        arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
        done = run_function(code, function, arguments, limits)
        alike = done.reason == "ended" and _same_value(done.output, test["output"])
    else:
        done = run_program(code, test["input"], limits)
        alike = done.reason == "ended" and same_lines(done.output, test["output"])
    if done.reason != "ended":
        last = done.errors.strip().splitlines()[-1:] or [""]
        return f"{done.reason} {last[0]}".strip()
    return None if alike else "another output"


def _same_value(output: str, wanted: str) -> bool:
    """Whether two texts are the same JSON."""
    try:
        return bool(json.loads(output) == json.loads(wanted))
    except ValueError:
        return False


def same_lines(output: str, wanted: str) -> bool:
    """Whether two outputs have the same lines, apart from blanks around them and from how numbers are written."""
    ours, theirs = (text.strip().splitlines() for text in (output, wanted))
    return len(ours) == len(theirs) and all(
        one.strip() == other.strip() or _same_numbers(one, other) for one, other in zip(ours, theirs, strict=True)
    )


def _same_numbers(one: str, other: str) -> bool:
    try:
        ours, theirs = ([Decimal(word) for word in line.split()] for line in (one, other))
    except InvalidOperation:
        return False
    return ours == theirs and len(ours) > 0


def _rows_of(path: Path) -> Rows:
    """The rows of a file, or of all files test*.jsonl of a folder."""
    if not path.is_dir():
        return files.read_rows(files.read_bytes(path), path)
    found = sorted(path.glob("test*.jsonl"), key=lambda one: (len(one.name), one.name))
    if not found:
        raise PromptError(f"{path} has no file test*.jsonl", "give the folder of the release", given=path)
    return [row for one in found for row in files.read_rows(files.read_bytes(one), one)]


_RELEASE = "livecodebench/code_generation_lite"
_SETTINGS = {"temperature": 0.0, "max_tokens": 32768}
V6 = Benchmark(
    "livecodebench_v6",
    "programming, the 175 problems of LiveCodeBench that version 6 added",
    Release(_RELEASE, None, None, files=("test6.jsonl",)),
    _COLUMNS,
    task,
    _SETTINGS,
    tables=_rows_of,
    runs_code=True,
)
RELEASE_V6 = Benchmark(
    "livecodebench_release_v6",
    "programming, all 1,055 problems of LiveCodeBench up to version 6",
    Release(
        _RELEASE,
        None,
        None,
        files=("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl"),
    ),
    _COLUMNS,
    task,
    _SETTINGS,
    tables=_rows_of,
    runs_code=True,
)
