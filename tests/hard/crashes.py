"""Work that is stopped at random moments, done again, and compared with the same work left alone.

Everything here is run in processes of its own, so it can be imported.
"""

import contextlib
import io
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import layerlens as ll
import layerlens.cli
from layerlens.errors import LayerlensError
from tests.conftest import tiny
from tests.killed import _SERVER

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PROMPTS = [f"prompt {number}" + " of words" * (number % 4) for number in range(8)]
FEW = {"max_new_tokens": 5, "batch_size": 1, "progress": False}
_TIMES = ("seconds", "session_seconds", "created", "command", "resumed", "totals", "logs", "hardware")


def nothing(_: Path) -> None:
    """What most work needs."""


@dataclass(frozen=True)
class Door:
    """A piece of work in a folder that goes on where it was stopped."""

    name: str
    work: Callable[[Path], object]
    """Begins, or goes on with what an earlier process left."""
    result: Callable[[Path], Any]
    """What it made, without times."""
    prepare: Callable[[Path], object] = nothing
    """Makes what the work needs."""


def generating(folder: Path) -> None:
    """Trace while tokens are generated from the valley."""
    ll.trace(tiny("llama"), PROMPTS, out=folder / "run", resume=True, strategy=ll.Valley(window=3), kl=True, **FEW)


def replaying(folder: Path) -> None:
    """Trace texts that are given."""
    ll.trace(tiny("llama"), PROMPTS, out=folder / "run", resume=True, **FEW | {"max_new_tokens": 0, "positions": "all"})


def evaluating(folder: Path) -> None:
    """Answer problems from the last layer and from the valley."""
    few = {"limit": 3, "max_new_tokens": 4, "window": 3, "progress": False}
    ll.evaluate(tiny("llama"), ["sample"], ["last", "valley"], out=folder / "out", **few)


def ablating(folder: Path) -> None:
    """Answer problems with a valley that speaks half of the time."""
    few = {"limit": 2, "max_new_tokens": 4, "progress": False}
    ll.ablate(tiny("llama"), ["sample"], arms=["valley"], p=[0.5, 1.0], out=folder / "out", **few)


def fitting(folder: Path) -> None:
    """Fit a lens."""
    out = folder / "lens.safetensors"
    if not out.exists():
        texts = [f"text {number} with words " * 3 for number in range(60)]
        ll.fit_lens(tiny("llama"), texts, out=out, resume=True, progress=False)


def two_runs(folder: Path) -> None:
    """Two runs that can be merged."""
    for name, texts in (("first", PROMPTS[:4]), ("second", PROMPTS[4:])):
        prompts = [ll.Prompt(f"{name} {number}", text) for number, text in enumerate(texts)]
        ll.trace(tiny("llama"), prompts, out=folder / name, strategy=ll.Valley(window=3), **FEW)


def merging(folder: Path) -> None:
    """Merge two runs."""
    if not (folder / "run").exists():
        ll.merge([folder / "first", folder / "second"], out=folder / "run")


def drawing(folder: Path) -> None:
    """Draw a figure of a run."""
    _command("figure", "1", "--run", folder / "first", "--out", folder / "out")


def reporting(folder: Path) -> None:
    """Write the page of a run."""
    _command("report", folder / "first", "--out", folder / "out.html")


def _command(*arguments: object) -> None:
    """Run the command line in this process; its sentence is raised."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = layerlens.cli.run([str(argument) for argument in arguments])
    if code == 2:
        raise LayerlensError(said.getvalue().strip())
    assert code == 0, said.getvalue()


def of_run(folder: Path) -> Any:
    """Records of a run, its files, and each prompt's place."""
    run = ll.open_run(folder / "run")
    assert run.is_complete
    assert not run.positions.duplicated(["prompt_id", "position"]).any()
    frames = [run.tokens, run.prompts.drop(columns="seconds"), run.words.to_frame()]
    return [str(frame.to_dict("list")) for frame in frames], _files(folder / "run"), _entries(folder / "run")


def of_evaluation(folder: Path) -> Any:
    """Answers of an evaluation."""
    answers = pd.read_parquet(folder / "out" / "answers.parquet")
    assert not answers.duplicated(["task", "item", "epoch", "arm"]).any()
    files = [name for name in _files(folder / "out") if not name.startswith("logs/")]
    # which requests share a batch depends on the moment, and rounding depends on that
    return str(answers.round(4).to_dict("list")), files, _entries(folder / "out")["evaluation"]


def of_lens(folder: Path) -> Any:
    """Tensors of a lens."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "lens.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, _files(folder)


def of_files(folder: Path) -> Any:
    """Bytes of what was written beside the runs."""
    name = str(folder).encode()  # which a page shows
    written = {path: path.read_bytes().replace(name, b"") for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        str(path.relative_to(folder)): content
        for path, content in written.items()
        if path.relative_to(folder).parts[0] not in ("first", "second")
    }


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _entries(folder: Path) -> Any:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in manifest.items() if name not in _TIMES}


DOORS = (
    Door("trace", generating, of_run),
    Door("replay", replaying, of_run),
    Door("eval", evaluating, of_evaluation),
    Door("ablate", ablating, of_evaluation),
    Door("fit-lens", fitting, of_lens),
    Door("merge", merging, of_run, two_runs),
    Door("figure", drawing, of_files, two_runs),
    Door("report", reporting, of_files, two_runs),
)


def _in_a_process(work: Callable[[Path], object], folder: Path, ready: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background ignores
    ready.set()
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    os.fsync = lambda _: None  # a power failure is not tried
    work(folder)


def stopped(door: Door, folder: Path, number: int, within: float) -> str:
    """Do the work of a door in another process, and stop it at a moment that follows from the number.

    Returns:
        "ended" where the work was done before, "stopped" otherwise. AssertionError where the process does not end.
    """
    ready = _SERVER.Event()
    process = _SERVER.Process(target=_in_a_process, args=(door.work, folder, ready))
    process.start()
    assert ready.wait(60)
    time.sleep(random.Random(f"{door.name} {number}").uniform(0, within))
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(process.pid, SIGNALS[number % len(SIGNALS)])
    process.join(20)
    assert not process.is_alive(), f"{door.name} goes on after {SIGNALS[number % len(SIGNALS)].name}"
    return "ended" if process.exitcode == 0 else "stopped"
