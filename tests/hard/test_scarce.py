"""Where memory, room or permission runs out, one sentence says so, and the work can be continued to the same end."""

import gc
import random
import shutil
import time
from collections import Counter

import pytest

import layerlens as ll
from layerlens.errors import is_out_of_memory
from tests.hard.crashes import DOORS, Door, generating, stopped
from tests.hard.doors import cases
from tests.hard.scarce import (
    full_disks,
    in_a_child,
    locked_folders,
    needs_mounts,
    needs_users,
    outcome,
    short_of_memory,
)
from tests.needs_inspect import WARNINGS
from tests.thorough import some

pytestmark = [pytest.mark.filterwarnings(warning) for warning in ("ignore::layerlens.errors.Notice", *WARNINGS)]
four_doors = pytest.mark.parametrize("door", some(DOORS, 4), ids=lambda one: one.name)
N = cases(1, 33)


@pytest.fixture
def done(door: Door, tmp_path):
    """The result of a door's work left alone, and the seconds that it takes."""
    if door.name in ("eval", "ablate"):
        pytest.importorskip("inspect_evals", reason="needs the extra eval")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    door.prepare(prepared)
    results = []
    for name in ("once", "whole"):  # the first is slower
        whole = shutil.copytree(prepared, tmp_path / name)
        began = time.perf_counter()
        door.work(whole)
        took = time.perf_counter() - began
        results.append(door.result(whole))
    assert results[0] == results[1]
    yield results[0], took
    gc.collect()  # what inspect leaves open


@needs_mounts
@four_doors
def test_a_disk_that_is_full(door: Door, done, tmp_path):
    expected, _ = done
    ends = in_a_child(full_disks, door, tmp_path, expected, N)
    print(f"{door.name}: {ends}")
    assert isinstance(ends, Counter), f"the process ended with {ends}"
    assert ends["refused"] > 0


@needs_users
@four_doors
def test_a_folder_that_becomes_read_only(door: Door, done, tmp_path):
    expected, seconds = done
    ends = in_a_child(locked_folders, door, tmp_path, seconds, N)
    print(f"{door.name}: {ends}")
    assert isinstance(ends, Counter), f"the process ended with {ends}"
    assert ends["refused"] > 0
    for number in range(N):
        folder = tmp_path / str(number)
        door.work(folder)
        assert door.result(folder) == expected, number


@pytest.mark.parametrize("door", some(DOORS, 2), ids=lambda one: one.name)
def test_memory_that_runs_out(door: Door, done, tmp_path):
    expected, _ = done
    ends = Counter()
    for number in range(N):
        folder = shutil.copytree(tmp_path / "prepared", tmp_path / str(number))
        more = int(10 ** random.Random(f"{door.name} {number}").uniform(4, 7.5))
        ends[in_a_child(short_of_memory, door, folder, more, within=60)] += 1
        door.work(folder)
        assert door.result(folder) == expected, f"{door.name} with {more} bytes"
        shutil.rmtree(folder)
    print(f"{door.name}: {dict(ends)}")


def test_a_second_process_is_refused_while_the_first_works(tmp_path):
    """Whoever holds the lock goes on; the other is told so, and changes nothing."""
    for number in range(cases(2, 20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        ends = _both(folder)
        assert sorted(ends) in (["ended", "ended"], ["ended", "refused"]), ends
        run = ll.open_run(folder / "run")
        assert run.is_complete
        assert len(run.prompts) == 8


def _both(folder):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as two:
        return list(two.map(lambda _: in_a_child(outcome, generating, folder), range(2)))


def test_a_dead_process_holds_no_lock(tmp_path):
    number = next(number for number in range(0, 60, 3) if stopped(DOORS[0], tmp_path, number, 1.0) == "stopped")
    assert number % 3 == 0, "killed by SIGKILL"
    generating(tmp_path)
    assert ll.open_run(tmp_path / "run").is_complete


def test_what_says_that_memory_ran_out():
    import torch

    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("a size that does not fit"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))


def test_the_command_line_says_that_memory_ran_out(cli, tiny_folder, tmp_path, monkeypatch):
    import layerlens.cli.trace as tracing

    def short(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1234567 bytes. Error 12")

    monkeypatch.setattr(tracing, "trace", short, raising=False)
    monkeypatch.setattr(ll, "trace", short)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    code, out, err = cli("trace", "--model", tiny_folder("llama"), "--prompts", prompts, "--out", tmp_path / "run")
    assert (code, out.count("\n")) == (2, 0)
    assert "1,234,567 bytes" in err
    assert "--batch-size" in err
    assert "--resume" in err


def test_a_table_that_no_memory_can_hold_is_not_called_damaged(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from layerlens.records.files import read_table, write_table

    table = pa.table({"a": [1.0]})
    write_table(tmp_path / "a.parquet", table)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: (_ for _ in ()).throw(pa.ArrowMemoryError("full")))
    with pytest.raises(MemoryError):
        read_table(tmp_path / "a.parquet", table.schema)
