"""Quantised weights: how to tell them from plain ones, and the matrix that a quantised unembedding stands for."""

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from layerlens.compat import is_wrapper

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TILE = 256  # unit vectors that go through an unembedding together: their outputs are [256, vocab]


def is_plain(weight: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor of floats that can be sliced and multiplied, and not packed blocks."""
    return isinstance(weight, Tensor) and weight.dtype in _FLOATS and not is_wrapper(weight)


@torch.no_grad()
def matrix_of(head: nn.Module, given: Tensor) -> Tensor:
    """The matrix that a quantised unembedding multiplies by, in the type of its outputs: [vocab, d_head].

    The one way that works for every scheme of quantisation is to run the module: row i of its outputs for the unit
    vectors is column i of the matrix.

    Args:
        head: a linear module.
        given: a state as the module takes it, [..., d_head].
    """
    width = given.shape[-1]
    units = torch.eye(width, dtype=given.dtype, device=given.device)
    offset = head(torch.zeros_like(units[:1]))
    columns = [head(part) - offset for part in units.split(_TILE)]
    return torch.cat([part.t() for part in columns], dim=1).contiguous()


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor itself, or the tensors inside it if it is a wrapper around blocks and scales."""
    if not is_wrapper(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(tensor, name))
