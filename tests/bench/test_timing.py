"""Ways are measured in turns, every second round backwards, and compared round by round."""

import sys

import pytest
import torch

from layerlens.bench.timing import in_turns, paired_ratio, timed, timed_with_memory

CPU = torch.device("cpu")


def test_every_second_round_goes_backwards_and_results_keep_the_order_of_the_ways():
    called = []
    ways = {name: lambda name=name: called.append(name) for name in "abc"}
    found = list(in_turns(ways, 3, lambda way: way() or len(called)))
    assert called == [*"abc", *"cba", *"abc"]
    assert found == [{"a": 1, "b": 2, "c": 3}, {"a": 6, "b": 5, "c": 4}, {"a": 7, "b": 8, "c": 9}]
    assert [list(one) for one in found] == [["a", "b", "c"]] * 3


def test_ratios_are_paired():
    seconds = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 30.0}, {"a": 5.0, "b": 5.0}]
    assert paired_ratio(seconds, "a", "b") == 2.0
    assert paired_ratio(seconds, "b", "a") == 0.5


def test_a_way_is_called_once():
    called = []
    seconds, n_bytes = timed(lambda: called.append(1), CPU)
    assert called == [1]
    assert seconds > 0
    assert n_bytes == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_memory_counts_what_was_freed_again():
    n_bytes = 2**28
    seconds, added = timed_with_memory(lambda: torch.ones(n_bytes // 4).sum(), CPU)
    assert seconds > 0
    assert added == pytest.approx(n_bytes, rel=0.1)
