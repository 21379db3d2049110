"""Lenses in files: what is read is what was written, in whoever's format; what does not fit a model is refused."""

import hashlib
import json
import pickle
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import layerlens as ll
from layerlens.errors import Notice
from layerlens.lens.files import Stored, identity_of, made_for, open_lens, read_lens, write_lens
from layerlens.lens.transport import IDENTITY, Affine, refuse_lacking
from tests.conftest import tiny


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def drawn(model, layers, seed=0, bias=True):
    draws = torch.Generator().manual_seed(seed)
    width = model.d_model
    weights = {layer: torch.randn(width, width, generator=draws) / width**0.5 for layer in layers}
    return weights, {layer: torch.randn(width, generator=draws) for layer in layers} if bias else {}


def own_file(model, path, kind="linear", **others):
    weights, biases = drawn(model, range(model.n_layers))
    fields = {"adds": kind == "tuned", "d_model": model.d_model, "n_layers": model.n_layers}
    write_lens(path, Stored(kind, weights, biases, **(fields | {"made_for": made_for(model)} | others)))
    return weights, biases


def tuned_folder(model, path, **config):
    weights, biases = drawn(model, range(model.n_layers), seed=1)
    path.mkdir()
    state = {f"{layer}.weight": weight for layer, weight in weights.items()}
    state |= {f"{layer}.bias": bias for layer, bias in biases.items()}
    torch.save(state, path / "params.pt")
    said = {"base_model_name_or_path": "someone/tiny", "d_model": model.d_model, "num_hidden_layers": model.n_layers}
    (path / "config.json").write_text(json.dumps(said | {"bias": True, "lens_type": "linear_tuned_lens"} | config))
    return weights, biases


def jacobian_file(model, path, **others):
    weights, _ = drawn(model, range(1, model.n_layers), seed=2, bias=False)
    payload = {"J": {layer - 1: weight for layer, weight in weights.items()}, "n_prompts": 3, "d_model": model.d_model}
    torch.save(payload | {"source_layers": [layer - 1 for layer in weights]} | others, path)
    return weights


@contextmanager
def refused_lens(lens, *words):
    """Inside, that lens is refused by one sentence with all of these words."""
    with pytest.raises(ll.OptionError) as caught:
        yield
    error = caught.value
    assert (error.option, error.given) == ("lens", lens)
    assert error.advice
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words), error


def states_of(model, n_rows=5):
    return torch.randn(n_rows, model.d_model, generator=torch.Generator().manual_seed(9))


def test_each_kind_maps_states_as_it_is_defined_and_leaves_the_last_layer(model, tmp_path):
    states = states_of(model)
    wide, last = states.double(), model.n_layers
    weights, biases = own_file(model, tmp_path / "own.safetensors")
    linear = open_lens(f"linear:{tmp_path / 'own.safetensors'}", model)
    for layer in range(last):
        expected = wide @ weights[layer].double().T + biases[layer].double()
        torch.testing.assert_close(linear(states, layer), expected.float(), rtol=1e-5, atol=1e-5)
    weights, biases = tuned_folder(model, tmp_path / "tuned")
    tuned = open_lens(f"tuned:{tmp_path / 'tuned'}", model)
    for layer in range(last):
        expected = wide + wide @ weights[layer].double().T + biases[layer].double()
        torch.testing.assert_close(tuned(states, layer), expected.float(), rtol=1e-5, atol=1e-5)
    weights = jacobian_file(model, tmp_path / "j.pt")
    jacobian = open_lens(f"jacobian:{tmp_path / 'j.pt'}", model)
    for layer in range(1, last):
        torch.testing.assert_close(
            jacobian(states, layer), (wide @ weights[layer].double().T).float(), rtol=1e-5, atol=1e-5
        )
    for lens in (linear, tuned, jacobian, IDENTITY):
        assert lens(states, last) is states
    assert list(linear.layers) == list(tuned.layers) == list(range(last + 1))
    assert list(jacobian.layers) == list(range(1, last + 1))
    assert open_lens(None, model) is open_lens("logit", model) is IDENTITY


def test_states_keep_their_type(model, tmp_path):
    own_file(model, tmp_path / "own.safetensors")
    lens = open_lens(f"linear:{tmp_path / 'own.safetensors'}", model)
    states = states_of(model).bfloat16()
    moved = lens(states, 1)
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved, lens(states.float(), 1).bfloat16())


def test_the_record_tells_kind_source_and_contents(model, tmp_path):
    path = tmp_path / "own.safetensors"
    own_file(model, path)
    record = open_lens(f"linear:{path}", model).record()
    assert record == {
        "kind": "linear",
        "source": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    tuned_folder(model, tmp_path / "tuned")
    before = open_lens(f"tuned:{tmp_path / 'tuned'}", model).record()["sha256"]
    state = torch.load(tmp_path / "tuned/params.pt", weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in state.items()}, tmp_path / "tuned/params.pt")
    assert open_lens(f"tuned:{tmp_path / 'tuned'}", model).record()["sha256"] != before


def test_the_identity_of_a_model_does_not_depend_on_the_type_it_is_loaded_in():
    one = tiny("llama")
    halved = ll.load(deepcopy(one.hf).to(torch.bfloat16), tokenizer=one.tokenizer)
    assert identity_of(halved) == identity_of(one)
    halved.hf.lm_head.weight.data.view(-1)[0] += 1
    assert identity_of(halved) != identity_of(one)


@pytest.mark.parametrize(
    "lens", ["", "linear", "linear:", "logit:x", "other:x", ":x", "linear:no/such/file.safetensors"]
)
def test_what_is_no_lens_is_refused(lens, model):
    with refused_lens(lens):
        open_lens(lens, model)


def test_a_lens_of_another_model_is_refused_with_both_numbers(model, tmp_path):
    path = tmp_path / "own.safetensors"
    own_file(model, path, n_layers=7)
    with refused_lens(f"linear:{path}", "7", str(model.n_layers)):
        open_lens(f"linear:{path}", model)
    own_file(model, path, d_model=5)
    with refused_lens(f"linear:{path}", "5", str(model.d_model)):
        open_lens(f"linear:{path}", model)
    own_file(model, path, made_for={"model": "someone/else", "identity": "0" * 64})
    with refused_lens(f"linear:{path}", "someone/else"):
        open_lens(f"linear:{path}", model)
    deeper = jacobian_file(tiny("llama"), tmp_path / "j.pt", metadata={"target_layer": 9})
    assert deeper
    with refused_lens(f"jacobian:{tmp_path / 'j.pt'}", "10", str(model.n_layers)):
        open_lens(f"jacobian:{tmp_path / 'j.pt'}", model)


def test_a_published_lens_is_told_by_its_unembedding_or_its_name(model, tmp_path, monkeypatch):
    weight = model.unembed.weight.detach().float().numpy()
    same = hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()
    tuned_folder(model, tmp_path / "same", unembed_hash=same)
    open_lens(f"tuned:{tmp_path / 'same'}", model)  # and no notice, which would be an error here
    tuned_folder(model, tmp_path / "other", unembed_hash="0" * 64)
    with pytest.warns(Notice, match="someone/tiny"):
        open_lens(f"tuned:{tmp_path / 'other'}", model)
    with refused_lens(f"tuned:{tmp_path / 'other'}", "someone/tiny", "someone/large"):
        open_lens(f"tuned:{tmp_path / 'other'}", replace(model, source="someone/large"))


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_a_file_that_could_run_code_is_refused_and_runs_none(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"J": {0: torch.eye(model.d_model)}, "d_model": model.d_model, "extra": Harmful()}, "j.pt")
    with refused_lens("jacobian:j.pt", "code"):
        open_lens("jacobian:j.pt", model)
    tuned_folder(model, tmp_path / "tuned")
    (tmp_path / "tuned/params.pt").write_bytes(pickle.dumps(Harmful()))
    with refused_lens("tuned:tuned", "code"):
        open_lens("tuned:tuned", model)
    assert not (tmp_path / "harm").exists()


def test_damaged_files_are_refused(model, tmp_path):
    for name, kind, contents in (
        ("empty.safetensors", "linear", b""),
        ("text.pt", "jacobian", b"no tensors"),
        ("linear.pt", "linear", b"x"),
    ):
        (tmp_path / name).write_bytes(contents)
        with refused_lens(f"{kind}:{tmp_path / name}"):
            read_lens(kind, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"K": 1}, tmp_path / "k.pt")
    torch.save({"J": {0: torch.eye(3)}}, tmp_path / "width.pt")
    torch.save({"J": {0: "text"}, "d_model": model.d_model}, tmp_path / "text_in.pt")
    for name in ("list.pt", "k.pt", "width.pt", "text_in.pt"):
        with refused_lens(f"jacobian:{tmp_path / name}"):
            open_lens(f"jacobian:{tmp_path / name}", model)
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with refused_lens(f"linear:{tmp_path / 'foreign.safetensors'}"):
        open_lens(f"linear:{tmp_path / 'foreign.safetensors'}", model)
    (tmp_path / "folder").mkdir()
    with refused_lens(f"tuned:{tmp_path / 'folder'}"):
        open_lens(f"tuned:{tmp_path / 'folder'}", model)
    own_file(model, tmp_path / "own.safetensors")
    with refused_lens(f"tuned:{tmp_path / 'own.safetensors'}", "linear:"):
        open_lens(f"tuned:{tmp_path / 'own.safetensors'}", model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_with_their_layer(value, model):
    weights, biases = drawn(model, [1])
    for spoiled in (weights[1], biases[1]):
        kept = spoiled.clone()
        spoiled.view(-1)[3] = value
        with refused_lens("linear:here", "layer 1"):
            Affine("linear", weights, biases, model.n_layers, adds=False, source="here")
        spoiled.copy_(kept)


def test_a_layer_that_a_lens_lacks_is_said_with_who_reads_it(model, tmp_path):
    jacobian_file(model, tmp_path / "j.pt")
    lens = open_lens(f"jacobian:{tmp_path / 'j.pt'}", model)
    refuse_lacking(lens, [1, 2, model.n_layers], "a trace")
    with refused_lens(f"jacobian:{tmp_path / 'j.pt'}", "layer 0", "SLED"):
        refuse_lacking(lens, [0, 1], "SLED")
