"""What is drafted for one text, and which of it the whole model would have emitted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.sampling import Sampler
from layerlens.lens.sums import arg_max

_SURE = (0.95, 0.8, 0.5)
_WIDTHS = {False: (3, 5, 8, 10), True: (1, 3, 5, 10)}


def width(probability: float, *, samples: bool) -> int:
    """How many tokens a tree holds at a place where the best has this probability; widths of ConfLayers' release."""
    place = sum(probability <= bound for bound in _SURE)
    return _WIDTHS[samples][place]


@dataclass
class Draft:
    """The tokens drafted for one text.

    Attributes:
        places: for each place the tokens that were drafted for it, the one that the draft goes on with first.
        probs: for each place, what these tokens were drawn from one after the other, none twice: [vocab]. Empty where
            tokens are not sampled.
        is_done: whether the draft has stopped.
    """

    places: list[list[int]] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    is_done: bool = False

    @property
    def spine(self) -> list[int]:
        """The tokens that each begin where the one before ended."""
        return [tokens[0] for tokens in self.places]

    def extend(
        self, logits: Float[Tensor, "1 vocab"], sampler: Sampler, step: Tensor, *, samples: bool, tree: bool
    ) -> float:
        """Draft one more place; the probability of the draft's best token there.

        Args:
            logits: of the draft.
            sampler: a fork for this draft.
            step: the number of the token.
            samples: whether tokens are sampled.
            tree: whether the next best tokens are drafted too.
        """
        sure = float(logits[0].float().softmax(0).max())
        scores = sampler.scores(logits, step)
        n = width(sure, samples=samples) if tree else 1
        if samples:
            probs = sampler.probabilities(scores)[0]
            tokens = without_replacement(probs, n, sampler.generator)
            self.probs.append(probs)
        else:
            best = int(arg_max(scores))
            tokens = [best, *(token for token in scores[0].topk(n).indices.tolist() if token != best)][:n]
        self.places.append(tokens)
        sampler.append(torch.tensor(tokens[:1], device=logits.device))
        return sure


def without_replacement(probs: Float[Tensor, " vocab"], n: int, generator: torch.Generator) -> list[int]:
    """At most n tokens, drawn one after the other and none twice; fewer where fewer have a probability."""
    noise = torch.empty_like(probs).exponential_(generator=generator)
    n = min(n, int((probs > 0).sum()))
    if n == 1:
        return [int(arg_max((probs / noise).unsqueeze(0)))]
    drawn: list[int] = (probs / noise).topk(n).indices.tolist()
    return drawn


def sampled_choice(
    probs: Float[Tensor, " vocab"], drafted: Sequence[int], draft_probs: Tensor | None, sampler: Sampler
) -> int:
    """A token distributed as the whole model's probabilities, one of those drafted wherever that is possible.

    Each drafted token x is accepted with probability min(1, p(x) / q(x)). Where it is not, p becomes what of it q does
    not cover, q loses x, and the next is tried; after the last, a token is drawn from what is left of p.

    Args:
        probs: p, after temperature, top-k and top-p.
        drafted: drawn from q one after the other, none twice; none for a token that was not drafted.
        draft_probs: q, after the same.
        sampler: of the text.
    """
    left = probs
    q = draft_probs
    for token in drafted:
        assert q is not None
        draw = torch.rand(1, generator=sampler.generator, device=probs.device)
        if bool(draw * q[token] < left[token]):
            return token
        rest = (left - q).clamp_min(0)
        left = rest / rest.sum() if bool(rest.sum() > 0) else left
        q = q.index_fill(0, torch.tensor([token], device=q.device), 0.0)
        q = q / q.sum().clamp_min(torch.finfo(q.dtype).tiny)
    return int(sampler.drawn(left.unsqueeze(0)))
