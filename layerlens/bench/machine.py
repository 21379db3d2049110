"""The machine on which something was measured."""

import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """What a number that was measured depends on: processor, threads, gpu, and the versions of what computes."""
    import transformers

    return {
        "processor": _processor() or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """On Linux its name, which generations share, and the numbers that tell them apart; empty elsewhere."""
    cpus = Path("/proc/cpuinfo")
    first = cpus.read_text().split("\n\n")[0].splitlines() if cpus.exists() else []
    of = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    if "model name" not in of:
        return ""
    return f"{of['model name']}, family {of.get('cpu family')}, model {of.get('model')}"
