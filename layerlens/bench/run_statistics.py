"""What the statistics of a run cost. Nothing here imports torch before they are measured, because its memory would
count."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from layerlens.bench.memory import MIB, peak_of_process
from layerlens.errors import LayerlensError

STATISTICS = (
    "by_layer",
    "phases",
    "partition",
    "valleys",
    "valley_statistics",
    "by_entropy_band",
    "by_relative_position",
    "walk_depths",
    "agreement",
    "earliest_agreement",
    "dispensable",
    "kind_jumps",
    "substitutions",
    "substitution_pairs",
    "class_shares",
)
"""The methods of `Run` that are measured."""


class Measured(NamedTuple):
    """The cost of a run's statistics."""

    report: dict[str, Any]
    """For JSON: `run`, `tokens`, `layers`, `seconds` by statistic with `open` and `all`, `peak_mib`, `machine`."""
    left_out: dict[str, str]
    """Why statistics were not measured, by name. For example, given text has no decoding, and one kind of layers no
    jumps."""


def measure_analysis(path: Path) -> Measured:
    """How long it takes to open a run and to compute each of `STATISTICS`, and the most memory that this process had.

    Raises:
        RunError: there is no run at `path`.
    """
    started = time.perf_counter()
    from layerlens.run import open_run  # timed: opening a run includes the import of pandas

    run = open_run(path)
    seconds = {"open": time.perf_counter() - started}
    left_out = {}
    for name in STATISTICS:
        at = time.perf_counter()
        try:
            getattr(run, name)()
        except LayerlensError as error:
            left_out[name] = str(error)
            continue
        seconds[name] = time.perf_counter() - at
    seconds["all"] = time.perf_counter() - started
    report = {
        "run": str(path),
        "tokens": int(run.by_layer()["n_tokens"].iloc[0]),
        "layers": run.n_layers,
        "seconds": seconds,
        "peak_mib": peak_of_process() / MIB,
    }
    import torch

    from layerlens.bench.machine import machine

    return Measured(report | {"machine": machine(torch.device("cpu"))}, left_out)
