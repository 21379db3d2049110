"""The run directory: what is written, what is refused, and that nothing complete is lost."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import layerlens as ll
import layerlens.cli
from layerlens.models import tiny_model, tiny_tokenizer
from layerlens.records import PROMPTS, TOKENS, WORDS
from layerlens.records.files import write_json
from layerlens.records.schema import FINISH_REASONS, arrow_schema
from tests.interrupted import heed_interrupts
from tests.killed import kill_while_working
from tests.refusals import refused
from tests.thorough import thorough

CLI = [sys.executable, "-m", "layerlens"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and a file of prompts, as a user would have them."""
    home = tmp_path_factory.mktemp("user")
    tiny_model("llama").save_pretrained(home / "model")
    tiny_tokenizer().save_pretrained(home / "model")
    (home / "prompts.txt").write_text("".join(f"prompt number {index}\n" for index in range(24)))
    return home


def command(folder: Path, out: Path, *more: str) -> list[str]:
    asked = ["trace", "--model", str(folder / "model"), "--prompts", str(folder / "prompts.txt"), "--out", str(out)]
    return [*CLI, *asked, "--max-new-tokens", "30", "--batch-size", "2", *more]


def run_cli(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, **options)


@pytest.fixture
def cli(capsys):
    """The command line within this process: exit status and what it wrote on standard error."""

    def run(arguments: list[str]) -> subprocess.CompletedProcess:
        code = layerlens.cli.run(arguments[len(CLI) :])
        return subprocess.CompletedProcess(arguments, code, "", capsys.readouterr().err)

    return run


def content(out: Path) -> dict[str, object]:
    """Every row of a run but its wall times, for comparison by ==."""
    run = ll.open_run(out)
    tokens = {name: run.tokens[name].map(_plain).tolist() for name in run.tokens}
    return {"tokens": tokens, "prompts": run.prompts.drop(columns="seconds").astype("string").to_dict("list")}


def _plain(value):
    return value.tobytes() if isinstance(value, np.ndarray) else str(value)


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_files_have_the_declared_schema(folder, tmp_path, cli):
    done = cli(command(folder, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for part in (tmp_path / "run" / "tokens").iterdir():
        assert pq.read_schema(part).equals(arrow_schema(TOKENS))
    assert pq.read_schema(tmp_path / "run" / "prompts.parquet").equals(arrow_schema(PROMPTS))
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"manifest.json", "prompts.parquet", "tokens", "words.parquet"}
    assert pq.read_schema(tmp_path / "run" / "words.parquet").equals(arrow_schema(WORDS))
    assert set(ll.open_run(tmp_path / "run").prompts["finish_reason"]) <= set(FINISH_REASONS)


OPTIONS = {"max_new_tokens": 12, "batch_size": 2, "progress": False}


def trace_again(folder, out):
    """Continue the run at `out`, or begin it."""
    prompts = ll.read_prompts(folder / "prompts.txt")
    ll.trace(ll.load(folder / "model"), prompts, out=out, resume=True, **OPTIONS)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, path = [], tmp_path / "file.json"
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_size, path.exists())))
    write_json(path, {"a": "b"})
    assert synced == [(path.stat().st_size, False)]


@thorough
def test_kill_9_at_ten_moments_then_resume_gives_the_rows_of_an_uninterrupted_run(folder, tmp_path):
    """A process that traces is killed ten times, once in each tenth of the work; between, what is complete opens."""
    trace_again(folder, tmp_path / "whole")
    broken = tmp_path / "broken"
    moments = random.Random(1)
    parts = lambda: len(list(broken.glob("prompts/part-*")))  # noqa: E731
    for kill in range(10):
        kill_while_working(trace_again, folder, broken, after=(kill, parts), then=moments.uniform(0, 0.05))
        if (broken / "manifest.json").exists():
            opened = ll.open_run(broken)
            assert not opened.is_complete
            assert set(opened.positions["prompt_id"]) == set(opened.prompts["prompt_id"])
    trace_again(folder, broken)
    assert content(broken) == content(tmp_path / "whole")
    assert ll.open_run(broken).positions.duplicated(["prompt_id", "position"]).sum() == 0
    assert ll.open_run(broken).is_complete
    assert not list(broken.rglob("*.partial"))


def test_resuming_a_complete_run_changes_nothing(folder, tmp_path, cli):
    cli(command(folder, tmp_path / "run"))
    before = content(tmp_path / "run")
    assert cli(command(folder, tmp_path / "run", "--resume")).returncode == 0
    assert content(tmp_path / "run") == before


@thorough
def test_ctrl_c_keeps_what_is_complete(folder, tmp_path, cli):
    arguments = command(folder, tmp_path / "run", "--max-new-tokens", "100", "--batch-size", "1")  # time for the signal
    arguments += ["--limit", "12", "--min-new-tokens", "100"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_interrupts
    )
    while not list(tmp_path.glob("run/prompts/part-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "of 12 prompts are complete" in errors
    assert "--resume" in errors
    assert cli([*arguments, "--resume"]).returncode == 0
    assert len(ll.open_run(tmp_path / "run").prompts) == 12


def test_an_out_that_is_taken_is_refused_at_once(folder, tmp_path, cli):
    cli(command(folder, tmp_path / "run"))
    assert_one_sentence(cli(command(folder, tmp_path / "run")), "already holds a run", "--resume")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    assert_one_sentence(cli(command(folder, tmp_path / "other")), "not a run", "new directory")
    assert (tmp_path / "other" / "thesis.tex").exists()
    assert_one_sentence(cli(command(folder, folder / "prompts.txt")), "is a file")


@pytest.mark.parametrize(
    ("changed", "begun", "now"),
    [
        (["--max-new-tokens", "3"], "--max-new-tokens 30", "--max-new-tokens 3"),
        (["--limit", "4"], "--limit 24", "--limit 4"),
        (["--dtype", "bfloat16"], "--dtype float32", "--dtype bfloat16"),
        (["--window", "2"], "--window 4", "--window 2"),
        (["--batch-size", "3"], "--batch-size 2", "--batch-size 3"),
        (["--seed", "9"], "--seed 0", "--seed 9"),
        (["--stop-strings", "a b"], "no --stop-strings", "--stop-strings 'a b'"),
        (["--temperature", "0.7", "--seed", "9"], "--temperature 0, --seed 0", "--temperature 0.7, --seed 9"),
        (["--strategy", "last-2", "--p", "0.5"], "--strategy last, --p 1", "--strategy last-2, --p 0.5"),
    ],
)
def test_resume_with_other_options_is_refused_with_what_it_was_begun_with(
    folder, tmp_path_factory, cli, changed, begun, now
):
    run = tmp_path_factory.getbasetemp() / "resumable"
    if not run.exists():
        cli(command(folder, run))
    before = content(run)
    done = cli(command(folder, run, "--resume", *changed))
    assert_one_sentence(done, f"was begun with {begun}, not with {now};", "--out")
    assert content(run) == before


def test_a_changed_prompt_file_cannot_be_resumed(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    model = ll.load(folder / "model")
    ll.trace(model, ll.read_prompts(prompts), out=tmp_path / "run", max_new_tokens=2)
    prompts.write_text("one\nthree\n")
    with refused(ll.RunError, given=tmp_path / "run", problem="another file"):
        ll.trace(model, ll.read_prompts(prompts), out=tmp_path / "run", max_new_tokens=2, resume=True)


def test_two_processes_cannot_write_one_run(tiny_llama, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    held = (tmp_path / "run" / ".lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    with refused(ll.RunError, "out", tmp_path / "run", problem="another process"):
        ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=1)
    held.close()
    ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=1)


@thorough
def test_a_full_disk_is_one_sentence_and_what_is_complete_stays(folder, tmp_path, cli):
    """A limit on the size of files stands for the full disk: the same failing write, without a disk to fill."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n" + "b" * 90 + "\n")
    arguments = [*command(folder, tmp_path / "run", "--batch-size", "1", "--positions", "all")]
    arguments[arguments.index("--prompts") + 1] = str(prompts)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    done = run_cli(arguments, preexec_fn=limit)
    assert_one_sentence(done, "cannot be written", "--resume")
    assert ll.open_run(tmp_path / "run").prompts["prompt_id"].tolist() == ["1"]
    assert cli([*arguments, "--resume"]).returncode == 0
    assert ll.open_run(tmp_path / "run").prompts["prompt_id"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "no manifest.json"),
        ("{oops", "manifest.json cannot"),
        ("[]", "no format"),
        ('{"format": "x"}', "no format"),
        ('{"format": 2}', "format 2"),
        ('{"format": 0}', "format 0"),
        ('{"format": 1, "evaluation": {}}', "an evaluation"),
        ('{"format": 1}', "is damaged"),
    ],
)
def test_a_foreign_or_newer_run_is_refused(tmp_path, manifest, words):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with refused(ll.RunError, given=tmp_path, problem=words):
        ll.open_run(tmp_path)
    with refused(ll.RunError, given=tmp_path / "nothing", advice="ll.trace"):
        ll.open_run(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with refused(ll.RunError, given=tmp_path / "file", problem="a file", advice="ll.trace"):
        ll.open_run(tmp_path / "file")


def test_a_corrupt_part_is_named(tiny_llama, tmp_path):
    run = ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=2)
    part = next((run.path / "tokens").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    with refused(ll.RunError, given=part, advice="resume=True"):
        _ = ll.open_run(run.path).tokens


def test_a_manifest_is_complete_only_at_the_end(tiny_llama, tmp_path, monkeypatch):
    from layerlens.records import RunWriter

    def interrupted(self, totals, words):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunWriter, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=2)
    run = ll.open_run(tmp_path / "run")
    assert not run.is_complete
    assert len(run.prompts) == 1
    assert json.loads((run.path / "manifest.json").read_text())["totals"] is None


def test_a_run_without_a_complete_prompt_may_be_begun_anew(tiny_llama, tmp_path, monkeypatch):
    """What failed at its first prompt holds nothing to lose, so other options need no other directory."""
    monkeypatch.setattr("layerlens.tracing.engines.generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=2)
    monkeypatch.undo()
    assert len(ll.trace(tiny_llama, ["b"], out=tmp_path / "run", max_new_tokens=3).positions) == 3


def test_other_weights_in_the_same_folder_cannot_be_resumed(tmp_path):
    for seed in (0, 1):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        model = ll.load(tmp_path / "model")
        if seed == 0:
            ll.trace(model, ["a", "b"], out=tmp_path / "run", max_new_tokens=2)
            ll.trace(model, ["a", "b"], out=tmp_path / "run", max_new_tokens=2, resume=True)
    with refused(ll.RunError, given=tmp_path / "run", problem="other weights"):
        ll.trace(model, ["a", "b"], out=tmp_path / "run", max_new_tokens=2, resume=True)


def test_a_directory_of_somebody_else_is_left_alone(tiny_llama, tmp_path):
    """Also one that has a manifest.json and files that look unfinished."""
    for name, text in (("manifest.json", '{"name": "a web app"}'), ("x", ""), ("sub/dl.partial", "half")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with refused(ll.RunError, "out", tmp_path, problem="no format"):
        ll.trace(tiny_llama, ["a"], out=tmp_path, max_new_tokens=1)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web app"}'
    assert (tmp_path / "sub" / "dl.partial").read_text() == "half"
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    with refused(ll.RunError, "out", tmp_path, problem="format 2"):
        ll.trace(tiny_llama, ["a"], out=tmp_path, max_new_tokens=1)


@pytest.mark.parametrize("lost", ["tokens/part-00001.parquet", "prompts.parquet"])
def test_a_lost_part_is_redone_by_resume_and_never_taken_for_free_space(tiny_llama, tmp_path, lost):
    trace = lambda **more: ll.trace(tiny_llama, ["a", "b", "c"], out=tmp_path / "run", max_new_tokens=2, **more)  # noqa: E731
    trace()
    whole = content(tmp_path / "run")
    (tmp_path / "run" / lost).unlink()
    with refused(ll.RunError, "out", tmp_path / "run", advice="resume=True"):
        trace()
    trace(resume=True)
    assert content(tmp_path / "run") == whole


def test_stray_parts_are_not_counted(tiny_llama, tmp_path):
    run = ll.trace(tiny_llama, ["a", "b"], out=tmp_path / "run", max_new_tokens=2)
    first = run.path / "tokens" / "part-00000.parquet"
    (run.path / "tokens" / "part-00007.parquet").write_bytes(first.read_bytes())
    assert len(ll.open_run(run.path).tokens) == 4


def test_the_same_model_named_by_another_path_may_resume(folder, tmp_path, monkeypatch):
    ll.trace(ll.load(folder / "model"), ["a"], out=tmp_path / "run", max_new_tokens=2)
    monkeypatch.chdir(folder)
    ll.trace(ll.load("model"), ["a"], out=tmp_path / "run", max_new_tokens=2, resume=True)


def test_another_config_of_the_same_weights_cannot_be_resumed(folder, tmp_path):
    model = ll.load(folder / "model")
    ll.trace(model, ["a"], out=tmp_path / "run", max_new_tokens=2)
    model.hf.config.rms_norm_eps = 0.5
    with refused(ll.RunError, given=tmp_path / "run", problem="another config"):
        ll.trace(model, ["a"], out=tmp_path / "run", max_new_tokens=2, resume=True)


def test_a_tilde_is_the_home_directory(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ll.trace(tiny_llama, ["a"], out="~/run", max_new_tokens=2)
    assert (tmp_path / "run" / "prompts.parquet").exists()
    assert len(ll.open_run("~/run").prompts) == 1
