"""Criteria of how sure a layer is. Each maps logits [rows, vocab] to one number for each row; lower is surer."""

from collections.abc import Callable

import torch

from layerlens.axes import Logits, Scalars
from layerlens.lens.sums import Sums

Criterion = Callable[[Logits], Scalars]


def shannon(logits: Logits) -> Scalars:
    """Entropy −Σ p ln p in nats, 0..ln V; NaN where a logit is. Eq. 5 of arXiv 2606.21906."""
    return Sums.of_rows(logits).entropy(logits.shape[1])


def neg_sum_sq_logp(logits: Logits) -> Scalars:
    """−Σ (ln p)²: what the method's first release computed in place of the entropy, by the same operations in order.

    The release took the logarithm in place, so that probability times logarithm became the logarithm squared. The value
    is lower where improbable tokens are less probable. It is minus infinity where a probability underflows in float32.
    That is not rare in practice, and it ends a walk there.
    """
    probs = torch.softmax(logits, dim=-1)
    log_probs = probs.log_()
    return -(probs * log_probs).sum(dim=-1)


def max_prob(logits: Logits) -> Scalars:
    """Minus the largest probability, −1..−1/V."""
    return -1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)


def margin(logits: Logits) -> Scalars:
    """The second largest probability minus the largest, −1..0."""
    exps = (logits - logits.amax(1, keepdim=True)).exp()
    best = exps.topk(2, dim=1).values
    return (best[:, 1] - best[:, 0]) / exps.sum(1)


CRITERIA: dict[str, Criterion] = {
    "shannon": shannon,
    "neg-sum-sq-logp": neg_sum_sq_logp,
    "max-prob": max_prob,
    "margin": margin,
}
