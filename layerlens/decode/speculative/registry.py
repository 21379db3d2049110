"""Skip policies by name, for the command line and for code that registers its own."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layerlens.decode.registering import refuse_unregistrable
from layerlens.errors import OptionError, did_you_mean, spelled

# the classes are imported where they are needed: a misspelt name is refused before torch is loaded
if TYPE_CHECKING:
    from layerlens.decode.speculative.policy import SkipPolicy

_BUILT_IN = ("conflayers", "swift", "clasp", "knapspec", "every-other", "fixed", "traced")
_EXAMPLES = {"skipped": "[3,5]", "run": "runs/first"}
_REGISTERED: "dict[str, Callable[..., SkipPolicy]]" = {}


def register_skip_policy(name: str, policy: "Callable[..., SkipPolicy]") -> None:
    """Make a policy known by a name, on the command line too.

    Args:
        name: lower-case letters, digits and hyphens.
        policy: a frozen dataclass that derives from `SkipPolicy`; its fields are its options.

    Raises:
        OptionError: the name is taken or malformed, or the class does not derive from `SkipPolicy` or is abstract.
    """
    from layerlens.decode.speculative.policy import SkipPolicy

    refuse_unregistrable("skip policy", "policy", name, policy, SkipPolicy, skip_policy_names())
    _REGISTERED[name] = policy


def skip_policy_names() -> list[str]:
    """Every registered name."""
    return [*_BUILT_IN, *_REGISTERED]


def refuse_unknown_policy(name: str, option: str = "draft") -> None:
    """OptionError where no policy has the name; without torch, which the policies themselves need."""
    known = skip_policy_names()
    advice = f"give {', '.join(known)}"
    if not isinstance(name, str):
        raise OptionError.about(option, name, "is not a text", advice)
    if name not in known:
        raise OptionError.about(option, name, "is unknown", did_you_mean(name, known, advice))


def named_skip_policy(name: str, **options: Any) -> "SkipPolicy":
    """The policy of that name with these options.

    Raises:
        OptionError: the name is unknown, or an option has no effect on it, is missing or is out of range.
    """
    refuse_unknown_policy(name)
    make = policy_class(name)
    parameters = inspect.signature(make).parameters
    for option, value in options.items():
        if option not in parameters:
            what = f"has no effect on {spelled('draft', name)}"
            raise OptionError.about(option, value, what, did_you_mean(option, list(parameters), "leave it out"))
    missing = [one.name for one in parameters.values() if one.default is one.empty and one.name not in options]
    if missing:
        advice = f"give it as an option of the policy, as in {missing[0]}={_EXAMPLES.get(missing[0], 'VALUE')}"
        raise OptionError.about("draft", name, f"needs {' and '.join(missing)}", advice)
    return make(**options)


def policy_name(policy: "SkipPolicy") -> str:
    """The name that the policy's class was registered by, else the name of the class."""
    kind = type(policy)
    return next((name for name in skip_policy_names() if policy_class(name) is kind), kind.__name__)


def policy_record(policy: "SkipPolicy") -> dict[str, Any]:
    """The policy's name and every option, for a manifest."""
    from layerlens.decode.identity import attributes_of, recorded

    return {"name": policy_name(policy)} | {name: recorded(value) for name, value in attributes_of(policy).items()}


def policy_class(name: str) -> "Callable[..., SkipPolicy]":
    """The class of a registered name."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    from layerlens.decode.speculative import clasp, conflayers, fixed, knapspec, swift

    return {
        "conflayers": conflayers.ConfLayers,
        "swift": swift.Swift,
        "clasp": clasp.Clasp,
        "knapspec": knapspec.KnapSpec,
        "every-other": fixed.EveryOther,
        "fixed": fixed.FixedSkip,
        "traced": fixed.Traced,
    }[name]
