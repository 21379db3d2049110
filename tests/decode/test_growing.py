"""A cache that grows in place, against transformers' own, which joins everything anew for every token."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import layerlens as ll
from layerlens.decode.forward import Forward
from layerlens.decode.growing import GrowingLayer, growing
from tests.conftest import tiny


def states(rows, new, seed, heads=2, width=3):
    drawn = torch.randn(2, rows, heads, new, width + 1, generator=torch.Generator().manual_seed(seed))
    return drawn[0, ..., :width], drawn[1]  # values may be wider than keys


def same(ours, theirs):
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(2) == theirs.get_mask_sizes(2)


def changes():
    """What is done to a cache between two tokens."""
    rows = torch.tensor([2, 0])

    def wider(layer):
        layer.keys, layer.values = (torch.nn.functional.pad(one, (0, 0, 3, 0)) for one in (layer.keys, layer.values))

    def joined(layer):
        layer.keys, layer.values = (torch.cat([one, one + 1]) for one in (layer.keys, layer.values))

    def fewer_at_the_front(layer):
        layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]

    def first_row(layer):
        layer.keys, layer.values = layer.keys[:1], layer.values[:1]

    return {
        "nothing": (lambda layer: None, 3),
        "crop": (lambda layer: layer.crop(-2), 3),
        "rows": (lambda layer: layer.batch_select_indices(rows), 2),
        "twice": (lambda layer: layer.batch_repeat_interleave(2), 6),
        "wider": (wider, 3),
        "joined": (joined, 6),
        "front": (fewer_at_the_front, 3),
        "first row": (first_row, 1),
    }


@pytest.mark.parametrize("name", changes())
@pytest.mark.parametrize("new", [1, 2, 90])
def test_it_holds_what_transformers_own_holds(name, new):
    change, rows = changes()[name]
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step in range(4):
        more = states(3, 5 if step == 0 else new, step)
        for found, expected in zip(ours.update(*more), theirs.update(*more), strict=True):
            assert torch.equal(found, expected)
    for layer in (ours, theirs):
        change(layer)
    same(ours, theirs)
    for step in range(60):
        more = states(rows, new, 100 + step)
        ours.update(*more)
        theirs.update(*more)
    same(ours, theirs)
    for layer in (ours, theirs):
        layer.reset()
        layer.update(*states(2, 4, 7))
    same(ours, theirs)


def test_most_tokens_are_written_where_the_others_are():
    layer = GrowingLayer()
    layer.update(*states(2, 40, 0))
    places = set()
    for step in range(400):
        keys, _ = layer.update(*states(2, 1, step))
        places.add(keys.data_ptr())
        assert keys.shape[2] == 41 + step
        assert layer.rooms[0].shape[2] <= 1.125 * keys.shape[2] + 32
    assert len(places) < 10


def test_tokens_that_went_in_are_not_written_over():
    """The first pass hands its own tensors over, and its caller may keep them."""
    layer = GrowingLayer()
    keys, values = states(1, 4, 0)
    before = keys.clone()
    layer.update(keys, values)
    layer.crop(-2)
    layer.update(*states(1, 2, 1))
    assert torch.equal(keys, before)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_what_is_read_aside_does_not_change_what_is_kept(family):
    """Also where the last tokens were taken back first: their places are free, and must not be used."""
    model = tiny(family)
    ids = torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(3, 200, (2, 8), generator=torch.Generator().manual_seed(1))

    def begun():
        forward = Forward(model, ids, torch.ones_like(ids), 12, static=False, rewinds=True, n_spare=3)
        forward.prompts()
        for place in range(5):
            forward.step(tokens[:, place : place + 1])
        return forward

    with torch.no_grad():
        plain, other = begun(), begun()
        expected = [plain.step(tokens[:, place : place + 1]) for place in range(5, 8)]
        with other.aside(3):
            for place in range(4):
                other.step(tokens[:, place : place + 1] + 1)
        found = [other.step(tokens[:, place : place + 1]) for place in range(5, 8)]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_the_layers_of_a_model_grow_but_for_its_windows():
    model = tiny("gemma3_text")
    cache = growing(DynamicCache(config=model.hf.config))
    kinds = {"full_attention": GrowingLayer}
    for layer, kind in zip(cache.layers, model.hf.config.layer_types, strict=True):
        assert (type(layer) is GrowingLayer) == (kind in kinds)
    (whole,) = (growing(cache) for cache in [DynamicCache()])
    whole.update(*states(1, 2, 0), 1)
    assert [type(layer) for layer in whole.layers] == [GrowingLayer, GrowingLayer]


def test_texts_are_those_of_transformers():
    model = tiny("llama", max_position_embeddings=512)
    ours = ll.generate(model, "hello there", max_new_tokens=120)
    ids = model.tokenizer("hello there", return_tensors="pt").input_ids
    theirs = model.hf.generate(ids, max_new_tokens=120, do_sample=False, eos_token_id=None, pad_token_id=0)
    length = min(len(ours.token_ids), 120)
    assert list(ours.token_ids) == theirs[0, ids.shape[1] :].tolist()[:length]
    assert length > 60
