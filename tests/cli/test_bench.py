"""`layerlens bench` as a user sees it: one table, the same as JSON, one sentence for what cannot be."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.bench.decoding import measure_decoding
from layerlens.cli.bench import _print_decoding, bench
from layerlens.decode.flops import decoding_flops
from layerlens.decode.options import GenerateOptions
from layerlens.errors import LayerlensError
from layerlens.lens import coarse
from layerlens.models import tiny_model
from layerlens.records import store
from layerlens.run import Run
from tests.conftest import tiny
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder("qwen3_moe")


def test_fast_machines_cost_no_number(capsys):
    prompts = [[5, 6, 7]]
    report = measure_decoding(
        tiny("qwen3_moe"), ll.Valley(window=2), prompts, GenerateOptions(max_new_tokens=2, min_new_tokens=2), 1
    )
    report["tokens_per_second"] = dict.fromkeys(report["tokens_per_second"], 1234567.0)
    report["flops"][0]["flops"] = 1.5e18
    _print_decoding(report, "valley")
    out = capsys.readouterr().out
    assert "1,234,567 tokens/s" in out
    assert "1,500,000,000,000 MFLOPs" in out
    assert "…" not in out


def run(*arguments: object) -> int:
    return bench(["decode", "--device", "cpu", *map(str, arguments)], standalone_mode=False)


def test_the_table_and_the_json_say_the_same(folder, tmp_path, capsys):
    file = tmp_path / "report.json"
    code = run(
        "--model", folder, "--window", 4, "--max-new-tokens", 6, "--batch-size", 2, "--rounds", 2, "--json", file
    )
    out = capsys.readouterr().out
    assert code == 0
    report = json.loads(file.read_text())
    assert report["strategy"]["name"] == "valley"
    assert (report["window"], report["batch_size"], report["prompt_tokens"], report["new_tokens"]) == (4, 2, 64, 6)
    flops = decoding_flops(tiny_model("qwen3_moe"), 4, report["mean_depth"], report["mean_read"])
    assert [row["flops"] for row in report["flops"]] == [row.flops for row in flops.rows()]
    assert report["machine"]["torch"] == torch.__version__
    assert report["extra_memory_mib"] is None
    text = re.sub(r" +", " ", out)
    assert f"one unembedding {2 * 48 * 307 / 1e6:.3g} MFLOPs" in text
    assert "389 MFLOPs (7.46 %)" in text
    assert f"extra unembeddings {report['projections_per_token'] - 1:.3f}" in text
    assert f"mean walk depth {report['mean_depth']:.3f} 0.116" in text
    assert f"{report['ratios']['strategy_over_last']:.3f} x last" in text
    assert "memory beyond last CUDA only" in text
    assert "…" not in out  # nothing is cut off on a terminal of 80 columns


def test_a_text_of_ones_own(folder, capsys):
    assert run("--model", folder, "--prompt", "hello", "--window", 2, "--max-new-tokens", 2, "--rounds", 1) == 0
    assert "2 tokens after 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--rounds", "0"], 0),
        (["--batch-size", "0"], 0),
        (["--max-new-tokens", "0"], 0),
        (["--strategy", "vally"], "vally"),
        (["--window", "4", "--strategy", "last"], 4),
        (["--window", "5"], 5),
        (["--max-new-tokens", "128"], 128),
        (["--max-new-tokens", "126", "--prompt", "hello"], 126),
        (["--json", "nowhere/at/all.json"], Path("nowhere/at/all.json")),
        (["--json", "report.txt"], Path("report.txt")),
        (["--device", "moon"], "moon"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(folder, monkeypatch, arguments, given):
    monkeypatch.setattr("layerlens.bench.decoding.measure_decoding", lambda *_: pytest.fail("measured"))
    with refused(LayerlensError, arguments[0].strip("-").replace("-", "_"), given):
        run("--model", folder, *arguments)


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from layerlens.cli.bench import bench\n"
        "for arguments in ([], ['decode'], ['trace'], ['analysis']):\n"
        "    bench([*arguments, '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_a_trace_beside_its_floor(cli, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(coarse, "has_fast_bfloat16", lambda: True)
    file = tmp_path / "report.json"
    asked = ["bench", "trace", "--model", tiny_folder("llama"), "--device", "cpu", "--tokens", 40, "--rounds", 2]
    code, out, err = cli(*asked, "--lens-precision", "bfloat16", "--json", file)
    assert (code, err) == (0, "")
    report = json.loads(file.read_text())
    assert (report["tokens"], report["layers"], report["vocabulary"]) == (40, 4, 307)
    assert report["lens_precision"] == "bfloat16"
    seconds = report["seconds"]
    assert set(seconds) == {"forward", "products, torch", "products, ours", "trace"}
    assert all(value > 0 for value in seconds.values())
    low, high = (bound * seconds["trace"] / (seconds["forward"] + seconds["products, torch"]) for bound in (0.2, 5))
    assert low < report["over_floor"]["torch"] < high
    assert f"trace = {report['over_floor']['torch']:.2f} x (forward + torch's products)" in out
    if sys.platform == "linux":
        assert f"{report['added_mib']['trace']:,.0f} MiB" in out


def test_the_statistics_of_a_run(cli, tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves()), layer_kinds=hybrid_kinds())
    file = tmp_path / "report.json"
    code, out, err = cli("bench", "analysis", "--run", run.path, "--json", file)
    assert code == 0
    report = json.loads(file.read_text())
    assert (report["tokens"], report["layers"]) == (8 * 40, 40)
    assert "class_shares is left" in err
    assert f"{report['seconds']['by_layer']:.2f} s" in out


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "tokens/report.json", "prompts.parquet"])
def test_no_part_of_a_run_is_replaced_by_measurements(cli, tmp_path, name):
    run = write_run(tmp_path / "run", planted(hybrid_curves(6)))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    code, out, err = cli("bench", "analysis", "--run", run.path, "--json", run.path / name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--json {run.path / name}" in err
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_long_run_is_not_read_as_a_whole(cli, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", planted(hybrid_curves()), layer_kinds=hybrid_kinds())
    pieces_of = Run.pieces
    monkeypatch.setattr(Run, "pieces", lambda self: pieces_of(self, 100))
    read, parts_read = store.read_tokens_table, []

    def noted(path, columns, parts=None):
        parts_read.append(parts)
        return read(path, columns, parts)

    monkeypatch.setattr(store, "read_tokens_table", noted)
    code, out, _ = cli("bench", "analysis", "--run", run.path)
    assert code == 0
    assert "substitutions" in out
    assert "kind_jumps" in out
    assert parts_read
    assert all(parts is not None for parts in parts_read)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace", "--model", "M", "--tokens", 0], "--tokens 0"),
        (["trace", "--model", "M", "--rounds", 0], "--rounds 0"),
        (["trace", "--model", "M", "--json", "/no/such/file"], "--json /no/such/file"),
        (["analysis", "--run", "/no/such/run"], "/no/such/run"),
    ],
)
def test_what_cannot_be_measured(cli, arguments, said):
    code, _, err = cli("bench", *arguments)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_text_that_the_model_cannot_read_is_not_tried(cli, tiny_folder):
    code, _, err = cli("bench", "trace", "--model", tiny_folder("llama"), "--tokens", 129)
    assert code == 2
    assert "--tokens 129" in err
