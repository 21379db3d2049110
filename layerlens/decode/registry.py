"""Strategies by name, for the command line and for code that registers its own."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layerlens.decode.registering import refuse_unregistrable
from layerlens.errors import OptionError, did_you_mean, spelled

# the classes are imported where they are needed: a misspelt name is refused before torch is loaded
if TYPE_CHECKING:
    from layerlens.decode.strategies import Strategy

_BUILT_IN = ("last", "fixed", "valley", "dola", "sled")
_REGISTERED: "dict[str, Callable[..., Strategy]]" = {}
_ALIASES = "last-N, valley-N, valley+N, and the release's trough, trough-mN, trough-pN, last-mN"
_SOME_ALIASES = ("trough", "trough-m1", "trough-p1", "last-1", "valley-1", "valley+1", "dola-low", "dola-high")


def register_strategy(name: str, strategy: "Callable[..., Strategy]") -> None:
    """Make a strategy known by a name, on the command line too.

    Args:
        name: lower-case letters, digits and hyphens.
        strategy: a frozen dataclass that derives from `Strategy`; its fields are its options.

    Raises:
        OptionError: the name is taken or malformed, or the class does not derive from `Strategy` or is abstract.
    """
    from layerlens.decode.strategies import Strategy

    taken = [name] if is_strategy_name(name) else []
    refuse_unregistrable("strategy", "strategy", name, strategy, Strategy, taken)
    _REGISTERED[name] = strategy


def strategy_names() -> list[str]:
    """Every registered name."""
    return [*_BUILT_IN, *_REGISTERED]


def refuse_unknown(name: str, option: str = "strategy") -> None:
    """OptionError where no strategy has the name; without torch, which the strategies themselves need."""
    known = strategy_names()
    advice = f"give {', '.join(known)} ({_ALIASES})"
    if not isinstance(name, str):
        raise OptionError.about(option, name, "is not a text", advice)
    if not is_strategy_name(name):
        advice = did_you_mean(name, (*known, *_SOME_ALIASES), advice)
        raise OptionError.about(option, name, "is unknown", advice)


def is_strategy_name(name: object) -> bool:
    """Whether it is a registered name or an alias."""
    return isinstance(name, str) and (name in strategy_names() or _alias(name) is not None)


def strategy_of(strategy: "Strategy | str | None", **options: Any) -> "Strategy":
    """The strategy itself, or the one of that name or alias with those of the options that it takes; `Last()` for None.

    Raises:
        OptionError: as `named_strategy`.
    """
    if isinstance(strategy, str):
        taken = {name: value for name, value in options.items() if value is not None and takes_option(strategy, name)}
        return named_strategy(strategy, **taken)
    if strategy is None:
        from layerlens.decode.strategies import Last

        return Last()
    return strategy


def named_strategy(name: str, **options: Any) -> "Strategy":
    """The strategy of that name or alias with these options. Errors that its class raises are passed on unchanged.

    Raises:
        OptionError: the name is unknown, or an option has no effect on it or is out of range.
    """
    make, fixed = _found(name)
    for option, value in options.items():
        if not takes_option(name, option):
            what = f"has no effect on {spelled('strategy', name)}"
            own = [one.name for one in _parameters(make) if one.name not in fixed]
            raise OptionError.about(option, value, what, did_you_mean(option, own, "leave it out"))
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


def asked_strategy(
    options: "Mapping[str, Any]", base: "Strategy | None" = None, others: "Sequence[str]" = ()
) -> "Strategy":
    """The strategy that a request asks for.

    Args:
        options: "strategy", a name or alias, and its options; lists count as tuples. Without "strategy" they are other
            values of options of `base`.
        base: what requests get that name no strategy. Another one has its window, where it takes one and none is given.
        others: further names that a misspelt option can have been meant for.

    Raises:
        OptionError: as `named_strategy`; there is neither a name nor a `base`.
    """
    from layerlens.decode.identity import attributes_of

    given = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    own = {} if base is None else attributes_of(base)
    if "strategy" in given or base is None:
        name = given.pop("strategy", None)
        if not isinstance(name, str):
            raise OptionError.about("strategy", name, "is no name", f"give one of {', '.join(strategy_names())}")
        if own.get("window") is not None and is_strategy_name(name) and takes_option(name, "window"):
            given = {"window": own["window"], **given}
        return named_strategy(name, **given)
    for option, value in given.items():
        if option not in own:
            what = f"has no effect on strategy {strategy_record(base)['name']!r}"
            advice = did_you_mean(option, ("strategy", *others, *own), "leave it out")
            raise OptionError.about(option, value, what, advice)
    return type(base)(**(own | given))


def takes_option(name: str, option: str) -> bool:
    """Whether the strategy of that name or alias has an option that can be given.

    Raises:
        OptionError: the name is unknown.
    """
    make, fixed = _found(name)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [one for one in _parameters(make) if one.kind in by_name or one.kind is one.VAR_KEYWORD]
    return option not in fixed and any(one.name == option or one.kind is one.VAR_KEYWORD for one in taken)


def strategy_record(strategy: "Strategy", n_layers: int | None = None) -> dict[str, Any]:
    """The strategy's name and every option, for a manifest.

    Args:
        strategy: any.
        n_layers: L of the model, so that a window that depends on the model is recorded as a number.
    """
    from layerlens.decode.identity import attributes_of, recorded

    kind = type(strategy)
    names = [name for name in strategy_names() if _class_of(name) is kind]
    own_name = f"{kind.__module__}.{kind.__name__}" if kind.__name__ in strategy_names() else kind.__name__
    options = {name: recorded(value) for name, value in attributes_of(strategy).items()}
    if "window" in options and n_layers is not None:
        options["window"] = strategy.window_in(n_layers) or options["window"]
    return {"name": names[0] if names else own_name} | options


def _found(name: str) -> "tuple[Callable[..., Strategy], dict[str, Any]]":
    """The class of a name or alias, and the options that an alias fixes."""
    refuse_unknown(name)
    own, fixed = _alias(name) or (name, {})
    return _class_of(own), fixed


def _class_of(name: str) -> "Callable[..., Strategy]":
    """The class of a registered name."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    from layerlens.decode import contrast, strategies

    return {
        "last": strategies.Last,
        "fixed": strategies.Fixed,
        "valley": strategies.Valley,
        "dola": contrast.DoLa,
        "sled": contrast.SLED,
    }[name]


def _parameters(make: "Callable[..., Strategy]") -> list[inspect.Parameter]:
    return list(inspect.signature(make).parameters.values())


def _alias(name: str) -> tuple[str, dict[str, Any]] | None:
    """The registered name that an alias stands for, and the options that it fixes."""
    if name == "trough":
        return "valley", {}
    if match := re.fullmatch(r"last-m?([0-9]{1,4})", name):
        return "fixed", {"offset": int(match[1])}
    if match := re.fullmatch(r"(?:trough-([mp])|valley([+-]))([0-9]{1,4})", name):
        sign = 1 if match[1] == "p" or match[2] == "+" else -1
        return "valley", {"shift": sign * int(match[3])}
    if match := re.fullmatch(r"dola-(low|high)", name):
        return "dola", {"candidates": match[1]}
    return None
