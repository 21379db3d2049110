"""Readings from products in bfloat16, which some processors compute several times as fast, with corrections.

Rounding causes three errors. The rounding of the state is one vector for the whole vocabulary, so its effect does not
average out. It is mostly proportional to the logit, so a line that is fitted over a sample of tokens removes it.
Products are rounded when they are stored, least near zero. So they are centred at the likeliest token of the sample.
The rounding of the weights is as good as random. It matters for the few tokens that have most of the probability, so
these are multiplied once more in float32.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from layerlens.axes import States
from layerlens.compat import has_fast_bfloat16, onednn_layout, onednn_multiplies
from layerlens.errors import OptionError, spelled
from layerlens.formulas import LOWEST
from layerlens.lens.reading import Reading
from layerlens.lens.sums import Sums
from layerlens.models.unembed import Unembed, product

# One candidate for the exact tokens comes from each block. The tokens of a block lie as far apart as the vocabulary
# allows: frequent tokens have neighbouring ids, and only one of a block can be chosen. Six bits of a float say which of
# the 64 it is.
_BLOCK = 64
_PLACE = _BLOCK - 1
_BLOCKS = 16  # in a tile
_TILE = _BLOCKS * _BLOCK
_EXACT = 8
_TILT = 0.25  # weight of a sampled token is exp(logit · this): at 0 unlikely tokens dominate, at 1 a single one may
_SLOPE = 2.0**-8  # expected slope of the line; a few tokens of large weight do not make it much steeper
_CENTERS = 2  # columns that take off a row's center: an odd number is slower
_GATHERED = 2**22  # values of the weight that are gathered at once
_ROWS = 512


class _Line(NamedTuple):
    """For each row, [rows, 1]: what is subtracted from its products before they are rounded, and the line gain · given
    + base that gives the products back."""

    center: Tensor
    gain: Tensor
    base: Tensor


class CoarseHead:
    """A model's head with a copy of its unembedding in bfloat16, ordered by blocks."""

    def __init__(self, unembed: Unembed) -> None:
        self._unembed = unembed
        self._n_blocks = unembed.n_vocab // _TILE * _BLOCKS
        self._n_inside = self._n_blocks * _BLOCK
        # Any tile is a sample of the whole vocabulary, and so are the tokens of a block.
        order = torch.arange(self._n_inside).view(_BLOCK, _BLOCKS, -1).permute(2, 1, 0)
        self._ids = order.flatten(0, 1)
        self._places = torch.arange(_BLOCK, dtype=torch.int32)
        self._tiles: list[tuple[Tensor, Tensor]] = []
        # A rounding error that all tokens share would set them apart from those that are multiplied in float32.
        self._missed = unembed.weight.new_zeros(unembed.weight.shape[1], dtype=torch.float32)
        centers = torch.full((_TILE, _CENTERS), -1 / _CENTERS, dtype=torch.bfloat16)
        for ids in order.flatten(1):
            weight = unembed.weight[ids]
            rounded = weight.bfloat16()
            self._missed += (weight - rounded).sum(0) / self._n_inside
            self._tiles.append((_packed(torch.cat([rounded, centers], 1)), ids))

    @torch.no_grad()
    def read(self, states: States) -> Reading:
        """A reading of every state, without log-probs; entropies within 0.01 nats for 99 of 100 states (0.016 in the
        last layer of the worst text tried). Tokens whose logits are equal, or nearly equal and of one block, can change
        places at the top. With fewer than 1,024 tokens everything is computed in float32.
        """
        return Reading.joined([self._read_rows(part) for part in states.split(_ROWS)])

    def _read_rows(self, states: States) -> Reading:
        unembed = self._unembed
        normed = unembed.normed(states)
        top = torch.zeros(len(normed), dtype=torch.long)
        parts = [] if self._n_inside == unembed.n_vocab else [self._rest(normed, top)]
        if self._n_blocks:
            line = self._line(normed)
            coarse, best = self._coarse(normed, line)
            value, block = best.topk(_EXACT, dim=1)
            ids = self._ids[block, (value.view(torch.int32) & _PLACE).long()]
            exact = self._exact(normed, ids)
            maximum = exact.amax(1)
            first = ids.masked_fill(exact < maximum.unsqueeze(1), unembed.n_vocab).amin(1)
            top = torch.where(maximum >= parts[0].maximum, first, top) if parts else first
            offset = 0.0 if unembed.softcap is not None else line.base[:, 0] * unembed.scale
            others = coarse.without(value)
            parts += [others._replace(maximum=others.maximum + offset), Sums.of(exact, maximum)]
        sums = Sums.joined(parts)
        return Reading(sums.entropy(unembed.n_vocab), top, sums.log_normalizer, None)

    def _line(self, normed: Tensor) -> _Line:
        """The tokens of the first tile are multiplied with the rounded states, and with the error of the rounding. The
        line is the weighted least-squares fit of the second products to the first. It is kept flatter where few tokens
        have weight."""
        weight, ids = self._tiles[0]
        states = normed.bfloat16()
        missed = (normed - states).bfloat16()
        both = functional.pad(torch.cat([states, missed]), (0, _CENTERS))
        given, error = product(both, weight).float().chunk(2)
        likely = torch.softmax(_TILT * self._unbanned(given.clone(), ids), 1)
        center = given.gather(1, likely.argmax(1, keepdim=True))
        mean = _mean(likely, given)
        away = given - mean
        noise = _mean(likely, error.square()) * _mean(likely, likely)
        spread = _mean(likely, away.square()) + noise / _SLOPE**2
        slope = _mean(likely, away * error) / spread.clamp_min(torch.finfo(torch.float32).tiny)
        weights_missed = (normed.float() @ self._missed).unsqueeze(1)
        error_at_center = _mean(likely, error) + slope * (center - mean) + weights_missed
        return _Line(center.bfloat16(), 1 + slope, center + error_at_center)

    def _coarse(self, normed: Tensor, line: _Line) -> tuple[Sums, Float[Tensor, "rows blocks"]]:
        """Sums over all whole blocks; and the largest logit of each block, whose last bits say which token has it."""
        states = torch.cat([normed.bfloat16(), line.center.expand(-1, _CENTERS)], 1)
        rows = len(normed)
        best = normed.new_empty(rows, self._n_blocks, dtype=torch.float32)
        of_tiles = best.split(_BLOCKS, dim=1)
        largest, moments = normed.new_empty(2, len(self._tiles), rows, dtype=torch.float32)
        logits, probs = normed.new_empty(2, rows, _TILE, dtype=torch.float32)
        blocks = logits.unflatten(1, (_BLOCKS, _BLOCK))
        bits = blocks.view(torch.int32)
        for tile, (weight, ids) in enumerate(self._tiles):
            logits.copy_(product(states, weight)).mul_(line.gain)
            if self._unembed.softcap is not None:
                logits += line.base
            self._unbanned(logits, ids)
            bits.bitwise_and_(~_PLACE).bitwise_or_(self._places)
            torch.amax(blocks, 2, out=of_tiles[tile])
            torch.softmax(logits, 1, out=probs)
            torch.amax(probs, 1, out=largest[tile])
            torch.sum(probs.mul_(logits), 1, out=moments[tile])
        maxima = best.unflatten(1, (-1, _BLOCKS)).amax(2).t()
        totals = 1 / largest
        return Sums.joined(torch.stack([maxima, totals, totals * (moments - maxima)])), best

    def _exact(self, normed: Tensor, ids: Int[Tensor, "rows words"]) -> Float[Tensor, "rows words"]:
        """Float32 logits of some tokens of each row."""
        operand = self._unembed.operand(normed)
        rows = max(1, _GATHERED // (ids.shape[1] * operand.shape[1]))
        parts = [
            torch.bmm(self._unembed.weight[some].float(), states.unsqueeze(2)).squeeze(2)
            for some, states in zip(ids.split(rows), operand.split(rows), strict=True)
        ]
        return self._unbanned(torch.cat(parts), ids)

    def _rest(self, normed: Tensor, top: Tensor) -> Sums:
        """Sums over the last tokens, fewer than a tile, in float32."""
        words = slice(self._n_inside, self._unembed.n_vocab)
        weight = self._unembed.weight[words].float()
        logits = self._unbanned(product(self._unembed.operand(normed), weight), words)
        lowest = torch.full((len(normed),), -torch.inf, dtype=torch.float32)
        return Sums.of_tile(logits, lowest, top, self._n_inside)

    def _unbanned(self, products: Tensor, words: slice | Tensor) -> Tensor:
        logits = self._unembed.finished(products, words)
        return logits if self._unembed.bias is None else logits.clamp_(min=LOWEST)


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return (weights * values).sum(1, keepdim=True)


def refuse_without_bfloat16(device: torch.device) -> None:
    """OptionError where products in bfloat16 are not faster: on a GPU, and on processors without such instructions."""
    if device.type != "cpu":
        what = "is for a CPU; a GPU multiplies in the type of the weights"
        advice = f"give {spelled('dtype', 'bfloat16')}"
        raise OptionError.about("lens_precision", "bfloat16", what, advice)
    if not has_fast_bfloat16():
        what = "would be slower here: this processor cannot multiply bfloat16 (one with AVX512-BF16 or AMX can)"
        raise OptionError.about("lens_precision", "bfloat16", what, "leave it out")


def _packed(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own layout, which saves a fifth of the time of a product."""
    return onednn_layout(weight, _ROWS) if onednn_multiplies(weight.dtype) else weight
