"""How far the distributions at earlier layers are from the distribution at the last layer."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.axes import States
from layerlens.formulas import LOWEST
from layerlens.lens.head import Head
from layerlens.lens.reading import Reading
from layerlens.lens.tiled import tile_for
from layerlens.models.unembed import Unembed

_LEAST = 1e-37  # where both probabilities are 0


@torch.no_grad()
def kl_from_last(
    states: Sequence[States],
    readings: Sequence[Reading],
    head: Head,
    *,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, "layers rows"]:
    """KL(p_last ‖ p_l) in nats, >= 0, of every layer l, the last one included; NaN where a logit is.

    Args:
        states: the states of each layer, in order, on the device of the head.
        readings: what `read` returned for each layer.
        head: the model's.
        tile: rows and tokens of a tile; by default what suits the device.

    KL = ln Z_l − Σ p_last z_l − H_last. Without a soft-cap the logits z are linear in the state. The sum is then a
    product with the mean of the unembedding's rows under p_last, which takes one more product with the vocabulary, for
    the last layer. With a soft-cap, or a head in shards, it takes one for each layer.
    """
    rows, words = tile or tile_for(states[-1].device)
    parts = zip(*(layer.split(rows) for layer in states), readings[-1].log_normalizer.split(rows), strict=True)
    whole = head.whole

    def mean_of(normed: Sequence[Tensor], log_normalizer: Tensor) -> Tensor:
        if whole is None or whole.softcap is not None:
            return _layer_by_layer(normed, log_normalizer, head, words)
        return _linear(normed, log_normalizer, whole, words)

    mean_logits = [mean_of([head.normed(layer) for layer in part[:-1]], part[-1]) for part in parts]
    log_normalizers = torch.stack([reading.log_normalizer for reading in readings])
    divergences = (log_normalizers - torch.cat(mean_logits, dim=1) - readings[-1].entropy).clamp_min(0.0)
    divergences[-1] *= 0.0  # from itself; NaN stays NaN
    return divergences


@torch.no_grad()
def js_from_last(
    states: Sequence[States],
    readings: Sequence[Reading],
    head: Head,
    *,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, "layers rows"]:
    """Jensen-Shannon divergence of p_last and p_l in nats, 0..ln 2, of every layer l; NaN where a logit is.

    Both probabilities of a token are needed at once, and each needs its layer's sum over the vocabulary first. So all
    products of all layers are made a second time, those of the last layer only once for all layers.

    Args:
        states, readings, head, tile: as for `kl_from_last`.

    The formula is ln 2 − ½ Σ (p + q) ln(p + q) less the mean of both entropies. It needs one logarithm for each token.
    It is a small difference of terms of a few nats, so divergences below 1e-5 cannot be distinguished from 0.
    """
    rows, words = tile or tile_for(states[-1].device)
    log_normalizers = torch.stack([reading.log_normalizer for reading in readings])
    parts = zip(*(layer.split(rows) for layer in states), log_normalizers.split(rows, dim=1), strict=True)
    mixed = torch.cat([_mixed_by_tile([head.normed(one) for one in layers], z, head, words) for *layers, z in parts], 1)
    entropies = torch.stack([reading.entropy for reading in readings])
    divergences = (math.log(2) - mixed / 2 - (entropies + entropies[-1]) / 2).clamp_(0.0, math.log(2))
    divergences[-1] = entropies[-1] * 0.0  # from itself; NaN stays NaN
    return divergences


def _mixed_by_tile(normed: Sequence[Tensor], log_normalizers: Tensor, head: Head, words: int) -> Tensor:
    mixed = torch.zeros_like(log_normalizers)  # Σ (p + q) ln(p + q)
    for start in range(0, head.n_vocab, words):
        stop = min(start + words, head.n_vocab)
        last = _probs(normed[-1], log_normalizers[-1], head, start, stop)
        for layer, states in enumerate(normed[:-1]):
            both = _probs(states, log_normalizers[layer], head, start, stop).add_(last).clamp_(min=_LEAST)
            mixed[layer] += torch.linalg.vecdot(both, both.log())
    return mixed


def _linear(normed: Sequence[Tensor], log_normalizer: Tensor, unembed: Unembed, words: int) -> Tensor:
    mean_word = torch.zeros_like(normed[-1], dtype=torch.float32)
    mean_bias = torch.zeros_like(log_normalizer)
    for start in range(0, unembed.n_vocab, words):
        stop = min(start + words, unembed.n_vocab)
        probs = _probs(normed[-1], log_normalizer, unembed, start, stop)
        mean_word.addmm_(probs, unembed.weight[start:stop].float())
        if unembed.bias is not None:
            mean_bias += probs @ unembed.bias[start:stop].float().clamp(min=LOWEST)
    products = [torch.linalg.vecdot(unembed.operand(layer).float(), mean_word) for layer in normed]
    return unembed.scale * (torch.stack(products) + mean_bias)


def _layer_by_layer(normed: Sequence[Tensor], log_normalizer: Tensor, head: Head, words: int) -> Tensor:
    means = log_normalizer.new_zeros(len(normed), len(log_normalizer))
    for start in range(0, head.n_vocab, words):
        stop = min(start + words, head.n_vocab)
        probs = _probs(normed[-1], log_normalizer, head, start, stop)
        for mean, layer in zip(means, normed, strict=True):
            mean += torch.linalg.vecdot(probs, head.logits_tile(layer, start, stop))
    return means


def _probs(normed: Tensor, log_normalizer: Tensor, head: Head, start: int, stop: int) -> Tensor:
    return head.logits_tile(normed, start, stop).sub_(log_normalizer.unsqueeze(1)).exp_()
