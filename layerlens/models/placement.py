"""Models on several devices, or partly in memory or on disk, where accelerate moves weights and states."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, remove_hook_from_module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from layerlens.compat import mover_of
from layerlens.errors import OptionError, first_sentence, spelled
from layerlens.models.choices import DEVICE_MAPS, refuse_unknown


@dataclass(frozen=True)
class Place:
    """Where a model is to be put.

    Attributes:
        device_map: one of `choices.DEVICE_MAPS`, or devices by module; {"": device} for one device.
        max_memory: the most to use of each device; None for what is free.
        offload_folder: where weights are kept that fit nowhere else; None where there are none.
    """

    device_map: str | dict[str, Any]
    max_memory: dict[str | int, str | int] | None = None
    offload_folder: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for `from_pretrained`."""
        given = {"max_memory": self.max_memory, "offload_folder": self.offload_folder}
        return {"device_map": self.device_map} | {name: value for name, value in given.items() if value is not None}

    @property
    def device_names(self) -> list[str]:
        """The devices that a model at this place can be on, without the disk."""
        if isinstance(self.device_map, str):
            return [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]
        places = dict.fromkeys(_name(one) for one in self.device_map.values())
        return [name for name in places if name != "disk"]

    @property
    def uses_gpu(self) -> bool:
        """Whether a model at this place can be on a device other than the CPU."""
        return any(name != "cpu" for name in self.device_names)

    @property
    def spreads(self) -> bool:
        """Whether a model at this place can be on several devices."""
        return isinstance(self.device_map, str) or set(self.device_map) != {""}

    @property
    def may_use_disk(self) -> bool:
        """Whether weights that fit on no device can stay on disk."""
        return self.offload_folder is not None or (
            not isinstance(self.device_map, str) and "disk" in map(str, self.device_map.values())
        )


def place_for(
    device: str | None,
    device_map: str | Mapping[str, str | int | torch.device] | None = None,
    max_memory: Mapping[str | int, str | int] | None = None,
    offload_folder: "str | os.PathLike[str] | None" = None,
) -> Place:
    """Where a model is to be put, from the options of `load`; OptionError where they contradict each other."""
    if device_map is None:
        for name, value in (("max_memory", max_memory), ("offload_folder", offload_folder)):
            if value is not None:
                advice = f"add it, or leave {spelled(name)} out"
                raise OptionError.about(name, value, f"belongs to {spelled('device_map')}", advice)
        return Place({"": _device(device)})
    if device is not None:
        what = f"and {spelled('device_map', device_map)} both say where to put the model"
        raise OptionError.about("device", device, what, "give one of them")
    if not isinstance(device_map, Mapping):
        refuse_unknown("device_map", device_map, DEVICE_MAPS, f", or {spelled('device')} for one device")
    chosen = device_map if isinstance(device_map, str) else dict(device_map)
    limits = None if max_memory is None else dict(max_memory)
    return Place(chosen, limits, None if offload_folder is None else os.fspath(offload_folder))


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        if where.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=where)
    except Exception as error:  # which one depends on the kind of device
        what = f"cannot be used here ({first_sentence(error)})"
        raise OptionError.about("device", device, what, f"try {spelled('device', 'cpu')}") from error
    return where


def _name(device: Any) -> str:
    if isinstance(device, int) or str(device) == "cuda":
        return f"cuda:{0 if str(device) == 'cuda' else device}"
    return str(device)


def is_spread(hf: nn.Module) -> bool:
    """Whether weights or states move between devices while the model runs; such passes are not captured as a graph."""
    return any(True for module in hf.modules() for _ in _aligning(module))


def devices(hf: PreTrainedModel) -> list[str]:
    """The devices of the weights of a spread model, in the order of the model: "cuda:0", "cpu", "disk"."""
    places: dict[str, str | int | torch.device] = getattr(hf, "hf_device_map", {"": "offloaded"})
    return list(dict.fromkeys(f"cuda:{place}" if isinstance(place, int) else str(place) for place in places.values()))


def parameters(hf: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by its name; offloaded ones are read from memory or disk; those of other processes are meta."""
    reads = is_spread(hf)
    for name, parameter in hf.named_parameters():
        yield name, load_offloaded_parameter(hf, name) if reads and parameter.is_meta else parameter


def keep_here(hf: PreTrainedModel, modules: Iterable[nn.Module]) -> None:
    """Move offloaded weights of these modules to the device they run on, for good; they are read outside of passes."""
    tied: dict[str, str] = getattr(hf, "all_tied_weights_keys", {})
    wanted = {inner for module in modules for inner in module.modules()}
    brought: dict[str, nn.Parameter] = {}
    for path, module in hf.named_modules():
        for hook in _aligning(module) if module in wanted else ():
            if hook.offload:
                hook.pre_forward(module)
                hook.offload = False
                for name, parameter in module.named_parameters(path, recurse=False):
                    kept = brought.setdefault(tied.get(name, name), parameter)
                    setattr(module, name.rpartition(".")[2], kept)


def beside(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself if it is on that device, else a copy there."""
    if all(tensor.device == device for tensor in (*module.parameters(), *module.buffers())):
        return module
    twin = copy.deepcopy(module)
    remove_hook_from_module(twin, recurse=True)
    return twin.to(device)


def _aligning(module: nn.Module) -> Iterator[AlignDevicesHook]:
    hook: ModelHook | None = mover_of(module)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return (one for one in hooks if isinstance(one, AlignDevicesHook))
