"""What a lens returns: a few numbers for each state."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Scalars, TokenIds


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
    ranks: Int[Tensor, "rows chosen"] | None = None
    """How many tokens have a logit that is greater than that of each chosen token by more than rounding; None where
    none were asked for."""
    first_ids: Int[Tensor, "rows k"] | None = None
    """The k tokens with the greatest logits, the greatest first; of equal ones any. None where none were asked for."""
    first_log_probs: Float[Tensor, "rows k"] | None = None
    """Their natural log-probabilities."""

    @classmethod
    def of_nothing(cls, states: Tensor, chosen: Tensor | None) -> "Reading":
        """The reading of no states."""
        empty = states.new_empty(0, dtype=torch.float32)
        return cls(empty, empty.long(), empty, None if chosen is None else empty.new_empty(0, chosen.shape[1]))

    @classmethod
    def joined(cls, parts: Sequence["Reading"]) -> "Reading":
        """The reading of the rows of all parts; all parts must hold the same numbers."""
        fields = zip(*parts, strict=True)
        return cls(*(None if values[0] is None else torch.cat(values) for values in fields))  # type: ignore[arg-type]
