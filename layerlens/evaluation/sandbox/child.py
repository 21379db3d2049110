"""The process in which a program of a model runs: it gives up what it must not have, and then runs the program.

It is started as a script by `parent` and imports nothing of layerlens. Arguments: the file of the program, bytes of
memory, seconds of processor time, and the name of a function or "". With a name, standard input has a line of JSON for
each argument, and the result is written to standard output as JSON.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

NOT_SAFE = 97  # the status where the kernel lacks what is needed

_LANDLOCK = {"create": 444, "add": 445, "restrict": 446}  # the same on all processors
_ALL_RIGHTS = [0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1]  # of files, by version
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_READABLE = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null"),
    "/dev/urandom",
)
_TCP = 0b11  # bind and connect
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE_THREAD = 0x00010000

# number on x86-64, number on arm64; None where the processor has no such call
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "arch_prctl": (158, None),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
# calls that could also make the kernel send signals to other processes, and what may be asked of them
_FCNTL, _IOCTL = (72, 25), (16, 29)
_OF_FCNTL = (0, 1, 2, 3, 4, 1030)  # duplicate, and get and set flags
_OF_IOCTL = (
    0x5401,
    0x5413,
    0x5421,
    0x5450,
    0x5451,
)  # what terminals are, whether reads wait, whether files are passed on
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def main() -> int:
    """The exit status."""
    path, memory, seconds, function = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    code = Path(path).read_text(encoding="utf-8")
    try:
        give_up(memory, seconds)
    except OSError as error:
        print(error, file=sys.stderr)
        return NOT_SAFE
    if not function:
        exec(compile(code, "program", "exec"), {"__name__": "__main__"})
        return 0
    arguments = [json.loads(line) for line in sys.stdin.read().splitlines() if line.strip()]
    results = os.dup(1)
    sys.stdout = sys.stderr  # what the program prints is no result
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(code, "program", "exec"), names)
    owner = names.get("Solution")
    called = getattr(owner(), function) if owner is not None else names[function]
    result = json.dumps(called(*arguments)).encode()
    while result:
        result = result[os.write(results, result) :]
    return 0


def give_up(memory: int, seconds: int) -> None:
    """Limit this process for good; OSError where the kernel cannot."""
    if platform.machine() not in _ARCHITECTURES or sys.platform != "linux":
        raise OSError(f"{sys.platform} on {platform.machine()} is not known")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    _done(libc.prctl(38, 1, 0, 0, 0), "no new privileges")
    _forbid_files(libc)
    _forbid_calls(libc)


def _done(result: int, what: str) -> int:
    if result < 0:
        raise OSError(f"the kernel does not offer {what} ({os.strerror(ctypes.get_errno())})")
    return result


def _forbid_files(libc: Any) -> None:
    """Leave nothing but reading what Python itself reads (Landlock)."""
    version = _done(libc.syscall(_LANDLOCK["create"], None, 0, 1), "Landlock")
    rights = _ALL_RIGHTS[min(version, len(_ALL_RIGHTS) - 1)]
    ruled = struct.pack("QQ", rights, _TCP)[: 16 if version >= 4 else 8]
    rules = _done(libc.syscall(_LANDLOCK["create"], ctypes.c_char_p(ruled), len(ruled), 0), "Landlock")
    paths = sysconfig.get_paths()
    places = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += [Path(sys.executable).resolve().parent, Path(sys.base_prefix, "lib"), *map(Path, _READABLE)]
    for place in places:
        try:
            handle = os.open(place, os.O_PATH)
        except OSError:
            continue
        wanted = _READ_FILE | _READ_DIR if place.is_dir() else _READ_FILE
        rule = struct.pack("=Qi", wanted, handle)
        _done(libc.syscall(_LANDLOCK["add"], rules, 1, ctypes.c_char_p(rule), 0), "rules of Landlock")
        os.close(handle)
    _done(libc.syscall(_LANDLOCK["restrict"], rules, 0), "Landlock")
    os.close(rules)


def _forbid_calls(libc: Any) -> None:
    """Leave only calls that compute, read and write open files (seccomp)."""
    column, audit = _ARCHITECTURES[platform.machine()]
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    number, architecture, first, second, third = 0, 4, 16, 24, 32  # places in what the kernel tells of a call
    program = [(load, 0, 0, architecture), (equal, 1, 0, audit), (give, 0, 0, 0x80000000), (load, 0, 0, number)]
    for call in _CALLS.values():
        if (known := call[column]) is not None:
            program += [(equal, 0, 1, known), (give, 0, 0, _ALLOW)]
    for numbers, asked in ((_FCNTL, _OF_FCNTL), (_IOCTL, _OF_IOCTL)):
        program += [(equal, 0, 2 * len(asked) + 2, numbers[column]), (load, 0, 0, second)]
        for one in asked:
            program += [(equal, 0, 1, one), (give, 0, 0, _ALLOW)]
        program.append((give, 0, 0, _EPERM))
    # a new thread, and not a new process; the newer call hides its flags, and is said not to exist
    program += [(equal, 0, 1, _CLONE3[column]), (give, 0, 0, _ENOSYS)]
    program += [(equal, 0, 4, _CLONE[column]), (load, 0, 0, first), (bits, 0, 1, _CLONE_THREAD)]
    program += [(give, 0, 0, _ALLOW), (give, 0, 0, _EPERM)]
    # asking for a limit, and not setting one
    program += [(equal, 0, 5, _PRLIMIT[column]), (load, 0, 0, third), (equal, 0, 3, 0)]
    program += [(load, 0, 0, third + 4), (equal, 0, 1, 0), (give, 0, 0, _ALLOW), (give, 0, 0, _EPERM)]
    code = b"".join(struct.pack("HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code)
    told = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _done(libc.prctl(22, 2, ctypes.c_char_p(told), 0, 0), "filters of system calls")


if __name__ == "__main__":
    sys.exit(main())
