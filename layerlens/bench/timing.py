"""Ways to do the same work, timed in turns, so that whatever slows the machine down affects all of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

from layerlens.bench import memory

Way = Callable[[], object]
Measured = TypeVar("Measured")


class Timing(NamedTuple):
    """The cost of one call."""

    seconds: float
    n_bytes: float
    """Bytes of memory; the function that measured them says which."""


def in_turns(ways: Mapping[str, Way], rounds: int, measure: Callable[[Way], Measured]) -> Iterator[dict[str, Measured]]:
    """The measurements of each way, round by round; every second round goes in the opposite order."""
    names = list(ways)
    for number in range(rounds):
        measured = {name: measure(ways[name]) for name in (names if number % 2 == 0 else reversed(names))}
        yield {name: measured[name] for name in names}


def seconds_of(way: Way, device: torch.device) -> float:
    """Seconds until the way is done, and the work that it gave a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def timed(way: Way, device: torch.device) -> Timing:
    """Seconds, and on CUDA the most bytes that were allocated meanwhile; 0 on other devices."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        memory.forget_peak(device)
    seconds = seconds_of(way, device)
    return Timing(seconds, memory.peak(device) if on_cuda else 0)


def timed_with_memory(way: Way, device: torch.device) -> Timing:
    """Seconds, and bytes at the peak above what was held before; NaN where they are unknown."""
    before = memory.forget_peak(device)
    seconds = seconds_of(way, device)
    return Timing(seconds, memory.peak(device) - before)


def paired_ratio(seconds: Sequence[Mapping[str, float]], name: str, other: str) -> float:
    """The speed of one way relative to another: the median of the ratios of each round. 1 is equal, less is slower."""
    return statistics.median(run[other] / run[name] for run in seconds)
