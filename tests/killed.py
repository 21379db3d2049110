"""Processes that are killed while they work."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

# forked from a process that has imported everything and computed nothing: quick, and no thread's lock is left behind
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["layerlens.tracing.tracer", "layerlens.evaluation.evaluate", "transformers.models.llama.modeling_llama"]
)


def kill_while_working(
    work: Callable[..., Any], *arguments: Any, after: tuple[int, Callable[[], int]], then: float
) -> None:
    """Start `work`, a function of a module, and kill it -9 some seconds after a count is reached, before it ends."""
    enough, count = after
    process: ForkServerProcess = _SERVER.Process(target=work, args=arguments)
    process.start()
    while process.is_alive() and count() < enough:
        time.sleep(0.001)
    time.sleep(then)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the work ended before it was killed"
