"""The command line as a user types it: quick help, one sentence for what cannot be, real output for what can."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import layerlens as ll
import layerlens.cli
from layerlens.models import tiny_model, tiny_tokenizer
from tests.made_up_run import write_run
from tests.thorough import thorough

COMMANDS = [
    "trace",
    "generate",
    "ablate",
    "fit-lens",
    "bench",
    "figure",
    "table",
    "report",
    "export",
    "compare",
    "models",
    "datasets",
    "doctor",
]


@pytest.fixture
def model(tiny_folder):
    return tiny_folder("qwen3_5_text")


@pytest.mark.parametrize("command", [[], *[[command] for command in COMMANDS]])
def test_every_command_has_help(command):
    """How soon it answers, `benchmarks/start.py` measures; what makes it slow is looked for below."""
    done = subprocess.run([sys.executable, "-m", "layerlens", *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_help_imports_nothing_heavy():
    program = (
        "import sys, layerlens.cli\n"
        "for command in ([], *[[name] for name in sys.argv[1:]]):\n"
        "    layerlens.cli.run([*command, '--help'])\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, *COMMANDS], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_trace_then_figures_tables_and_a_report(cli, model, tmp_path):
    code, out, _ = cli(
        "trace", "--model", model, "--dataset", "sample", "--limit", 4, "--max-new-tokens", 12, "--batch-size", 4,
        "--positions", "generated", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    assert "4 prompts, 48 positions, 8 layers" in out
    share = ll.open_run(tmp_path / "run").partition().set_index("group").loc["perturbed", "share"]
    assert f"{share:.1%}" in re.sub(r"\s+", " ", out)
    assert str(tmp_path / "run") in out.replace("\n", "")
    code, out, err = cli("figure", "all", "--run", tmp_path / "run", "--out", tmp_path / "figures")
    assert code == 0
    drawn = (1, 2, 4, 7, 8, 9, 10)  # one grid a prompt
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"figure{number}.{end}" for number in drawn for end in ("png", "pdf", "csv")}
    assert len(out.split()) == 3 * len(drawn)
    assert err.splitlines() == [
        f"layerlens: note: {tmp_path / 'run'} has too few texts for the figures from 11 on",
        "layerlens: note: figure 3 shows scored answers: give --evaluation; figures 5 and 6 are figures 2 and 4 of "
        "another model: give the run of that model",
    ]
    code, out, err = cli("table", "all", "--run", tmp_path / "run", "--out", tmp_path / "tables")
    assert (code, err) == (0, "layerlens: note: tables 1, 2, 3, 4, 7, 9, 10 show scored answers: give --evaluation\n")
    assert len(out.split()) == 9
    code, out, err = cli("report", tmp_path / "run")
    assert (code, err) == (0, "")
    assert out.strip() == str(tmp_path / "run" / "report.html")


def test_figures_by_name_are_among_all_where_the_run_has_their_columns(cli, tmp_path):
    layers = np.ones((6, 4), np.float32)
    columns = {"next_rank": np.zeros((6, 4), np.int32), "next_log_prob": -layers}
    columns |= {"half_entropy": layers, "half_top_token_id": np.zeros((6, 4), np.int32)}
    write_run(tmp_path / "run", {f"p{k}": {"entropy": layers} | columns for k in range(3)})
    code, out, _ = cli("figure", "all", "--half-steps", "--run", tmp_path / "run", "--out", tmp_path / "figures")
    assert code == 0
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"figure4", "onset", "parts"} <= names
    assert "settling" not in names
    assert "half_entropy" in pd.read_csv(tmp_path / "figures" / "figure4.csv")
    code, out, err = cli("figure", "settling", "--run", tmp_path / "run", "--out", tmp_path / "figures")
    assert (code, out) == (2, "")
    assert "--js" in err or "js=True" in err


def test_prompts_from_a_file_and_given_text(cli, model, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "one two"}\n{"prompt": "three"}\n')
    code, _, _ = cli(
        "trace", "--model", model, "--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 0, "--out", tmp_path / "run"
    )
    assert code == 0
    opened = ll.open_run(tmp_path / "run")
    assert opened.prompts["prompt_id"].tolist() == ["a", "2"]
    assert opened.manifest["dataset"]["sha256"] is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace", "--model", "MODEL", "--out", "OUT"], "neither"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--prompts", "f.txt"], "both"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "smaple"], "smaple"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--limit", "0"], "--limit 0"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "gsm8k", "--data-file", "nix.json"], "nix.json"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--prompts", "nix.txt"], "nix.txt"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--prompts", "nix.txt", "--data-file", "f"], "--data-file f"),
        (["trace", "--model", "nowhere/nothing", "--out", "OUT", "--dataset", "sample"], "nowhere/nothing"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--window", "99"], "--window 99"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--dtype", "int3"], "int3"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--device", "moon"], "moon"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--system", "s"], "chat template"),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--max-new-tokens", "500"], "context"),
        (["figure", "2", "--run", "nowhere", "--out", "OUT"], "nowhere"),
        (["figure", "²", "--run", "nowhere", "--out", "OUT"], "²"),
        (["trace", "--model", "MODEL", "--out", "x" * 300, "--dataset", "sample"], "x" * 300),
        (["trace", "--model", "MODEL", "--out", "OUT", "--dataset", "sample", "--device", "meta"], "meta"),
        (["figure", "two", "--run", "nowhere", "--out", "OUT"], "two"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_2(cli, model, tmp_path, arguments, words):
    places = {"MODEL": model, "OUT": str(tmp_path / "out")}
    code, _, err = cli(*[places.get(argument, argument) for argument in arguments])
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "p.jsonl"),
        ('{"prompt": "a"}\n{oops\n', "line 2"),
        ('{"text": "a"}\n', "line 1"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', "line 2"),
        ('{"prompt": ""}\n', "line 1"),
    ],
)
def test_a_malformed_file_of_prompts_is_refused_with_its_line(cli, model, tmp_path, lines, words):
    (tmp_path / "p.jsonl").write_text(lines)
    code, _, err = cli("trace", "--model", model, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    assert code == 2
    assert words in err
    assert "p.jsonl" in err


def test_lists(cli):
    for command, word in (("models", "qwen3_5_moe"), ("datasets", "Idavidrein/gpqa"), ("doctor", "transformers")):
        code, out, _ = cli(command)
        assert code == 0
        assert word in out


def test_a_fault_of_our_own_is_not_dressed_up_as_the_users(cli, model, tmp_path, monkeypatch):
    monkeypatch.setattr("layerlens.tracing.tracer.tokenize", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("trace", "--model", model, "--dataset", "sample", "--out", tmp_path / "out")


def test_ctrl_c_while_a_model_loads_is_no_fault(cli, tiny_folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerlens.load", interrupted, raising=False)
    assert cli("generate", "--model", tiny_folder("llama"), "--prompt", "hello")[0] == 130


def test_the_console_script_is_installed():
    script = os.path.join(os.path.dirname(sys.executable), "layerlens")  # noqa: PTH118, PTH120
    done = subprocess.run([script, "datasets"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "gsm8k" in done.stdout


def test_without_arguments_there_is_the_help_and_a_version_when_asked(cli):
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert len(out.splitlines()) > 8
    assert cli("--version")[1].strip() == f"layerlens {importlib.metadata.version('layerlens')}"


@thorough
def test_a_single_layer_and_an_ascii_terminal(tmp_path):
    """What is printed of both, in one process."""
    for n_layers, name in ((1, "one"), (8, "eight")):
        tiny_model("llama", num_hidden_layers=n_layers).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    program = (
        "import sys, layerlens.cli\n"
        "for name in ('one', 'eight'):\n"
        "    options = f'--model {name} --dataset sample --limit 2 --max-new-tokens 3 --out run-{name}'\n"
        "    sys.argv = ['layerlens', 'trace', *options.split()]\n"
        "    try: layerlens.cli.main()\n"
        "    except SystemExit as left: print('END', left.code, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    one, eight, rest = done.stdout.split("END 0\n")
    assert rest == ""
    for printed in (one, eight):
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "2 prompts, 6 positions" in printed


def test_a_figure_of_an_unfinished_run_says_so(cli, model, tmp_path, monkeypatch):
    from layerlens.records import RunWriter

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunWriter, "finish", interrupted)
    cli(
        "trace", "--model", model, "--dataset", "sample", "--limit", 3, "--max-new-tokens", 3, "--out", tmp_path / "run"
    )
    code, _, err = cli("figure", "2", "--run", tmp_path / "run", "--out", tmp_path / "figures")
    assert code == 0
    assert str(tmp_path / "run") in err
    assert "3 of 3" in err


def test_the_commands_at_the_end_of_a_trace_can_be_pasted(cli, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "my runs/it's one"
    code, said, _ = cli(
        "trace",
        "--model",
        tiny_folder("llama"),
        "--dataset",
        "sample",
        "--limit",
        3,
        "--max-new-tokens",
        4,
        "--out",
        out,
    )
    assert code == 0
    lines = dict(line.split(None, 1) for line in said.splitlines() if line.strip())
    earliest = ll.open_run(out).earliest_agreement().set_index("reading").loc["kept"]
    layer = f"layer {earliest['median']:.0f} [{earliest['median_low']:.0f}, {earliest['median_high']:.0f}] on"
    assert lines["agreement"].endswith(layer)
    for name, written in (("report", f"{out}/report.html"), ("figures", "figures/figure4.png")):
        program, *words = shlex.split(lines[name])
        assert program == "layerlens"
        assert cli(*words)[0] == 0
        assert (tmp_path / written).exists()
