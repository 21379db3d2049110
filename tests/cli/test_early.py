"""What is refused before torch is imported, or before the model is loaded."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

PROGRAM = """
import json, sys
from layerlens import cli
for arguments in json.loads(sys.argv[1]):
    sys.modules["torch"] = None  # cannot be imported
    print(cli.run(arguments))
"""
MODEL = ("--model", "MODEL")
FIT = ("fit-lens", "linear", *MODEL, "--dataset", "sample", "--out")
TRACE = ("trace", *MODEL, "--dataset", "sample", "--out", "new")

WITHOUT_TORCH = {
    (*FIT, "there.safetensors"): "--out there.safetensors",
    (*FIT, "nowhere/lens.safetensors"): "--out nowhere/lens.safetensors",
    (*FIT, "lens.pt"): "--out lens.pt",
    (*FIT, "new.safetensors", "--dtype", "flot32"): "--dtype flot32",
    (*TRACE, "--dtype", "flot32"): "did you mean float32",
    (*TRACE, "--backend", "transformer"): "did you mean transformers",
    (*TRACE, "--quantize", "4bits"): "did you mean 4bit",
    (*TRACE, "--device", "cdua"): "did you mean cuda",
    (*TRACE, "--device", "cuda1"): "did you mean cuda:1",
    (*TRACE, "--device", "gpu"): "did you mean cuda",
    (*TRACE, "--device-map", "ballanced"): "did you mean balanced",
    ("generate", *MODEL, "--prompt", "x", "--dtype", "flot32"): "--dtype flot32",
    ("ablate", *MODEL, "--tasks", "sample", "--out", "new", "--device", "cdua"): "--device cdua",
    ("doctor", *MODEL, "--dtype", "flot32"): "--dtype flot32",
    ("doctor", "--model", "smollm2-135m-instrct"): "did you mean smollm2-135m-instruct",
    ("trace", *MODEL, "--dataset", "sample", "--out", "dangling"): "--out dangling is a link",
    ("trace", *MODEL, "--dataset", "sample", "--out", "dangling/new"): "lies in dangling",
    ("trace", *MODEL, "--dataset", "sample", "--out", "there.safetensors/new"): "there.safetensors is a file",
    ("ablate", *MODEL, "--tasks", "sample", "--out", "dangling"): "--out dangling is a link",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "dangling").symlink_to("gone")
    return tmp_path


def test_misspelt_options_and_places_that_cannot_be_are_refused_without_torch(here, tiny_folder):
    folder = tiny_folder("llama")
    lines = [[word.replace("MODEL", folder) for word in line] for line in WITHOUT_TORCH]
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(lines)], capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * len(lines), done.stderr[-3000:]
    for said, expected in zip(done.stderr.splitlines(), WITHOUT_TORCH.values(), strict=True):
        assert expected in said
        assert "resume" not in said
    assert sorted(path.name for path in here.iterdir()) == ["dangling", "there.safetensors"]


def test_a_misspelt_family_is_refused_before_a_model_can_be_made():
    check = "import sys\nfrom layerlens import cli\nprint(cli.run(['models', '--check', 'llama', 'qwn3']))\n"
    check += "print('layerlens.models.loading' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    assert "did you mean qwen3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*TRACE, "--strategy", "last-4"], "--strategy last-4"),
        ([*TRACE, "--strategy", "valley-4"], "--strategy valley-4"),
        (["generate", *MODEL, "--prompt", "x", "--strategy", "last-4"], "--strategy last-4"),
        (["bench", "decode", *MODEL, "--strategy", "last-4"], "--strategy last-4"),
        ([*TRACE, "--lens", "linear:there.safetensors"], "--lens linear:there.safetensors"),
        ([*TRACE, "--lens", "linear:weights.safetensors"], "--lens linear:weights.safetensors"),
        ([*TRACE, "--lens", "jacobian:notes.pt"], "--lens jacobian:notes.pt"),
        ([*TRACE, "--lens", "tuned:folder"], "--lens tuned:folder"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_it_is_loaded(
    cli, here, tiny_folder, monkeypatch, arguments, named
):
    monkeypatch.setattr("layerlens.cli.options.Loading.load", lambda *_: pytest.fail("the model was loaded"))
    save_file({"weight": torch.zeros(2, 2)}, here / "weights.safetensors")
    (here / "notes.pt").write_text("no lens")
    (here / "folder").mkdir()
    code, out, err = cli(*(tiny_folder("llama") if word == "MODEL" else word for word in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_a_strategy_is_not_refused_where_the_config_does_not_say_how_deep_the_decoder_is(tmp_path):
    from layerlens.cli.options import Loading
    from layerlens.decode.strategies import Fixed
    from layerlens.errors import OptionError
    from tests.refusals import refused

    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    with refused(OptionError, "offset", 4):
        Loading().refuse_unfit(str(tmp_path), Fixed(4))
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "decoder_layers": 8}))
    Loading().refuse_unfit(str(tmp_path), Fixed(4))


def test_a_fit_does_not_blame_an_option_that_was_not_given(cli, here, tiny_folder):
    words = [tiny_folder("llama") if word == "MODEL" else word for word in FIT]
    code, _, err = cli(*words, "there.safetensors", "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "--out there.safetensors" in err
    assert "--lens" not in err
