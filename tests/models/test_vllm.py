"""A model that vLLM runs, as far as no engine is needed: its shape, what tells it from others, what is refused."""

import json
import sys

import pytest
import torch

import layerlens as ll
from layerlens.models import vllm_versions as versions
from tests.conftest import tiny
from tests.refusals import refused


@pytest.fixture
def without_vllm(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: None)


def loaded(folder, **options):
    return ll.load(folder, backend="vllm", **options)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt2"])
def test_it_has_the_shape_of_the_loaded_model_and_no_weights(family, tiny_folder):
    there, here = loaded(tiny_folder(family)), tiny(family)
    for name in ("n_layers", "d_model", "n_vocab", "family", "layer_kinds", "mlp_kinds", "context_length", "tied"):
        assert getattr(there, name) == getattr(here, name), name
    assert {one.device.type for one in there.hf.parameters()} == {"meta"}
    assert there.backend.arguments["dtype"] == "float32"
    assert "vllm" not in sys.modules


def test_its_fingerprint_tells_other_weights_of_the_same_shapes(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    assert loaded(folder).fingerprint() == loaded(folder).fingerprint()
    other = ll.load(folder)
    with torch.no_grad():
        other.hf.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    other.hf.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    assert loaded(str(tmp_path)).fingerprint() != loaded(folder).fingerprint()


def test_its_generation_config_is_followed(tiny_folder, tmp_path):
    other = ll.load(tiny_folder("llama"))
    other.hf.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8], "repetition_penalty": 1.5}))
    config = loaded(str(tmp_path)).hf.generation_config
    assert (config.eos_token_id, config.repetition_penalty) == ([7, 8], 1.5)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"device": "cpu"}, "device"),
        ({"device_map": "auto"}, "device_map"),
        ({"quantize": "4bit"}, "quantize"),
        ({"keep_quantized": True}, "keep_quantized"),
        ({"allow_pickle": True}, "allow_pickle"),
        ({"engine_options": {"additional_config": {}}}, "engine_options"),
        ({"engine_options": {"model": "other"}}, "engine_options"),
        ({"engine_options": ["a"]}, "engine_options"),
    ],
)
def test_options_that_vllm_has_under_other_names_are_refused(options, option, tiny_folder):
    with refused(ll.OptionError, option):
        loaded(tiny_folder("llama"), **options)


def test_options_of_an_engine_without_an_engine_are_refused(tiny_folder):
    with refused(ll.OptionError, "engine_options", advice="backend"):
        ll.load(tiny_folder("llama"), engine_options={"max_model_len": 64})


def test_models_that_vllm_cannot_find_are_refused(tiny_llama):
    with refused(ll.OptionError, "backend", "vllm", advice="hub id or a folder"):
        ll.load(tiny_llama.hf, tokenizer=tiny_llama.tokenizer, backend="vllm")
    with refused(ll.OptionError, "backend", "vllm", problem="GGUF"):
        loaded("smollm2-135m-instruct")


def test_without_vllm_a_sentence_says_so_and_nothing_is_written(without_vllm, tiny_folder, tmp_path, cli):
    model = loaded(tiny_folder("llama"))
    with refused(ll.OptionError, None, problem="not installed", advice="pip install"):
        ll.generate(model, "a", max_new_tokens=2)
    with refused(ll.OptionError, None, problem="not installed"):
        ll.trace(model, ["a"], out=tmp_path / "run", max_new_tokens=2, progress=False)
    assert not (tmp_path / "run").exists()
    code, out, err = cli("generate", "--model", tiny_folder("llama"), "--backend", "vllm", "--prompt", "a")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_what_runs_here_does_not_take_it(tiny_folder):
    model = loaded(tiny_folder("llama"))
    with refused(ll.OptionError, "backend", "vllm"), ll.decoding(model, "valley"):
        pass
