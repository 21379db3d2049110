"""What inspect calls when a task has ended, once a model was asked to trace its answers."""

from typing import Any
from weakref import WeakSet

from inspect_ai.hooks import Hooks, TaskEnd, hooks

TRACING: "WeakSet[Any]" = WeakSet()
"""The providers that trace the answers of a task when it has ended."""


@hooks(name="layerlens_traces", description="Writes the traces that a model of layerlens was asked for.")
class Traces(Hooks):
    """Has the answers of a task traced where its model was given `trace=DIR`."""

    def enabled(self) -> bool:
        """Whether there is such a model."""
        return len(TRACING) > 0

    async def on_task_end(self, data: TaskEnd) -> None:
        """Write the run of the task that has ended."""
        for provider in list(TRACING):
            await provider.trace_answers(data.log)
