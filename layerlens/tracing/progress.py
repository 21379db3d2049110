"""A progress bar: what is being done, how much of it is done, tokens a second, time left."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A context manager that shows on standard error how much of each part of the work is done. It shows nothing where
    there is no terminal.
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

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, doing: str, total: int, unit: str, done: int = 0) -> None:
        """Show another part of the work, in place of the one before."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._tokens, self._started = 0, time.perf_counter()
        self._task = self._bar.add_task(doing, total=total, completed=done, unit=unit, speed="–")

    def advance(self, n: int, n_tokens: int = 0) -> None:
        """Count units of the part as done, and tokens."""
        if n_tokens:
            self.advance_tokens(n_tokens)
        self._bar.advance(self._task, n)

    def advance_tokens(self, n_tokens: int) -> None:
        """Count tokens as done and show their rate."""
        self._tokens += n_tokens
        speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, speed=f"{speed:,.0f}")
