"""Strategies by name, as the command line and other people's code know them."""

import json
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from layerlens.decode.contrast import SLED, DoLa
from layerlens.decode.strategies import Fixed, Last, Strategy, Valley
from layerlens.errors import OptionError

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
        OptionError: the name is taken or malformed.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise OptionError(f"strategy name {name!r} is malformed; give lower-case letters, digits and hyphens")
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise OptionError(f"{strategy!r} is no class of strategies; derive one from layerlens.Strategy")
    if name in _STRATEGIES or _alias(name) is not None:
        raise OptionError(f"there is a strategy {name!r} already; give another name")
    _STRATEGIES[name] = strategy


def strategy_names() -> list[str]:
    """Every registered name."""
    return list(_STRATEGIES)


def named_strategy(name: str, **options: Any) -> Strategy:
    """The strategy of that name or alias with these options.

    Raises:
        OptionError: the name is unknown, or an option has no effect on it or is out of range.
    """
    if not isinstance(name, str):
        raise OptionError(f"strategy name {name!r} is no text; give {', '.join(_STRATEGIES)} ({_ALIASES})")
    found = _alias(name) or (_STRATEGIES.get(name), {})
    make, fixed = found
    if make is None:
        raise OptionError(f"--strategy {name} is unknown; give {', '.join(_STRATEGIES)} ({_ALIASES})")
    declared: tuple[Field[Any], ...] = fields(make) if is_dataclass(make) else ()
    known = {field.name for field in declared} if is_dataclass(make) else set(options)
    required = [field for field in declared if field.default is MISSING and field.default_factory is MISSING]
    for option, value in options.items():
        if option not in known or option in fixed:
            flag = "--" + option.replace("_", "-")
            raise OptionError(f"{flag} {value} has no effect on --strategy {name}; leave it out")
    try:
        return make(**fixed, **options)
    except TypeError as error:
        missing = [field.name for field in required if field.name not in options]
        raise OptionError(
            f"--strategy {name} needs {' and '.join(missing) or 'other options'}; give it in Python (fixed "
            "layers have names: last-1, last-2, ...)"
        ) from error


def strategy_record(strategy: Strategy) -> dict[str, Any]:
    """The strategy's name and options, for a manifest."""
    names = [name for name, make in _STRATEGIES.items() if make is type(strategy)]
    declared: tuple[Field[Any], ...] = fields(strategy) if is_dataclass(strategy) else ()
    options = {field.name: _for_json(getattr(strategy, field.name)) for field in declared}
    return {"name": names[0] if names else type(strategy).__name__} | options


def _for_json(value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError:
        return repr(value)
    return value


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
