"""The machine that a manifest names is the model's."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.models import Model, machine, placement
from layerlens.models.backend import Connection

NAMES = {0: "the current one", 1: "the model's", 2: "the model's", 3: "a third"}


@pytest.fixture
def gpus(monkeypatch):
    """A machine with four of them."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: NAMES[torch.device(device or 0).index or 0])
    monkeypatch.setattr(machine, "_processor", lambda: "a processor")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["cuda:1"], "the model's"),
        (["cuda"], "the current one"),
        (["cuda:0"], "the current one"),
        (["cuda:3", "cuda:1", "cuda:2"], "a third, the model's"),
        (["cuda:1", "cpu", "disk"], "the model's, a processor"),
        (["cpu"], "a processor"),
        (["mps"], "mps of a processor"),
    ],
)
def test_the_devices_are_the_model_s_own(gpus, places, said):
    assert machine.hardware(places) == {"processor": said, "threads": 7}


def test_a_model_on_another_gpu_than_the_current_one(gpus, tiny_llama, monkeypatch):
    monkeypatch.setattr(Model, "device", property(lambda _: torch.device("cuda:1")))
    assert tiny_llama.hardware()["processor"] == "the model's"


def test_a_model_on_several_devices(gpus, tiny_llama, monkeypatch):
    monkeypatch.setattr(placement, "is_spread", lambda _: True)
    monkeypatch.setattr(placement, "devices", lambda _: ["cuda:1", "cuda:3", "cpu"])
    assert tiny_llama.hardware()["processor"] == "the model's, a third, a processor"


def test_a_model_on_a_server_is_not_of_this_machine(tiny_llama):
    there = replace(tiny_llama, backend=Connection("nnsight-remote", is_here=False))
    assert there.hardware() == {"processor": "remote"}


def test_a_trace_says_the_processor(tiny_llama, tmp_path):
    run = ll.trace(tiny_llama, ["a"], out=tmp_path / "run", max_new_tokens=1, progress=False)
    hardware = run.manifest["hardware"]
    assert hardware["threads"] == torch.get_num_threads()
    assert hardware["processor"]
    if platform.system() == "Linux":
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            named = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        assert hardware["processor"] in (named or {platform.processor() or platform.machine()})
