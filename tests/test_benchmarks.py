"""The scripts in benchmarks/ run to their end on something small, and notice what is wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def run(name, *arguments):
    done = subprocess.run([sys.executable, FOLDER / name, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_trace_gpu_with_a_tiny_model(tmp_path):
    pytest.importorskip("triton", reason="pip install triton")
    out = run("trace_gpu.py", "--tiny", "--rounds", 1, "--shapes", "--out", tmp_path / "gpu.json")
    assert out.count("ok   ") == 4
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert all(check["passed"] for check in report["checks"].values())
    assert set(report["share_of_products"]) == {"tiled", "fused"}
    assert [shape["rows"] for shape in report["shapes"]] == [10, 40]


def test_compare_stops_where_ways_do_not_agree(monkeypatch, capsys, tmp_path):
    compare = module("compare", monkeypatch)
    one = {"entropy": 1.0, "top": 300.0}
    compare.agreement({"a": {"means": one}, "b": {"means": {"entropy": 1.0005, "top": 300.1}}})
    with pytest.raises(SystemExit, match=r"b gives a mean entropy of 1\.01, where another way gives 1\.0"):
        compare.agreement({"a": {"means": one}, "b": {"means": {"entropy": 1.01, "top": 300.0}}})


def test_the_committed_comparison_is_the_page_s(monkeypatch):
    compare = module("compare", monkeypatch)
    report = json.loads((FOLDER / "results" / "compare.json").read_text())
    page = (FOLDER.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    assert set(report["ways"]) == set(compare.WAYS)
    for one in report["ways"].values():
        least, most = one["least_and_most_seconds"]
        assert f"[{least:.2f}, {most:.2f}]" in page
        assert f"{one['added_bytes'] / 2**20:,.0f}" in page


def test_a_large_run_made_small(tmp_path):
    out = run("analysis_large.py", tmp_path / "run", "--tokens", 1, "--out", tmp_path / "report.json")
    assert "65,536 tokens, 40 layers" in out
    assert json.loads((tmp_path / "report.json").read_text())["seconds"]["all"] > 0


def test_start_with_a_tiny_model(tmp_path, tiny_folder):
    out = run("start.py", tiny_folder("llama"), "--rounds", 1, "--out", tmp_path / "start.json")
    assert "layerlens trace --help" in out
    seconds = json.loads((tmp_path / "start.json").read_text())["seconds"]
    assert seconds["layerlens --help"] < seconds["load by layerlens"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("compare.py", ["--rounds", "0"], "--rounds: '0' is not a whole number from 1"),
        ("decode_cpu.py", ["--prompts", "none"], "--prompts: 'none' is not a whole number from 1"),
        ("trace_gpu.py", ["--tokens", "-3"], "--tokens: '-3' is not a whole number from 1"),
        ("precision.py", ["--model", "nosuch"], "'nosuch' is no model that can be loaded"),
        ("compare.py", ["--ways", "layerlens", "--tokens", "9000"], "9000 is more than the model's context of"),
        ("scaling.py", ["/dev/null/x"], "'/dev/null/x' cannot be made or is no folder"),
        ("analysis_large.py", ["/dev/null/x"], "'/dev/null/x' cannot be made or is no folder"),
        ("start.py", ["folder", "--out", "/no/such/file"], "--out: '/no/such/file' cannot be written; give a file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(name, arguments, said):
    done = subprocess.run([sys.executable, FOLDER / name, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_both_bars_in_each_instruction_set(tmp_path, tiny_folder):
    out = run(
        "instruction_sets.py",
        *("--model", tiny_folder("llama"), "--rounds", 1, "--inner", 1, "--new-tokens", 12, "--tokens", 16),
        *("--out", tmp_path / "sets.json"),
    )
    report = json.loads((tmp_path / "sets.json").read_text())
    assert "AVX2" in report["sets"]
    for name, one in report["sets"].items():
        assert one["capability"] == name.partition("-")[0]  # the variables act
        for bar, most in {"valley_over_last": 1.05, "trace_over_floor": 1.2}.items():
            value = one[bar]
            assert 0 < value["least"] <= value["median"] <= value["most"]
            assert ("missed" if value["median"] > most else "met") in out
