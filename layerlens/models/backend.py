"""Where a model's weights are, and what runs its passes; `tracing/engines.py` uses it for traces."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, eq=False)
class Connection:
    """What runs a model's passes.

    Attributes:
        name: one of `choices.BACKENDS`.
        is_here: whether the weights are in this process, so that any strategy can decode from them.
        home: the name of the module that decodes in place of our own loop, and has the `Engine` of traces; None: the
            loop decodes. A name, because such a module stands above those that use it.
        identity: what tells weights that are not in this process from others of the same shapes.
    """

    name: str
    is_here: bool = True
    home: str | None = None
    identity: str = ""

    def refuse_absent(self) -> None:
        """OptionError where what runs the passes is not installed."""

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says of it beside its name, in which the sessions of a run must agree."""
        return {}

    @property
    def hardware(self) -> dict[str, Any]:
        """What a manifest says of the hardware where the weights are, if that is not this process."""
        return {"processor": "remote"}

    @property
    def elsewhere(self) -> Any:
        """The module of that name."""
        assert self.home is not None
        return import_module(self.home)


TRANSFORMERS = Connection("transformers")
TRANSFORMER_LENS = Connection("transformer-lens")
