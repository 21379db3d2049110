"""The benchmarks that `layerlens eval` runs. A new one is a module with a Benchmark, and a line here."""

from importlib import import_module
from importlib.util import find_spec

from layerlens.errors import OptionError, did_you_mean
from layerlens.evaluation.benchmarks.benchmark import Benchmark

_HOMES = {
    "sample": ("sample", "BENCHMARK"),
    "gpqa": ("gpqa", "BENCHMARK"),
    "hle": ("judged", "HLE"),
    "livecodebench_v6": ("livecodebench", "V6"),
    "livecodebench_release_v6": ("livecodebench", "RELEASE_V6"),
    "longbench_v2": ("longbench", "DIRECT"),
    "longbench_v2_cot": ("longbench", "IN_STEPS"),
    "omni_math": ("mathematics", "OMNI_MATH"),
    "air_bench": ("judged", "AIR_BENCH"),
    "writingbench": ("judged", "WRITING"),
    "gsm8k": ("gsm8k", "BENCHMARK"),
    "math500": ("mathematics", "MATH500"),
}
NAMES = tuple(_HOMES)


def refuse_unknown(name: str) -> None:
    """OptionError where there is no benchmark of that name; without inspect, which the benchmarks themselves need."""
    if name not in _HOMES:
        advice = did_you_mean(name, NAMES, f"give one or more of {', '.join(NAMES)}")
        raise OptionError.about("tasks", name, "is unknown", advice)


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        OptionError: there is none, or the packages of the extra `eval` are missing.
    """
    refuse_unknown(name)
    if find_spec("inspect_ai") is None or find_spec("inspect_evals") is None:
        advice = "install layerlens[eval], with Python 3.11 or newer"
        raise OptionError.about("tasks", name, "needs inspect_ai and inspect_evals, which are not installed", advice)
    module, constant = _HOMES[name]
    found: Benchmark = getattr(import_module(f"{__name__}.{module}"), constant)
    return found
