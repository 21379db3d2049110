"""`layerlens bench decode` as a user sees it: one table, the same as JSON, one sentence for what cannot be."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.cli.bench import _print_report, bench, mean_depth, measure, paired_ratio
from layerlens.decode.flops import decoding_flops
from layerlens.decode.options import GenerateOptions
from layerlens.errors import LayerlensError
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder("qwen3_moe")


@pytest.fixture
def model():
    return tiny("qwen3_moe")


def test_fast_machines_cost_no_number(model, capsys):
    prompts = [[5, 6, 7]]
    report = measure(model, ll.Valley(window=2), prompts, GenerateOptions(max_new_tokens=2, min_new_tokens=2), 1)
    report["tokens_per_second"] = dict.fromkeys(report["tokens_per_second"], 1234567.0)
    report["flops"][0]["flops"] = 1.5e18
    _print_report(report, "valley")
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
    assert f"unembeddings added {report['projections_per_token'] - 1:.3f}" in text
    assert f"mean depth {report['mean_depth']:.3f} 0.116" in text
    assert f"{report['ratios']['strategy_over_last']:.3f} x last" in text
    assert "memory above last's CUDA only" in text
    assert "…" not in out  # nothing is cut off on a terminal of 80 columns


def test_projections_and_depth_are_those_that_were_made(model):
    """The scan in one product makes K; layer by layer, one more than the depth, except at the window's end."""
    prompts = [list(range(20, 40)), list(range(60, 80))]
    options = GenerateOptions(max_new_tokens=12, min_new_tokens=12, batch_size=2)
    batched, lazy = (
        measure(model, ll.Valley(window=3, scan=scan), prompts, options, 1) for scan in ("batched", "lazy")
    )
    assert batched["projections_per_token"] == 3
    assert batched["mean_depth"] == lazy["mean_depth"] > 0
    assert 1 < lazy["projections_per_token"] <= min(3, 2 + lazy["mean_depth"])
    costs = {row["name"]: row["multiply_adds"] for row in lazy["flops"]}
    assert costs["lazy"] == pytest.approx((lazy["projections_per_token"] - 1) * 48 * 307)
    walked = [row["multiply_adds"] for row in lazy["flops"] if row["name"] == "depth"]
    assert walked == [lazy["mean_depth"] * 48 * 307]


def test_a_strategy_that_does_not_walk_has_no_depth(model):
    options = GenerateOptions(max_new_tokens=3, min_new_tokens=3)
    report = measure(model, ll.Fixed(1), [[20, 21]], options, 1)
    assert report["mean_depth"] is None
    assert [row["name"] for row in report["flops"]] == ["forward", "unembedding", "worst"]
    assert report["projections_per_token"] == report["window"] == 2
    assert measure(model, ll.Last(), [[20, 21]], options, 1)["projections_per_token"] == 1


def test_every_way_emits_the_same_number_of_tokens_past_an_end_token(model, monkeypatch):
    """Otherwise the speeds would be of different work."""
    greedy = ll.generate(model, "abc", max_new_tokens=1).token_ids[0]
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", greedy)
    passes = []
    handle = model.hf.register_forward_hook(lambda *_: passes.append(1))
    options = GenerateOptions(max_new_tokens=20, min_new_tokens=20)
    measure(model, ll.Valley(window=4), [model.tokenizer("abc").input_ids], options, 2)
    handle.remove()
    assert len(passes) == 20 * 3 * 3  # tokens, ways, rounds and the one before


def test_ratios_are_paired():
    seconds = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 30.0}, {"a": 5.0, "b": 5.0}]
    assert paired_ratio(seconds, "a", "b") == 2.0
    assert paired_ratio(seconds, "b", "a") == 0.5


def test_mean_depth():
    from layerlens.decode.log import Decisions

    numbers = torch.tensor([[[0, 4, 4, 4, 1], [0, 2, 2, 4, 1]]])
    assert mean_depth(Decisions(numbers, torch.zeros(1, 2, 0)), 4) == 1.0
    numbers[0, 0, 2] = -1
    assert mean_depth(Decisions(numbers, torch.zeros(1, 2, 0)), 4) is None


def test_a_text_of_ones_own(folder, capsys):
    assert run("--model", folder, "--prompt", "hello", "--window", 2, "--max-new-tokens", 2, "--rounds", 1) == 0
    assert "2 tokens after 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--strategy", "vally"], "vally"),
        (["--strategy", "last", "--window", "4"], "--window 4"),
        (["--window", "5"], "--window 5"),
        (["--max-new-tokens", "128"], "--max-new-tokens 128"),
        (["--prompt", "hello", "--max-new-tokens", "126"], "context"),
        (["--json", "nowhere/at/all.json"], "nowhere/at/all.json"),
        (["--device", "moon"], "moon"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(folder, monkeypatch, arguments, words):
    monkeypatch.setattr("layerlens.cli.bench.measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(LayerlensError, match=re.escape(words)):
        run("--model", folder, *arguments)


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from layerlens.cli.bench import bench\n"
        "for arguments in (['--help'], ['decode', '--help']):\n"
        "    bench(arguments, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


# ---------------------------------------------------------------------------------- the benchmarks that are run by hand

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str, *arguments: object) -> str:
    program = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(
        program, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def decode_gpu():
    spec = importlib.util.spec_from_file_location("decode_gpu", BENCHMARKS / "decode_gpu.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))  # as where a script is run
        spec.loader.exec_module(module)
    return module


def test_decode_gpu_runs_to_its_end_with_a_tiny_model(tmp_path):
    pytest.importorskip("triton", reason="pip install triton")
    out = script("decode_gpu.py", "--tiny", "--rounds", 1, "--out", tmp_path / "gpu.json")
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


def test_decode_cpu_runs_to_its_end(tmp_path):
    tiny_model("llama", num_hidden_layers=12, max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    out = script(
        "decode_cpu.py", "--model", tmp_path / "model", "--rounds", 2, "--prompts", 2, "--new-tokens", 3,
        "--threads", 1, "--out", tmp_path / "cpu.json",
    )  # fmt: skip
    ways = json.loads((tmp_path / "cpu.json").read_text())["ways"]
    assert list(ways) == ["generate", "last", "valley, batched", "valley, lazy"]
    assert ways["valley, batched"]["projections_per_token"] == 10
    assert ways["valley, batched"]["mean_depth"] == ways["valley, lazy"]["mean_depth"]
    assert f"{ways['last']['over_generate']:.3f}" in out
