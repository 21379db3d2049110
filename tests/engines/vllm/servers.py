"""A server of `layerlens serve`, and what it answers."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = {"served-model-name": "m", "dtype": "float32", "max-model-len": 64, "max-num-seqs": 8, "host": "127.0.0.1"}


@contextmanager
def server(folder: str, log: Path, *ours: str, **options: Any) -> Iterator[tuple[str, int]]:
    """The address of a server that decodes from the valley, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = OPTIONS | {"port": port} | options
    theirs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [
        "serve",
        "--model",
        folder,
        "--strategy",
        "valley",
        "--window",
        "4",
        *ours,
        "--",
        "--enforce-eager",
        *theirs,
    ]
    # a server has processes of its own, and tells what goes wrong
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("w") as output:
        program = [sys.executable, "-m", "layerlens", *command]
        process = subprocess.Popen(program, stdout=output, stderr=output, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"{address}/health")
                break
            except OSError:
                time.sleep(1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def call(url: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
    """Status and answer; with a key, where the server asks for one."""
    data = None if body is None else json.dumps(body).encode()
    try:
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def processes(root: int) -> dict[int, int]:
    """The process and all that it has started, each with the bytes that it alone has in memory."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(stat.parent.name)] = int(after[1])
    found, waiting = {}, [root]
    while waiting:
        one = waiting.pop()
        found[one] = _own_bytes(one)
        waiting += [child for child, parent in parents.items() if parent == one]
    return found


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
