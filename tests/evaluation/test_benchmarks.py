"""The scorers of the benchmarks against their stated rules, and all benchmarks from rows to a score."""

import asyncio
import base64
import gc
import json
import pickle
import zlib

import pytest

import layerlens as ll
from layerlens.errors import PromptError
from tests.conftest import REAL_DATA, tiny
from tests.evaluation import made_up_rows as rows
from tests.evaluation.judge import judging
from tests.refusals import refused

pytest.importorskip("inspect_evals", reason="needs the extra eval")

from inspect_ai.model import ChatMessageUser, ModelName, ModelOutput
from inspect_ai.scorer import Target, value_to_float
from inspect_ai.solver import TaskState

from layerlens.evaluation.benchmarks import NAMES, benchmark
from layerlens.evaluation.benchmarks.benchmark import Setting, read, task_of
from layerlens.evaluation.sandbox import refuse_unsafe
from layerlens.records.evaluation import read_answers
from tests.thorough import some, thorough

# inspect asks tenacity for what that has renamed, and leaves streams to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.__get_validators__. is deprecated"),
]


def graded(task, pairs):
    """The score of each answer to a sample of a task; None where it has none."""
    scorer = task.scorer[0] if isinstance(task.scorer, list) else task.scorer

    async def all_of_them():
        found = []
        for sample, text in pairs:
            state = TaskState(
                model=ModelName("mockllm/model"),
                sample_id=sample.id,
                epoch=1,
                input=sample.input,
                target=Target(sample.target),
                choices=sample.choices,
                messages=[ChatMessageUser(content=str(sample.input))],
                output=ModelOutput.from_content("made up", text),
                metadata=sample.metadata or {},
            )
            if sample.choices:
                from inspect_ai.solver._multiple_choice import parse_answers, set_choices_based_on_generated_response

                set_choices_based_on_generated_response(state, parse_answers(state, False))
            score = await scorer(state, state.target)
            found.append(value_to_float()(score.value))
        return found

    return asyncio.run(all_of_them())


def real(name, file):
    if not REAL_DATA.exists():
        pytest.skip("needs the datasets beside the checkout")
    one = benchmark(name)
    found, origin = read(one, REAL_DATA / file, None)
    task = task_of(one, found, origin, Setting())
    return task, list(task.dataset)


@pytest.mark.parametrize(
    ("name", "file", "says"),
    [
        ("gsm8k", "gsm8k/test.jsonl", "I add them up.\n\nANSWER: {}"),
        ("math500", "math500/test.jsonl", "So the answer is \\boxed{{{}}}."),
        pytest.param("omni_math", "omni_math_rule/head400.jsonl", "So the answer is \\boxed{{{}}}.", marks=thorough),
    ],
)
def test_references_are_right_and_those_of_the_next_item_are_wrong(name, file, says):
    task, samples = real(name, file)
    answers = [says.format(sample.target) for sample in samples]
    assert graded(task, zip(samples, answers, strict=True)) == [1.0] * len(samples)
    others = graded(task, zip(samples, answers[1:] + answers[:1], strict=True))
    assert sum(others) < 0.05 * len(samples)


@pytest.mark.parametrize("says", ["{}", "So it is {}.", "I add them up.\n\nThe answer is **{}**."])
def test_shipped_references_are_right_and_those_of_the_next_item_are_wrong_unless_they_are_equal(says):
    one = benchmark("sample")
    task = task_of(one, *read(one, None, None), Setting())
    samples = list(task.dataset)
    assert len(samples) == 60
    answers = [says.format(sample.target) for sample in samples]
    assert graded(task, zip(samples, answers, strict=True)) == [1.0] * 60
    others = graded(task, zip(samples, answers[1:] + answers[:1], strict=True))
    targets = [sample.target for sample in samples]
    differ = [one != other for one, other in zip(targets, targets[1:] + targets[:1], strict=True)]
    assert sum(differ) > 50
    assert sum(score for score, differs in zip(others, differ, strict=True) if differs) < 0.05 * sum(differ)


@pytest.mark.parametrize(
    ("answer", "says", "right"),
    [
        *(("12", text, 1.0) for text in ("It is 12.", "12.0", "First 3, then 12 apples.", "12, not 13")),
        *(("12", text, 0.0) for text in ("It is 13.", "12 or 13", "twelve", "")),
        *(("Sam", text, 1.0) for text in ("It is sam.", "Tom?\nSam", r"\boxed{Sam}")),
        *(("Sam", text, 0.0) for text in ("Sam is wrong.", "Sam or Tom", "Samuel", "Sam.\nNo, wait: Tom.", "")),
    ],
)
def test_rows_of_ones_own_in_the_form_of_the_shipped_ones(answer, says, right):
    one = benchmark("sample")
    task = one.task([{"id": 7, "question": "Which?", "answer": answer}], Setting())
    (sample,) = task.dataset
    assert (sample.id, sample.input, sample.target) == ("7", "Which?", answer)
    assert graded(task, [(sample, says)]) == [right]


def test_mathematics_agrees_with_math_verify():
    """Answers in other spellings, and wrong ones: two libraries give the same verdict, but for a few that are told."""
    from math_verify import parse, verify

    task, samples = real("math500", "math500/test.jsonl")
    pairs = []
    for place, sample in enumerate(samples[:110]):
        target = sample.target
        other = target.replace("\\frac", "\\dfrac") if "frac" in target else f" {target} "
        pairs += [
            (sample, f"It is $\\boxed{{{other}}}$."),
            (sample, f"It is $\\boxed{{{samples[place + 1].target}}}$."),
        ]
    ours = graded(task, pairs)
    theirs = [float(verify(parse(f"${sample.target}$"), parse(text))) for sample, text in pairs]
    differ = [(s.target, text) for (s, text), one, two in zip(pairs, ours, theirs, strict=True) if one != two]
    assert len(pairs) >= 200
    assert len(differ) <= 0.05 * len(pairs), differ


BEFORE = ("", "6 * 7 = 41?\n", "First 12, then 30.\n\n", "Reasoning: 1 + 1.\n", "**Steps**\n1. 40\n2. 2\n")
RIGHT = ("42", "42.0", "$42", "**42**", "42 apples", "42!")
WRONG = ("41", "-42", "4.2", "420", "none", "")
NUMBERS = [
    f"{before}ANSWER: {write}{after}" for before in BEFORE for write in (*RIGHT, *WRONG) for after in ("", ".", "\n")
]


def last_number(text):
    """The stated rule in plain Python: the last word that is a number, without signs of money, stars and full stops."""
    for word in reversed(text.replace("$", "").replace("*", "").replace("_", "").split()):
        try:
            return float(word.strip("!?:;()[]{}'\"`").rstrip(".").strip("!?:;()[]{}'\"`"))
        except ValueError:
            continue
    return None


def test_two_hundred_numbers():
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import match

    texts = [*NUMBERS, *(text.replace("ANSWER: ", "The total is ") for text in NUMBERS[:40])]
    assert len(texts) >= 200
    task = Task(dataset=[Sample(input="", target="42", id=1)], scorer=match(numeric=True))
    found = graded(task, [(task.dataset[0], text) for text in texts])
    wanted = [float(last_number(text) == 42) for text in texts]
    assert [text for text, one, two in zip(texts, found, wanted, strict=True) if one != two] == []
    assert found[18:36] == [0.0] * 18


def test_two_hundred_letters():
    """The last line that begins with ANSWER decides, or else the last place that says it; two letters are wrong."""
    from tests.evaluation.test_evaluate import CHOICES

    task = benchmark("gpqa").task(CHOICES, Setting(seed=1))
    pairs, wanted = [], []
    for sample in task.dataset:
        right = sample.target
        wrong = next(letter for letter in "ABCD" if letter != right)
        befores = ("", "I think.\n", f"It could be {wrong}.\n", f"ANSWER: {wrong}\nNo, wait.\n", "A) no\nB) no\n\n")
        ends = {
            **dict.fromkeys((f"ANSWER: {right}", f"ANSWER: {right}.", f"answer: {right.lower()}"), 1.0),
            **dict.fromkeys((f"**ANSWER: {right}**", f"ANSWER: ({right})", f"ANSWER: $ {right} $"), 1.0),
            **dict.fromkeys((f"ANSWER: {wrong}", f"ANSWER: {right}, {wrong}", "ANSWER: E"), 0.0),
            f"ANSWER: {right}\nANSWER: {wrong}": 0.0,
        }
        for before in befores:
            for text, is_right in ends.items():
                pairs.append((sample, before + text))
                begins = not text.startswith("**") or "ANSWER" not in before
                wanted.append(is_right * begins)
    assert len(pairs) >= 200
    found = graded(task, pairs)
    assert [text for (_, text), one, two in zip(pairs, found, wanted, strict=True) if one != two] == []


@pytest.fixture
def sandbox():
    try:
        refuse_unsafe()
    except ll.OptionError as error:
        pytest.skip(str(error))


@thorough
def test_two_hundred_programs(sandbox):
    task = benchmark("livecodebench_v6").task(rows.LIVECODEBENCH, Setting())
    right = {
        "double": [
            "print(2 * int(input()))",
            "import sys\nprint(int(sys.stdin.read()) * 2, end='')",
            "x = int(input())\nprint(f' {x + x} ')",
            "print(float(input()) * 2)",
        ],
        "sum": [
            "class Solution:\n    def total(self, numbers):\n        return sum(numbers)",
            "def total(numbers):\n    s = 0\n    for n in numbers: s += n\n    return s",
        ],
    }
    wrong = {
        "double": [
            *("print(4)", "print(input())", "x = input(", "raise ValueError", "", "open('/tmp/x', 'w')"),
            "print(2 * int(input())); print(1)",
        ],
        "sum": [
            "class Solution:\n    def total(self, numbers):\n        return 3",
            *("class Solution:\n    pass", "total = 3"),
            "class Solution:\n    def total(self, numbers):\n        print(sum(numbers))",
        ],
    }
    frames = [
        "```python\n{}\n```",
        "Here:\n\n```python\n{}\n```\nIt works.",
        "```py\nprint('old')\n```\nBetter:\n```\n{}\n```",
        "  ```python\n{}\n  ```",
    ]
    broken = ["{}", "```python\n{}", "`{}`", "```python\n{}\n```\n```python\nprint('another')\n```"]
    pairs, wanted = [], []
    for sample in task.dataset:
        for code in right[sample.id]:
            pairs += [(sample, frame.format(code)) for frame in [*frames, *broken]]
            wanted += [1.0] * len(frames) + [0.0] * len(broken)
        for code in wrong[sample.id]:
            pairs += [(sample, frame.format(code)) for frame in frames]
            wanted += [0.0] * len(frames)
    pairs, wanted = pairs * 3, wanted * 3  # the same answer gets the same score
    assert len(pairs) >= 200
    assert graded(task, pairs) == wanted


@thorough
def test_packed_tests_are_read_without_running_anything():
    from layerlens.evaluation.benchmarks.livecodebench import tests_of

    tests = [{"input": "1", "output": "2"}]
    assert tests_of(rows.packed(tests)) == tests_of(json.dumps(tests)) == tests
    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(ValueError, match="names"):
        tests_of(evil)
    with pytest.raises(ValueError, match=r"too large|cannot be read"):
        tests_of(base64.b64encode(zlib.compress(b"\0" * (1 << 30) + b"more")).decode())


class Evil:
    def __reduce__(self):
        return print, ("run",)


GOOD = {
    "gsm8k": {"question": "Q?", "answer": "1 + 2\n#### 3"},
    "math500": {"problem": "P", "answer": "3", "unique_id": "first"},
    "omni_math": {"problem": "P", "answer": "3"},
    "gpqa": {
        **{"Record ID": "first", "Question": "Q?", "Correct Answer": "a", "High-level domain": "x", "Subdomain": "y"},
        **{f"Incorrect Answer {number}": f"{number}" for number in (1, 2, 3)},
    },
    "longbench_v2": rows.LONGBENCH[0],
}


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("gsm8k", {"question": "Q?", "answer": "no mark"}),
        ("gsm8k", {"question": None, "answer": "#### 3"}),
        ("gsm8k", {"question": "Q?", "answer": None}),
        ("math500", {"problem": "P", "answer": None, "unique_id": "one"}),
        ("math500", {"problem": "P", "answer": "3", "unique_id": None}),
        ("math500", {"problem": " ", "answer": "3", "unique_id": "one"}),
        ("omni_math", {"problem": "P", "answer": float("nan")}),
        ("gpqa", {"Correct Answer": None}),
        ("gpqa", {"Question": ""}),
        ("longbench_v2", {"choice_D": None}),
        ("longbench_v2", {"context": None}),
    ],
)
def test_a_row_without_what_is_asked_or_compared_is_refused(task, row):
    """And not asked, with "None" for an answer."""
    good = GOOD[task]
    whole = good | row
    with refused(PromptError, problem="made up, row 2"):
        task_of(benchmark(task), [good, whole], "made up", Setting())


def test_the_middle_of_a_long_text_is_cut():
    one, model = benchmark("longbench_v2"), tiny("llama", max_position_embeddings=2048)

    def length(text):
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    from layerlens.evaluation.subject import _without_middle

    setting = Setting(
        context=2048, fit=lambda text, n: _without_middle(model.tokenizer, text, n), length=length, max_new_tokens=128
    )
    long, short = one.task(rows.LONGBENCH, setting).dataset
    assert rows.LONGBENCH[1]["context"].strip() in short.input
    assert "BEGIN a lamp" in long.input
    assert "door. END" in long.input
    assert 1500 < length(long.input) < 2048 - 128
    assert rows.LONGBENCH[0]["context"].strip() in next(iter(one.task(rows.LONGBENCH, Setting()).dataset)).input


def verdict(prompt):
    """Yes for every answer, 7 of 10, and a refusal."""
    if "##the_score" in prompt:
        return "##short_reasoning: it declines. ##the_score: 1"
    if "Criteria" in prompt:
        return '```json\n{"score": 7, "reason": "fine"}\n```'
    return json.dumps(
        {"extracted_final_answer": "x", "reasoning": "r", "correct": "yes", "confidence": 90, "strict": True}
    )


FILES = {
    "sample": rows.SAMPLE,
    "hle": rows.HLE,
    "livecodebench_v6": rows.LIVECODEBENCH,
    "livecodebench_release_v6": rows.LIVECODEBENCH,
    "longbench_v2": rows.LONGBENCH,
    "longbench_v2_cot": rows.LONGBENCH,
    "air_bench": rows.AIR_BENCH,
    "writingbench": rows.WRITING,
}


def evaluated(tmp_path, tasks, judge=verdict, **options):
    files = {}
    for name in tasks:
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in FILES[name]))
    with judging(judge) as (url, asked):
        table = ll.evaluate(
            tiny("llama", max_position_embeddings=2048),
            tasks,
            out=tmp_path / "out",
            data_files=files,
            max_new_tokens=4,
            judge="openai-api/judge/made-up",
            judge_url=url,
            **options,
        )
    gc.collect()  # what is left of the streams, while their warnings are ignored
    return table.set_index("task"), read_answers(tmp_path / "out").to_pandas(), asked


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "none")


def test_every_benchmark_comes_to_a_score(tmp_path, sandbox):
    assert set(FILES) | {"gpqa", "gsm8k", "math500", "omni_math"} == set(NAMES)
    table, answers, asked = evaluated(tmp_path, list(FILES), allow_code_execution=True)
    assert table["score"].to_dict() == {
        "sample": 0.0,
        "hle": 1.0,
        "livecodebench_v6": 0.0,
        "livecodebench_release_v6": 0.0,
        "longbench_v2": 0.0,
        "longbench_v2_cot": 0.0,
        "air_bench": 1.0,
        "writingbench": 0.7,
    }
    assert set(answers["outcome"]) == {"scored"}
    assert "model_length" not in set(answers["stop_reason"]), "long texts were cut to fit"
    assert len(asked) == 3 + 3 + 2 * 5
    assert not any("base64" in prompt for prompt in asked)
    marked = [prompt for prompt in asked if "Made-up request" in prompt]
    assert all(prompt.count("with the mark {{ANSWER}}.") == 1 for prompt in marked)


@pytest.mark.parametrize("says", some(["I cannot say.", None, "##the_score: 7", '{"score": 11}', "GRADE: C"], 2))
def test_a_judge_that_does_not_judge_is_told_and_not_counted(tmp_path, says):
    table, answers, asked = evaluated(tmp_path, ["hle", "air_bench", "writingbench"], lambda prompt: says)
    assert set(answers["outcome"]) == {"unscored"}
    assert table["unscored"].tolist() == [3, 3, 2]
    assert table["score"].isna().all()
    assert len(asked) >= 3 * (3 + 3 + 2)


def test_what_a_judge_left_out_is_scored_when_the_command_is_repeated(tmp_path):
    """The answers are kept, those that have a score are not judged again, and nothing else changes."""
    names, works = ["hle", "air_bench", "writingbench", "sample"], []
    first = rows.HLE[0]["question"]

    def moody(prompt):
        return verdict(prompt) if works or first in prompt else None

    files = {name: tmp_path / f"{name}.jsonl" for name in names}
    for name, path in files.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in FILES[name]))
    options = {"data_files": files, "max_new_tokens": 4, "judge": "openai-api/judge/made-up"}
    model = tiny("llama", max_position_embeddings=2048)
    with judging(moody) as (url, asked):
        before = ll.evaluate(model, names, out=tmp_path / "out", judge_url=url, **options).set_index("task")
        assert before["unscored"].to_dict() == {"hle": 2, "air_bench": 3, "writingbench": 2, "sample": 0}
        works.append(True)
        del asked[:]
        after = ll.evaluate(model, names, out=tmp_path / "out", judge_url=url, **options).set_index("task")
        assert len(asked) == 2 + 3 + 2 * 5
        del asked[:]
        again = ll.evaluate(model, names, out=tmp_path / "out", judge_url=url, **options).set_index("task")
        assert not asked
    gc.collect()
    assert after["unscored"].sum() == 0
    assert after["score"].to_dict() == {"hle": 1.0, "air_bench": 1.0, "writingbench": 0.7, "sample": 0.0}
    assert after["generated_tokens"].equals(before["generated_tokens"])
    assert again.equals(after)


def test_a_judge_that_judges_at_the_second_attempt(tmp_path):
    seen = set()

    def moody(prompt):
        if prompt in seen:
            return verdict(prompt)
        seen.add(prompt)
        return "hm"

    table, answers, _ = evaluated(tmp_path, ["hle", "air_bench", "writingbench"], moody)
    assert set(answers["outcome"]) == {"scored"}
    assert table["score"].tolist() == [1.0, 1.0, 0.7]


@pytest.mark.parametrize(
    ("tasks", "option", "given"),
    [(["hle"], "judge", None), (["livecodebench_v6"], "allow_code_execution", False)],
)
def test_what_a_benchmark_needs(tmp_path, tasks, option, given):
    with refused(ll.OptionError, option, given, problem=tasks[0]):
        ll.evaluate(tiny("llama"), tasks, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_does_not_judge_itself(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows.AIR_BENCH[0]))
    judge = "layerlens/LlamaForCausalLM"
    with refused(ll.OptionError, "judge", judge):
        ll.evaluate(tiny("llama"), ["air_bench"], out=tmp_path / "out", data_files={"air_bench": path}, judge=judge)
    assert not (tmp_path / "out").exists()


def test_rule_graded_problems_are_not_taken_for_all(tmp_path):
    with refused(ll.PromptError, "data_file", None, problem="omni_math", advice="omni_math_rule.jsonl"):
        ll.evaluate(tiny("llama"), ["omni_math"], out=tmp_path / "out")
