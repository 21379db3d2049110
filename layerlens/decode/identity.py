"""Records of options and of classes of strategies. Two processes write the same record if and only if the things are
the same, as far as that can be told."""

import hashlib
import json
from abc import ABC
from collections.abc import Mapping
from enum import Enum
from functools import cached_property
from numbers import Integral, Real
from pathlib import PurePath
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DEEPEST = 8  # objects within objects; deeper values are recorded by their repr
_DUNDERS = ("__init__", "__post_init__", "__new__", "__call__", "__getattr__")  # other fields do not choose tokens


def recorded(value: Any, depth: int = 0) -> Any:
    """A value as JSON holds it. Numbers, texts, lists and mappings are recorded by their contents.

    An array or a tensor is recorded by a digest of its contents, a function by a digest of its code, and any other
    object by its attributes. An object without attributes, or nested too deep, is recorded by its `repr`.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum | PurePath):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Tensor | np.ndarray):
        return _array(value)
    if isinstance(value, type):
        return repr(value)
    if isinstance(value, FunctionType):
        return {"function": _name(value), "code": _digest(_code(value, set()))}
    if depth < _DEEPEST:
        if type(value) in (list, tuple):
            return type(value)(recorded(one, depth + 1) for one in value)
        if isinstance(value, set | frozenset):
            return sorted((recorded(one, depth + 1) for one in value), key=json.dumps)
        if isinstance(value, Mapping):
            return {str(key): recorded(one, depth + 1) for key, one in value.items()}
        if attributes := attributes_of(value):
            kind = type(value)
            inner = {name: recorded(one, depth + 1) for name, one in attributes.items()}
            return {"class": _name(kind), "code": code_of(kind)} | inner
    return repr(value)


def attributes_of(value: object) -> dict[str, Any]:
    """The attributes of an object by name, without those that only save time (cached properties)."""
    kind = type(value)
    slots = [name for one in kind.__mro__ for name in _listed(vars(one).get("__slots__", ()))]
    names = dict.fromkeys([*slots, *getattr(value, "__dict__", {})])
    held = {name: getattr(value, name) for name in names if hasattr(value, name) and name != "__weakref__"}
    return {name: one for name, one in held.items() if not isinstance(getattr(kind, name, None), cached_property)}


def code_of(kind: type) -> str | None:
    """A digest of the code of a class; None for a class of this package, which the version identifies.

    It covers the methods and constants of the class and of those that it derives from, and the functions and constants
    of their modules that they name; not comments, layout, or what they import.
    """
    ours = (object, ABC)
    others = [one for one in kind.__mro__ if one not in ours and one.__module__.partition(".")[0] != "layerlens"]
    seen: set[int] = set()
    return _digest([_members(one, seen) for one in others]) if others else None


def _members(kind: type, seen: set[int]) -> list[Any]:
    members = sorted(vars(kind).items())
    return [
        [name, _code(value, seen)]
        for name, value in members
        if name in _DUNDERS or not (name.startswith("__") or name == "_abc_impl")
    ]


def _code(value: Any, seen: set[int]) -> Any:
    """What identifies a member of a class, or a constant of a function."""
    if isinstance(value, property):
        return [_code(one, seen) for one in (value.fget, value.fset) if one is not None]
    if isinstance(value, staticmethod | classmethod):
        return _code(value.__func__, seen)
    if isinstance(value, cached_property):
        return _code(value.func, seen)
    if isinstance(value, FunctionType):
        return _of_function(value, seen)
    if isinstance(value, CodeType):
        consts = [_code(one, seen) for one in value.co_consts]
        return [value.co_code.hex(), list(value.co_names), list(value.co_varnames), consts]
    if isinstance(value, list | tuple):
        return [_code(one, seen) for one in value]
    if isinstance(value, frozenset):
        return sorted(repr(one) for one in value)
    plain = isinstance(value, str | bytes | Real | Tensor | np.ndarray) or value is None
    return str(recorded(value)) if plain else _name(type(value))


def _of_function(function: FunctionType, seen: set[int]) -> Any:
    if id(function) in seen:
        return function.__qualname__
    seen.add(id(function))
    known = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    named = [
        [name, _code(value, seen)]
        for name, value in known.items()
        if isinstance(value, str | Real)
        or (isinstance(value, FunctionType) and value.__module__ == function.__module__)
    ]
    kept = [_code(cell.cell_contents, seen) for cell in function.__closure__ or () if cell != CellType()]
    defaults = [function.__defaults__ or (), sorted((function.__kwdefaults__ or {}).items())]
    return [_code(function.__code__, seen), _code(defaults, seen), kept, named]


def _names(code: CodeType) -> list[str]:
    """Every global that a function and those within it name, and some attributes, in order."""
    inner = [name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one)]
    return sorted(name for name in {*code.co_names, *inner} if not name.startswith("__"))


def _array(value: Any) -> dict[str, Any]:
    """Type, shape and a digest of the contents."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        raw = value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
    return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": hashlib.sha256(raw).hexdigest()[:16]}


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]
