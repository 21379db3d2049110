"""`overwrite`: a run or a lens is replaced, and nothing else is ever removed."""

import pytest

import layerlens as ll
from layerlens.records.files import FolderWriter
from tests.evaluation.made_up import write_ablation
from tests.refusals import refused

FEW = {"max_new_tokens": 2, "progress": False}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_cell_that_is_run_twice_gives_the_second_run(tiny_llama, tmp_path):
    out = tmp_path / "run"
    ll.trace(tiny_llama, ["a", "b", "c"], out=out, batch_size=1, **FEW)
    (out / "report.html").write_text("of the first")
    (out / "damaged").mkdir()
    (out / "damaged" / "tokens-part-00000.parquet").write_text("set aside")
    again = ll.trace(tiny_llama, ["d"], out=out, overwrite=True, **FEW)
    fresh = ll.trace(tiny_llama, ["d"], out=tmp_path / "fresh", **FEW)
    assert contents(out).keys() == contents(tmp_path / "fresh").keys()
    assert again.tokens.equals(fresh.tokens)
    assert again.prompts["prompt_id"].tolist() == ["0"]


@pytest.mark.parametrize("foreign", ["notes.txt", "tokens/mine.txt", "figures/figure1.png", "tokens/part-1/x.parquet"])
def test_a_run_with_a_file_of_another_kind_stays_as_it_is(tiny_llama, tmp_path, foreign):
    out = tmp_path / "run"
    ll.trace(tiny_llama, ["a"], out=out, **FEW)
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    before = contents(out)
    with refused(ll.RunError, "out", out, problem=foreign.split("/")[0], advice="move"):
        ll.trace(tiny_llama, ["b"], out=out, overwrite=True, **FEW)
    assert contents(out) == before


def test_a_link_out_of_a_run_is_not_followed(tiny_llama, tmp_path):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    ll.trace(tiny_llama, ["a"], out=out, **FEW)
    elsewhere.mkdir()
    (elsewhere / "part-00000.parquet").write_text("mine")
    (out / "prompts").symlink_to(elsewhere, target_is_directory=True)
    with refused(ll.RunError, "out", out, problem="prompts"):
        ll.trace(tiny_llama, ["b"], out=out, overwrite=True, **FEW)
    assert (elsewhere / "part-00000.parquet").read_text() == "mine"


def test_what_is_no_run_is_refused(tiny_llama, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with refused(ll.RunError, "out", tmp_path, problem="is not a run"):
        ll.trace(tiny_llama, ["a"], out=tmp_path, overwrite=True, **FEW)
    assert contents(tmp_path) == {"letter.txt": b"dear"}
    write_ablation(tmp_path / "ablation", {("last", 0.0): {"a": [(True, 5, "stop")]}})
    before = contents(tmp_path / "ablation")
    with refused(ll.RunError, "out", tmp_path / "ablation", problem="an evaluation"):
        ll.trace(tiny_llama, ["a"], out=tmp_path / "ablation", overwrite=True, **FEW)
    assert contents(tmp_path / "ablation") == before


@pytest.mark.parametrize(
    "mistake",
    [{"window": 9}, {"max_new_token": 2}, {"max_new_tokens": 500}, {"lens": "linear:nix"}, {"resume": True}],
    ids=str,
)
def test_the_run_that_is_there_outlives_a_mistake(tiny_llama, tmp_path, mistake):
    out = tmp_path / "run"
    ll.trace(tiny_llama, ["a"], out=out, **FEW)
    before = contents(out)
    with pytest.raises(ll.LayerlensError):
        ll.trace(tiny_llama, ["b"], out=out, overwrite=True, **FEW | mistake)
    assert contents(out) == before


def test_a_run_that_another_process_writes_is_not_replaced(tiny_llama, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run = ll.trace(tiny_llama, ["a"], out=out, **FEW)
    before = contents(out)
    from layerlens.records import RunWriter

    with RunWriter(out, run.manifest, resume=True), refused(ll.RunError, "out", out, problem="another process"):
        ll.trace(tiny_llama, ["b"], out=out, overwrite=True, **FEW)
    assert contents(out).keys() == before.keys()


def test_killed_while_it_is_cleared_it_is_a_run_still(tiny_llama, tmp_path, monkeypatch):
    out = tmp_path / "run"
    ll.trace(tiny_llama, ["a", "b"], out=out, batch_size=1, **FEW)
    clear = FolderWriter._clear

    def killed(writer):
        clear(writer)
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderWriter, "_clear", killed)
    with pytest.raises(KeyboardInterrupt):
        ll.trace(tiny_llama, ["c"], out=out, overwrite=True, **FEW)
    assert len(ll.open_run(out).prompts) == 0
    monkeypatch.undo()
    assert len(ll.trace(tiny_llama, ["c"], out=out, overwrite=True, **FEW).prompts) == 1


def test_the_command_line_replaces_a_run(cli, tiny_folder, tmp_path):
    words = ("trace", "--model", tiny_folder("llama"), "--dataset", "sample", "--max-new-tokens", 1, "--out")
    out = tmp_path / "run"
    assert cli(*words, out, "--limit", 2)[0] == 0
    assert cli(*words, out, "--limit", 1)[0] == 2
    assert cli(*words, out, "--limit", 1, "--overwrite")[0] == 0
    assert len(ll.open_run(out).prompts) == 1
    code, _, err = cli(*words, out, "--resume", "--overwrite")
    assert code == 2
    assert "--overwrite contradicts --resume" in err
