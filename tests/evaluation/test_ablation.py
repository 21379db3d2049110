"""Arms of strategies at several p: what is asked, what is kept, what is refused."""

import inspect
import json

import pytest

import layerlens as ll
from layerlens.analysis.ablation import ablation_table
from layerlens.analysis.evaluation import evaluation_table
from layerlens.cli import ablate as command
from tests.conftest import tiny
from tests.refusals import refused

pytest.importorskip("inspect_evals", reason="needs the extra eval")

from inspect_ai.log import list_eval_logs, read_eval_log

from layerlens.evaluation.ablation import ARMS, P, conditions, probabilities
from layerlens.records.evaluation import read_answers, read_manifest

# inspect asks tenacity for what that has renamed, and leaves streams to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.__get_validators__. is deprecated"),  # what inspect_evals has
]

ITEMS = [{"id": f"q{n}", "question": f"How many is {n} and 1?", "answer": str(n + 1)} for n in range(5)]
GRID = ["last", "last-1", "valley", "valley+1"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    return path


def ablated(rows, out, **options):
    options = {"arms": GRID, "p": [0, 0.5, 1], "max_new_tokens": 6, "batch_size": 2, "window": 3, **options}
    return ll.ablate(tiny("llama"), ["sample"], out=out, data_files={"sample": rows}, **options)


@pytest.fixture(scope="module")
def done(rows, tmp_path_factory):
    """An ablation with what it gives."""
    folder = tmp_path_factory.mktemp("ablation") / "a"
    return folder, ablated(rows, folder, epochs=2, seed=3)


def texts_of(folder):
    """The answers by arm, item and epoch, with their seeds."""
    return {
        (log.eval.metadata["arm"], sample.id, sample.epoch): (
            sample.output.completion,
            sample.output.metadata["seeds"][0],
        )
        for log in map(read_eval_log, list_eval_logs(str(folder / "logs")))
        for sample in log.samples
    }


def test_every_arm_is_answered_as_generate_answers(done):
    """Each by its strategy, p and seed; again only where something is drawn; the last layer once for all."""
    strategies = {"last": ll.Last()}
    strategies |= {f"last-1{end}": ll.Fixed(1, p=p) for end, p in (("", 1.0), ("_p0.5", 0.5))}
    strategies |= {f"valley{end}": ll.Valley(window=3, p=p) for end, p in (("", 1.0), ("_p0.5", 0.5))}
    strategies |= {f"valley+1{end}": ll.Valley(window=3, shift=1, p=p) for end, p in (("", 1.0), ("_p0.5", 0.5))}
    found = texts_of(done[0])
    assert set(found) == {
        (arm, item["id"], epoch)
        for arm, strategy in strategies.items()
        for item in ITEMS
        for epoch in ((1, 2) if getattr(strategy, "p", 1) == 0.5 else (1,))
    }
    model = tiny("llama")
    for (arm, item, _), (text, seed) in found.items():
        question = ITEMS[int(item[1:])]["question"]
        assert text == ll.generate(model, question, strategy=strategies[arm], max_new_tokens=6, seed=seed).text


def test_arms_draw_alike_and_items_and_epochs_do_not(done):
    """Otherwise the comparison above could not tell arms apart, or items would be no independent draws."""
    found = texts_of(done[0])
    texts = {arm: [found[arm, item["id"], 1][0] for item in ITEMS] for arm, _, _ in found}
    assert len({tuple(one) for one in texts.values()}) == len(texts)
    seeds = {(item, epoch): seed for (arm, item, epoch), (_, seed) in found.items() if arm == "valley_p0.5"}
    assert len(set(seeds.values())) == len(seeds) == 10
    assert all(seed == seeds[item, epoch] for (_, item, epoch), (_, seed) in found.items())
    again = [found["last-1_p0.5", item["id"], 2][0] for item in ITEMS]
    assert texts["last-1_p0.5"] != again


def test_the_table_is_that_of_the_directory(done):
    folder, table = done
    assert table.equals(ablation_table(folder))
    assert [(row.arm, row.p) for row in table.itertuples()] == [(arm, p) for arm in GRID for p in (0.0, 0.5, 1.0)]
    assert read_manifest(folder)["totals"] == {"answers": 5 * (1 + 3 * (1 + 2))}
    by_arm = evaluation_table(folder).set_index("arm")
    assert table.set_index(["arm", "p"]).loc[("valley+1", 0.5), "score"] == by_arm.loc["valley+1_p0.5", "score"]
    frame = read_answers(folder).to_pandas()
    assert set(frame["outcome"]) == {"scored"}


def test_an_evaluation_is_extended_to_an_ablation(rows, done, tmp_path):
    """An arm at p = 1 is that of an evaluation, so that its answers are kept."""
    model, files = tiny("llama"), {"sample": rows}
    options = {"data_files": files, "out": tmp_path / "out", "max_new_tokens": 6, "window": 3, "seed": 3, "epochs": 2}
    ll.evaluate(model, ["sample"], ["last", "valley"], **options)
    before = set((tmp_path / "out" / "logs").glob("*.eval"))
    table = ll.ablate(model, ["sample"], arms=["valley", "valley+1"], p=[0.5, 1], **options)
    assert before < set((tmp_path / "out" / "logs").glob("*.eval"))
    same = done[1][done[1]["arm"].isin(("last", "valley", "valley+1"))].reset_index(drop=True)
    assert table[["arm", "p", "score", "generated_tokens"]].equals(same[["arm", "p", "score", "generated_tokens"]])


def test_names_of_arms():
    asked = conditions(["trough-p1", "last-m2", "trough", "valley-0002", "last-0"], [1, 0.5, 0.5])
    assert asked == {
        "last": {"strategy": "last"},
        **{"valley+1_p0.5": {"strategy": "valley+1", "p": 0.5}, "valley+1": {"strategy": "valley+1"}},
        **{"last-2_p0.5": {"strategy": "last-2", "p": 0.5}, "last-2": {"strategy": "last-2"}},
        **{"valley_p0.5": {"strategy": "valley", "p": 0.5}, "valley": {"strategy": "valley"}},
        **{"valley-2_p0.5": {"strategy": "valley-2", "p": 0.5}, "valley-2": {"strategy": "valley-2"}},
    }
    assert conditions(["valley"], [0]) == {"last": {"strategy": "last"}}


def test_the_defaults_are_figure_3():
    defaults = {name: field.default for name, field in inspect.signature(command.ablate).parameters.items()}
    assert tuple(defaults["arms"].split(",")) == ARMS
    assert tuple(command.probabilities(defaults["p"])) == P
    assert len(conditions()) == 41


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
        ({"epochs": 0}, "epochs", 0),
        ({"top_p": 0.5}, "top_p", 0.5),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(rows, tmp_path, options, option, given):
    with refused(ll.LayerlensError, option, given):
        ablated(rows, tmp_path / "a", **{"arms": ["valley"], "p": [1], "window": None, **options})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_an_item_without_a_reference_is_refused(tmp_path, answer):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "question": "Why?", "answer": answer}))
    with pytest.raises(ll.PromptError):
        ablated(path, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_command_line_runs_shows_and_continues(cli, tiny_folder, tmp_path):
    asked = ["ablate", "--model", tiny_folder("llama"), "--tasks", "sample", "--limit", 4, "--batch-size", 2]
    asked += ["--arms", "last, valley ,trough-m1", "--p", "0,0.5,...,1", "--window", 3, "--max-new-tokens", 4]
    code, out, err = cli(*asked, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "4 items of sample" in out
    table = ablation_table(tmp_path / "a")
    shown = [line.split()[1:4] for line in out.splitlines() if line.startswith("sample ")]
    percent = {(row.arm, row.p): f"{100 * row.score:.1f}" for row in table.itertuples()}
    assert shown == [["last", percent["last", 0.0], "[0.0,"]] + [
        [arm, f"{p:g}", percent[arm, p]] for arm in ("valley", "valley-1") for p in (0.5, 1.0)
    ]
    assert f"answers  {tmp_path / 'a'}" in out
    before = sorted((tmp_path / "a" / "logs").iterdir())
    assert cli(*asked, "--out", tmp_path / "a")[:2] == (0, out)
    assert cli("ablate", "--out", tmp_path / "a") == (0, out, "")
    assert sorted((tmp_path / "a" / "logs").iterdir()) == before
    code, _, err = cli(*asked, "--out", tmp_path / "a", "--seed", 1)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "--seed 0" in err
    assert "--seed 1" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "gsm9k"], "gsm9k"),
        (["--tasks", ""], "--tasks ''"),
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
        (["--arms", "last-99"], "last-99"),
        (["--epochs", "0"], "--epochs 0"),
        (["--limit", "0"], "--limit 0"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--data-file", "nix.jsonl", "--tasks", "gsm8k"], "nix.jsonl"),
        (["--model", "nowhere/nothing"], "nowhere/nothing"),
        (["--out", "x" * 300], "x" * 300),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_2(cli, tiny_folder, tmp_path, arguments, words):
    given = {"--model": tiny_folder("llama"), "--tasks": "sample", "--out": str(tmp_path / "out")}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    code, _, err = cli("ablate", *(part for pair in given.items() for part in pair))
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_probabilities_are_in_order_and_begin_at_0():
    assert probabilities([1, 0.5, 0.5]) == [0.0, 0.5, 1.0]


def test_p_in_steps():
    assert command.probabilities("0,0.2,...,1") == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert command.probabilities("0.1, 0.2,...,0.4,1") == [0.1, 0.2, 0.3, 0.4, 1.0]
    assert command.probabilities("1") == [1.0]
