"""Evaluations by inspect: answers are those of `ll.generate`, and what was interrupted ends as if it had not been."""

import gc
import json
import sys

import numpy as np
import pandas as pd
import pytest

import layerlens as ll
from tests.conftest import tiny
from tests.killed import kill_while_working
from tests.refusals import refused

pytest.importorskip("inspect_evals", reason="needs the extra eval")

from inspect_ai.log import list_eval_logs, read_eval_log

from layerlens.analysis.evaluation import evaluation_table
from layerlens.decode import continuous
from layerlens.records.evaluation import read_answers, read_manifest
from tests.thorough import thorough

# inspect asks tenacity for what that has renamed, and leaves streams to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.__get_validators__. is deprecated"),  # what inspect_evals has
]

SUMS = [{"question": f"What is {n} + {n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(1, 8)]
CHOICES = [
    {
        "Record ID": f"rec{n}",
        "Question": f"Which is {n}?",
        "Correct Answer": str(n),
        **{f"Incorrect Answer {k}": str(n + k) for k in (1, 2, 3)},
        "High-level domain": "Physics",
        "Subdomain": "Optics and Acoustics",
    }
    for n in range(1, 5)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("rows")
    found = {}
    for name, rows in (("gsm8k", SUMS), ("gpqa", CHOICES)):
        found[name] = place / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def evaluated(files, out, tasks=("gsm8k", "gpqa"), strategies=("last", "valley"), **options):
    table = ll.evaluate(
        tiny("llama", max_position_embeddings=2048),
        tasks,
        strategies,
        out=out,
        data_files=files,
        **{"max_new_tokens": 8, "window": 3, **options},
    )
    gc.collect()  # what is left of the streams, while their warnings are ignored
    return table


def only(files, name):
    return {name: files[name]}


def answers_of(out, arm):
    logs = map(read_eval_log, list_eval_logs(str(out / "logs")))
    return next(log.samples for log in logs if log.eval.metadata["arm"] == arm)


def answers(out):
    return read_answers(out).to_pandas()


def test_answers_are_those_of_generate(files, tmp_path):
    evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"], ["last", "valley", "dola-low"])
    logs = {log.eval.metadata["arm"]: log for log in map(read_eval_log, list_eval_logs(str(tmp_path / "out" / "logs")))}
    assert set(logs) == {"last", "valley", "dola-low"}
    for arm, strategy in (
        ("last", ll.Last()),
        ("valley", ll.Valley(window=3)),
        ("dola-low", ll.DoLa(candidates="low")),
    ):
        for sample in logs[arm].samples:
            alone = ll.generate(
                tiny("llama", max_position_embeddings=2048),
                sample.messages[0].text,
                strategy=strategy,
                max_new_tokens=8,
            )
            assert sample.output.completion == alone.text
            assert sample.output.metadata["tokens"] == [
                {"ids": list(alone.token_ids), "layers": alone.steps["selected_layer"].tolist()}
            ]


def test_an_answer_ends_before_a_stop_string(files, tmp_path):
    """Which text it is does not matter: it is a letter of what is answered without it."""
    model = tiny("llama", max_position_embeddings=2048)
    evaluated(only(files, "gsm8k"), tmp_path / "all", ["gsm8k"])
    texts = "".join(sample.output.completion for sample in answers_of(tmp_path / "all", "valley"))
    stop = next(letter for letter in texts if letter.isascii() and letter.isprintable())
    evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"], stop_strings=stop)
    ended = 0
    for arm, strategy in (("last", ll.Last()), ("valley", ll.Valley(window=3))):
        for sample in answers_of(tmp_path / "out", arm):
            alone = ll.generate(
                model, sample.messages[0].text, strategy=strategy, max_new_tokens=8, stop_strings=[stop]
            )
            assert sample.output.completion == alone.text.split(stop)[0]
            assert sample.output.stop_reason == {"stop": "stop", "length": "max_tokens"}[alone.finish_reason]
            ended += alone.finish_reason == "stop"
    assert ended
    assert read_manifest(tmp_path / "out")["evaluation"]["tasks"]["gsm8k"]["config"]["stop_seqs"] == [stop]
    with refused(ll.RunError, "out", "gsm8k"):
        evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"])


def test_the_table_has_every_item_under_every_arm(files, tmp_path):
    table = evaluated(files, tmp_path / "out")
    frame = answers(tmp_path / "out")
    assert len(frame) == 2 * (len(SUMS) + len(CHOICES))
    assert frame.groupby(["task", "arm"]).size().to_dict() == {
        ("gsm8k", "last"): 7,
        ("gsm8k", "valley"): 7,
        ("gpqa", "last"): 4,
        ("gpqa", "valley"): 4,
    }
    assert set(frame["outcome"]) == {"scored"}
    assert (frame["n_generated_tokens"] == 8).all()
    assert frame["valley_rate"].notna().equals(frame["arm"] == "valley")
    pd.testing.assert_frame_equal(table, evaluation_table(tmp_path / "out"))
    assert read_manifest(tmp_path / "out")["totals"] == {"answers": 22}


@thorough
def test_arms_and_tasks_can_be_added(files, tmp_path):
    evaluated(only(files, "gsm8k"), tmp_path / "grown", ["gsm8k"], ["last"], window=None)
    before = sorted((tmp_path / "grown" / "logs").glob("*.eval"))
    evaluated(only(files, "gsm8k"), tmp_path / "grown", ["gsm8k"], ["last", "valley"])
    evaluated(only(files, "gpqa"), tmp_path / "grown", ["gpqa"], ["last", "valley"])
    assert set(before) < set((tmp_path / "grown" / "logs").glob("*.eval"))
    evaluated(files, tmp_path / "whole")
    pd.testing.assert_frame_equal(answers(tmp_path / "grown"), answers(tmp_path / "whole"))


def _work(files, out):
    evaluated(files, out, max_new_tokens=200, batch_size=2)


@thorough
def test_killed_and_resumed_gives_the_same_table(files, tmp_path, capsys):
    from layerlens.cli import run

    def done():
        return sum(path.stat().st_size > 3000 for path in (tmp_path / "killed" / "logs").glob("*.eval"))

    kill_while_working(_work, files, tmp_path / "killed", after=(1, done), then=0.5)
    assert not (tmp_path / "killed" / "answers.parquet").exists()
    assert run(["eval", "--out", str(tmp_path / "killed")]) == 0
    told = answers(tmp_path / "killed")
    assert set(told["outcome"]) == {"scored", "missing"}
    assert len(told) == 22
    shown = capsys.readouterr()
    assert "gsm8k" in shown.out
    assert "not complete" in shown.err
    _work(files, tmp_path / "killed")
    _work(files, tmp_path / "whole")
    whole = answers(tmp_path / "whole")
    pd.testing.assert_frame_equal(answers(tmp_path / "killed"), whole)
    scored = told["outcome"] == "scored"  # what was told meanwhile is a part of it
    pd.testing.assert_frame_equal(told[scored], whole[scored])


def test_another_evaluation_is_refused_and_nothing_is_lost(files, tmp_path):
    evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"])
    before = answers(tmp_path / "out")
    with refused(ll.RunError, "out", "gsm8k"):
        evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"], max_new_tokens=9)
    with refused(ll.RunError, "out", "valley"):
        evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"], window=2)
    with pytest.raises(ll.RunError):
        evaluated(only(files, "gsm8k"), tmp_path / "out", ["gsm8k"], seed=1)
    pd.testing.assert_frame_equal(answers(tmp_path / "out"), before)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"limit": 2}, ("3 items", "2")),
        ({"max_new_tokens": 9}, ("max_new_tokens 8", "9")),
        ({"stop_strings": "e"}, ("no stop_strings", "['e']")),
        ({"temperature": 0.5}, ("temperature 0.0", "0.5")),
    ],
)
def test_the_setting_that_differs_is_named(files, tmp_path, options, named):
    asked = {"tasks": ["gsm8k"], "strategies": ["valley"], "limit": 3, "max_new_tokens": 8}
    evaluated(only(files, "gsm8k"), tmp_path / "out", **asked)
    begun, now = named
    with pytest.raises(ll.RunError) as caught:
        evaluated(only(files, "gsm8k"), tmp_path / "out", **asked | options)
    assert caught.value.given == "gsm8k"
    assert f" with {begun} " in caught.value.problem
    assert caught.value.problem.endswith(f", not with {now}")


def test_options_of_a_question_depend_on_its_id_and_the_seed_alone(files, tmp_path):
    from layerlens.evaluation.benchmarks import benchmark
    from layerlens.evaluation.benchmarks.benchmark import Setting

    gpqa = benchmark("gpqa")
    (one,) = list(gpqa.task(CHOICES[2:3], Setting(seed=5)).dataset)
    three = list(gpqa.task(CHOICES[:3], Setting(seed=5)).dataset)[2]
    assert (one.choices, one.target) == (three.choices, three.target)
    assert one.choices["ABCD".index(one.target)] == CHOICES[2]["Correct Answer"]
    orders = {tuple(next(iter(gpqa.task(CHOICES[2:3], Setting(seed=seed)).dataset)).choices) for seed in range(20)}
    assert len(orders) > 5


@pytest.mark.parametrize(
    ("changes", "option", "given"),
    [
        ({"tasks": ["gsm8"]}, "tasks", "gsm8"),
        ({"strategies": ["vally"]}, "strategies", "vally"),
        ({"strategies": ["valley", "trough"]}, "strategies", "trough"),
        ({"strategies": ["last"]}, "window", 3),
        ({"window": 99}, "window", 99),
        ({"temperature": -1}, "temperature", -1),
        ({"temperature": 0.0, "top_p": 0.5}, "top_p", 0.5),
        ({"max_new_tokens": 0}, "max_new_tokens", 0),
        ({"stop_strings": ["a", ""]}, "stop_strings", ["a", ""]),
        ({"epochs": 0}, "epochs", 0),
        ({"limit": {"gsm8k": 0}}, "limit", 0),
        ({"limit": {"math500": 3}}, "limit", 3),
        ({"tasks": "gsm8k,gpqa"}, "tasks", "gsm8k,gpqa"),
        ({"tasks": ["gsm8k", "gsm8k"]}, "tasks", "gsm8k"),
        ({"strategies": "last,valley"}, "strategies", "last,valley"),
        ({"strategies": {"mine": {"window": 2}}}, "strategies", {"mine": {"window": 2}}),
        ({"batch_size": 0}, "batch_size", 0),
        ({"chat_template_args": {"x": 1}}, "chat_template_args", {"x": 1}),
        ({"chat_templte": True}, "chat_templte", True),
    ],
)
def test_refused_before_anything_is_written(files, tmp_path, changes, option, given):
    used = {name: path for name, path in files.items() if name in changes.get("tasks", files)}
    with refused(ll.OptionError, option, given):
        evaluated(used, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_as_many_items_are_decoded_at_once_as_the_batch_has_rows(tmp_path, monkeypatch):
    """Unless it is told, inspect begins with 20 requests at once, whatever the batch size."""
    rows = [{"id": str(n), "question": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    widest = []
    step = continuous._Lane.step
    monkeypatch.setattr(continuous._Lane, "step", lambda lane: widest.append(lane.n_rows) or step(lane))
    evaluated({"sample": path}, tmp_path / "out", ["sample"], ["last"], window=None, batch_size=48, max_new_tokens=40)
    assert max(widest) == 48


def test_a_model_that_runs_elsewhere_is_refused(files, tmp_path):
    from layerlens.models.tiny import tiny_model, tiny_tokenizer

    model = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer(), backend="nnsight-simulated")
    with refused(ll.OptionError, "backend", "nnsight-simulated"):
        ll.evaluate(model, ["gsm8k"], out=tmp_path / "out", data_files={"gsm8k": files["gsm8k"]})
    assert not (tmp_path / "out").exists()


def test_arms_by_their_options(files, tmp_path):
    """Figure 3's arms: the same strategy at several probabilities."""
    arms = {f"valley at {p}": {"strategy": "valley", "window": 3, "p": p} for p in (0.0, 1.0)}
    evaluated({"gsm8k": files["gsm8k"]}, tmp_path / "out", ["gsm8k"], arms, window=None)
    frame = answers(tmp_path / "out").pivot(index="item", columns="arm", values="mean_depth")
    assert (frame["valley at 0.0"] == 1).all()
    assert (frame["valley at 1.0"] < 1).any()


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "1 + 1?"}],
        [{"question": "1 + 1?", "answer": None}],
        [SUMS[0], SUMS[0]],
    ],
)
def test_rows_that_cannot_be_used(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ll.PromptError):
        evaluated({"gsm8k": path}, tmp_path / "out", ["gsm8k"])
    assert not (tmp_path / "out").exists()


def test_the_command_line(files, tmp_path, capsys):
    from layerlens.cli import run
    from layerlens.models.tiny import tiny_model, tiny_tokenizer

    tiny_model("llama", max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    arguments = [
        *("eval", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--tasks", "gsm8k,gpqa"),
        *("--strategies", "valley", "--window", "3", "--max-new-tokens", "8", "--limit", "gsm8k=3"),
        *(word for name, path in files.items() for word in ("--data-file", f"{name}={path}")),
    ]
    assert run(arguments) == 0
    first = capsys.readouterr().out
    assert run(["eval", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == first
    assert "3 items of gsm8k, 4 items of gpqa" in first
    gc.collect()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--limit", "math500=3"], "--limit math500=3 is for math500, which is not among the tasks"),
        (["--limit", "gsm8k=none"], "--limit none is not a number of items"),
        (["--limit", "3", "--limit", "4"], "--limit 4 is the second for gsm8k"),
        (["--power", "200"], "--power 200 is no difference in points"),
        (["--js"], "--js is read in traces"),
        (["--judge", "x"], "--out"),
    ],
)
def test_wrong_on_the_command_line(files, tmp_path, capsys, arguments, said):
    from layerlens.cli import run

    out = [] if said == "--out" else ["--out", str(tmp_path / "out")]
    rows = ["--data-file", str(files["gsm8k"])]
    assert run(["eval", "--model", "smollm2-135m-instruct", "--tasks", "gsm8k", *rows, *out, *arguments]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert said in shown.err
    assert not (tmp_path / "out").exists()


def test_no_benchmark_is_imported_for_an_unknown_one():
    from subprocess import run

    code = (
        "import sys; from layerlens.cli import run; "
        "status = run(['eval', '--model', 'x', '--out', 'y', '--tasks', 'gsm8']); "
        "assert status == 2 and not {'inspect_ai', 'torch'} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_answers_are_traced_as_they_were_given(files, tmp_path):
    from layerlens.analysis.explanation import trace_measures

    model = tiny("llama", max_position_embeddings=2048)
    evaluated(
        only(files, "gsm8k"), tmp_path / "out", ["gsm8k"], ["last", "valley"], trace={"js": True, "batch_size": 3}
    )
    frame = answers(tmp_path / "out")
    (log,) = [
        log
        for log in map(read_eval_log, list_eval_logs(str(tmp_path / "out" / "logs")))
        if log.eval.metadata["arm"] == "valley"
    ]
    traced = ll.open_run(tmp_path / "out" / "traces" / "gsm8k-valley")
    assert traced.is_complete
    assert traced.prompts["prompt_id"].tolist() == frame[frame["arm"] == "valley"]["item"].tolist()
    sample = log.samples[0]
    own = ll.trace(
        model,
        [sample.messages[0].text],
        out=tmp_path / "own",
        strategy=ll.Valley(window=3),
        max_new_tokens=8,
        js=True,
        progress=False,
    )
    ours = traced.positions[traced.positions["prompt_id"] == sample.id].reset_index(drop=True)
    theirs = own.positions.drop(columns="prompt_id")
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs)
    rows = (traced.positions["prompt_id"] == sample.id).to_numpy()
    np.testing.assert_allclose(traced.layers("entropy")[rows], own.layers("entropy"), rtol=1e-4, atol=1e-5)
    measures = trace_measures(own).iloc[0]
    entropy, js = own.layers("entropy"), own.layers("js_from_last")
    assert measures["final_entropy"] == pytest.approx(entropy[:, -1].mean())
    assert measures["perturbed_share"] == pytest.approx((entropy[:, -1] > entropy[:, -2]).mean())
    first = [next(k for k, one in enumerate(row, 1) if one <= np.log(2) / 2 or k == 4) for row in js]
    assert measures["settling_depth"] == pytest.approx(np.mean(first) / 4)
    assert trace_measures(traced).loc[sample.id].to_dict() == pytest.approx(measures.to_dict(), rel=1e-4)


def test_an_item_that_fills_the_context_is_wrong_and_is_not_traced(tmp_path):
    rows = [{"id": name, "question": text, "answer": "5"} for name, text in (("a", "x"), ("b", "y" * 3000))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = evaluated({"sample": path}, tmp_path / "out", ["sample"], ["last"], window=None, trace={})
    frame = answers(tmp_path / "out").set_index("item")
    assert frame["stop_reason"].to_dict() == {"a": "max_tokens", "b": "model_length"}
    assert frame.loc["b", ["outcome", "score", "n_generated_tokens"]].tolist() == ["scored", 0.0, 0]
    assert table["n_items"].tolist() == [2]
    assert ll.open_run(tmp_path / "out" / "traces" / "sample-last").prompts["prompt_id"].tolist() == ["a"]


@thorough
def test_ctrl_c_keeps_what_is_complete(files, tmp_path):
    import os
    import signal
    import subprocess
    import time

    from layerlens.models.tiny import tiny_model, tiny_tokenizer
    from tests.interrupted import heed_interrupts

    tiny_model("llama", max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "layerlens", "eval", "--model", str(tmp_path / "model"), "--tasks", "gsm8k"]
    command += ["--data-file", str(files["gsm8k"]), "--max-new-tokens", "600", "--batch-size", "1"]
    command += ["--out", str(tmp_path / "out")]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=heed_interrupts
    )
    while not list(tmp_path.glob("out/logs/*.eval")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors.splitlines()[-1]
    before = answers(tmp_path / "out")
    assert set(before["outcome"]) <= {"scored", "missing", "error"}
    assert subprocess.run(command, capture_output=True, env=environment).returncode == 0
    after = answers(tmp_path / "out")
    assert set(after["outcome"]) == {"scored"}
    assert (after["n_generated_tokens"] > 0).all()
