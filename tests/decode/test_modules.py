"""What a run was begun with, where the model was changed by hand: else a resumed run would be of two models."""

import functools

import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.decode.modules import model_record
from layerlens.errors import RunError
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.records import RunWriter
from tests.refusals import refused

TEXTS = ["abc", "def", "ghi"]


def fresh():
    return ll.load(tiny_model("llama", tie_word_embeddings=False), tokenizer=tiny_tokenizer())


def steer(by: float):
    """A hook that adds to what a block hands on."""

    def hook(module, inputs, output):
        return output + by

    return hook


def add(by, module, inputs, output):
    return output + by


def shifted(vector: torch.Tensor):
    def hook(module, inputs):
        return (inputs[0] + vector, *inputs[1:])

    return hook


class Steering:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, module, inputs, output):
        return output + self.by

    def method(self, module, inputs, output):
        return output + self.by


def with_hook(hook, path="model.layers.1", *, pre=False):
    def change(model):
        module = model.hf.get_submodule(path)
        (module.register_forward_pre_hook if pre else module.register_forward_hook)(hook)

    return change


def another_activation(model):
    model.hf.model.layers[0].mlp.act_fn = nn.ReLU().eval()


def another_scaling(model):
    model.hf.model.layers[2].self_attn.scaling *= 0.5


def another_forward(model):
    mlp = model.hf.model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) * 0.5


class Gate(nn.Module):
    """What an adapter does: a module of another package that can be turned off."""

    def __init__(self, inner: nn.Module, *, is_on: bool) -> None:
        super().__init__()
        self.inner, self.is_on = inner, is_on

    def forward(self, x):
        return self.inner(x) * (2 if self.is_on else 1)


def gated(is_on):
    def change(model):
        model.hf.model.layers[0].mlp.down_proj = Gate(model.hf.model.layers[0].mlp.down_proj, is_on=is_on)

    return change


CHANGES = {
    "a closure": with_hook(steer(0.1)),
    "another number in it": with_hook(steer(0.2)),
    "another block": with_hook(steer(0.1), "model.layers.2"),
    "inside a block": with_hook(steer(0.1), "model.layers.1.self_attn.o_proj"),
    "a vector": with_hook(shifted(torch.ones(48)), pre=True),
    "another vector": with_hook(shifted(torch.zeros(48)), pre=True),
    "a partial": with_hook(functools.partial(add, 0.1)),
    "another partial": with_hook(functools.partial(add, 0.2)),
    "an object": with_hook(Steering(0.1)),
    "a method": with_hook(Steering(0.1).method),
    "activation": another_activation,
    "scaling": another_scaling,
    "forward": another_forward,
    "gate on": gated(True),
    "gate off": gated(False),
}


def told(change) -> tuple:
    model = fresh()
    change(model)
    record = model_record(model)
    return record["modules"], *record["hooks"]


def test_every_change_is_another_record_and_the_same_change_the_same_one():
    records = {name: told(change) for name, change in CHANGES.items()} | {"none": told(lambda model: None)}
    assert len(set(records.values())) == len(records)
    again = {name: told(change) for name, change in CHANGES.items()}
    assert {name: records[name] for name in again} == again
    assert told(with_hook(steer(0.1))) == told(with_hook(steer(0.1))), "another function of the same code"


def test_what_layerlens_and_using_the_model_leave_behind_is_no_change(tmp_path):
    model = fresh()
    before = model_record(model)
    assert before["hooks"] == []
    ll.trace(model, TEXTS, out=tmp_path / "run", max_new_tokens=2, strategy=ll.Valley(), progress=False)
    with ll.decoding(model, ll.Valley()):
        ids = torch.tensor([[5, 6, 7]])
        model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, output_hidden_states=True)
        assert model_record(model) == before
    assert model_record(model) == before


@pytest.fixture
def interrupted(tmp_path):
    """A run of which one batch of three is written."""

    def begin(model):
        own, writes = RunWriter.write, iter(range(100))

        def write(*given):
            if next(writes) == 1:
                raise KeyboardInterrupt
            own(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunWriter, "write", write)
            with pytest.raises(KeyboardInterrupt):
                trace(model)

    def trace(model, **options):
        return ll.trace(
            model, TEXTS, out=tmp_path / "run", max_new_tokens=2, batch_size=1, window=3, progress=False, **options
        )

    return begin, functools.partial(trace, resume=True)


@pytest.mark.parametrize("name", ["a closure", "another number in it", "activation", "none"])
def test_a_run_is_resumed_with_what_it_was_begun_with_alone(interrupted, name):
    """Begun with one hook: the same goes on, anything else is refused, and nothing is lost."""
    begin, resume = interrupted
    model, other = fresh(), fresh()
    CHANGES["a closure"](model)
    begin(model)
    if name != "none":
        CHANGES[name](other)
    if name != "a closure":
        with refused(RunError, problem="on model.layers.1"):
            resume(other)
        resume(model)
    else:
        assert resume(other).prompts["prompt_id"].tolist() == ["0", "1", "2"]


def test_another_activation_is_said(interrupted):
    begin, resume = interrupted
    model = fresh()
    begin(model)
    another_activation(model)
    with refused(RunError, problem="other modules"):
        resume(model)
