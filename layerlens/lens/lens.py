"""What every lens is: from residual-stream states to a few numbers of each."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.axes import Scalars, States, TokenIds


@runtime_checkable
class Lens(Protocol):
    """A pure function of states; `LogitLens` is the one that reads them by the model's own head."""

    def __call__(self, states: States, layer: int) -> "Reading":
        """What the model would say if it stopped at these states of layer 1..L."""


class Reading(NamedTuple):
    """What the model would say if it stopped at a state."""

    entropy: Scalars
    """Shannon entropy in nats, 0..ln V; NaN where a logit is. Eq. 5 of arXiv 2606.21906."""
    top_token_id: TokenIds
    """Arg-max of the logits; on a CPU the lowest id where several are equal."""
    log_normalizer: Scalars
    """ln Σ exp(logit)."""
    log_probs: Float[Tensor, "rows chosen"] | None
    """Natural log-probability of each chosen token, <= 0; None where none were asked for."""

    @classmethod
    def of_nothing(cls, states: Tensor, chosen: Tensor | None) -> "Reading":
        """Of no state at all."""
        empty = states.new_empty(0, dtype=torch.float32)
        return cls(empty, empty.long(), empty, None if chosen is None else empty.new_empty(0, chosen.shape[1]))
