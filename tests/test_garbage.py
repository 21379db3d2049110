"""Loading looks for no garbage, and leaves the collector as it found it."""

import gc
import subprocess
import sys

import pytest

import layerlens as ll
from layerlens.errors import ModelError
from layerlens.models import tiny_model, tiny_tokenizer


@pytest.fixture
def collections():
    """The generations that were collected, as they are."""
    found = []

    def note(phase, info):
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


@pytest.fixture
def off():
    gc.disable()
    yield
    gc.enable()


def test_loading_collects_nothing(collections, tiny_folder):
    folder = tiny_folder("llama")
    _ = [[] for _ in range(5000)]
    assert collections, "what the test would notice"
    gc.collect()
    collections.clear()
    ll.load(folder)
    assert len(collections) <= 2, "before it began, and when it was over"
    assert gc.isenabled()


def test_what_cannot_be_loaded_leaves_the_collector_on(tmp_path):
    with pytest.raises(ModelError):
        ll.load(tmp_path)
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(off):
    ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    assert not gc.isenabled()


def test_a_public_name_is_imported_without_collecting():
    program = """
import gc, layerlens
counts = []
gc.callbacks.append(lambda phase, info: counts.append(info["generation"]))
layerlens.load
assert len(counts) <= 4, len(counts)  # a start and a stop, before it began and when it was over
assert gc.isenabled() and gc.get_threshold()[0] < 10_000
import torch
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
