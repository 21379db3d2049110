"""Readings from products in bfloat16, which some processors do several times as fast, and of the words that weigh most
in float32.

A product in bfloat16 misses a logit by a few hundredths, most of it where it is rounded on its way out. In an entropy
that matters for the handful of words that have nearly all of the probability: those are found among the rounded logits
and multiplied once more.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import States
from layerlens.errors import OptionError
from layerlens.lens.sums import LOWEST, Reading, Sums, raise_top
from layerlens.models.unembed import Unembed, product

# One candidate for the exact words comes from each block. Its words lie as far apart as the vocabulary allows: frequent
# words are neighbours, and would stand in each other's way. Six bits of a float say which of the 64 it is.
_BLOCK = 64
_PLACE = _BLOCK - 1
_BLOCKS_PER_TILE = 16
_EXACT = 16  # measured on SmolLM2: 8 leave 0.011 nats at the 99th percentile, 16 leave 0.008, 32 leave 0.006
_GATHERED = 2**22  # values of the weight that are gathered at once
_ROWS = 512
_HAVE_BFLOAT16 = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)


class CoarseHead:
    """A model's head with a copy of its unembedding in bfloat16, ordered by blocks."""

    def __init__(self, unembed: Unembed) -> None:
        self._unembed = unembed
        self._n_blocks = unembed.n_vocab // _BLOCK
        self._n_inside = self._n_blocks * _BLOCK
        shape = (_BLOCK, self._n_blocks)
        blocks = unembed.weight[: self._n_inside].unflatten(0, shape).transpose(0, 1)
        ids = torch.arange(self._n_inside).unflatten(0, shape).t()
        self._places = torch.arange(_BLOCK, dtype=torch.int32)
        self._is_rounded = unembed.bias is None and unembed.scale == 1.0 and unembed.softcap is None
        self._tiles = [
            (_packed(blocks[tile].bfloat16().flatten(0, 1)), ids[tile].flatten())
            for tile in (slice(at, at + _BLOCKS_PER_TILE) for at in range(0, self._n_blocks, _BLOCKS_PER_TILE))
        ]

    @torch.no_grad()
    def read(self, states: States) -> Reading:
        """A reading of every state, without log-probs. Of vocabularies below 64 words all is float32."""
        readings = [self._read_rows(part) for part in states.split(_ROWS)]
        entropy, top, log_normalizer, _ = (values for values in zip(*readings, strict=True))
        return Reading(torch.cat(entropy), torch.cat(top), torch.cat(log_normalizer), None)

    def _read_rows(self, states: States) -> Reading:
        unembed = self._unembed
        normed = unembed.normed(states)
        top = torch.zeros(len(normed), dtype=torch.long)
        parts = [] if self._n_inside == unembed.n_vocab else [self._rest(normed, top)]
        if self._n_blocks:
            coarse, best = self._coarse(normed)
            value, block = best.topk(min(_EXACT, self._n_blocks), dim=1)
            ids = (value.view(torch.int32) & _PLACE) * self._n_blocks + block
            exact = self._exact(normed, ids)
            maximum = exact.amax(1)
            first = ids.masked_fill(exact < maximum.unsqueeze(1), unembed.n_vocab).amin(1)
            top = torch.where(maximum >= parts[0].maximum, first, top) if parts else first
            parts += [coarse.without(value), Sums.of(exact, maximum)]
        sums = Sums.joined(parts)
        return Reading(sums.entropy(unembed.n_vocab), top, sums.log_normalizer, None)

    def _coarse(self, normed: Tensor) -> tuple[Sums, Float[Tensor, "rows blocks"]]:
        """Of all whole blocks; and the largest logit of each, which of its words it is in the last bits."""
        states = normed.bfloat16()
        parts = normed.new_empty(3, len(self._tiles), len(normed), dtype=torch.float32)
        best = normed.new_empty(len(normed), self._n_blocks, dtype=torch.float32)
        of_tiles = best.split(_BLOCKS_PER_TILE, dim=1)
        for place, ((weight, ids), highest) in enumerate(zip(self._tiles, of_tiles, strict=True)):
            logits = self._unbanned(product(states, weight).float(), ids).unflatten(1, (-1, _BLOCK))
            bits = logits.view(torch.int32)
            if not self._is_rounded:
                bits.bitwise_and_(~_PLACE)
            bits.bitwise_or_(self._places)
            torch.amax(logits, 2, out=highest)
            torch.stack(Sums.of(logits.flatten(1), highest.amax(1)), out=parts[:, place])
        return Sums.joined(parts), best

    def _exact(self, normed: Tensor, ids: Int[Tensor, "rows words"]) -> Float[Tensor, "rows words"]:
        """Float32 logits of some words of each row."""
        operand = self._unembed.operand(normed)
        rows = max(1, _GATHERED // (ids.shape[1] * operand.shape[1]))
        parts = [
            torch.bmm(self._unembed.weight[some].float(), states.unsqueeze(2)).squeeze(2)
            for some, states in zip(ids.split(rows), operand.split(rows), strict=True)
        ]
        return self._unbanned(torch.cat(parts), ids)

    def _rest(self, normed: Tensor, top: Tensor) -> Sums:
        """Of the last words, fewer than a block, in float32."""
        words = slice(self._n_inside, self._unembed.n_vocab)
        weight = self._unembed.weight[words].float()
        logits = self._unbanned(product(self._unembed.operand(normed), weight), words)
        lowest = torch.full((len(normed),), -torch.inf)
        return Sums.of(logits, raise_top(top, logits, lowest, self._n_inside))

    def _unbanned(self, products: Tensor, words: slice | Tensor) -> Tensor:
        logits = self._unembed.finished(products, words)
        return logits if self._unembed.bias is None else logits.clamp_(min=LOWEST)


def refuse_without_bfloat16(device: torch.device) -> None:
    """OptionError where products in bfloat16 are no faster: on a GPU, and on processors that have none of their own."""
    if device.type != "cpu":
        raise OptionError(
            "--lens-precision bfloat16 is for a CPU, a GPU multiplies in the type of the weights; give --dtype bfloat16"
        )
    if not (torch.backends.mkldnn.is_available() and any(has() for has in _HAVE_BFLOAT16)):
        raise OptionError(
            "--lens-precision bfloat16 would be slower here, this processor multiplies no bfloat16 (AVX512-BF16 or AMX "
            "would); leave it out"
        )


def _packed(weight: Tensor) -> Tensor:
    """As oneDNN lays it out for itself, which saves it a fifth of the time of a product."""
    if torch.backends.mkldnn.is_available():
        found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        return found
    return weight
