"""How far the distributions at earlier layers are from the distribution at the last layer."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import States
from layerlens.formulas import LOWEST
from layerlens.lens.head import Head
from layerlens.lens.reading import Reading
from layerlens.lens.tiled import read_rows, tile_for
from layerlens.models.unembed import Unembed
from layerlens.native import mixed_sums

_LEAST = 1e-37  # where both probabilities are 0
# Rows whose logits are kept, and the most bytes of one layer's. A CPU multiplies up to 80 rows by our own loop.
_CPU_KEPT = (64, 64 * 2**20)
_ACCELERATOR_KEPT = (512, 256 * 2**20)
_REGISTER = 16  # float32 values of the widest registers
_ADDED_AT_ONCE = 4096


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
def read_with_js(
    states: Sequence[States],
    head: Head,
    chosen: Int[Tensor, "rows chosen"] | None = None,
    *,
    n_first: int = 0,
    tile: tuple[int, int] | None = None,
) -> tuple[list[Reading], Float[Tensor, "layers rows"]]:
    """What `read` returns for each layer, and every layer's Jensen-Shannon divergence from the last one.

    The divergence is in nats, 0..ln 2, and NaN where a logit is.

    Both probabilities of a vocabulary entry are needed at once, and each needs its layer's sum over the vocabulary
    first. So the logits of some rows are kept for as long, of the last layer and of one more: of 64 rows at most on a
    CPU, and of fewer where they take more than 64 MiB.

    Args:
        states: the states of each layer, in order, on the device of the head.
        head: the model's.
        chosen: token ids, 0..V-1, of each row whose log-probability and rank are wanted in every layer.
        n_first: how many of the first tokens of every layer are wanted, 0..V.
        tile: rows and tokens of a tile; by default what suits the device.

    The formula is ln 2 − ½ Σ (p + q) ln(p + q) less the mean of both entropies. It needs one logarithm for each token.
    It is a small difference of terms of a few nats, so divergences below 1e-5 cannot be distinguished from 0.
    """
    n_rows, device = len(states[-1]), states[-1].device
    if n_rows == 0:
        readings = [Reading.of_nothing(layer, chosen) for layer in states]
        return readings, torch.stack([one.entropy for one in readings])
    rows, words = tile or tile_for(device)
    most_rows, most_bytes = _CPU_KEPT if device.type == "cpu" else _ACCELERATOR_KEPT
    most = max(1, min(rows, most_rows, most_bytes // (4 * head.n_vocab)))
    if tile is None:  # as large a tile, of fewer rows
        words = max(words, min(words * rows // most, _ADDED_AT_ONCE))
    n_pieces = -(-n_rows // most)
    at_once = -(-n_rows // n_pieces)  # alike, because a few rows take as long as many
    pieces = []
    for start in range(0, n_rows, at_once):
        part = slice(start, start + at_once)
        ids = None if chosen is None else chosen[part]
        pieces.append(_with_js([layer[part] for layer in states], head, ids, n_first, words))
    readings = [Reading.joined(of_layer) for of_layer in zip(*(of for of, _ in pieces), strict=True)]
    return readings, torch.cat([divergences for _, divergences in pieces], dim=1)


def _with_js(
    states: Sequence[States], head: Head, chosen: Tensor | None, n_first: int, words: int
) -> tuple[list[Reading], Tensor]:
    """Of a few rows."""
    probs: list[Tensor] = []
    last = read_rows(states[-1], head, chosen, n_first, words, probs)
    for tile in probs:
        tile.sub_(last.log_normalizer.unsqueeze(1)).exp_()
    readings, divergences = [], []
    for layer in states[:-1]:
        logits: list[Tensor] = []
        reading = read_rows(layer, head, chosen, n_first, words, logits)
        mixed = torch.zeros_like(last.entropy)
        for tile, others in zip(logits, probs, strict=True):
            mixed += _mixed(tile, reading.log_normalizer, others)
        readings.append(reading)
        divergences.append(math.log(2) - mixed / 2 - (reading.entropy + last.entropy) / 2)
    itself = last.entropy * 0.0  # NaN stays NaN
    return [*readings, last], torch.stack([*divergences, itself]).clamp_(0.0, math.log(2))


def _mixed(logits: Tensor, log_normalizers: Tensor, probs: Tensor) -> Tensor:
    """Σ (p + q) ln(p + q) of each row of a tile, from the logits of p and from q."""
    mixed = torch.zeros_like(log_normalizers)
    words = logits.shape[1]
    whole = words - words % _REGISTER
    for start in (*range(0, whole, _ADDED_AT_ONCE), whole):
        stop = min(start + _ADDED_AT_ONCE, whole) if start < whole else words
        part, others = logits[:, start:stop], probs[:, start:stop]
        sums = mixed_sums(part, log_normalizers, others)
        if sums is None:
            both = (part - log_normalizers.unsqueeze(1)).exp_().add_(others).clamp_(min=_LEAST)
            sums = torch.linalg.vecdot(both, both.log())
        mixed += sums
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
