"""A description of the machine on which something was measured."""

import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """What a measured number depends on: processor, threads, gpu, and the versions of the libraries that compute."""
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
    """On Linux the name of the processor, and the numbers that tell generations of one name apart; empty elsewhere."""
    cpus = Path("/proc/cpuinfo")
    first = cpus.read_text().split("\n\n")[0].splitlines() if cpus.exists() else []
    of = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    if "model name" not in of:
        return ""
    return f"{of['model name']}, family {of.get('cpu family')}, model {of.get('model')}"
