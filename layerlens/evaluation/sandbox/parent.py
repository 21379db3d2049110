"""Starts a program of a model in a process of its own, and tells what came of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from layerlens.errors import OptionError
from layerlens.evaluation.sandbox.child import NOT_SAFE

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Limits:
    """What a program gets."""

    seconds: float = 10.0
    """Of the clock, and of the processor."""
    memory: int = 2 << 30
    """Bytes of address space."""
    output: int = 16 << 20
    """Bytes of standard output."""


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    reason: str
    """"ended", "timeout", "too much output", "failed" (a status other than 0)."""
    output: str
    errors: str
    """The last of what it wrote to standard error."""


@cache
def refuse_unsafe() -> None:
    """OptionError where this system cannot keep a program from doing harm."""
    if sys.platform != "linux":
        raise _not_here(f"this is {sys.platform}")
    done = _run("print('ok')", "", Limits(), "")
    if done.output != "ok\n":
        raise _not_here(done.errors.strip().splitlines()[-1] if done.errors.strip() else "a program did not start")


def _not_here(why: str) -> OptionError:
    what = f"is not safe here: {why}"
    advice = "use Linux with Landlock and seccomp, on x86-64 or arm64"
    return OptionError.about("allow_code_execution", True, what, advice)


def run_program(code: str, given: str, limits: Limits = Limits()) -> Outcome:
    """Run a program with a text as its standard input."""
    refuse_unsafe()
    return _run(code, given, limits, "")


def run_function(code: str, name: str, arguments: Sequence[Any], limits: Limits = Limits()) -> Outcome:
    """Call a function of a program, or a method of its class Solution; the output is the result as JSON."""
    refuse_unsafe()
    return _run(code, "".join(json.dumps(one) + "\n" for one in arguments), limits, name)


def _run(code: str, given: str, limits: Limits, function: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text(code, encoding="utf-8", errors="replace")
        seconds = max(1, round(limits.seconds))
        arguments = [sys.executable, "-I", str(_CHILD), str(path), str(limits.memory), str(seconds), function]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        return _watched(process, given.encode(errors="replace"), limits)


def _watched(process: "subprocess.Popen[bytes]", given: bytes, limits: Limits) -> Outcome:
    """What a process writes, until it ends or is ended."""
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None
    assert stdout is not None
    assert stderr is not None
    found: dict[str, bytes] = {"output": b"", "errors": b""}
    too_much = threading.Event()

    def feed() -> None:
        with contextlib.suppress(OSError):
            stdin.write(given)
        with contextlib.suppress(OSError):
            stdin.close()

    def read(name: str, stream: Any, most: int) -> None:
        while part := stream.read1(1 << 16):
            found[name] = (found[name] + part)[-most:] if name == "errors" else found[name] + part
            if name == "output" and len(found[name]) > most:
                too_much.set()
                _end(process)
                return

    threads = [
        threading.Thread(target=feed, daemon=True),
        threading.Thread(target=read, args=("output", stdout, limits.output), daemon=True),
        threading.Thread(target=read, args=("errors", stderr, 4096), daemon=True),
    ]
    for thread in threads:
        thread.start()
    timed_out = False
    try:
        process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        _end(process)
    process.wait()
    for thread in threads:
        thread.join(1)
    for stream in (stdout, stderr):
        stream.close()
    timed_out |= process.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and not too_much.is_set()
    reason = "too much output" if too_much.is_set() else "timeout" if timed_out else "failed"
    if process.returncode == 0 and not (timed_out or too_much.is_set()):
        reason = "ended"
    if process.returncode == NOT_SAFE:
        reason = "failed"
    return Outcome(reason, *(found[name].decode(errors="replace") for name in ("output", "errors")))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process, and what it may have started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
