"""layerlens as a provider of models for inspect: `inspect eval TASK --model layerlens/MODEL`. inspect loads this module
for each of its commands, so that it imports nothing heavy."""

from typing import Any
from weakref import WeakSet

from inspect_ai.hooks import Hooks, TaskEnd, hooks
from inspect_ai.model import modelapi

TRACING: "WeakSet[Any]" = WeakSet()
"""The providers that trace the answers of a task when it has ended."""


@modelapi(name="layerlens")
def layerlens() -> type[Any]:
    """The class of the provider, once a model of it is asked for."""
    from layerlens.evaluation.inspect.provider import Provider

    return Provider


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
