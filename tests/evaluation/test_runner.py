"""Arms of strategies on the same items: what is run, what is kept, what is refused, and that nothing is lost."""

import dataclasses
import json
import random
import re

import pyarrow.parquet as pq
import pytest

import layerlens as ll
import layerlens.cli
from layerlens.analysis.ablation import ablation_table
from layerlens.cli import ablate as command
from layerlens.decode.loop import batch_seed
from layerlens.evaluation import runner
from layerlens.evaluation.plan import repeat_seed
from layerlens.evaluation.runner import ablate
from layerlens.evaluation.scoring import last_number
from layerlens.records.answers import ANSWERS
from layerlens.records.schema import arrow_schema
from tests.conftest import tiny
from tests.killed import kill_while_working
from tests.refusals import refused

ITEMS = ll.Dataset(
    "gsm8k", "main", "test", None, None, tuple(ll.Prompt(f"q{n}", f"How many is {n} and 1?", str(n)) for n in range(5))
)
OPTIONS = {"max_new_tokens": 6, "batch_size": 2, "progress": False, "window": 3}
ARMS = ["last", "last-1", "valley", "valley+1"]


def answers(folder):
    """Every answer of an ablation but its wall times, by condition."""
    tables = {path.stem: pq.read_table(path).to_pydict() for path in sorted((folder / "answers").glob("*.parquet"))}
    return {name: {column: table[column] for column in table if column != "seconds"} for name, table in tables.items()}


@pytest.fixture(scope="module")
def done(tiny_llama, tmp_path_factory):
    """An ablation, its directory and its table."""
    folder = tmp_path_factory.mktemp("ablation") / "a"
    return folder, ablate(tiny_llama, ITEMS, arms=ARMS, p=[0, 0.5, 1], out=folder, repeats=2, seed=3, **OPTIONS)


def test_every_condition_is_answered_as_generate_answers(done, tiny_llama):
    """Each batch by its strategy, at its seed: the same texts, tokens and endings; the last layer once for all."""
    folder, _ = done
    found = answers(folder)
    names = {"last", *(f"{arm}_p{p}" for arm in ARMS[1:] for p in (0.5, 1.0))}
    assert set(found) == names
    strategies = {"last-1": ll.Fixed(1), "valley": ll.Valley(window=3), "valley+1": ll.Valley(window=3, shift=1)}
    for name, columns in found.items():
        arm, _, p = name.partition("_p")
        strategy = dataclasses.replace(strategies[arm], p=float(p)) if p else ll.Last()
        repeats = [0, 1] if p == "0.5" else [0]
        expected = [
            (prompt.prompt_id, repeat, one.text, len(one.token_ids), one.finish_reason)
            for repeat in repeats
            for number, batch in enumerate([ITEMS.prompts[:2], ITEMS.prompts[2:4], ITEMS.prompts[4:]])
            for prompt, one in zip(
                batch,
                ll.generate(
                    tiny_llama, batch, strategy=strategy, max_new_tokens=6, batch_size=2,
                    seed=batch_seed(repeat_seed(3, repeat), number),
                ),
                strict=True,
            )
        ]  # fmt: skip
        rows = zip(
            *(columns[c] for c in ("prompt_id", "repeat", "output", "n_generated_tokens", "finish_reason")), strict=True
        )
        assert list(rows) == expected
        scored = zip(columns["output"], columns["reference"], strict=True)
        assert columns["is_correct"] == [last_number(*pair) for pair in scored]
    assert len({repeat_seed(seed, repeat) for seed in range(3) for repeat in range(3)}) == 9
    assert repeat_seed(7, 0) == 7


def test_arms_differ_and_repeats_draw_anew(done):
    """Otherwise the comparisons above could not tell conditions apart."""
    found = answers(done[0])
    texts = {name: tuple(columns["output"][:5]) for name, columns in found.items()}
    assert texts["last"] != texts["last-1_p1.0"] != texts["valley_p1.0"] != texts["valley+1_p1.0"]
    assert texts["valley_p0.5"] not in (texts["valley_p1.0"], texts["last"])
    assert texts["last-1_p0.5"] != tuple(found["last-1_p0.5"]["output"][5:])


def test_files_have_the_declared_schema_and_nothing_is_left_over(done):
    folder, table = done
    assert {path.name for path in folder.iterdir()} - {".lock"} == {"manifest.json", "answers"}
    for path in (folder / "answers").iterdir():
        assert pq.read_schema(path).equals(arrow_schema(ANSWERS))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["totals"]["answers"] == 5 * (1 + 3 * 2 + 3)
    assert manifest["ablation"]["batches"] == [["q0", "q1"], ["q2", "q3"], ["q4"]]
    valley = manifest["ablation"]["strategies"][ARMS.index("valley")]
    assert (valley["name"], valley["window"]) == ("valley", 3)
    assert table.equals(ablation_table(folder))
    assert table.attrs["is_complete"]
    assert [(row.arm, row.p) for row in table.itertuples()] == [(arm, p) for arm in ARMS for p in (0.0, 0.5, 1.0)]


def ablate_again(out):
    """Continue the ablation at `out`, or begin it."""
    ablate(tiny("llama"), ITEMS, out=out, arms=["valley", "last-2"], p=[0.5, 1], resume=True, **OPTIONS)


def test_kill_9_at_eight_moments_then_resume_gives_the_answers_of_an_uninterrupted_run(tmp_path):
    ablate_again(tmp_path / "whole")
    broken = tmp_path / "broken"
    parts = lambda: sum(pq.read_metadata(p).num_rows for p in broken.rglob("*.parquet"))  # noqa: E731
    moments = random.Random(1)
    written = lambda: sum(1 for _ in broken.rglob("part-*.parquet"))  # noqa: E731
    for kill in range(8):
        kill_while_working(ablate_again, broken, after=(kill + 1, written), then=moments.uniform(0, 0.02))
        assert not ablation_table(broken).attrs["is_complete"]
        assert 0 < parts() < 5 * 5
    ablate_again(broken)
    assert answers(broken) == answers(tmp_path / "whole")
    assert ablation_table(broken).equals(ablation_table(tmp_path / "whole"))
    assert not [path for path in broken.rglob("*") if "part" in path.name]


def test_resume_redoes_only_what_is_missing(tiny_llama, tmp_path, monkeypatch):
    options = {"arms": ["valley"], "p": [1], **OPTIONS}
    ablate(tiny_llama, ITEMS, out=tmp_path / "whole", **options)
    whole = answers(tmp_path / "whole")
    asked = []
    answered = runner.answered

    def counted(model, jobs, *more):
        for number, generations in answered(model, jobs, *more):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append([prompt.prompt_id for prompt in jobs[number].prompts])
            yield number, generations

    monkeypatch.setattr(runner, "answered", counted)
    with pytest.raises(KeyboardInterrupt):
        ablate(tiny_llama, ITEMS, out=tmp_path / "a", **options)
    assert asked.pop() == ["q2", "q3"]
    with pytest.raises(KeyboardInterrupt):
        ablate(tiny_llama, ITEMS, out=tmp_path / "a", resume=True, **options)
    assert asked == [["q0", "q1"], ["q4"]]
    asked.append([])
    ablate(tiny_llama, ITEMS, out=tmp_path / "a", resume=True, **options)
    assert asked == [["q0", "q1"], ["q4"], [], *[["q0", "q1"], ["q2", "q3"], ["q4"]]]
    (tmp_path / "a" / "answers" / "valley_p1.0.parquet").unlink()
    ablate(tiny_llama, ITEMS, out=tmp_path / "a", resume=True, **options)
    assert len(asked) == 9
    ablate(tiny_llama, ITEMS, out=tmp_path / "a", resume=True, **options)
    assert len(asked) == 9
    (tmp_path / "a" / "answers" / "last").mkdir()  # as a process leaves it that is killed while it joins the parts
    (tmp_path / "a" / "answers" / "last" / "part-00000.parquet").write_bytes(b"")
    ablate(tiny_llama, ITEMS, out=tmp_path / "a", resume=True, **options)
    assert len(asked) == 9
    assert not (tmp_path / "a" / "answers" / "last").exists()
    assert answers(tmp_path / "a") == whole


@pytest.mark.parametrize(
    ("changed", "begun", "now"),
    [
        ({"max_new_tokens": 5}, {"max_new_tokens": 6}, {"max_new_tokens": 5}),
        ({"p": [0.5]}, {"p": [0.0, 1.0]}, {"p": [0.0, 0.5]}),
        ({"arms": ["valley-1"]}, {"arms": ["last", "valley"]}, {"arms": ["last", "valley-1"]}),
        ({"window": 2}, {"window": 3}, {"window": 2}),
        ({"window": None}, {"window": 3}, {"window": None}),
        ({"seed": 4}, {"seed": 0}, {"seed": 4}),
        ({"repeats": 2}, {"repeats": 1}, {"repeats": 2}),
        ({"batch_size": 1}, {"batch_size": 2}, {"batch_size": 1}),
        (
            {"arms": ["last-1"], "window": None},
            {"arms": ["last", "valley"], "window": 3},
            {"arms": ["last", "last-1"], "window": None},
        ),
    ],
)
def test_resume_with_other_options_is_refused_with_what_it_was_begun_with(
    tiny_llama, tmp_path_factory, changed, begun, now
):
    folder = tmp_path_factory.getbasetemp() / "resumable-ablation"
    options = {"arms": ["valley"], "p": [1], **OPTIONS}
    if not folder.exists():
        ablate(tiny_llama, ITEMS, out=folder, **options)
    before = answers(folder)
    with pytest.raises(ll.RunError) as caught:
        ablate(tiny_llama, ITEMS, out=folder, resume=True, **(options | changed))
    assert caught.value.given == folder
    said = [
        ", ".join(f"no {name}" if value is None else f"{name} {value}" for name, value in one.items())
        for one in (begun, now)
    ]
    assert caught.value.problem.rpartition(" begun with ")[2].split(", not with ") == said
    with refused(ll.RunError, "out", folder, advice="resume=True"):
        ablate(tiny_llama, ITEMS, out=folder, **options)
    assert answers(folder) == before


def test_other_references_cannot_be_resumed(tiny_llama, tmp_path):
    options = {"arms": ["valley"], "p": [1], **OPTIONS}
    ablate(tiny_llama, ITEMS, out=tmp_path / "a", **options)
    others = dataclasses.replace(ITEMS, prompts=tuple(dataclasses.replace(item, reference="7") for item in ITEMS))
    with refused(ll.RunError, given=tmp_path / "a", problem="other items"):
        ablate(tiny_llama, others, out=tmp_path / "a", resume=True, **options)


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_ablation_is_left_alone(tiny_llama, tmp_path, resume):
    """A run of `trace`, somebody's files, a file; and a trace leaves an ablation alone."""
    options = {"arms": ["last"], "p": [0], "resume": resume, **OPTIONS}
    del options["window"]
    ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=1, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name, option in (("run", "out"), ("other", "out"), ("file", "out")):
        with refused(ll.RunError, option, tmp_path / name):
            ablate(tiny_llama, ITEMS, out=tmp_path / name, **options)
    ablate(tiny_llama, ITEMS, out=tmp_path / "ablation", **options)
    with pytest.raises(ll.RunError):
        ll.trace(tiny_llama, ["a"], out=tmp_path / "ablation", max_new_tokens=1, resume=resume, progress=False)
    assert len(ablation_table(tmp_path / "ablation")) == 1


def test_two_processes_cannot_write_one_ablation(tiny_llama, tmp_path):
    import fcntl

    (tmp_path / "a").mkdir()
    held = (tmp_path / "a" / ".lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    with refused(ll.RunError, "out", tmp_path / "a", problem="another process"):
        ablate(tiny_llama, ITEMS, out=tmp_path / "a", arms=["last"], max_new_tokens=2, progress=False)
    held.close()
    ablate(tiny_llama, ITEMS, out=tmp_path / "a", arms=["last"], max_new_tokens=2, progress=False)


@pytest.mark.parametrize(
    ("options", "option", "given"),
    [
        ({"arms": ["walley"]}, "arms", "walley"),
        ({"arms": "valley"}, "arms", "valley"),
        ({"arms": []}, "arms", []),
        ({"arms": ["last valley"]}, "arms", "last valley"),
        ({"arms": ["fixed"]}, "strategy", "fixed"),
        ({"arms": ["valley", "trough"]}, "arms", "trough"),
        ({"arms": ["valley", "valley"]}, "arms", "valley"),
        ({"arms": ["dola"]}, "arms", "dola"),
        ({"arms": ["last-9"]}, "offset", 9),
        ({"arms": ["last-1"], "window": 3}, "window", 3),
        ({"arms": ["valley"], "window": 9}, "window", 9),
        ({"p": [0.5, 1.5]}, "p", 1.5),
        ({"p": [float("nan")]}, "p", float("nan")),
        ({"p": []}, "p", []),
        ({"p": 0.5}, "p", 0.5),
        ({"repeats": 0}, "repeats", 0),
        ({"max_new_tokens": 500}, "max_new_tokens", 500),
        ({"max_new_token": 5}, "max_new_token", 5),
        ({"top_p": 0.5}, "top_p", 0.5),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tiny_llama, tmp_path, options, option, given):
    options = {"arms": ["valley"], "p": [1], "window": None, **options}
    with refused(ll.LayerlensError, option, given):
        ablate(tiny_llama, ITEMS, out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_prompts_without_a_way_of_scoring_are_refused(tiny_llama, tmp_path):
    with refused(ll.OptionError, "dataset", "prompts", advice="sample, gsm8k"):
        ablate(tiny_llama, ll.datasets.from_prompts(["a"]), out=tmp_path / "a", arms=["last"])


def test_the_command_line_runs_shows_and_resumes(cli, tiny_folder, tmp_path):
    asked = ["ablate", "--model", tiny_folder("llama"), "--dataset", "sample", "--limit", 4, "--batch-size", 2]
    asked += ["--arms", "last, valley ,trough-m1", "--p", "0,0.5,...,1", "--window", 3, "--max-new-tokens", 4]
    code, out, err = cli(*asked, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "4 items of sample, scored by number or words" in out
    table = ablation_table(tmp_path / "a")
    shown = [line.split()[:3] for line in out.splitlines() if line.startswith(("last ", "valley"))]
    percent = {(row.arm, row.p): f"{100 * row.accuracy:.1f}" for row in table.itertuples()}
    assert shown == [["last", percent["last", 0.0], "[0.0,"]] + [
        [arm, f"{p:g}", percent[arm, p]] for arm in ("valley", "valley-1") for p in (0.5, 1.0)
    ]
    assert f"answers  {tmp_path / 'a'}" in out
    code, _, err = cli(*asked, "--out", tmp_path / "a")
    assert code == 2
    assert f"--out {tmp_path / 'a'} " in err.replace("'", "")
    assert "--resume" in err
    assert cli(*asked, "--out", tmp_path / "a", "--resume")[0] == 0
    code, _, err = cli(*asked, "--out", tmp_path / "a", "--resume", "--seed", 1)
    assert code == 2
    assert re.findall(r"--seed \d", err) == ["--seed 0", "--seed 1"]
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "gsm9k"], "gsm9k"),
        (["--p", "0,x"], "'x'"),
        (["--p", "0,1.2"], "'1.2'"),
        (["--p", "nan"], "'nan'"),
        (["--p", "...,1"], "which numbers ..."),
        (["--p", "0,0.3,...,1"], "steps of 0.3"),
        (["--p", "0,0.2,..."], "which numbers ..."),
        (["--p", "0,0,...,1"], "which numbers ..."),
        (["--p", ""], "--p ''"),
        (["--arms", ""], "names no strategy"),
        (["--arms", "valley,nix"], "--arms nix"),
        (["--arms", "last-99"], "--arms last-99"),
        (["--repeats", "0"], "--repeats 0"),
        (["--limit", "0"], "--limit 0"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--data-file", "nix.jsonl", "--dataset", "gsm8k"], "nix.jsonl"),
        (["--model", "nowhere/nothing"], "nowhere/nothing"),
        (["--out", "x" * 300], "x" * 300),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_2(cli, tiny_folder, tmp_path, arguments, words):
    given = {"--model": tiny_folder("llama"), "--dataset": "sample", "--out": str(tmp_path / "out")}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    code, _, err = cli("ablate", *(part for pair in given.items() for part in pair))
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_a_way_of_scoring_names_those_that_have_one(cli, tmp_path, monkeypatch):
    from layerlens.datasets.registry import SOURCES

    source = SOURCES["sample"]
    unscored = dataclasses.replace(source, card=dataclasses.replace(source.card, name="essays", scoring=None))
    monkeypatch.setitem(SOURCES, "essays", unscored)
    code, _, err = cli("ablate", "--model", "nix", "--dataset", "essays", "--out", tmp_path / "out")
    assert code == 2
    assert "'essays'" in err
    assert re.findall(r"\w+", err.partition("datasets")[2]) == ["sample", "gsm8k", "gpqa", "math500"]


def test_p_in_steps():
    assert command.probabilities("0,0.2,...,1") == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert command.probabilities("0.1, 0.2,...,0.4,1") == [0.1, 0.2, 0.3, 0.4, 1.0]
    assert command.probabilities("1") == [1.0]
