"""Where a model's weights lie and what runs its passes; `tracing/engines.py` asks each for what a trace needs."""

from dataclasses import dataclass

BACKENDS = ("transformers", "transformer-lens", "nnsight", "nnsight-remote", "nnsight-simulated")


@dataclass(frozen=True, eq=False)
class Connection:
    """What runs a model's passes.

    Attributes:
        name: one of BACKENDS.
        is_here: whether the weights lie in this process, so that any strategy can decode from them.
    """

    name: str
    is_here: bool = True


TRANSFORMERS = Connection("transformers")
TRANSFORMER_LENS = Connection("transformer-lens")
