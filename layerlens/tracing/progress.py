"""A progress bar for people who wait: prompts, tokens a second, time left."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Counts prompts and tokens, on standard error; shows nothing where nobody watches. A context manager."""

    def __init__(self, n_prompts: int, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("tracing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts · {task.fields[speed]} tokens/s ·"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not (shown and (console.is_terminal or console.is_jupyter)),
            transient=True,
        )
        self._task = self._bar.add_task("", total=n_prompts, speed="–")
        self._tokens = 0
        self._started = time.perf_counter()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance_prompts(self, n_prompts: int) -> None:
        """Count prompts as done."""
        self._bar.advance(self._task, n_prompts)

    def advance_tokens(self, n_tokens: int) -> None:
        """Count tokens as done and show their rate."""
        self._tokens += n_tokens
        speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, speed=f"{speed:,.0f}")
