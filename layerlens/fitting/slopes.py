"""KL(p_L ‖ p_l) and its slope with respect to the states that the unembedding sees, in tiles of the vocabulary.

The slope of KL with respect to the logits is p_l − p_L. Multiplied with the rows of the unembedding, it is the
difference of two means of these rows, under p_l and under p_L. Both are summed tile by tile, the first one relative to
the greatest logit so far. So memory does not grow with the vocabulary, and each layer takes two products with it. A
soft-cap c·tanh(u / c) has another slope, 1 − (z / c)², for each token and state, which takes a third product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from layerlens.formulas import LOWEST
from layerlens.lens import Reading
from layerlens.lens.tiled import tile_for
from layerlens.models.unembed import Unembed


@torch.no_grad()
def kl_and_slopes(
    normed: Sequence[Tensor], last: Tensor, reading: Reading, unembed: Unembed, words: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """KL(p_L ‖ p_l) in nats of each layer and row, [layers, rows], and ∂KL/∂normed of each, [rows, d_head].

    Args:
        normed: states of each layer as the unembedding sees them, [rows, d_head].
        last: those of layer L.
        reading: the reading of layer L.
        unembed: the model's head.
        words: number of tokens of a tile; None: what suits the device.
    """
    words = words or tile_for(last.device)[1]
    sums = [_Sums(layer) for layer in normed]
    mean_word = torch.zeros_like(last, dtype=torch.float32)
    for start in range(0, unembed.n_vocab, words):
        stop = min(start + words, unembed.n_vocab)
        weight = unembed.weight[start:stop].float()
        probs = unembed.logits_tile(last, start, stop).sub_(reading.log_normalizer.unsqueeze(1)).exp_()
        if unembed.softcap is None:
            mean_word.addmm_(probs, weight)
        for layer, layer_sums in zip(normed, sums, strict=True):
            logits = unembed.logits_tile(layer, start, stop)
            if unembed.bans_words:
                logits.clamp_(min=LOWEST)
            layer_sums.add(logits, probs, weight, unembed.softcap)
    if unembed.softcap is None:
        for layer_sums in sums:
            layer_sums.mean_under_last = mean_word
    divergences = torch.stack([one.log_normalizer - one.mean_logit for one in sums]) - reading.entropy
    return divergences.clamp_(min=0.0), [one.slope().mul_(unembed.scale) for one in sums]


class _Sums:
    """Sums over the tokens so far, for the rows of one layer."""

    def __init__(self, normed: Tensor) -> None:
        self._greatest = normed.new_full((len(normed),), -torch.inf, dtype=torch.float32)
        self._total = torch.zeros_like(self._greatest)
        self._under_own = torch.zeros_like(normed, dtype=torch.float32)
        self.mean_logit = torch.zeros_like(self._greatest)
        self.mean_under_last = torch.zeros_like(self._under_own)

    @property
    def log_normalizer(self) -> Tensor:
        return self._greatest + self._total.log()

    def add(self, logits: Tensor, probs: Tensor, weight: Tensor, softcap: float | None) -> None:
        """Add a tile: the layer's logits and the last layer's probabilities, [rows, tokens], and the tile's rows."""
        self.mean_logit += torch.linalg.vecdot(probs, logits)
        greatest = torch.maximum(self._greatest, logits.amax(1))
        shrink = torch.exp(self._greatest - greatest)
        own = torch.exp(logits - greatest.unsqueeze(1))
        self._total.mul_(shrink).add_(own.sum(1))
        self._greatest = greatest
        if softcap is not None:
            steepness = 1.0 - (logits / softcap).square()
            self.mean_under_last.addmm_(probs * steepness, weight)
            own *= steepness
        self._under_own.mul_(shrink.unsqueeze(1)).addmm_(own, weight)

    def slope(self) -> Tensor:
        return self._under_own / self._total.unsqueeze(1) - self.mean_under_last
