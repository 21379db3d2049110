"""Where a model lies and what its files say, without torch."""

import subprocess
import sys

import pytest

from layerlens.errors import ModelError, OptionError
from layerlens.models import locate
from layerlens.models.gguf_header import n_layers
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.models.tiny_gguf import tiny_lfm2, write_gguf
from tests.refusals import refused


@pytest.fixture
def offline(monkeypatch):
    """The hub answers nothing, and fails the test where it is asked and should not be."""
    asked = []
    monkeypatch.setattr(locate.hub, "answers", lambda source, *_, **__: bool(asked.append(source)))
    monkeypatch.setattr(locate.hub, "commit_of", lambda *_: None)
    return asked


@pytest.mark.parametrize("path", ["./nix", "~/nix", "/nowhere/nix", "models/of/mine", "nix/", "../nix", "a b"])
def test_a_path_that_is_not_there_is_refused_without_the_hub(offline, path):
    with refused(ModelError, given=path, problem="no folder"):
        locate.refuse_unloadable(path)
    assert offline == []


@pytest.mark.parametrize("name", ["smollm2-135m-instrct", "SmolLM2-135M-Instruct", "smollm-135m-instruct"])
def test_a_slip_in_a_built_in_name_gets_the_name(offline, name):
    with refused(ModelError, "model", name, advice="did you mean smollm2-135m-instruct?"):
        locate.refuse_unloadable(name)
    with refused(ModelError, "model", "gemma-270m", advice="did you mean gemma3-270m?"):
        locate.refuse_unloadable("gemma-270m")
    assert offline == []


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "org/some-model.v2"])
def test_a_hub_id_is_asked_for(offline, name):
    with refused(ModelError, given=name, problem="hub cannot be reached"):
        locate.refuse_unloadable(name)
    assert offline == [name]


def test_a_folder_without_a_tokenizer_is_named_as_such(tmp_path, cli):
    tiny_model("llama").save_pretrained(tmp_path)
    with refused(ModelError, given=str(tmp_path), problem="no tokenizer", advice="tokenizer.json"):
        locate.refuse_unloadable(str(tmp_path))
    code, _, err = cli("trace", "--model", tmp_path, "--dataset", "sample", "--out", tmp_path / "out")
    assert (code, "no tokenizer" in err) == (2, True)
    import layerlens as ll

    with refused(ModelError, given=str(tmp_path), problem="no tokenizer"):
        ll.load(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    locate.refuse_unloadable(str(tmp_path))
    assert ll.load(tmp_path).n_layers == 4


def test_a_window_deeper_than_the_config(tiny_folder):
    folder = tiny_folder("llama")
    assert locate.depths(locate.located(folder)) == [4]
    locate.refuse_unloadable(folder, window=4)
    with refused(OptionError, "window", 5, advice="1..4"):
        locate.refuse_unloadable(folder, window=5)


def test_a_window_deeper_than_a_gguf_file_says(tmp_path):
    path = tmp_path / "tiny.gguf"
    hf = tiny_lfm2()
    write_gguf(path, hf)
    assert n_layers(path) == hf.config.num_hidden_layers
    with refused(OptionError, "window", 99, advice=f"1..{hf.config.num_hidden_layers}"):
        locate.refuse_unloadable(str(path), window=99)
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:40])
    (tmp_path / "other.gguf").write_bytes(b"no gguf at all, but long enough to be read")
    assert n_layers(tmp_path / "cut.gguf") is None
    assert n_layers(tmp_path / "other.gguf") is None


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"num_hidden_layers": 6}, 6),
        ({"n_layer": 12}, 12),
        ({"text_config": {"num_hidden_layers": 34}, "vision_config": {"num_hidden_layers": 27}}, 34),
        ({"num_hidden_layers": 2, "decoder_layers": 8}, 8),
        ({"hidden_size": 64}, None),
    ],
)
def test_the_layers_of_a_config_are_never_too_few(tmp_path, config, most):
    """A window is refused only where no part of the model is as deep; the loaded model is asked again."""
    import json

    (tmp_path / "config.json").write_text(json.dumps(config))
    assert max(locate.depths(locate.Located("m", tmp_path, None)), default=None) == most


def test_nothing_of_it_needs_torch():
    program = (
        "import sys\nfrom layerlens.models import locate\n"
        "try: locate.refuse_unloadable('./nix', window=3)\nexcept Exception as error: print(error)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
