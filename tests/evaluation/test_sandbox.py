"""Programs that loop, fork, allocate, write, read, open sockets or send signals: each ends, and nothing else does."""

import json
import os
import time
from pathlib import Path

import pytest

from layerlens.errors import OptionError
from layerlens.evaluation.sandbox import Limits, refuse_unsafe, run_function, run_program

try:
    refuse_unsafe()
except OptionError as error:
    pytest.skip(str(error), allow_module_level=True)

SHORT = Limits(seconds=20, memory=512 << 20)


def test_a_program_reads_and_writes_its_own_streams():
    done = run_program("import sys\nprint(sum(int(line) for line in sys.stdin))", "1\n2\n39\n")
    assert (done.reason, done.output) == ("ended", "42\n")


def test_a_function_gets_its_arguments_and_gives_its_result():
    code = "class Solution:\n    def both(self, a, b):\n        print('noise')\n        return [b, a]"
    assert json.loads(run_function(code, "both", [1, {"x": "ü"}]).output) == [{"x": "ü"}, 1]
    assert json.loads(run_function("def double(x):\n    return 2 * x", "double", [21]).output) == 42


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np; print(round(float(np.ones((50, 50)).dot(np.ones((50, 50))).sum())))",
        "import threading\nfound = []\nt = threading.Thread(target=found.append, args=(125000,)); t.start(); t.join()\n"
        "print(found[0])",
        "import collections, heapq, bisect, itertools, functools, re, random, string, decimal, fractions, datetime, "
        "statistics, typing, math\nprint(125000)",
        "import sys\nsys.setrecursionlimit(10 ** 5)\nprint(125000)\nsys.exit(0)",
    ],
)
def test_what_honest_programs_need_works(code):
    done = run_program(code, "")
    assert (done.reason, done.output) == ("ended", "125000\n"), done.errors


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nwhile True: pass",
    ],
)
def test_a_program_that_does_not_end(code):
    started = time.monotonic()
    assert run_program(code, "", Limits(seconds=1)).reason == "timeout"
    assert time.monotonic() - started < 5


HOSTILE = {
    "fork": "import os\nos.fork()",
    "vfork": "import subprocess; subprocess.run(['ls'])",
    "clone": "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
    "exec": "import os; os.execv('/bin/ls', ['ls'])",
    "shell": "import os\nif os.system('true'): raise SystemExit(3)",
    "memory": "x = bytearray(8 << 30)",
    "lists": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "write": "open('{folder}/evil', 'w').write('x')",
    "append": "open('{file}', 'a').write('x')",
    "truncate": "import os; os.truncate('{file}', 0)",
    "unlink": "import os; os.unlink('{file}')",
    "rename": "import os; os.rename('{file}', '{folder}/other')",
    "mkdir": "import os; os.mkdir('{folder}/evil')",
    "chmod": "import os; os.chmod('{file}', 0)",
    "times": "import os; os.utime('{file}', (0, 0))",
    "link": "import os; os.symlink('{file}', '{folder}/evil')",
    "read": "print(open('{file}').read())",
    "list": "import os; print(os.listdir('{folder}'))",
    "environment": "print(open('/proc/{parent}/environ').read())",
    "socket": "import socket; socket.socket()",
    "unix socket": "import socket; socket.socketpair()",
    "address": "import socket; socket.create_connection(('127.0.0.1', 80), 1)",
    "kill": "import os; os.kill({parent}, 9)",
    "owner": "import fcntl; fcntl.fcntl(0, 8, {parent})",
    "limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
    "ctypes": "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.socket(2, 1, 0) < 0: raise SystemExit(3)",
    "raw call": "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.syscall(57) < 0: raise SystemExit(3)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_program_must_not_do(name, tmp_path):
    file = tmp_path / "precious"
    file.write_text("kept")
    file.chmod(0o640)
    before = file.stat()
    code = HOSTILE[name].format(folder=tmp_path, file=file, parent=os.getpid())
    done = run_program(code, "", SHORT)
    assert (done.reason, done.output) == ("failed", "")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    after = file.stat()
    assert (file.read_text(), after.st_mode, after.st_mtime_ns) == ("kept", before.st_mode, before.st_mtime_ns)


def test_too_much_output_ends_a_program():
    done = run_program("while True: print('x' * 100000)", "", Limits(seconds=20, output=1 << 20))
    assert done.reason == "too much output"


def test_nothing_runs_on(tmp_path):
    run_program(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "", Limits(seconds=1)
    )
    mine = [stat for stat in Path("/proc").glob("[0-9]*/cmdline") if b"sandbox/child.py" in _read(stat)]
    assert mine == []


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_is_no_code(tmp_path):
    assert run_program("def (", "").reason == "failed"
    assert run_program("\ud800", "").reason == "failed"
    assert run_function("x = 1", "missing", []).reason == "failed"
