"""What a model runs on, by name."""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def hardware(places: Iterable[str]) -> dict[str, Any]:
    """For a manifest: "processor", the hardware of these places, each name once and in their order; "threads".

    Args:
        places: devices such as "cuda:1" and "cpu"; "disk" is ignored, because it computes nothing.
    """
    names = dict.fromkeys(_name(torch.device(place)) for place in places if place != "disk")
    return {"processor": ", ".join(names), "threads": torch.get_num_threads()}


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return _processor()
    named = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(named(device)) if named is not None else f"{device.type} of {_processor()}"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
