"""layerlens as a provider of models for inspect: `inspect eval TASK --model layerlens/MODEL`. inspect loads this module
for each of its commands, so that it imports nothing heavy."""

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="layerlens")
def layerlens() -> type[Any]:
    """The class of the provider, once a model of it is asked for."""
    from layerlens.evaluation.inspect.provider import Provider

    return Provider
