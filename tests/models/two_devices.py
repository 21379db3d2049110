"""Two devices on a machine without any: tensors of `twin:0` and `twin:1` hold their numbers in memory, an operation on
tensors of both fails as it would on GPUs, and what is copied from one to the other is counted.

Run as a program, because registering devices changes the process: traces a tiny model whose blocks lie on both, and
prints as JSON what it recorded and what moved.
"""

import json
import sys
from functools import partial
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

import layerlens as ll
from layerlens.decode import chooser, forward
from layerlens.models import tiny_model, tiny_tokenizer

TEXTS = ["abcd", "efgh"]
MAPS = {  # the unembedding beside the last blocks, and on another device than the norm before it
    "llama": ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1"],
    "gptj": ["transformer.wte", "transformer.h.0", "transformer.h.1", "lm_head"],
}

moved: list[list[Any]] = []


class Twin(torch.Tensor):
    """A tensor of a twin device; `inner` has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "Twin":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=device, **layout)

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})

    def __deepcopy__(self, memo):
        twin = Twin(self.inner.clone(), self.device)
        return nn.Parameter(twin, requires_grad=False) if isinstance(self, nn.Parameter) else twin

    def data_ptr(self) -> int:
        """Of the numbers."""
        return self.inner.data_ptr()


class TwinDevices(TorchDispatchMode):
    """While open, tensors can be made on twin devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: Any) -> Any:
    """One operation, on the numbers, if its tensors are on one device."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    asked = kwargs.get("device")
    if function is torch.ops.aten._to_copy.default:
        there = args[0].device if asked is None else asked
        if there != args[0].device:
            moved.append([list(args[0].shape), str(args[0].device), str(there)])
    elif function is not torch.ops.aten.copy_.default:
        places = {str(tensor.device) for tensor in tensors if tensor.ndim or isinstance(tensor, Twin)}
        if len(places) > 1:
            raise RuntimeError(f"{function} on tensors of {' and '.join(sorted(places))}")
        there = asked or next((tensor.device for tensor in tensors if isinstance(tensor, Twin)), None)
    else:
        there = args[0].device
    plainly = partial(tree_map, lambda value: value.inner if isinstance(value, Twin) else value)
    given = plainly(kwargs) | ({"device": torch.device("cpu")} if asked is not None else {})
    found = function(*plainly(args), **given)
    if there is None or torch.device(there).type != "twin":
        return found
    found = tree_map(lambda value: Twin(value, there) if isinstance(value, torch.Tensor) else value, found)
    return return_and_correct_aliasing(function, args, kwargs, found) if tensors else found


def spread(family: str) -> Any:
    """A tiny model, its first half and what MAPS names on one device, the rest on the other."""
    hf, places = tiny_model(family), {}
    for path, module in hf.named_modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        if not any(tensor is not None for tensor in own):
            continue
        place = "twin:0" if path.startswith(tuple(MAPS[family])) else "twin:1"
        places[path] = place
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(place), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to(place)
    return dispatch_model(hf, by_block(places))


def by_block(places: dict[str, str]) -> dict[str, str]:
    """The same with one entry for each block, so that nothing inside of a block moves."""
    parts = {path: path.split(".") for path in places}
    return {
        ".".join(names[:3]) if any(name.isdecimal() for name in names) else path: places[path]
        for path, names in parts.items()
    }


class NoDraws:
    """In place of a generator, which such a device has none of; nothing is drawn here."""

    def __init__(self, device: Any = "cpu") -> None:
        self.device = torch.device(device)

    def manual_seed(self, _: int) -> "NoDraws":
        """Itself."""
        return self


def main(out: str) -> None:
    """Trace on two devices, and print what moved while a given text was."""
    backend_registration._setup_privateuseone_for_python_backend("twin")
    made = torch.tensor
    torch.tensor = lambda data, dtype=None, device=None: made(data, dtype=dtype).to(device or "cpu")
    torch.Generator = NoDraws
    chooser.Chooser._draw = lambda self, n_rows: torch.zeros(n_rows, device=self.generator.device)
    forward.StaticCache = None  # of several devices' keys there is none of fixed size
    print(json.dumps({family: traced(family, f"{out}/{family}") for family in MAPS}))


def traced(family: str, out: str) -> dict[str, Any]:
    """Where the model lay, and which states moved while given texts were traced."""
    with TwinDevices(), torch.no_grad():
        model = ll.load(spread(family), tokenizer=tiny_tokenizer())
        for name, options in OPTIONS.items():
            moved.clear()
            ll.trace(model, TEXTS, out=f"{out}/{name}", progress=False, **options)
            if name == "given":
                states = [move for move in moved if move[0][-1:] == [model.d_model]]
        return {"device": model.record()["device"], "head": str(model.unembed.weight.device), "states": states}


OPTIONS = {
    "given": {"max_new_tokens": 0, "batch_size": 2},
    "generate": {"max_new_tokens": 4, "batch_size": 2, "strategy": ll.Valley(window=3), "kl": True},
}

if __name__ == "__main__":
    main(*sys.argv[1:])
