"""The benchmarks that `layerlens eval` runs. A new one is a module with a Benchmark, and a line here."""

from importlib import import_module
from importlib.util import find_spec

from layerlens.errors import OptionError, did_you_mean
from layerlens.evaluation.benchmarks.benchmark import Benchmark

_HOMES = {
    "gpqa": ("gpqa", "BENCHMARK"),
    "gsm8k": ("gsm8k", "BENCHMARK"),
    "math500": ("mathematics", "MATH500"),
    "omni_math": ("mathematics", "OMNI_MATH"),
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
