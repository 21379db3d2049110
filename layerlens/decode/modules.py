"""Records of what acts in a model besides its weights and its config: its modules and its hooks."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any

from torch import nn

from layerlens.compat import hooks_of, hooks_of_all, mover_of
from layerlens.decode.identity import code_of, recorded
from layerlens.models import Model
from layerlens.records.manifest import digest

_OURS_AND_THEIRS = ("layerlens", "transformers", "accelerate", "torch")
"""Packages whose classes and hooks are identified by their versions."""
_PLAIN = (bool, int, float, str)


def model_record(model: Model) -> dict[str, Any]:
    """What a manifest says of a model: `Model.record`, and digests that identify its modules and hooks.

    Its "modules" is a digest of the classes of all modules, of the fractions they hold (such as a scaling), of the
    attributes of modules of other packages (such as whether an adapter is on), and of forwards that were replaced. Its
    "hooks" names hooks with their modules. A function is identified by its code and by the numbers, texts and tensors
    in its closure; any other callable object is identified by its class.
    """
    return {**model.record(), "modules": _modules(model.hf), "hooks": sorted(_hooks(model.hf))}


def _modules(hf: nn.Module) -> str:
    told = []
    for path, module in hf.named_modules():
        attributes = {key: value for key, value in vars(module).items() if not key.startswith("__")}
        kind = type(module)
        if _is_known(kind):
            told.append([path, kind.__qualname__, {k: v for k, v in attributes.items() if type(v) is float}])
        else:
            held = {key: value for key, value in attributes.items() if key != "training" and _is_plain(value)}
            told.append([path, kind.__qualname__, code_of(kind), held])
        if "forward" in attributes and mover_of(module) is None:  # accelerate's, which moves states between devices
            told.append([path, "forward", _called(attributes["forward"])])
    return digest(repr(told))[:16]


def _hooks(hf: nn.Module) -> Iterator[str]:
    yield from (f"{_called(hook)} on every module" for hook in hooks_of_all() if not _is_known(hook))
    for path, module in hf.named_modules():
        yield from (
            f"{_called(hook)} on {path or type(hf).__name__}" for hook in hooks_of(module) if not _is_known(hook)
        )


def _is_known(what: Any) -> bool:
    return str(getattr(what, "__module__", "")).partition(".")[0] in _OURS_AND_THEIRS


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in _PLAIN


def _called(function: Callable[..., Any]) -> str:
    """A name for a callable, with a digest of what identifies it; the same in another process."""
    if isinstance(function, partial):
        inner = _called(function.func)
        given = [_told(value) for value in (*function.args, *sorted(function.keywords.items()))]
        return f"{inner.split()[0]} {digest(repr([inner, given]))[:6]}"
    plain = getattr(function, "__func__", function)  # of a bound method
    if isinstance(plain, FunctionType):
        return f"{plain.__qualname__.rpartition('.')[2]} {digest(repr(recorded(plain)))[:6]}"
    return f"{type(function).__name__} {digest(repr(code_of(type(function))))[:6]}"


def _told(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_told(one) for one in value]
    return type(value).__qualname__ if isinstance(value, nn.Module) else recorded(value)
