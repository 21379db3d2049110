"""Compiles a loop for the processor at hand, by LLVM, to run on torch's own threads.

Other threads would be slow: torch's own threads keep the processor busy while they wait for their next work.
"""

import ctypes
import mmap
import os
import platform
import threading
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from layerlens.compat import give_llvmlite_attributes
from layerlens.errors import Notice
from layerlens.native.assembly import TEAM

Loop = Callable[..., None]
_LOCK = threading.Lock()
# held during a fork: the child has no thread that would finish what another began
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)
_READ, _EXECUTE = 1, 4
_NO_WORK = "define void @work(ptr %arguments, i64 %begin, i64 %end) {\n  ret void\n}"


class Processor(NamedTuple):
    """The processor that loops are compiled for."""

    lanes: int
    """Float32 values in a register."""
    sums: int
    """Sums of products that fit into registers at once, one for each state and row of the weight."""
    name: str
    features: str


@cache
def processor() -> Processor | None:
    """The instruction set that torch itself uses, so that a setting that limits torch limits the loops too.

    None where there is no compiler, no instruction that multiplies and adds many values, no GNU OpenMP, which torch
    brings on Linux, or no permission to run what was compiled. If a compiler is installed and does not work, a notice
    says so.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() not in ("x86_64", "AMD64") or not capability.startswith(("AVX2", "AVX512")):
        return None
    try:
        if find_spec("llvmlite") is None or _openmp() is None or not _may_run_what_it_writes():
            return None
        import llvmlite.binding as llvm

        give_llvmlite_attributes()
        if capability == "AVX2":
            this = Processor(8, 12, "haswell", "")
        else:
            this = Processor(16, 20, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
        compiled(_NO_WORK, this)
    except Exception as error:  # a compiler of another version, or half installed, may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = (
            f"llvmlite cannot be used ({reason}), so torch's slower products are used; install llvmlite 0.45 or newer"
        )
        warnings.warn(message, Notice, stacklevel=2)
        return None
    return this


def compiled(assembly: str, this: Processor) -> Loop:
    """A function of 64-bit integers that runs the assembly's `work` on as many threads as torch uses.

    The first integer is the number of pieces that the threads share among them. Takes 10 to 40 ms.
    """
    import llvmlite.binding as llvm

    openmp = _openmp()
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


def _may_run_what_it_writes() -> bool:
    """Whether the system allows running memory that was written; LLVM does not check this before it runs code."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        buffer = ctypes.c_char.from_buffer(page)
        refused: int = protect(
            ctypes.c_void_p(ctypes.addressof(buffer)), ctypes.c_size_t(mmap.PAGESIZE), _READ | _EXECUTE
        )
        del buffer
    return refused == 0


@cache
def _openmp() -> ctypes.CDLL | None:
    """The library of threads that torch has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    loaded = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "gomp" in line}
    of_torch = {path for path in loaded if Path(torch.__file__).parent in Path(path).parents}
    libraries = of_torch or loaded
    return ctypes.CDLL(libraries.pop()) if len(libraries) == 1 else None
