"""`layerlens compare` as a command of its own: what it prints, what it writes, what it refuses."""

import importlib

import numpy as np
import pandas as pd
import pytest
import typer

from layerlens.analysis.comparison import compare as compared
from layerlens.errors import OptionError, RunError
from tests.made_up_run import write_run
from tests.refusals import refused

command = importlib.import_module("layerlens.cli.compare").compare


@pytest.fixture
def compare(capsys):
    """The command with these arguments: standard output and standard error."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)

    def run(*arguments):
        capsys.readouterr()
        app(args=[str(argument) for argument in arguments], standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def made_up(seed, n_tokens=9, prompts=("a", "b", "c")):
    random = np.random.default_rng(seed)
    return {
        prompt_id: {
            "entropy": random.gamma(2, 1, (n_tokens, 4)).astype(np.float32),
            "top_token_id": random.integers(0, 3, (n_tokens, 4)).astype(np.int32),
            "next_token_id": random.integers(0, 2, n_tokens).astype(np.int32),
        }
        for prompt_id in prompts
    }


@pytest.fixture
def pair(tmp_path):
    first = write_run(tmp_path / "[bold]first", made_up(1))
    return first, write_run(tmp_path / "second", made_up(2, 5, ("c", "a", "d")))


def test_it_prints_the_means_and_writes_what_it_prints(compare, pair, tmp_path):
    first, second = pair
    out, err = compare(first.path, second.path, "--out", tmp_path / "out")
    assert err == ""
    assert f"run    {first.path}" in out
    table = compared(first, second)
    for row in table.to_dict("records"):
        scale, digits = {"share": (100, 1), "nats": (1, 2), "layers": (1, 2), "tokens": (1, 1)}[row["unit"]]
        line = next(line for line in out.splitlines() if line.startswith(row["quantity"].replace("_", " ")))
        assert ("of the last layer" in line) == (row["quantity"] == "entropy")
        cells = []
        for name, sign in (("run", ""), ("other", ""), ("difference", "+")):
            mean, low, high = (format(scale * row[name + end], f"{sign}.{digits}f") for end in ("", "_low", "_high"))
            cells += [f"{mean}{'%' if scale == 100 else ''}", f"[{low},", f"{high}]"]
        assert line.split()[-9:] == cells
    assert "2 common prompts with 18 and 10 generated tokens, 2 in one run only" in out
    assert [str(tmp_path / "out" / name) in out for name in ("comparison.csv", "outputs.csv")] == [True, True]
    written = pd.read_csv(tmp_path / "out" / "comparison.csv")
    pd.testing.assert_frame_equal(written, table, rtol=1e-5, check_dtype=False)
    assert pd.read_csv(tmp_path / "out" / "outputs.csv")["statistic"].tolist() == ["identical", "common_prefix"]


def test_without_out_nothing_is_written(compare, pair, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    compare(*(run.path for run in pair))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_one_common_prompt_is_printed_without_intervals(compare, tmp_path):
    pair = [write_run(tmp_path / name, made_up(seed, prompts=("a",))) for seed, name in enumerate(("x", "y"))]
    out, _ = compare(*(run.path for run in pair))
    assert "[" not in out
    assert "nan" not in out
    assert "1 common prompt with 9 and 9 generated tokens" in out


def test_outputs_that_cannot_be_compared_are_said(compare, tmp_path):
    pair = [write_run(tmp_path / name, made_up(1), n_vocab=n) for name, n in (("x", 50), ("y", 60))]
    out, _ = compare(*(run.path for run in pair))
    assert "have different token ids" in out
    assert "nan" not in out


def test_an_unfinished_run_is_said(compare, pair, tmp_path):
    half = write_run(tmp_path / "half", made_up(1), finish=False)
    _, err = compare(half.path, pair[0].path)
    assert str(half.path) in err
    assert "3 of 3" in err


def test_what_cannot_be_is_one_sentence(compare, pair, tmp_path):
    strangers = write_run(tmp_path / "strangers", made_up(1, prompts=("x", "y")))
    with refused(RunError, problem="in common"):
        compare(pair[0].path, strangers.path)
    with pytest.raises(RunError, match="nowhere"):
        compare(pair[0].path, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with refused(OptionError, "out", problem="cannot"):
        compare(pair[0].path, pair[1].path, "--out", tmp_path / "file")
