"""What an evaluation asks: the items of a dataset, and the conditions under which each is answered. No model is
needed."""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, NamedTuple

from layerlens.datasets import Dataset, Prompt
from layerlens.datasets.source import Scoring
from layerlens.decode.options import GenerateOptions, whole
from layerlens.decode.registry import (
    is_strategy_name,
    named_strategy,
    strategy_names,
    strategy_record,
    takes_option,
)
from layerlens.decode.strategies import Last, Strategy, is_number
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.evaluation.scoring import check_references, way_of_scoring
from layerlens.records.answers import condition_name
from layerlens.records.manifest import digest

ARMS = ("last", "last-1", "last-2", "last-4", "valley", "valley-2", "valley-1", "valley+1", "valley+2")
"""The arms of Figure 3 of arXiv 2606.21906."""
P = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The probabilities of Figure 3."""


class Condition(NamedTuple):
    """An arm at a p."""

    name: str
    """The name under which its answers are stored."""
    p: float
    strategy: Strategy

    def repeats(self, repeats: int, options: GenerateOptions) -> int:
        """How often each item is answered: once where nothing is drawn."""
        return repeats if options.samples or 0 < self.p < 1 else 1


@dataclass(frozen=True)
class Plan:
    """What is asked: every item of a dataset under every condition."""

    dataset: Dataset
    scoring: Scoring
    """How the answers are scored; a key of `scoring.WAYS`."""
    strategies: dict[str, Strategy]
    """The strategies by arm; "last" is the first."""
    p: list[float]
    """The probabilities in order; 0 is one of them."""
    repeats: int
    """How often an item is answered where something is drawn."""
    options: GenerateOptions

    @property
    def batches(self) -> list[tuple[Prompt, ...]]:
        """The items that go through the model together."""
        prompts, size = self.dataset.prompts, self.options.batch_size
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]

    @property
    def conditions(self) -> list[Condition]:
        """The conditions: the last layer, and every other arm at every p above 0."""
        acting = {arm: strategy for arm, strategy in self.strategies.items() if arm != "last"}
        return [Condition(condition_name("last", 0.0), 0.0, self.strategies["last"])] + [
            Condition(condition_name(arm, p), p, replace(strategy, p=p))  # type: ignore[type-var]
            for arm, strategy in acting.items()
            for p in self.p
            if p
        ]

    @property
    def n_answers(self) -> int:
        """How many answers there will be."""
        return len(self.dataset) * sum(condition.repeats(self.repeats, self.options) for condition in self.conditions)

    def record(self, n_layers: int) -> dict[str, Any]:
        """What a manifest says of the plan, for answers by a model of that many layers."""
        return {
            "scoring": self.scoring,
            "arms": list(self.strategies),
            "p": self.p,
            "repeats": self.repeats,
            "strategies": [strategy_record(one, n_layers) for one in self.strategies.values()],
            "batches": [[prompt.prompt_id for prompt in batch] for batch in self.batches],
        }


def planned(
    dataset: Dataset,
    *,
    arms: Sequence[str] = ARMS,
    p: Sequence[float] = P,
    window: int | None = None,
    repeats: int = 1,
    options: GenerateOptions | None = None,
) -> Plan:
    """The plan to answer the same items with several arms at several p.

    The last layer is always an arm. At p = 0 every arm is the last layer, which is answered once.

    Args:
        dataset: one whose card declares a way of scoring; every prompt has a reference.
        arms: names of strategies that have a p: last-N, valley, valley-N, valley+N, their aliases, registered ones.
        p: probabilities of an arm's layer, drawn for each token.
        window: number of candidate layers of the arms that take a window; None: their own.
        repeats: how often to answer, with other seeds, where something is drawn: p between 0 and 1, or sampling.
        options: of every generation.

    Raises:
        OptionError: an arm, a probability or `repeats` is not possible, or answers to the dataset cannot be scored.
        PromptError: a prompt has no reference that can be scored.
    """
    strategies, grid = arm_strategies(arms, window), probabilities(p)
    whole("repeats", repeats, 1)
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise OptionError(
            f"a {kind} is not a dataset that says how its answers are scored",
            'give one, such as ll.dataset("gsm8k")',
            option="dataset",
            given=dataset,
        )
    way = way_of_scoring(dataset.name)
    check_references(dataset, way)
    return Plan(dataset, way, strategies, grid, repeats, options or GenerateOptions())


def arm_strategies(arms: Sequence[str], window: int | None = None) -> dict[str, Strategy]:
    """The strategies of arms by the names that figures use (trough-m1 is valley-1); "last" is the first.

    Raises:
        OptionError: an arm is unknown, has no p, or is given twice; or no arm takes the window.
    """
    if isinstance(arms, str):
        listed = [arm.strip() for arm in arms.split(",")]
        raise OptionError.about("arms", arms, "is a text and not a list", f"write it as a list: arms={listed}")
    if not arms:
        advice = f"give some, such as {spelled('arms', list(ARMS[:5]))}"
        raise OptionError.about("arms", arms, "names no strategy", advice)
    strategies: dict[str, Strategy] = {}
    for arm in arms:
        strategy = _strategy_of(arm, window)
        name = strategy.label or arm
        if name in strategies:
            what = "is given already" if arm == name else f"is {name}, which is given already"
            raise OptionError.about("arms", arm, what, "leave one of them out")
        strategies[name] = strategy
    if window is not None and not any(takes_option(arm, "window") for arm in arms):
        raise OptionError.about("window", window, f"has no effect on the arms {', '.join(strategies)}", "leave it out")
    strategies.pop("last", None)
    return {"last": Last(), **strategies}


def probabilities(p: Sequence[float]) -> list[float]:
    """The probabilities in order, with 0 added; OptionError where one is not a probability."""
    if isinstance(p, str) or not isinstance(p, Sequence) or not p:
        raise OptionError.about("p", p, "is not a list of probabilities", "give numbers from 0 to 1")
    for value in p:
        if not is_number(value) or not 0 <= value <= 1:
            raise OptionError.about("p", value, "is not a probability", "give numbers from 0 to 1")
    return sorted({0.0, *map(float, p)})


def repeat_seed(seed: int, repeat: int) -> int:
    """The seed itself for the first repeat, and another for each other repeat."""
    return int(digest(f"{seed}/repeat {repeat}")[:8], 16) if repeat else seed


def _strategy_of(arm: str, window: int | None) -> Strategy:
    """The strategy of an arm, with the window if it takes one."""
    advice = f"give arms such as {','.join(ARMS)}"
    if not is_strategy_name(arm):
        known = [*strategy_names(), *ARMS]
        raise OptionError.about("arms", arm, "is unknown", did_you_mean(arm, known, advice))
    given = {"window": window} if window is not None and takes_option(arm, "window") else {}
    strategy = named_strategy(arm, **given)
    if strategy.label != "last" and not (hasattr(strategy, "p") and is_dataclass(strategy)):
        raise OptionError.about("arms", arm, "has no probability p", advice)
    return strategy
