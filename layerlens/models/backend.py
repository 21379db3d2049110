"""What runs a model's passes and lets them be watched, and what each such backend can do."""

from dataclasses import dataclass

BACKENDS = ("transformers", "transformer-lens", "nnsight", "nnsight-remote", "nnsight-simulated")


@dataclass(frozen=True, eq=False)
class Backend:
    """A backend and what it can do; asking for more is refused in one sentence.

    Attributes:
        name: one of BACKENDS.
        modes: when a trace can record: "generate" (while tokens are emitted), "replay" (in one pass afterwards).
        uses_meter: whether states are measured by layerlens here, which --kl and --lens-precision ask for.
        is_here: whether the weights lie in this process, so that any strategy can decode from them.
    """

    name: str
    modes: tuple[str, ...] = ("generate", "replay")
    uses_meter: bool = True
    is_here: bool = True


TRANSFORMERS = Backend("transformers")
TRANSFORMER_LENS = Backend("transformer-lens")
