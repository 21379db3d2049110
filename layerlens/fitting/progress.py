"""A progress bar for people who wait for a fit: what is done now, how much of it, tokens a second, time left."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Counts what is done of one part of a fit after the other, on standard error; shows nothing where nobody watches.

    A context manager.
    """

    def __init__(self, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} · {task.fields[speed]} tokens/s ·"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not (shown and (console.is_terminal or console.is_jupyter)),
            transient=True,
        )
        self._tokens = 0
        self._started = time.perf_counter()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, doing: str, total: int, unit: str = "texts", done: int = 0) -> None:
        """Show another part of the work, in place of the one before."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._tokens, self._started = 0, time.perf_counter()
        self._task = self._bar.add_task(doing, total=total, completed=done, unit=unit, speed="–")

    def advance(self, n: int, n_tokens: int) -> None:
        """Count units of the part as done, and tokens."""
        self._tokens += n_tokens
        speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, advance=n, speed=f"{speed:,.0f}")
