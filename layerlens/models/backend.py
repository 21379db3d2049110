"""Where a model's weights are, and what runs its passes; `tracing/engines.py` uses it for traces."""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Connection:
    """What runs a model's passes.

    Attributes:
        name: one of `choices.BACKENDS`.
        is_here: whether the weights are in this process, so that any strategy can decode from them.
    """

    name: str
    is_here: bool = True


TRANSFORMERS = Connection("transformers")
TRANSFORMER_LENS = Connection("transformer-lens")
