"""Work beside the passes: on imitated streams in any order that real ones allow, and that the host never looks."""

import random
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import layerlens as ll
from layerlens.decode.readouts import Readouts
from layerlens.tracing import beside
from layerlens.tracing.beside import Beside
from layerlens.tracing.meter import Meter, Wanted
from layerlens.tracing.passes import _flat_selection, replay
from tests.conftest import tiny

CPU = torch.device("cpu")


class Stream:
    """A queue of work; what stands at its head runs once what it waits for has run."""

    def __init__(self, *_):
        self.queue, self.n_asked, self.n_done = [], 0, 0

    def ask(self, name, after=None):
        self.n_asked += 1
        self.queue.append((name, after))

    def record_event(self):
        return self, self.n_asked

    def wait_event(self, event):
        self.ask("wait", event)

    def wait_stream(self, stream):
        self.wait_event(stream.record_event())

    @property
    def may_run(self):
        if not self.queue:
            return False
        after = self.queue[0][1]
        return after is None or after[0].n_done >= after[1]

    def step(self):
        self.n_done += 1
        return self.queue.pop(0)[0]


class Streams:
    """What torch.cuda is to `Beside`: the present stream, and others."""

    def __init__(self):
        self.main = self.present = Stream()
        self.Stream = lambda *_: self.made.append(Stream()) or self.made[-1]
        self.made = []

    def current_stream(self, _):
        return self.present

    @contextmanager
    def stream(self, stream):
        before, self.present = self.present, stream
        yield
        self.present = before


class Memory(list):
    """An input; when nobody holds it any more the stream that made it may write there at once."""

    def __init__(self, main, block):
        super().__init__()
        self.main, self.block = main, block

    def __del__(self):
        self.main.ask(f"reuse {self.block}")


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order_inputs_are_made_before_they_are_read_and_kept_until_then(monkeypatch, seed):
    streams = Streams()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    worker, n_blocks = Beside(CPU), 6
    for block in range(n_blocks):
        streams.main.ask(f"block {block}")
        worker.run(lambda block=block: streams.present.ask(f"read {block}"), Memory(streams.main, block))
    worker.join()
    streams.main.ask("collect")
    chance, ran = random.Random(seed), []
    both = [streams.main, *streams.made]
    while any(stream.queue for stream in both):
        ran.append(chance.choice([stream for stream in both if stream.may_run]).step())
    at = {name: ran.index(name) for name in ran}
    for block in range(n_blocks):
        assert at[f"block {block}"] < at[f"read {block}"] < at[f"reuse {block}"]
        assert at[f"read {block}"] < at["collect"]
        if block + 2 < n_blocks:
            assert at[f"read {block}"] < at[f"block {block + 2}"], "two blocks behind"
    for one, two in pairwise(range(n_blocks)):
        assert at[f"read {one}"] < at[f"read {two}"]


def test_some_order_lets_a_block_run_before_the_readout_of_the_one_before(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    worker = Beside(CPU)
    for block in range(2):
        streams.main.ask(f"block {block}")
        worker.run(lambda block=block: streams.present.ask(f"read {block}"), [])
    assert [streams.main.step() for _ in range(2)] == ["block 0", "block 1"]
    assert not streams.main.may_run, "it waits for the first readout before it goes further ahead"


@pytest.mark.parametrize("kl", [False, True])
def test_a_trace_beside_is_the_trace(kl):
    """Bit for bit; on a GPU by its own streams, on a CPU by those that stand for them in torch."""
    model, found = tiny("gemma2"), []
    texts = [[5 + place % 200 for place in range(n)] for n in (700, 40)]
    for overlaps in (False, True, True):
        one = Meter(replace(model, overlaps=overlaps), Wanted(kl=kl))
        assert (one._beside is not None) == overlaps
        replay(model, texts, [0, 3], one)
        found.append(one.collect())
    for measured in found[1:]:
        assert measured.keys() == found[0].keys()
        for name, values in measured.items():
            np.testing.assert_array_equal(values, found[0][name])
    assert beside._MOST_BEHIND == 1


class Copies(TorchDispatchMode):
    """Counts what is copied to where no values are."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        if isinstance(found, torch.Tensor) and found.is_meta and args and isinstance(args[0], torch.Tensor):
            self.n += not args[0].is_meta
        return found


def without_values(model):
    """The model with a head that has no values, so that whoever looks at what was read fails."""
    head = model.unembed
    tail = [replaced.to("meta") for replaced in (type(model.hf)(model.hf.config).model.norm,)]
    bias = None if head.bias is None else head.bias.to("meta")
    return replace(model, unembed=replace(head, tail=tail, weight=head.weight.to("meta"), bias=bias))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kl", [False, True])
def test_while_a_prompt_passes_the_host_looks_at_no_value(family, kl):
    model = without_values(tiny(family))
    watched, n_states = Meter(model, Wanted(kl=kl)), 1200
    with Copies() as copies, torch.no_grad():
        watched.select = _flat_selection(torch.arange(5, n_states), n_states)
        for index in range(model.n_layers):
            streams = torch.empty(3, 2, n_states // 2, model.d_model, device="meta")
            watched.on_block(index, *streams)
    assert copies.n == 1, "which states are wanted is told once"
    assert all(layer._measured for layer in watched._layers)


@pytest.mark.parametrize(
    "strategy", [ll.Valley(), ll.Valley(entropy_floor=1.0), ll.Valley(scan="lazy"), ll.Valley(shift=-1), ll.Fixed(1)]
)
def test_where_the_host_may_not_branch_it_looks_at_no_value(strategy):
    model = without_values(tiny("llama"))
    layers = strategy.layers(model.n_layers)
    states = {layer: torch.empty(3, model.d_model, device="meta") for layer in layers}
    readouts = Readouts(model.unembed, states, model.n_layers, torch.empty(3, device="meta"), may_branch=False)
    assert strategy.choose(readouts).logits.shape == (3, model.n_vocab)
