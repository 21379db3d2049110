"""States of layers of a model that does not hand them out: its blocks carry them to the end beside their own states.

vLLM compiles a model and replays it as a graph, where hooks are not called. So the states travel as further features
of what blocks give to each other.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerlens.errors import ModelError

_STREAM, _PENDING = "hidden_states", "residual"
"""What vLLM's blocks call what they read. Their sum is the residual stream; some blocks get it in one tensor."""

_WHOLE = ("CohereDecoderLayer",)
"""Blocks whose first tensor is the whole stream, although they are given a second one."""


def tap(blocks: nn.ModuleList, owner: nn.Module, norm_name: str, layers: Sequence[int], d_model: int) -> None:
    """Let the model's output have the states of some layers behind its own, on the feature axis.

    Args:
        blocks: all blocks of the model.
        owner: the module that calls the blocks, then the final norm.
        norm_name: of the final norm in its owner.
        layers: the layers whose states are wanted, ascending, 0..L; layer l is what block l, counted from 0, reads.
        d_model: width of the stream.

    Raises:
        ModelError: what a block reads is not called as in other models.
    """
    first, n_layers = layers[0], len(blocks)
    for index in range(first, n_layers):
        _swap(blocks[index], index in layers, index > first, d_model)
    norm: nn.Module = getattr(owner, norm_name)
    _swap(norm, n_layers in layers, first < n_layers, d_model)


def _swap(module: nn.Module, keeps: bool, carries: bool, d_model: int) -> None:
    """Give a block, or the final norm, a class that takes out what is carried, adds what it keeps, and puts it back."""
    stock = type(module)
    names = _read_by(stock)
    streams = [name for name in (_STREAM, "x", "input") if name in names]
    if not streams:
        raise ModelError(
            f"vLLM's {stock.__name__} calls what it reads {', '.join(names)}, and not {_STREAM}",
            "decode this model with `layerlens generate`, or from the last layer",
        )
    stream = streams[0]
    place = names.index(stream)
    pending = names.index(_PENDING) if _PENDING in names and stock.__name__ not in _WHOLE else -1

    class Tapped(stock):  # type: ignore[misc, valid-type]
        def forward(self, *given: Any, **named: Any) -> Any:
            given_list = list(given)
            wide = given_list[place] if place < len(given_list) else named[stream]
            own, carried = (wide[..., :d_model].contiguous(), wide[..., d_model:]) if carries else (wide, None)
            if keeps:
                waiting = _at(given_list, named, pending, names)
                state = own.clone() if waiting is None else own + waiting
                carried = state if carried is None else torch.cat([carried, state], dim=-1)
            if place < len(given_list):
                given_list[place] = own
            else:
                named[stream] = own
            out = super().forward(*given_list, **named)
            if carried is None:
                return out
            if isinstance(out, tuple):
                return torch.cat([out[0], carried], dim=-1), *out[1:]
            return torch.cat([out, carried], dim=-1)

    Tapped.__name__, Tapped.__qualname__ = stock.__name__, stock.__qualname__
    module.__class__ = Tapped


def _read_by(kind: type[nn.Module]) -> list[str]:
    """The names of what a module reads. vLLM's operators pass all they are given on to their kernels."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    if any(one.kind is one.VAR_POSITIONAL for one in parameters) and hasattr(kind, "forward_native"):
        parameters = list(inspect.signature(kind.forward_native).parameters.values())[1:]
    return [one.name for one in parameters]


def _at(given: list[Any], named: dict[str, Any], place: int, names: list[str]) -> Tensor | None:
    if place < 0:
        return None
    value: Tensor | None = given[place] if place < len(given) else named.get(names[place])
    return value
