"""The scripts in benchmarks/ run to their end on something small, and notice what is wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.thorough import thorough

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


@thorough
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
    with pytest.raises(SystemExit, match=r"b .* entropy .* 1\.01,.* 1\.0"):
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


@thorough
def test_large_runs_with_words_made_small(tmp_path):
    parts = ("statistics", "comparison")
    out = run("figures_large.py", tmp_path, "--tokens", 900, "--parts", *parts, "--out", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert list(report) == ["tokens", *parts]
    assert report["tokens"] == 900
    assert all(len(ll.open_run(tmp_path / name).positions) == 900 for name in ("valley", "last"))
    assert f"{report['statistics']['seconds']:.1f} s" in out
    assert report["comparison"]["peak_mib"] > 0


@thorough
def test_start_with_a_tiny_model(tmp_path, tiny_folder):
    out = run("start.py", tiny_folder("llama"), "--rounds", 1, "--out", tmp_path / "start.json")
    assert "layerlens trace --help" in out
    seconds = json.loads((tmp_path / "start.json").read_text())["seconds"]
    assert seconds["layerlens --help"] < seconds["load by layerlens"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("compare.py", ["--rounds", "0"], ["--rounds:", "'0'", "from 1"]),
        ("decode_cpu.py", ["--prompts", "none"], ["--prompts:", "'none'", "from 1"]),
        ("trace_gpu.py", ["--tokens", "-3"], ["--tokens:", "'-3'", "from 1"]),
        ("precision.py", ["--model", "nosuch"], ["'nosuch'", "model"]),
        ("compare.py", ["--ways", "layerlens", "--tokens", "9000"], ["9000", "context"]),
        ("scaling.py", ["/dev/null/x"], ["'/dev/null/x'", "no folder"]),
        ("analysis_large.py", ["/dev/null/x"], ["'/dev/null/x'", "no folder"]),
        ("start.py", ["folder", "--out", "/no/such/file"], ["--out:", "'/no/such/file'", "a file"]),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(script, name, arguments, said):
    done = script(FOLDER / name, *arguments)
    assert done.returncode == 2
    assert [piece for piece in said if piece not in done.stderr.splitlines()[-1]] == []
    assert "Traceback" not in done.stderr


@thorough
def test_both_bars_in_each_instruction_set(tmp_path, tiny_folder, monkeypatch):
    out = run(
        "instruction_sets.py",
        *("--model", tiny_folder("llama"), "--rounds", 1, "--inner", 1, "--new-tokens", 12, "--tokens", 16),
        *("--sets", *module("instruction_sets", monkeypatch).available()[:2]),
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


@pytest.fixture
def decode_gpu(monkeypatch):
    return module("decode_gpu", monkeypatch)


@thorough
def test_decode_gpu_runs_to_its_end_with_a_tiny_model(tmp_path):
    pytest.importorskip("triton", reason="pip install triton")
    out = run("decode_gpu.py", "--tiny", "--rounds", 1, "--out", tmp_path / "gpu.json")
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert len(report["checks"]) >= 3
    assert all(check["passed"] for check in report["checks"].values())
    assert [case["batch_size"] for case in report["cases"]] == [1, 3]
    for case in report["cases"]:
        ways = case["ways"]
        assert list(ways) == ["valley", "fused", "fused, lazy"]
        assert all(way["mean_depth"] > 0 for way in ways.values())
        assert [ways[name]["projections_per_token"] for name in ("valley", "fused")] == [10, 10]
    assert [scan["batch_size"] for scan in report["scans"]] == [1, 3]
    assert "0 failed" in out


@thorough
def test_decode_gpu_starts_no_case_after_its_budget_and_still_writes(decode_gpu, tmp_path, monkeypatch, capsys):
    arguments = ["--tiny", "--budget-seconds", "0", "--out", str(tmp_path / "gpu.json")]
    monkeypatch.setattr("sys.argv", ["decode_gpu.py", *arguments])
    assert decode_gpu.main() == 0
    assert "no time left for batch size 3" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["cases"] == []


def test_decode_gpu_notices_a_wrong_scan_and_a_wrong_graph(decode_gpu, monkeypatch):
    model = ll.load(decode_gpu.build(decode_gpu.TINY, torch.device("cpu")), tokenizer=tiny_tokenizer())
    prompts = decode_gpu.random_prompts(model, 8, 8)
    assert decode_gpu.check_scans(model, prompts)[0]
    right = decode_gpu.shannon
    monkeypatch.setattr(decode_gpu, "shannon", lambda logits: -right(logits))
    passed, detail = decode_gpu.check_scans(model, prompts)
    assert not passed
    assert "steps instead of" in detail
    assert not decode_gpu.check_graph(model, prompts[:1], ll.Last())[0]  # on a CPU nothing is captured


@thorough
def test_decode_cpu_runs_to_its_end(tmp_path):
    tiny_model("llama", num_hidden_layers=12, max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    out = run(
        "decode_cpu.py", "--model", tmp_path / "model", "--rounds", 2, "--prompts", 2, "--new-tokens", 3,
        "--threads", 1, "--out", tmp_path / "cpu.json",
    )  # fmt: skip
    ways = json.loads((tmp_path / "cpu.json").read_text())["ways"]
    assert list(ways) == ["generate", "last", "valley, batched", "valley, lazy"]
    assert ways["valley, batched"]["projections_per_token"] == 10
    assert ways["valley, batched"]["mean_depth"] == ways["valley, lazy"]["mean_depth"]
    assert f"{ways['last']['over_generate']:.3f}" in out
