"""What a readout is made of: sums over words, and the word on top."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.axes import Logits, Scalars, TokenIds
from layerlens.native import row_sums

LOWEST = -1e30  # a bias of minus infinity bans a word: with this in its place 0 · ln 0 is 0, not NaN
_BLOCK = 64
_ROUNDING = 2.0**-20  # of a sum over words


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


class Sums(NamedTuple):
    """What words add to a reading: with the maximum m of their logits z, Σ exp(z − m) and Σ exp(z − m)·(z − m).

    Centred at the maximum both sums are small numbers whatever the logits' offset, so that H = ln Σ − ratio loses no
    digits to cancellation.
    """

    maximum: Scalars
    total: Scalars
    moment: Scalars

    @classmethod
    def of(cls, logits: Tensor, maximum: Scalars) -> "Sums":
        """Of some words' logits [rows, words] and the maximum of each row.

        By softmax, which reads and writes each row once and within the cache: the largest probability is 1 / Σ. An
        offset a of all logits costs about 2e-7·a nats of entropy, a few times what the rounding of such logits does.
        """
        probs = torch.softmax(logits, dim=1)
        total = 1 / probs.amax(1)
        return cls(maximum, total, total * (probs.mul_(logits).sum(1) - maximum))

    @classmethod
    def of_tile(cls, logits: Logits, greatest: Scalars, top: Tensor, start: int) -> "Sums":
        """Of a tile's words, the first of which is `start`. A row's maximum takes the place of a lower one in
        `greatest`, and the first word that has it, on an accelerator any, takes that in `top`."""
        found = row_sums(logits, greatest, top, start)
        if found is not None:
            return cls(*found)
        maximum = raise_top(top, logits, greatest, start)
        torch.maximum(greatest, maximum, out=greatest)
        return cls.of(logits, maximum)

    @classmethod
    def of_rows(cls, logits: Logits) -> "Sums":
        """Of all words, a logit of minus infinity among them, whose p = 0."""
        found = row_sums(logits)
        if found is not None:
            return cls(*found)
        maximum = logits.amax(1)
        centred = logits - maximum.unsqueeze(1)
        exps = centred.exp()
        # 0 · ln 0 = 0
        moment = torch.linalg.vecdot(exps, centred.clamp_(min=torch.finfo(centred.dtype).min))
        return cls(maximum, exps.sum(1), moment)

    @classmethod
    def joined(cls, parts: Float[Tensor, "3 parts rows"] | Sequence["Sums"]) -> "Sums":
        """Of the words of all parts: maxima, totals and moments of each."""
        stacked = parts if isinstance(parts, Tensor) else torch.stack([torch.stack(part) for part in parts], dim=1)
        maxima, totals, moments = stacked
        maximum = maxima.amax(0)
        shift = torch.where(totals > 0, maxima - maximum, 0.0)  # where nothing is there is nothing to shift
        shrink = torch.exp(shift)
        return cls(maximum, (shrink * totals).sum(0), (shrink * (moments + shift * totals)).sum(0))

    def without(self, logits: Tensor) -> "Sums":
        """Of all but these [rows, words], which are among those summed; nothing where less is left than rounding."""
        below = logits - self.maximum.unsqueeze(1)
        exps = torch.exp(below)
        total = self.total - exps.sum(1)
        moment = self.moment - torch.linalg.vecdot(exps, below)
        is_nothing = total <= _ROUNDING * self.total
        maximum = self.maximum.masked_fill(is_nothing, -torch.inf)
        return Sums(maximum, total.masked_fill(is_nothing, 0.0), moment.masked_fill(is_nothing, 0.0))

    @property
    def log_normalizer(self) -> Scalars:
        """ln Σ exp(z)."""
        return self.maximum + self.total.log()

    def entropy(self, n_vocab: int) -> Scalars:
        """In nats, 0..ln V."""
        return (self.total.log() - self.moment / self.total).clamp(0.0, math.log(n_vocab))


def arg_max(logits: Logits) -> TokenIds:
    """The word with the greatest logit of each row: the first of several that are equal, and the first NaN before all.

    On a CPU by numpy, which compares many at once: 7 µs for 49,152 words where torch takes 88.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return logits.argmax(1)
    return torch.from_numpy(logits.detach().numpy().argmax(1))


def raise_top(top: Tensor, logits: Tensor, least: Scalars, start: int) -> Scalars:
    """The maximum of each row; where it is above `least` the first word that has it, counted from `start`, into `top`.

    On a CPU by blocks of words, of which only one a row is searched: a plain arg-max costs ten times as much.
    """
    words = logits.shape[1]
    whole = words - words % _BLOCK
    if logits.device.type != "cpu" or whole == 0:
        maximum, index = logits.max(1)
        torch.where(maximum > least, index + start, top, out=top)
        return maximum
    maximum, block = logits[:, :whole].unflatten(1, (-1, _BLOCK)).amax(2).max(1)
    rows = (maximum > least).nonzero()[:, 0]
    if len(rows):
        block = block[rows]
        within = logits[:, :whole].unflatten(1, (-1, _BLOCK))[rows, block].argmax(1)
        top[rows] = start + block * _BLOCK + within
    if whole < words:
        rest = raise_top(top, logits[:, whole:], torch.maximum(maximum, least), start + whole)
        maximum = torch.maximum(maximum, rest)
    return maximum
