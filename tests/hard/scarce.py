"""Work that runs out of memory, of room on the disk, or of permission to write, and is done again once there is more.

Linux only: what is scarce is so for one child process, which nothing outlives.
"""

import contextlib
import ctypes
import os
import random
import re
import resource
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerlens.errors import LayerlensError
from tests.hard.crashes import Door
from tests.killed import _SERVER

_NEW_MOUNTS, _NEW_USER = 0x0002_0000, 0x1000_0000
_REMOUNT = 32
_ENOUGH = 256 * 2**20


def _system(call: str, *arguments: object) -> None:
    """A call to the system; OSError where it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments):
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


def _nobody_special() -> None:
    """From here on this process may write only what its user may; root loses its privilege."""
    _system("unshare", _NEW_USER)


def _own_mounts() -> None:
    """From here on this process may mount, and nobody else sees what it mounts."""
    user, group = os.getuid(), os.getgid()
    _system("unshare", _NEW_USER | _NEW_MOUNTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)


def _room(folder: Path, size: int, flags: int = 0) -> None:
    """Mount a disk in memory of so many bytes, or change its size."""
    _system("mount", b"none", bytes(folder), b"tmpfs", flags, f"size={size}".encode())


def _tried(allowed: Callable[[], object]) -> bool:
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(OSError):
            allowed()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


needs_mounts = pytest.mark.skipif(not _tried(_own_mounts), reason="this system lets no process mount for itself")
needs_users = pytest.mark.skipif(not _tried(_nobody_special), reason="this system has no user namespaces")


def taken(place: Path) -> int:
    """Bytes that are written on a disk in memory."""
    said = os.statvfs(place)
    return (said.f_blocks - said.f_bfree) * said.f_frsize


def outcome(work: Callable[[Path], object], folder: Path) -> str:
    """Do work that may fail with one sentence: "ended" or "refused"."""
    said = None
    try:
        work(folder)
    except LayerlensError as error:
        said = str(error)
    assert said is None or "\n" not in said
    return "ended" if said is None else "refused"


def full_disks(door: Door, folder: Path, expected: Any, n: int) -> Counter[str]:
    """Do the work of a door n times on a disk that is too small, then again with room; how the first tries ended.

    Args:
        door: what to do.
        folder: holds what the door needs, in "prepared".
        expected: its result.
        n: how many sizes are tried.
    """
    _own_mounts()
    ends: Counter[str] = Counter()
    place = folder / "disk"
    place.mkdir()
    needed = 0
    for number in range(n + 1):
        _room(place, _ENOUGH)
        shutil.copytree(folder / "prepared", place, dirs_exist_ok=True)
        before, room = taken(place), _ENOUGH
        if needed:
            room = random.Random(f"{door.name} {number}").randrange(needed)
            _room(place, before + room, _REMOUNT)
            ends[outcome(door.work, place)] += 1
            _room(place, _ENOUGH, _REMOUNT)
        door.work(place)
        assert door.result(place) == expected, f"{door.name} with {room} bytes"
        left = [path for path in place.rglob("*") if ".partial" in path.name]
        assert not left, (number, left)
        needed = needed or taken(place) - before
        _system("umount2", bytes(place), 2)
    return ends


def locked_folders(door: Door, folder: Path, seconds: float, n: int) -> Counter[str]:
    """Do the work of a door n times in folders that become read-only at once, or at a random moment; how it ended.

    The folders are left as "0", "1" and so on.
    """
    _nobody_special()
    ends: Counter[str] = Counter()
    for number in range(n):
        place = folder / str(number)
        shutil.copytree(folder / "prepared", place)
        moment = random.Random(f"{door.name} {number}").uniform(0, seconds) if number else 0.0
        with locking(place, moment):
            ends[outcome(door.work, place)] += 1
    return ends


@contextlib.contextmanager
def locking(place: Path, moment: float) -> Iterator[None]:
    """Another process takes the permission to write folders away after some seconds, and gives it back at the end."""
    child = os.fork()
    if not child:
        import time

        time.sleep(moment)
        for path in (place, *place.rglob("*")):
            if path.is_dir():
                path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        for path in (place, *place.rglob("*")):
            if path.is_dir():
                path.chmod(stat.S_IRWXU)


def virtual() -> int:
    """Bytes of address space of this process."""
    return int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def short_of_memory(door: Door, folder: Path, more: int) -> str:
    """Do the work of a door with so many bytes more than the process has once it did it elsewhere.

    Kernels that cannot be loaded for lack of memory are replaced by torch's, which round differently.
    """
    elsewhere = shutil.copytree(folder, folder.with_name(f"{folder.name} elsewhere"))
    door.work(elsewhere)
    shutil.rmtree(elsewhere)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of memory
    resource.setrlimit(resource.RLIMIT_AS, (virtual() + more, resource.RLIM_INFINITY))
    try:
        return outcome(door.work, folder)
    except (MemoryError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}"


def in_a_child(call: Callable[..., Any], *arguments: object, within: float = 600) -> Any:
    """What a function returns in a process of its own; the exit status where it returns nothing, such as -9.

    A process that has not ended after so many seconds is killed.
    """
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_report, args=(sender, call, arguments))
    process.start()
    sender.close()
    result = None
    with contextlib.suppress(EOFError):
        if receiver.poll(within):
            result = receiver.recv()
        else:
            process.kill()
    process.join(60)
    return process.exitcode if result is None else result


def _report(sender: Any, call: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    os.fsync = lambda _: None  # a power failure is not tried
    sender.send(call(*arguments))
    sender.close()
    os._exit(0)
