"""What must hold for a class of a user's own before it gets a name that the command line knows."""

import re
from collections.abc import Sequence

from layerlens.errors import OptionError


def refuse_unregistrable(noun: str, option: str, name: str, kind: object, base: type, known: Sequence[str]) -> None:
    """OptionError where the name is malformed or taken, or the class does not derive from `base` or is abstract.

    Args:
        noun: what is registered, such as "strategy".
        option: the argument that holds the class.
        name: lower-case letters, digits and hyphens.
        kind: the class.
        base: what it must derive from; a public class of layerlens.
        known: the names that are taken.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        problem = f"the name {name!r} of a {noun} is malformed"
        raise OptionError(problem, "give lower-case letters, digits and hyphens", option="name", given=name)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        problem, advice = f"{kind!r} is not a subclass of {base.__name__}", "give a class that derives from layerlens."
        raise OptionError(problem, f"{advice}{base.__name__}", option=option, given=kind)
    if lacking := ", ".join(sorted(getattr(kind, "__abstractmethods__", ()))):
        problem = f"{kind.__name__} lacks the methods {lacking}"
        raise OptionError(problem, "write them before you register it", option=option, given=kind)
    if name in known:
        raise OptionError(f"there is already a {noun} {name!r}", "give another name", option="name", given=name)
