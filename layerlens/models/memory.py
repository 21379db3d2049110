"""How much memory there is, and whether a model's weights fit into it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import ModelError, OptionError, first_sentence, spelled
from layerlens.models.placement import Place
from layerlens.models.sizes import Weights, dtype_of

GIB = 2**30
_SHARE_OF_GPU = 0.9  # the share of a GPU that transformers fills


def room(place: Place) -> dict[str, int]:
    """Free bytes on each device that a model at this place can use, at most what was allowed; without the disk.

    Devices whose free memory is unknown are left out.
    """
    limits = {str(name): _parsed(limit) for name, limit in (place.max_memory or {}).items()}
    free = {name: _free(name) for name in place.device_names}
    return {
        name: min(n_bytes, limits.get(name.removeprefix("cuda:"), limits.get(name, n_bytes)))
        for name, n_bytes in free.items()
        if n_bytes is not None
    }


def refuse_unfit(weights: Weights | None, place: Place) -> None:
    """ModelError where the weights alone are larger than all free memory of their devices, swap included."""
    if weights is None or (place.may_use_disk and weights.may_lie_on_disk):
        return
    free = room(place)
    if set(free) != set(place.device_names):
        return
    limit = sum(free.values()) + (_meminfo().get("SwapFree", 0) if "cpu" in free and not place.max_memory else 0)
    if weights.n_bytes > limit:
        amounts = " and ".join(f"{gib(n_bytes)} on {name}" for name, n_bytes in free.items())
        disk = f"a directory as {spelled('offload_folder')}, to leave the rest on disk"
        ways = disk if place.spreads else spelled("device_map", "auto")
        fewer = ", ".join(spelled(option) for option in ("dtype", "quantize", "keep_quantized"))
        raise ModelError(
            f"{weights.source} needs {gib(weights.n_bytes)} for its weights alone ({weights.kind}), and there are "
            f"{amounts} free",
            f"give {ways}, or load fewer bits ({fewer}), or a smaller model",
            given=weights.n_bytes,
        )


def with_room_for_head(place: Place, weights: Weights | None, config: Any) -> Place:
    """The place, with room kept for the unembedding on the first GPU where some blocks will be offloaded."""
    if weights is None or place.device_map not in ("auto", "balanced", "sequential") or place.max_memory:
        return place
    free = {name: int(n_bytes * _SHARE_OF_GPU) for name, n_bytes in room(place).items()}
    gpus = [name for name in free if name != "cpu"]
    if not gpus or weights.n_bytes <= sum(free[name] for name in gpus):
        return place
    text = config.get_text_config(decoder=True)
    head_bytes = text.vocab_size * text.hidden_size * (dtype_of(config) or torch.float32).itemsize
    free[gpus[0]] = max(0, free[gpus[0]] - head_bytes)
    limits: dict[str | int, str | int] = {
        name if name == "cpu" else int(name.removeprefix("cuda:")): n_bytes for name, n_bytes in free.items()
    }
    return replace(place, max_memory=limits)


def gib(n_bytes: float) -> str:
    """Bytes in readable units: "1.25 GiB", "3.1 MiB"."""
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:,.1f} MiB"


def _free(name: str) -> int | None:
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            return None
        free, _ = torch.cuda.mem_get_info(name)
        return free + torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)
    return _meminfo().get("MemAvailable") if name == "cpu" else None


def _meminfo() -> dict[str, int]:
    """Bytes by name, as Linux reports them; empty on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}


def _parsed(limit: str | int) -> int:
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(limit))
    except ValueError as error:
        raise OptionError(
            f"max_memory {limit!r} is not a size ({first_sentence(error)})",
            "give one such as 20GiB",
            option="max_memory",
            given=limit,
        ) from error
