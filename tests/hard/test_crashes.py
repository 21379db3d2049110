"""Work that was stopped at any moment is continued, and ends as if nothing had happened."""

import random
import shutil
import time
from collections import Counter

import pytest

from layerlens.errors import RunError
from tests.hard.crashes import DOORS, Door, generating, of_run, stopped
from tests.hard.doors import cases
from tests.needs_inspect import needs_inspect

pytestmark = pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
_INSPECT = ("eval", "ablate")


@pytest.mark.parametrize("door", [one for one in DOORS if one.name not in _INSPECT], ids=lambda one: one.name)
def test_stopped_at_any_moment_and_continued(door: Door, tmp_path):
    survives(door, tmp_path)


@needs_inspect
@pytest.mark.parametrize("door", [one for one in DOORS if one.name in _INSPECT], ids=lambda one: one.name)
def test_an_evaluation_stopped_at_any_moment_and_continued(door: Door, tmp_path):
    survives(door, tmp_path)


def survives(door: Door, tmp_path):
    """Stop the work of a door many times, each time from its beginning; continued, it gives what it gives alone."""
    whole = tmp_path / "whole"
    whole.mkdir()
    door.prepare(whole)
    prepared = shutil.copytree(whole, tmp_path / "prepared")
    door.work(whole)
    expected = door.result(whole)
    again = shutil.copytree(prepared, tmp_path / "again")
    began = time.perf_counter()
    door.work(again)
    took = time.perf_counter() - began
    assert door.result(again) == expected, "the work itself does not repeat"
    ends = Counter()
    for number in range(cases(2, 100)):
        folder = shutil.copytree(prepared, tmp_path / str(number))
        ends[stopped(door, folder, number, took)] += 1
        door.work(folder)
        assert door.result(folder) == expected, f"{door.name} {number}"
        assert not list(folder.rglob("*.partial*")), f"{door.name} {number}"
        shutil.rmtree(folder)
    print(f"{door.name}: {dict(ends)}")
    assert ends["stopped"] > 0


def cut(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: chance.randrange(len(content))])


def emptied(content: bytearray, chance: random.Random) -> bytes:
    return b""


def noisy(content: bytearray, chance: random.Random) -> bytes:
    """A stretch of noise somewhere in the file."""
    length = chance.randrange(1, max(2, len(content) // 4))
    start = chance.randrange(len(content))
    content[start : start + length] = chance.randbytes(min(length, len(content) - start))
    return bytes(content)


def flipped(content: bytearray, chance: random.Random) -> bytes:
    """One bit."""
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def test_a_damaged_file_is_named_and_made_again_and_never_read_half(tiny_llama, tmp_path):
    """Any file of a run, damaged at random: what is read is what was written, or an error names the file."""
    generating(tmp_path)
    run = tmp_path / "run"
    expected = of_run(tmp_path)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    told = Counter()
    for number in range(cases(20, 1000)):
        chance = random.Random(number)
        path = chance.choice(files)
        whole = path.read_bytes()
        kinds = (cut, emptied) if path.name == "manifest.json" else (cut, emptied, noisy, flipped)
        damaged = chance.choice(kinds)(bytearray(whole), chance)  # text in which a digit changed is a manifest still
        path.write_bytes(damaged)
        found = said = None
        try:
            found = of_run(tmp_path)
        except RunError as error:
            said = str(error)
        told["read" if said is None else "named"] += 1
        if said is None:
            same = found[0] == expected[0]
            assert same, f"{number}: {path.name} was read with other values"
        else:
            assert path.name in said, f"{number}: {said}"
            if path.name != "manifest.json":
                generating(tmp_path)
                shutil.rmtree(run / "damaged", ignore_errors=True)
                assert of_run(tmp_path) == expected, number
        path.write_bytes(whole)
    print(dict(told))
    assert told["named"] > told["read"] // 10
