"""Using a model: as it was loaded, by one thread at a time, whatever torch's settings are."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from layerlens.errors import ModelError, OptionError
from layerlens.models.model import Model
from layerlens.models.unchanged import still_as_loaded

Door = TypeVar("Door", bound=Callable[..., Any])

_locks: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()
_making_locks = threading.Lock()


def uses_model(*, may_be_remote: bool = False, may_decode_elsewhere: bool = False) -> Callable[[Door], Door]:
    """A function whose first argument is a model, with the model `in_use` while it runs."""
    remote = {"may_be_remote": may_be_remote, "may_decode_elsewhere": may_decode_elsewhere}

    def of(door: Door) -> Door:
        @wraps(door)
        def used(*args: Any, **kwargs: Any) -> Any:
            with in_use(args[0] if args else kwargs.get("model"), **remote):
                return door(*args, **kwargs)

        return used  # type: ignore[return-value]

    return of


def loaded_model(model: object) -> Model:
    """The model itself; OptionError where it is not one from `load`."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | os.PathLike):
        advice = f"load it first: ll.load({os.fspath(model)!r})"
        raise OptionError.about("model", os.fspath(model), "is a name and not a loaded model", advice)
    name = type(model).__name__
    problem, advice = f"a {name} is not a loaded model", "load it: ll.load(model, tokenizer=tokenizer)"
    raise OptionError(problem, advice, option="model", given=name)


@contextmanager
def in_use(
    model: object, *, may_be_compiled: bool = False, may_be_remote: bool = False, may_decode_elsewhere: bool = False
) -> Iterator[None]:
    """While open, only this thread uses the model, which is as it was loaded; another thread that asks for it waits.

    Raises:
        ModelError, OptionError: this is not a model from `load`; see also `still_as_loaded` and `own_terms`.
    """
    loaded = loaded_model(model)
    with own_terms(), alone(loaded.hf):
        still_as_loaded(
            loaded,
            may_be_compiled=may_be_compiled,
            may_be_remote=may_be_remote,
            may_decode_elsewhere=may_decode_elsewhere,
        )
        yield


@contextmanager
def alone(hf: nn.Module) -> Iterator[None]:
    """While open, no other thread can enter this context with the same model. The same thread can, several times."""
    with _making_locks:
        lock = _locks.setdefault(hf, threading.RLock())
    with lock:
        yield


@contextmanager
def own_terms() -> Iterator[None]:
    """While open, tensors are where layerlens puts them, whatever torch's default device is.

    Raises:
        ModelError: inside torch.autocast, which computes in another type than the model was loaded in.
    """
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            dtype = str(torch.get_autocast_dtype(device)).removeprefix("torch.")
            raise ModelError(
                f"torch.autocast is on and computes in {dtype}, but models are measured in the type that they were "
                "loaded in",
                f"leave torch.autocast, or load the model with dtype={dtype!r}",
                given=dtype,
            )
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.device("cpu") if elsewhere else nullcontext():
        yield
