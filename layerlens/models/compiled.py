"""Compiled models: hooks do not run in code that was compiled before they were registered."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def is_compiled(hf: nn.Module) -> bool:
    """Whether the model, its forward, or a module of it went through torch.compile."""
    forward = vars(hf).get("forward")
    return (
        hasattr(forward, "_torchdynamo_orig_callable")
        or "_compiled_call" in vars(hf)  # what transformers keeps when `generate` compiles by itself
        or any(getattr(module, "_compiled_call_impl", None) is not None for module in hf.modules())
    )


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
