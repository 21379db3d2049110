"""What maps states to the head, against matrices in float64, and what is refused of it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from layerlens.errors import OptionError
from layerlens.lens.transport import IDENTITY, Affine, Transport, Watched, at_head, refuse_lacking
from tests.refusals import refused

N_LAYERS, WIDTH = 4, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(*, adds=False, biases=(1,), layers=(2, 1)):
    weights = {layer: drawn(WIDTH, WIDTH, seed=layer) for layer in layers}
    vectors = {layer: drawn(WIDTH, seed=10 + layer) for layer in biases}
    return Affine("tuned", weights, vectors, N_LAYERS, adds=adds, source="lens.safetensors", sha256="abc")


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lens_of_matrices_is_a_product_in_float64(adds, layer, dtype):
    lens, states = made(adds=adds), drawn(5, WIDTH, seed=7).to(dtype)
    given = states.double().numpy()
    expected = given @ drawn(WIDTH, WIDTH, seed=layer).double().numpy().T
    if layer == 1:
        expected = expected + drawn(WIDTH, seed=11).double().numpy()
    if adds:
        expected = expected + given
    found = lens(states.clone(), layer)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-2)


def test_the_last_layer_is_left_as_it_is():
    lens, states = made(), drawn(5, WIDTH)
    assert lens(states, N_LAYERS) is states
    assert at_head(lens, states, N_LAYERS, N_LAYERS) is states
    assert at_head(lens, states, 1, N_LAYERS).equal(lens(states, 1))
    assert at_head(IDENTITY, states, 1, N_LAYERS) is states


def test_what_a_lens_says_of_itself():
    lens = made()
    assert list(lens.layers) == [1, 2, N_LAYERS]
    assert lens.spec == "tuned:lens.safetensors"
    assert lens.record() == {"kind": "tuned", "source": "lens.safetensors", "sha256": "abc"}
    lens.record()["kind"] = "changed"
    assert lens.record()["kind"] == "tuned"
    assert IDENTITY.record() == {"kind": "logit"}
    assert all(layer in IDENTITY.layers for layer in (0, 1, 10_000))
    assert isinstance(lens, Transport)
    tensors = lens.tensors()
    assert [vector is None for _, vector in (tensors[1], tensors[2])] == [False, True]


def test_a_lens_that_is_moved_is_in_float32_on_a_cpu():
    lens = Affine("linear", {1: drawn(WIDTH, WIDTH).half().T}, {1: drawn(WIDTH).half()}, N_LAYERS, adds=False)
    moved = lens.moved(torch.device("cpu"), torch.bfloat16)
    weight, bias = moved.tensors()[1]
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)
    assert weight.is_contiguous()
    assert lens.tensors()[1][0].dtype == torch.float16, "the lens itself stays as it was"
    elsewhere = lens.moved(torch.device("meta"), torch.bfloat16).tensors()[1]
    assert [one.dtype for one in elsewhere] == [torch.bfloat16, torch.float32]


def test_a_lens_knows_the_model_that_it_was_opened_for():
    lens, model, other = made(), nn.Linear(2, 2), nn.Linear(2, 2)
    opened = lens.opened(model, torch.device("cpu"), torch.float32)
    assert (lens.is_opened, opened.is_opened) == (False, True)
    assert opened.was_opened_for(model)
    assert not opened.was_opened_for(other)
    assert not lens.was_opened_for(model)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("of_bias", [False, True])
def test_a_lens_that_holds_no_numbers_is_refused(wrong, of_bias):
    weight, bias = drawn(WIDTH, WIDTH), drawn(WIDTH)
    (bias if of_bias else weight)[3] = wrong
    with refused(OptionError, "lens", "linear:there", problem="layer 2"):
        Affine("linear", {1: drawn(WIDTH, WIDTH), 2: weight}, {2: bias}, N_LAYERS, adds=False, source="there")


class Foreign:
    """A transport of somebody else's, which does what it is told."""

    layers = range(10)

    def __init__(self, does):
        self.does = does

    def __call__(self, states, layer):
        return self.does(states)

    def record(self):
        return {"kind": "foreign"}


def poisoned(states, row):
    changed = states.clone()
    changed[row, 2] = math.nan
    return changed


@pytest.mark.parametrize(
    "does",
    [
        lambda states: None,
        lambda states: states.tolist(),
        lambda states: states.to_sparse(),
        lambda states: states[:2],
        lambda states: states.double(),
        lambda states: states.to("meta"),
        lambda states: poisoned(states, 0),
        lambda states: states / 0,
    ],
)
def test_what_is_no_state_is_refused(does):
    with refused(OptionError, "lens", "Foreign", problem="layer 3"):
        Watched(Foreign(does))(drawn(5, WIDTH), 3)


def test_a_state_that_is_no_number_may_stay_none():
    states = poisoned(drawn(5, WIDTH), 1)
    watched = Watched(Foreign(lambda given: given * 2))
    torch.testing.assert_close(watched(states, 3), states * 2, equal_nan=True)
    assert watched.record() == {"kind": "foreign"}
    assert watched.layers == range(10)
    with refused(OptionError, "lens", "Foreign"):
        Watched(Foreign(lambda given: poisoned(given, 2)))(states, 3)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ([1, 3], "layer 3,"),
        ([0, 1, 3, 4], "layers 0, 3,"),
        ([0, 3, 5, 6, 7], "layers 0, 3, 5, 6, 7,"),
        ([0, 3, 5, 6, 7, 8], "layers 0, 3, 5, 6, 7, ...,"),
    ],
)
def test_layers_that_a_lens_lacks_are_named(asked, named):
    with refused(OptionError, "lens", "tuned:lens.safetensors", problem=f" {named} which a trace reads"):
        refuse_lacking(made(), asked, "a trace")
    refuse_lacking(made(), [1, 2, N_LAYERS], "a trace")
    refuse_lacking(IDENTITY, asked, "a trace")
