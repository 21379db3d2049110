"""An ablation: an evaluation whose arms are strategies at several p, as in Figure 3 of arXiv 2606.21906."""

import os
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import pandas as pd

from layerlens.analysis.ablation import ablation_table
from layerlens.decode.registry import is_strategy_name, named_strategy, strategy_names
from layerlens.decode.strategies import is_number
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.evaluation.evaluate import evaluate
from layerlens.models import Model
from layerlens.records.evaluation import arm_name

ARMS = ("last", "last-1", "last-2", "last-4", "valley", "valley-2", "valley-1", "valley+1", "valley+2")
"""The arms of Figure 3."""
P = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The probabilities of Figure 3."""


def ablate(
    model: Model,
    tasks: Sequence[str],
    *,
    out: str | os.PathLike[str],
    arms: Sequence[str] = ARMS,
    p: Sequence[float] = P,
    **options: Any,
) -> pd.DataFrame:
    """Answer the items of benchmarks with every arm at every p, and return `ablation_table(out)`.

    This is `evaluate` with an arm for each strategy and p. The last layer is always an arm. At p = 0 every arm is the
    last layer, which is answered once. All arms draw from the same seeds, so that they differ only by their layers.

    Args:
        model: from `load`.
        tasks: names of benchmarks.
        out: the directory to write; what is there of the same evaluation is kept.
        arms: names of strategies that have a p: last-N, valley, valley-N, valley+N, their aliases, registered ones.
        p: probabilities that a token comes from an arm's layer.
        **options: of `evaluate`.

    Raises:
        OptionError, PromptError: before anything is answered.
        RunError: `out` holds something else, or another evaluation.
    """
    evaluate(model, tasks, conditions(arms, p), out=out, **options)
    return ablation_table(out)


def conditions(arms: Sequence[str] = ARMS, p: Sequence[float] = P) -> dict[str, dict[str, Any]]:
    """The options of every arm at every p above 0, by the names of the arms that `evaluate` gets; "last" is the first.

    Raises:
        OptionError: an arm is unknown, has no p, or is given twice; or one of `p` is no probability.
    """
    grid = probabilities(p)
    asked: dict[str, dict[str, Any]] = {"last": {"strategy": "last"}}
    for name, own in _by_label(arms).items():
        for value in grid if name != "last" else ():
            if value:  # without p where that says nothing, so that the arm is that of an evaluation
                asked[arm_name(name, value)] = {"strategy": name, **({} if value == own == 1 else {"p": value})}
    return asked


def probabilities(p: Sequence[float]) -> list[float]:
    """The probabilities in order, with 0 added; OptionError where one is not a probability."""
    if isinstance(p, str) or not isinstance(p, Sequence) or not p:
        raise OptionError.about("p", p, "is not a list of probabilities", "give numbers from 0 to 1")
    for value in p:
        if not is_number(value) or not 0 <= value <= 1:
            raise OptionError.about("p", value, "is not a probability", "give numbers from 0 to 1")
    return sorted({0.0, *map(float, p)})


def _by_label(arms: Sequence[str]) -> dict[str, float]:
    """The p that each strategy has of itself, by the names that figures give them: trough-m1 is valley-1."""
    if isinstance(arms, str):
        listed = [arm.strip() for arm in arms.split(",")]
        raise OptionError.about("arms", arms, "is a text and not a list", f"write it as a list: arms={listed}")
    if not arms:
        advice = f"give some, such as {spelled('arms', list(ARMS[:5]))}"
        raise OptionError.about("arms", arms, "names no strategy", advice)
    found: dict[str, float] = {}
    for arm in arms:
        name, own = _label(arm)
        if name in found:
            what = "is given already" if arm == name else f"is {name}, which is given already"
            raise OptionError.about("arms", arm, what, "leave one of them out")
        found[name] = own
    return found


def _label(arm: str) -> tuple[str, float]:
    """The name that figures give an arm, and the p that it has of itself; OptionError where it is no strategy with a
    p."""
    advice = f"give arms such as {','.join(ARMS)}"
    if not is_strategy_name(arm):
        known = [*strategy_names(), *ARMS]
        raise OptionError.about("arms", arm, "is unknown", did_you_mean(arm, known, advice))
    strategy = named_strategy(arm)
    if strategy.label != "last" and not (hasattr(strategy, "p") and is_dataclass(strategy)):
        raise OptionError.about("arms", arm, "has no probability p", advice)
    return strategy.label or arm, float(getattr(strategy, "p", 1))
