"""Strategies by name, as the command line and other people's code know them."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from layerlens.decode.contrast import SLED, DoLa
from layerlens.decode.identity import attributes_of, recorded
from layerlens.decode.strategies import Fixed, Last, Strategy, Valley
from layerlens.errors import OptionError, spelled

_STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "last": Last,
    "fixed": Fixed,
    "valley": Valley,
    "dola": DoLa,
    "sled": SLED,
}
_ALIASES = "last-N, valley-N, valley+N, and the release's trough, trough-mN, trough-pN, last-mN"


def register_strategy(name: str, strategy: Callable[..., Strategy]) -> None:
    """Make a strategy known by a name, on the command line too.

    Args:
        name: lower-case letters, digits and hyphens.
        strategy: a frozen dataclass that derives from `Strategy`; its fields are its options.

    Raises:
        OptionError: the name is taken or malformed, or the class is none of strategies, or an abstract one.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        problem = f"the name {name!r} of a strategy is malformed"
        raise OptionError(problem, "give lower-case letters, digits and hyphens", option="name", given=name)
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        problem = f"{strategy!r} is no class of strategies"
        raise OptionError(problem, "derive one from layerlens.Strategy", option="strategy", given=strategy)
    if lacking := ", ".join(sorted(getattr(strategy, "__abstractmethods__", ()))):
        problem = f"{strategy.__name__} lacks the methods {lacking}"
        raise OptionError(problem, "write them before you register it", option="strategy", given=strategy)
    if is_strategy_name(name):
        raise OptionError(f"there is a strategy {name!r} already", "give another name", option="name", given=name)
    _STRATEGIES[name] = strategy


def strategy_names() -> list[str]:
    """Every registered name."""
    return list(_STRATEGIES)


def is_strategy_name(name: object) -> bool:
    """Whether it is a registered name or an alias."""
    return isinstance(name, str) and (name in _STRATEGIES or _alias(name) is not None)


def named_strategy(name: str, **options: Any) -> Strategy:
    """The strategy of that name or alias with these options; what its class raises comes through as it is.

    Raises:
        OptionError: the name is unknown, or an option has no effect on it or is out of range.
    """
    make, fixed = _found(name)
    for option, value in options.items():
        if not takes_option(name, option):
            what = f"has no effect on {spelled('strategy', name)}"
            raise OptionError.about(option, value, what, "leave it out")
    given = fixed | options
    missing = [
        one.name
        for one in _parameters(make)
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name not in given
    ]
    if missing:
        advice = "give it in Python (fixed layers have names: last-1, last-2, ...)"
        raise OptionError.about("strategy", name, f"needs {' and '.join(missing)}", advice)
    return make(**given)


def takes_option(name: str, option: str) -> bool:
    """Whether the strategy of that name or alias has an option that can be given.

    Raises:
        OptionError: the name is unknown.
    """
    make, fixed = _found(name)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [one for one in _parameters(make) if one.kind in by_name or one.kind is one.VAR_KEYWORD]
    return option not in fixed and any(one.name == option or one.kind is one.VAR_KEYWORD for one in taken)


def strategy_record(strategy: Strategy, n_layers: int | None = None) -> dict[str, Any]:
    """The strategy's name and every option, for a manifest.

    Args:
        strategy: any.
        n_layers: L of the model, so that a window that was left to it is said.
    """
    kind = type(strategy)
    names = [name for name, make in _STRATEGIES.items() if make is kind]
    own_name = f"{kind.__module__}.{kind.__name__}" if kind.__name__ in _STRATEGIES else kind.__name__
    options = {name: recorded(value) for name, value in attributes_of(strategy).items()}
    if "window" in options and n_layers is not None:
        options["window"] = strategy.window_in(n_layers) or options["window"]
    return {"name": names[0] if names else own_name} | options


def _found(name: str) -> tuple[Callable[..., Strategy], dict[str, Any]]:
    """The class of a name or alias, and the options that an alias fixes."""
    if not isinstance(name, str):
        raise OptionError.about("strategy", name, "is no text", f"give {', '.join(_STRATEGIES)} ({_ALIASES})")
    if alias := _alias(name):
        return alias
    if name not in _STRATEGIES:
        raise OptionError.about("strategy", name, "is unknown", f"give {', '.join(_STRATEGIES)} ({_ALIASES})")
    return _STRATEGIES[name], {}


def _parameters(make: Callable[..., Strategy]) -> list[inspect.Parameter]:
    return list(inspect.signature(make).parameters.values())


def _alias(name: str) -> tuple[Callable[..., Strategy], dict[str, Any]] | None:
    if name == "trough":
        return Valley, {}
    if match := re.fullmatch(r"last-m?([0-9]{1,4})", name):
        return Fixed, {"offset": int(match[1])}
    if match := re.fullmatch(r"(?:trough-([mp])|valley([+-]))([0-9]{1,4})", name):
        sign = 1 if match[1] == "p" or match[2] == "+" else -1
        return Valley, {"shift": sign * int(match[3])}
    if match := re.fullmatch(r"dola-(low|high)", name):
        return DoLa, {"candidates": match[1]}
    return None
