"""Compiled models: hooks do not run in code that was compiled before they were registered."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from layerlens.compat import is_compiled_by_generate, is_compiled_in_place, written_forward


def is_compiled(hf: nn.Module) -> bool:
    """Whether the model, its forward, or a module of it went through torch.compile."""
    forward = vars(hf).get("forward")
    is_other = written_forward(forward) is not forward
    return is_other or is_compiled_by_generate(hf) or any(map(is_compiled_in_place, hf.modules()))


@contextmanager
def recompiled(hf: nn.Module) -> Iterator[None]:
    """While open, compiled code of the model runs its present hooks: it is compiled anew inside, and again after."""
    if is_compiled(hf):
        torch.compiler.reset()
    try:
        yield
    finally:
        if is_compiled(hf):
            torch.compiler.reset()
