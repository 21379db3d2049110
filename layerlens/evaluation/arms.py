"""The arms of an evaluation: strategies by the names that tables give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerlens.decode.registry import named_strategy, refuse_unknown, takes_option
from layerlens.errors import OptionError


@dataclass(frozen=True)
class Arm:
    """A strategy under the name that tables give it."""

    name: str
    options: Mapping[str, Any]
    """"strategy" with its options, as a request gives them."""


def arms_of(strategies: Sequence[str] | Mapping[str, Mapping[str, Any]], **options: Any) -> list[Arm]:
    """The arms of strategies, "last" first.

    Args:
        strategies: names or aliases; or options of a strategy, "strategy" among them, by the name of the arm.
        **options: for each strategy that takes them, such as a window.

    Raises:
        OptionError: a strategy is unknown, an arm is given twice, or an option fits none of them.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(strategies, str):
        listed = [name.strip() for name in strategies.split(",")]
        advice = f"write it as a list: strategies={listed}"
        raise OptionError.about("strategies", strategies, "is a text and not a list", advice)
    if not isinstance(strategies, Mapping):
        strategies = _once(strategies)
    arms = {}
    for name, asked in strategies.items():
        wanted = dict(asked)
        if "strategy" not in wanted:
            advice = f'name it, such as {{"{name}": {{"strategy": "valley"}}}}'
            raise OptionError.about("strategies", {name: wanted}, "names no strategy", advice)
        strategy = wanted.pop("strategy")
        taken = {option: value for option, value in given.items() if takes_option(strategy, option)}
        named_strategy(strategy, **{**taken, **wanted})
        arms[name] = Arm(name, {"strategy": strategy, **taken, **wanted})
    for option, value in given.items():
        if not any(option in arm.options for arm in arms.values()):
            raise OptionError.about(option, value, f"has no effect on {', '.join(arms)}", "leave it out")
    return [arms.pop("last", Arm("last", {"strategy": "last"})), *arms.values()]


def _once(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Strategies by the names that tables give them."""
    if not names:
        raise OptionError.about("strategies", names, "names no strategy", "give some, such as last,valley")
    found: dict[str, dict[str, str]] = {}
    for name in names:
        refuse_unknown(name, option="strategies")
        called = named_strategy(name).label or name
        if called in found:
            what = "is given already" if name == called else f"is {called}, which is given already"
            raise OptionError.about("strategies", name, what, "leave one of them out")
        found[called] = {"strategy": called}
    return found
