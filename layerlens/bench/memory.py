"""Memory of this process or of a GPU, held and at its peak. Nothing here imports torch by itself."""

import ctypes
import gc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20


def forget_peak(device: "torch.device") -> float:
    """Count the peak from now on; returns what is held now, in bytes, or NaN where that is unknown."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _status("VmRSS")


def peak(device: "torch.device") -> float:
    """The most bytes since the peak was reset, allocated on a GPU or held by the process; NaN if unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_of_process()


def peak_of_process() -> float:
    """The most memory that the process had, in bytes; NaN where that is unknown."""
    return _status("VmHWM")


def give_back_heap() -> None:
    """Let the C library return freed memory. It would count as held, and its reuse would not be counted."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name)))
