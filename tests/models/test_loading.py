"""Where models come from, and what is refused with which words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.refusals import refused

SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def save(folder: Path, model=None, tokenizer: bool = True) -> Path:
    (model if model is not None else tiny_model("llama")).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def refusal(source, **options) -> str:
    with pytest.raises(ll.ModelError) as caught:
        ll.load(str(source), **options)
    message = str(caught.value)
    assert str(source) in message
    assert "\n" not in message
    return message


def test_a_folder_gives_the_model_that_was_saved(tmp_path):
    saved = tiny_model("qwen3_5_text", seed=3)
    model = ll.load(save(tmp_path / "model", saved))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=ids).logits, saved(input_ids=ids).logits)
    assert model.layer_kinds == ["linear", "linear", "linear", "full"] * 2
    assert model.tokenizer("ab").input_ids == tiny_tokenizer()("ab").input_ids


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_is_the_checkpoints_unless_asked_for(tmp_path, dtype, expected):
    folder = save(tmp_path / "model", tiny_model("llama").to(torch.bfloat16))
    assert ll.load(folder, dtype=dtype).hf.dtype == expected


def test_a_model_in_memory_needs_its_tokenizer():
    with pytest.raises(ll.OptionError, match="tokenizer=tokenizer"):
        ll.load(tiny_model("llama"))
    with pytest.raises(ll.OptionError, match="own tokenizer"):
        ll.load("some/model", tokenizer=tiny_tokenizer())


def test_a_hub_id_is_read_from_the_cache_with_its_commit(tmp_path):
    """The real hub path of transformers, over a cache laid out as the hub client does it."""
    commit = "c" * 40
    repository = tmp_path / "hub" / "models--some--tiny"
    save(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = "import layerlens as ll; m = ll.load('some/tiny'); print(m.source, m.revision, m.n_layers)"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["some/tiny", commit, "4"], done.stderr


def test_an_unknown_name_fails_within_seconds():
    message = refusal("no-such-org/no-such-model")
    assert "smollm2-135m-instruct" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_folder_without_weights_or_config(tmp_path, name):
    folder = save(tmp_path / "model")
    (folder / name).unlink()
    assert "model.safetensors" in refusal(folder) or "config.json" in refusal(folder)


def test_pickled_weights_are_read_only_when_asked_for(tmp_path):
    folder = save(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    assert "allow_pickle=True" in refusal(folder)
    assert ll.load(folder, allow_pickle=True).n_layers == 4


def test_code_of_a_checkpoint_is_not_run_unless_asked_for(tmp_path):
    folder = save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
            ),
            "encoder-decoder",
        ),
        (
            lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, intermediate_size=32)),
            "encoder-only",
        ),
        (lambda: transformers.ViTModel(transformers.ViTConfig(hidden_size=32)), "(vit)"),
    ],
)
def test_other_kinds_of_model(tmp_path, make, words):
    assert words in refusal(save(tmp_path / "model", make()))


def test_damaged_files(tmp_path):
    folder = save(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    refusal(folder)
    (folder / "config.json").write_text("{oops")
    assert "config.json" in refusal(folder)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    assert "GGUF" in refusal(tmp_path / "bad.gguf")
    refusal(tmp_path / "missing.gguf")


def test_a_missing_tokenizer(tmp_path):
    assert "tokenizer" in refusal(save(tmp_path / "model", tokenizer=False))


def test_several_gguf_files_in_a_folder(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "a.gguf, b.gguf" in refusal(tmp_path)


def test_options_that_do_not_exist(tmp_path):
    folder = save(tmp_path / "model")
    for options, word in (({"dtype": "int7"}, "int7"), ({"device": "nowhere"}, "nowhere")):
        with pytest.raises(ll.OptionError, match=word):
            ll.load(folder, **options)


def test_loading_leaves_transformers_as_chatty_as_it_was(tmp_path):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    ll.load(save(tmp_path / "model"))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    shutil.rmtree(tmp_path / "model")


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path):
    folder = save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    assert "lacks" in refusal(folder)


def test_options_of_a_checkpoint_do_not_apply_to_a_model_in_memory():
    hf, tokenizer = tiny_model("llama"), tiny_tokenizer()
    for options in ({"dtype": "bfloat16"}, {"device": "cpu"}, {"revision": "x"}):
        with pytest.raises(ll.OptionError, match="in memory"):
            ll.load(hf, tokenizer=tokenizer, **options)
    with refused(ll.OptionError, "tokenizer", "gpt2"):
        ll.load(hf, tokenizer="gpt2")
    for thing in (None, 3, torch.nn.Linear(2, 2)):
        with refused(ll.OptionError, "model"):
            ll.load(thing)


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    with refused(ll.OptionError, "revision", "v1"):
        ll.load(save(tmp_path / "model"), revision="v1")


def test_an_encoder_decoder_in_memory_is_refused():
    config = transformers.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    with pytest.raises(ll.ModelError, match="encoder-decoder"):
        ll.load(transformers.T5ForConditionalGeneration(config), tokenizer=tiny_tokenizer())
