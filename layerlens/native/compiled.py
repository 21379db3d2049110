"""Compiles a loop for the processor at hand, by LLVM, to run on torch's own threads.

Other threads would not do: torch's wait for their next piece of work without giving up the processor.
"""

import ctypes
import platform
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from layerlens.native.assembly import TEAM

Loop = Callable[..., None]
_LOCK = threading.Lock()


class Processor(NamedTuple):
    """What loops are written for."""

    lanes: int
    """Float32 values in a register."""
    sums: int
    """Of products with a word each, kept in registers at once."""
    name: str
    features: str


@cache
def processor() -> Processor | None:
    """The instruction set that torch itself uses, so that what holds torch to one holds the loops too.

    None where there is no compiler, no instruction that multiplies and adds many values, or not the team of threads of
    GNU's OpenMP, with which torch comes on Linux.
    """
    if find_spec("llvmlite") is None or platform.machine() not in ("x86_64", "AMD64") or _openmp() is None:
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX2":
        return Processor(8, 12, "haswell", "")
    if not capability.startswith("AVX512"):
        return None
    import llvmlite.binding as llvm

    return Processor(16, 20, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


def compiled(assembly: str) -> Loop:
    """A function of 64-bit integers that runs the assembly's `work` on as many threads as torch uses.

    The first integer is the number of pieces that the threads share among them. Takes 10 to 40 ms.
    """
    import llvmlite.binding as llvm

    this, openmp = processor(), _openmp()
    assert this is not None
    assert openmp is not None
    with _LOCK:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
            llvm.add_symbol(name, ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value)
        target = llvm.Target.from_default_triple().create_target_machine(cpu=this.name, features=this.features, opt=2)
        width = f'attributes #0 = {{ nounwind "prefer-vector-width"="{32 * this.lanes}" }}'
        module = llvm.parse_assembly("\n".join([assembly, TEAM, width]))
        module.verify()
        engine = llvm.create_mcjit_compiler(module, target)
        engine.finalize_object()
    shared = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)(engine.get_function_address("shared"))

    def run(*arguments: int) -> None:
        packed = (ctypes.c_int64 * len(arguments))(*arguments)
        shared(ctypes.addressof(packed), min(torch.get_num_threads(), arguments[0]))

    run.engine = engine  # type: ignore[attr-defined]  # the machine code is gone with it
    return run


@cache
def _openmp() -> ctypes.CDLL | None:
    """The library of threads that torch has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    loaded = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "gomp" in line}
    of_torch = {path for path in loaded if Path(torch.__file__).parent in Path(path).parents}
    found = of_torch or loaded
    return ctypes.CDLL(found.pop()) if len(found) == 1 else None
