"""Lenses in files: what is read is what was written, in whoever's format; what does not fit a model is refused."""

import hashlib
import json
import os
import pickle
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from inspect import unwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import layerlens as ll
from layerlens.errors import Notice
from layerlens.lens.files import Stored, read_lens, write_lens
from layerlens.lens.opening import identity_of, made_for, open_lens, opened_for_checkpoint
from layerlens.lens.transport import IDENTITY, Affine, refuse_lacking
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.refusals import refused

needs_transformer_lens = pytest.mark.skipif(find_spec("transformer_lens") is None, reason="needs TransformerLens")


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
    fields = {"d_model": model.d_model, "n_layers": model.n_layers}
    write_lens(path, Stored(kind, weights, biases, **(fields | {"made_for": made_for(model)} | others)))
    return weights, biases


def tuned_folder(model, path, **config):
    weights, biases = drawn(model, range(model.n_layers), seed=1)
    path.mkdir()
    state = {f"{layer}.weight": weight for layer, weight in weights.items()}
    state |= {f"{layer}.bias": bias for layer, bias in biases.items()}
    torch.save(state, path / "params.pt")
    said = {"base_model_name_or_path": None, "d_model": model.d_model, "num_hidden_layers": model.n_layers}
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


@needs_transformer_lens
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_lens_belongs_to_a_model_whatever_backend_loaded_it(family, tiny_folder, tmp_path):
    """TransformerLens has other names for parameters, and cuts some of gpt2's and phi3's into parts."""
    plain, bridge = (ll.load(tiny_folder(family), backend=name) for name in (None, "transformer-lens"))
    for made_by, read_by in ((plain, bridge), (bridge, plain)):
        own_file(made_by, tmp_path / "own.safetensors", made_for=made_for(made_by))
        open_lens(f"linear:{tmp_path / 'own.safetensors'}", read_by)
    own_file(plain, tmp_path / "own.safetensors", made_for=made_for(plain))
    next(parameter for name, parameter in bridge.hf.named_parameters() if ".2." in name).data.mul_(1.5)
    with refused_lens(f"linear:{tmp_path / 'own.safetensors'}", "other weights"):
        open_lens(f"linear:{tmp_path / 'own.safetensors'}", bridge)


def test_a_file_of_ours_that_lost_something_is_refused(model, tmp_path):
    path = tmp_path / "own.safetensors"
    own_file(model, path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()
    for lost, problem in (("layers.2.bias", "layer 2"), ("layers.1.weight", "layer 1")):
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, said)
        with refused_lens(f"linear:{path}", problem):
            read_lens("linear", path)
    for change in ({"made_for": "[]"}, {"made_for": "{}"}, {"made_for": "{x"}, {"d_model": "x"}, {"n_layers": "x"}):
        save_file(tensors, path, said | change)
        with refused_lens(f"linear:{path}"):
            read_lens("linear", path)
    for lost in ("made_for", "fit", "d_model"):
        save_file(tensors, path, {name: value for name, value in said.items() if name != lost})
        with refused_lens(f"linear:{path}"):
            read_lens("linear", path)
    save_file(tensors, path, said | {"kind": "foo"})
    with refused_lens(f"linear:{path}", "foo"):
        read_lens("linear", path)


def test_what_is_neither_file_nor_folder_is_not_waited_for(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with refused_lens(f"linear:{tmp_path / 'pipe.safetensors'}"):
        open_lens(f"linear:{tmp_path / 'pipe.safetensors'}", model)


def test_others_may_read_a_lens_as_they_may_read_other_files(model, tmp_path):
    own_file(model, tmp_path / "own.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "own.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


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
    small = {layer: torch.eye(5) for layer in range(model.n_layers)}
    write_lens(path, Stored("linear", small, {}, 5, model.n_layers, made_for(model)))
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
    named = {"base_model_name_or_path": "someone/tiny"}
    tuned_folder(model, tmp_path / "same", unembed_hash=same, **named)
    open_lens(f"tuned:{tmp_path / 'same'}", model)  # and no notice, which would be an error here
    tuned_folder(model, tmp_path / "other", unembed_hash="0" * 64, **named)
    jacobian_file(model, tmp_path / "j.pt", metadata={"model_name": "someone/tiny"})
    for lens in (f"tuned:{tmp_path / 'other'}", f"jacobian:{tmp_path / 'j.pt'}"):
        with pytest.warns(Notice, match=f"someone/tiny.*{model.source}"):  # a class tells no model
            open_lens(lens, model)
        for source in ("someone/large", "built-in-name"):
            with refused_lens(lens, "someone/tiny", source):
                open_lens(lens, replace(model, source=source))
    open_lens(f"jacobian:{tmp_path / 'j.pt'}", replace(model, source="Another/Tiny"))


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
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    for folder in ("folder", "folder.safetensors"):
        (tmp_path / folder).mkdir()
    for lens in ("linear:foreign.safetensors", "tuned:folder", "linear:folder.safetensors", "tuned:folder.safetensors"):
        kind, _, name = lens.partition(":")
        with refused_lens(f"{kind}:{tmp_path / name}"):
            open_lens(f"{kind}:{tmp_path / name}", model)
    own_file(model, tmp_path / "own.safetensors")
    with refused_lens(f"tuned:{tmp_path / 'own.safetensors'}", "linear:"):
        open_lens(f"tuned:{tmp_path / 'own.safetensors'}", model)
    with refused_lens(f"linear:{'x' * 300}"):
        open_lens(f"linear:{'x' * 300}", model)


EYE = torch.eye(48)
ODD = {
    "a list": [1, 2],
    "no J": {"K": 1},
    "nothing in J": {"J": {}, "d_model": 48},
    "a text": {"J": {0: "text"}, "d_model": 48},
    "a number": {"J": {0: 3}, "d_model": 48},
    "another width": {"J": {0: torch.eye(3)}, "d_model": 48},
    "whole numbers": {"J": {0: EYE.int()}, "d_model": 48},
    "truth values": {"J": {0: EYE.bool()}, "d_model": 48},
    "complex numbers": {"J": {0: EYE.to(torch.complex64)}, "d_model": 48},
    "few values": {"J": {0: EYE.to_sparse()}, "d_model": 48},
    "no values": {"J": {0: EYE.to("meta")}, "d_model": 48},
    "beyond float32": {"J": {0: EYE.double() * 1e300}, "d_model": 48},
    "a layer below the embeddings": {"J": {-2: EYE}, "d_model": 48},
    "the last layer": {"J": {3: EYE}, "d_model": 48},
    "another estimator": {"J": {0: EYE}, "d_model": 48, "metadata": {"estimator": "sampled"}},
    "metadata that is none": {"J": {0: EYE}, "d_model": 48, "metadata": [1]},
}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD)
def test_a_jacobian_file_that_holds_what_it_should_not_is_refused(payload, model, tmp_path):
    torch.save(payload, tmp_path / "j.pt")
    with refused_lens(f"jacobian:{tmp_path / 'j.pt'}"):
        open_lens(f"jacobian:{tmp_path / 'j.pt'}", model)


def test_types_that_widen_are_read_and_the_width_is_that_of_the_matrices(model, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        torch.save({"J": {layer: (EYE * 2).to(dtype) for layer in range(3)}}, tmp_path / "j.pt")
        lens = open_lens(f"jacobian:{tmp_path / 'j.pt'}", model)
        torch.testing.assert_close(lens(states_of(model), 2), states_of(model) * 2)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"layers.-1.weight": EYE}, {}),
        ({"layers.02.weight": EYE, "layers.2.weight": EYE}, {}),
        ({"layers.0.weight": EYE, "scale": EYE}, {}),
        ({"layers.0.weight": EYE, "layers.0.scale": EYE}, {}),
        ({"layers.0.bias": EYE[0]}, {}),
        ({"layers.0.weight": EYE}, {"made_for": "[1]"}),
        ({"layers.0.weight": EYE}, {"made_for": '{"model": 3}'}),
        ({"layers.0.weight": EYE}, {"d_model": "wide"}),
    ],
)
def test_a_file_of_ours_that_was_changed_is_refused(tensors, said, model, tmp_path):
    own_file(model, tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file({name: one.clone() for name, one in tensors.items()}, tmp_path / "own.safetensors", metadata | said)
    with refused_lens(f"linear:{tmp_path / 'own.safetensors'}"):
        open_lens(f"linear:{tmp_path / 'own.safetensors'}", model)


class Own:
    """A transport of a user's."""

    def __init__(self, layers, change=lambda states, layer: states, record=None):
        self.layers, self.change = layers, change
        self.said = {"kind": "own", "source": "here", "sha256": None} if record is None else record

    def __call__(self, states, layer):
        return self.change(states, layer)

    def record(self):
        return self.said


@pytest.mark.parametrize(
    "own",
    [
        Own(range(5), record={}),
        Own(range(5), record={"kind": "logit"}),
        Own(range(5), record={"kind": "own", "what": {1}}),
        Own(range(5), lambda states, layer: states[:, :3]),
        Own(range(5), lambda states, layer: states[:1]),
        Own(range(5), lambda states, layer: None),
        Own(range(5), lambda states, layer: states.double()),
        Own(range(5), lambda states, layer: states @ torch.eye(3)),
        Own(range(5), lambda states, layer: states * float("nan")),
        Own(range(5), lambda states, layer: states.to_sparse()),
        Own(range(5), lambda states, layer: states.to("meta")),
        Own(5),
        Affine("linear", {1: torch.eye(48)}, {}, 3, adds=False),
        Affine("linear", {1: torch.eye(5)}, {}, 4, adds=False),
    ],
)
def test_a_transport_of_ones_own_that_does_not_fit_is_refused(own, model):
    with refused(ll.OptionError, "lens", type(own).__name__):
        open_lens(own, model)


@pytest.mark.parametrize("lens", [Own, lambda states, layer: states, 3])
def test_what_is_no_transport_is_refused(lens, model):
    with refused(ll.OptionError, "lens", lens, advice="Transport"):
        unwrap(open_lens)(lens, model)  # without the check of types that tests add


def test_a_transport_that_makes_nan_of_some_states_is_refused_where_it_does(model, tmp_path):
    """It made finite ones of the states that it was tried on."""

    def spoils(states, layer):
        return states / (states.norm(dim=-1, keepdim=True) == 48**0.5) if layer == 3 else states

    own = Own(range(5), spoils)
    open_lens(own, model)
    with refused(ll.OptionError, "lens", "Own", problem="NaN or infinity of finite states of layer 3"):
        ll.trace(model, ["Hello"], lens=own, out=tmp_path / "run", max_new_tokens=2, chat_template=False)
    with refused(ll.OptionError, "lens", "Own", problem="layer 3"):
        ll.generate(model, "Hello", strategy=ll.Valley(window=3), lens=own, max_new_tokens=2)


def test_an_opened_lens_is_refused_for_another_model_of_the_same_shape(model, tmp_path):
    own_file(model, tmp_path / "own.safetensors")
    opened = open_lens(f"linear:{tmp_path / 'own.safetensors'}", model)
    assert open_lens(opened, model) is opened
    other = ll.load(deepcopy(model.hf), tokenizer=model.tokenizer)
    with refused(ll.OptionError, "lens", "Affine", problem="another model"):
        ll.generate(other, "Hello", strategy=ll.Valley(window=2), lens=opened, max_new_tokens=2)


def test_no_transport_touches_the_last_layer(model, tmp_path):
    """Even one that would, such as another model's."""
    options = {"max_new_tokens": 6, "chat_template": False, "progress": False, "targets": True}
    shifted = Own(range(model.n_layers + 1), lambda states, layer: states + 1.0)
    run = ll.trace(model, ["Hello"], lens=shifted, out=tmp_path / "own", **options)
    plain = ll.trace(model, ["Hello"], out=tmp_path / "plain", **options)
    for name in ("entropy", "next_rank", "next_log_prob"):
        np.testing.assert_array_equal(run.layers(name)[:, -1], plain.layers(name)[:, -1])
        assert not np.allclose(run.layers(name)[:, 0], plain.layers(name)[:, 0])
    assert (run.layers("next_rank")[:, -1] == 0).all()
    strategy = ll.Valley(window=3)
    steps = [
        ll.generate(model, "Hello", strategy=strategy, lens=lens, max_new_tokens=6).steps for lens in (shifted, None)
    ]
    assert steps[0]["last_token_id"].iloc[0] == steps[1]["last_token_id"].iloc[0]


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


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "gpt_oss", "gpt2"])
def test_a_checkpoint_tells_its_own_lens_from_one_of_other_weights(family, tmp_path):
    """Experts lie one by one in some checkpoints, and a tied head is in none."""
    own, other = (ll.load(tiny_model(family, seed=seed), tokenizer=tiny_tokenizer()) for seed in (0, 1))
    own.hf.save_pretrained(tmp_path / "model")
    for name, model in (("own", own), ("other", other)):
        own_file(model, tmp_path / f"{name}.safetensors")
    place, size = str(tmp_path / "model"), (own.d_model, own.n_layers)
    found = opened_for_checkpoint(f"linear:{tmp_path}/own.safetensors", place, *size)
    assert found.record()["kind"] == "linear"
    with refused(ll.OptionError, "lens", f"linear:{tmp_path}/other.safetensors", problem="other weights"):
        opened_for_checkpoint(f"linear:{tmp_path}/other.safetensors", place, *size)
    with refused(ll.OptionError, "lens", problem=f"layers, and {place} has"):
        opened_for_checkpoint(f"linear:{tmp_path}/own.safetensors", place, own.d_model, own.n_layers + 1)
