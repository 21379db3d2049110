"""What a readout is made of: sums over words, and the word on top."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.axes import Logits, Scalars, TokenIds
from layerlens.formulas import entropy_of, joined_sums, raise_top, tile_sums
from layerlens.native import row_sums

_ROUNDING = 2.0**-20  # of a sum over words


class Sums(NamedTuple):
    """What words add to a reading: with the maximum m of their logits z, Σ exp(z − m) and Σ exp(z − m)·(z − m)."""

    maximum: Scalars
    total: Scalars
    moment: Scalars

    @classmethod
    def of(cls, logits: Tensor, maximum: Scalars) -> "Sums":
        """Of some words' logits [rows, words] and the maximum of each row; see `tile_sums`."""
        return cls(maximum, *tile_sums(logits, maximum))

    @classmethod
    def of_tile(cls, logits: Logits, greatest: Scalars, top: Tensor, start: int) -> "Sums":
        """Of a tile's words, the first of which is `start`. A row's maximum takes the place of a lower one in
        `greatest`, and the first word that has it, on an accelerator any, takes that in `top`."""
        sums = row_sums(logits, greatest, top, start)
        if sums is not None:
            return cls(*sums)
        maximum = raise_top(top, logits, greatest, start)
        torch.maximum(greatest, maximum, out=greatest)
        return cls.of(logits, maximum)

    @classmethod
    def of_rows(cls, logits: Logits) -> "Sums":
        """Of all words, a logit of minus infinity among them, whose p = 0."""
        sums = row_sums(logits)
        if sums is not None:
            return cls(*sums)
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
        return cls(*joined_sums(*stacked))

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
        return entropy_of(self.total, self.moment, n_vocab)


def arg_max(logits: Logits) -> TokenIds:
    """The word with the greatest logit of each row: the first of several that are equal, and the first NaN before all.

    On a CPU by numpy, which compares many at once: 7 µs for 49,152 words where torch takes 88.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return logits.argmax(1)
    return torch.from_numpy(logits.detach().numpy().argmax(1))
