"""A head whose words lie in shards serves lenses and strategies as the whole one does."""

from dataclasses import dataclass, replace

import pytest
import torch

import layerlens as ll
from layerlens import lens
from layerlens.decode.contrast import SLED, DoLa
from layerlens.decode.readouts import Readouts
from layerlens.lens.head import Head
from layerlens.models import Unembed
from tests.conftest import tiny


@dataclass
class Shards:
    """Each part of the words has a head of its own, as on the ranks of a server; here in one process."""

    parts: list[Unembed]
    whole = None

    @property
    def n_vocab(self):
        return sum(part.n_vocab for part in self.parts)

    @property
    def device(self):
        return self.parts[0].device

    @property
    def bans_words(self):
        return self.parts[0].bans_words

    def normed(self, states, *, norm=True):
        return self.parts[0].normed(states, norm=norm)

    def logits_tile(self, normed, start, stop):
        found, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.n_vocab)
            if low < high:
                found.append(part.logits_tile(normed, low, high))
            first += part.n_vocab
        return torch.cat(found, dim=1)

    def logits(self, states, *, norm=True):
        return torch.cat([part.logits(states, norm=norm) for part in self.parts], dim=1)


def sharded(unembed, sizes):
    weights = unembed.weight.split(sizes)
    biases = [None] * len(sizes) if unembed.bias is None else unembed.bias.split(sizes)
    return Shards([replace(unembed, weight=w, bias=b) for w, b in zip(weights, biases, strict=True)])


def case(family):
    model = tiny(family)
    n_vocab = model.unembed.n_vocab
    generator = torch.Generator().manual_seed(3)
    shapes = (6, model.d_model)
    states = {layer: torch.randn(shapes, generator=generator) for layer in range(model.n_layers + 1)}
    return model, sharded(model.unembed, [100, 1, n_vocab - 101]), states


def test_both_are_heads():
    model, shards, _ = case("llama")
    assert isinstance(model.unembed, Head)
    assert isinstance(shards, Head)
    assert model.unembed.whole is model.unembed


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "gptj", "granite"])
def test_readings_are_those_of_the_whole_head(family):
    model, shards, states = case(family)
    chosen = torch.arange(6).unsqueeze(1) * 50
    for tile in (None, (4, 64)):
        whole = lens.read(states[2], model.unembed, chosen, tile=tile)
        found = lens.read(states[2], shards, chosen, tile=tile)
        assert (found.top_token_id == whole.top_token_id).all()
        for ours, theirs in zip(found[:4], whole[:4], strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gptj", "granite"])
def test_divergences_are_those_of_the_whole_head(family):
    model, shards, states = case(family)
    layers = [states[layer] for layer in range(1, model.n_layers + 1)]
    whole, found = (
        lens.kl_from_last(layers, [lens.read(layer, head) for layer in layers], head)
        for head in (model.unembed, shards)
    )
    assert whole[:-1].min() > 0.01
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    whole, found = (lens.read_with_js(layers, head)[1] for head in (model.unembed, shards))
    assert whole[:-1].min() > 0.001
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [ll.Valley(window=3), ll.Valley(window=3, scan="lazy"), ll.Valley(window=3, shift=-1), ll.Fixed(1), DoLa(), SLED()],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_strategies_choose_what_they_choose_of_the_whole_head(family, strategy):
    model, shards, states = case(family)
    layers = strategy.layers(model.n_layers, model.tied)
    asked = {layer: states[layer] for layer in layers}
    whole, found = (
        strategy.choose(Readouts(head, asked, model.n_layers, torch.zeros(6), tied=model.tied))
        for head in (model.unembed, shards)
    )
    assert whole.selected_layer.tolist() == found.selected_layer.tolist()
    torch.testing.assert_close(found.logits, whole.logits, rtol=1e-4, atol=1e-4)
    if whole.valley_layer is not None:
        assert whole.valley_layer.unique().numel() > 1, "otherwise rows would not differ"
