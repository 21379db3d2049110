"""What an evaluation asks, checked as far as that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from layerlens.datasets.prompt import check_limit
from layerlens.decode.options import GenerateOptions, whole
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.evaluation.arms import Arm, arms_of
from layerlens.evaluation.benchmarks import benchmark
from layerlens.evaluation.benchmarks.benchmark import Benchmark, Rows, read
from layerlens.evaluation.sandbox import refuse_unsafe


@dataclass(frozen=True)
class Generating:
    """How answers are generated; None where a benchmark's own setting holds."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    stop_strings: str | Sequence[str] | None = None

    def config(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Options of inspect: a benchmark's settings, with what was given in their place.

        Raises:
            OptionError: one of them is out of range, or has no effect.
        """
        given = {
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        given = {name: value for name, value in given.items() if value is not None}
        own = dict(settings)
        if given.get("temperature") == 0:
            own = {name: value for name, value in own.items() if name not in ("top_p", "top_k")}
        config = {**own, **given}
        options = GenerateOptions(
            max_new_tokens=config["max_tokens"],
            temperature=config.get("temperature", 0.0),
            top_p=config.get("top_p"),
            top_k=config.get("top_k"),
            stop_strings=self.stop_strings,
            seed=self.seed,
        )
        stops = {"stop_seqs": options.stops} if options.stops else {}
        return {**config, **stops, "seed": self.seed}


@dataclass(frozen=True)
class Task:
    """A benchmark with the rows that are asked."""

    benchmark: Benchmark
    rows: Rows
    origin: str
    """Where the rows come from."""


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks: items of benchmarks, each under every arm."""

    tasks: Sequence[Task]
    arms: Sequence[Arm]
    epochs: int
    generating: Generating
    judge: str | None
    judge_url: str | None


def asked_of(
    tasks: Sequence[str],
    strategies: Sequence[str] | Mapping[str, Mapping[str, Any]],
    generating: Generating,
    *,
    limit: int | Mapping[str, int] | None = None,
    epochs: int = 1,
    data_files: Mapping[str, str | PathLike[str]] | None = None,
    window: int | None = None,
    judge: str | None = None,
    judge_url: str | None = None,
    allow_code_execution: bool = False,
) -> Asked:
    """What is asked; the arguments are those of `ll.evaluate`.

    Raises:
        OptionError: an option is out of range, or a benchmark lacks its judge or the permission to run code.
        PromptError: the rows of a benchmark cannot be read.
    """
    arms = arms_of(strategies, window=window)
    whole("epochs", epochs, 1, 10_000)
    benchmarks = [benchmark(name) for name in _names(tasks)]
    limits = limit if isinstance(limit, Mapping) else {name: limit for name in tasks if limit is not None}
    files = data_files or {}
    for option, by_task in (("limit", limits), ("data_files", files)):
        for name in by_task:
            if name not in tasks:
                what = f"is for {name}, which is not among the tasks"
                raise OptionError.about(option, by_task[name], what, did_you_mean(name, tasks, "leave it out"))
    for one in benchmarks:
        check_limit(limits.get(one.name))
        generating.config(one.settings)
    _refuse_unready(benchmarks, judge, allow_code_execution=allow_code_execution)
    read_ones = [Task(one, *read(one, files.get(one.name), limits.get(one.name))) for one in benchmarks]
    return Asked(read_ones, arms, epochs, generating, judge, judge_url)


def _names(tasks: Sequence[str]) -> Sequence[str]:
    """The names of the benchmarks; OptionError where they are no list, or one is given twice."""
    if isinstance(tasks, str):
        listed = [name.strip() for name in tasks.split(",")]
        raise OptionError.about("tasks", tasks, "is a text and not a list", f"write it as a list: tasks={listed}")
    for name in tasks:
        if list(tasks).count(name) > 1:
            raise OptionError.about("tasks", name, "is given twice", "give it once")
    return tasks


def _refuse_unready(benchmarks: Sequence[Benchmark], judge: str | None, *, allow_code_execution: bool) -> None:
    """OptionError where a benchmark lacks its judge, or code must not or cannot be run."""
    judged = [one.name for one in benchmarks if one.judged]
    coding = [one.name for one in benchmarks if one.runs_code]
    if judged and judge is None:
        problem = f"the answers to {' and '.join(judged)} are scored by a judge"
        advice = f"give a model of inspect as {spelled('judge')}, such as openai/gpt-5"
        raise OptionError(problem, advice, option="judge", given=None)
    if coding and not allow_code_execution:
        problem = f"scoring {' and '.join(coding)} runs code that the model writes"
        advice = f"allow it with {spelled('allow_code_execution', True)}"
        raise OptionError(problem, advice, option="allow_code_execution", given=False)
    if coding:
        refuse_unsafe()
