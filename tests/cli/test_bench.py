"""`layerlens bench decode` as a user sees it: one table, the same as JSON, one sentence for what cannot be."""

import json
import re
import subprocess
import sys

import pytest
import torch

import layerlens as ll
from layerlens.cli.bench import bench, mean_depth, measure, paired_ratio
from layerlens.decode.flops import decoding_flops
from layerlens.decode.options import GenerateOptions
from layerlens.errors import LayerlensError
from layerlens.models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "model"
    tiny_model("qwen3_moe").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model():
    return ll.load(tiny_model("qwen3_moe"), tokenizer=tiny_tokenizer())


def run(*arguments: object) -> int:
    return bench(["decode", *map(str, arguments)], standalone_mode=False)


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
    flops = decoding_flops(tiny_model("qwen3_moe"), 4, report["mean_depth"])
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

    numbers = torch.tensor([[[0, 4, 4, 4], [0, 2, 2, 4]]])
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
