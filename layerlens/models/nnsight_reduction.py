"""What each block of a pass does, measured inside an nnsight trace, where the states are.

A remote server has torch but not layerlens. So this file is sent there as source, with what it uses of `formulas.py`
and `compat.py`, which need nothing else of layerlens.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerlens.compat import onednn_multiplies, onednn_product
from layerlens.formulas import LOWEST, changes, entropy_of, finished, joined_sums, raise_top, tile_sums

Blocks = Sequence[tuple[str, str | None, bool]]
Names = Sequence[str]

_WORDS, _WORDS_ON_CPU = 8192, 1024
_ROWS = 512


def reduce_blocks(
    root: Any, blocks: Blocks, head: str, tail: Names, scale: float, softcap: float | None, n_vocab: int, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """Norm ratio, I/O cosine, attention ratio, MLP ratio, entropy in nats [5, layers, rows]; top tokens [layers, rows].

    Args:
        root: the envoy of the whole model, inside a trace.
        blocks: for each block its path, the path of the module that tells its parts (or None), and whether attention
            and MLP stand in parallel there.
        head: path of the unembedding.
        tail: paths of the modules between the last block and the unembedding.
        scale: factor on the logits.
        softcap: c of c·tanh(logits / c), or None.
        n_vocab: number of vocabulary entries of the readout.
        keep: indices of the rows to measure, of batch and positions flattened; int64 [rows].
    """
    numbers, tops = [], []
    for path, part_path, is_parallel in blocks:
        block = root.get(path)
        before = _kept(_given(block.inputs), keep)
        part = None
        if part_path is not None:
            module = root.get(part_path)
            part = _kept(_returned(module.output) if is_parallel else _given(module.inputs), keep)
        after = _kept(_returned(block.output), keep)
        ratios = changes(before, part, after, is_parallel)
        states = after
        for name in tail:
            states = root.get(name)(states)
        head_module = root.get(head)
        entropy, top = _read(states, head_module.weight, head_module.bias, scale, softcap, n_vocab)
        numbers.append(torch.cat([ratios, entropy.unsqueeze(0).to(ratios.device)]).cpu())
        tops.append(top.cpu())
    return torch.stack(numbers, dim=1), torch.stack(tops)


def probe_misses(
    root: Any, blocks: Blocks, head: str, tail: Names, settings: Any, n_vocab: int
) -> tuple[int, float, list[tuple[float, float]], str]:
    """How far a pass over two texts that differ only in their last token is from what a lens relies on.

    Args:
        root, blocks, head, tail, n_vocab: as for `reduce_blocks`.
        settings: pairs of scale and soft-cap to try.

    Returns:
        at which block the stream is not what the one before handed on (0 for none); by how much of their size earlier
        logits move with a later token, NaN where the logits are not finite; for each of the settings by how much the
        readout of the last states misses the logits, at worst and on average; and the type of the weights.
    """
    previous: Any = None
    changed_at = 0
    for index, (path, _, _) in enumerate(blocks):
        block = root.get(path)
        given = _given(block.inputs).detach()
        if previous is not None and not changed_at and not torch.equal(given.to(previous.device), previous):
            changed_at = index
        previous = _returned(block.output).detach()
    for name in tail:
        previous = root.get(name)(previous)
    head_module = root.get(head)
    weight, bias = head_module.weight, head_module.bias
    read = previous.detach().to(weight.device).float() @ weight[:n_vocab].detach().float().t()
    if bias is not None:
        read = read + bias[:n_vocab].detach().float()
    own = root.output.logits.detach().float().to(read.device)
    size = own.abs().max()
    moved = float((own[0, :-1] - own[1, :-1]).abs().max() / size.clamp_min(1e-20)) if size.isfinite() else math.nan
    misses = []
    for scale, softcap in settings:
        logits = read * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        worst = float((logits - own).abs().max() / torch.maximum(logits.abs().max(), size).clamp_min(1e-20))
        slope = float((own * logits).double().sum() / (own * own).double().sum())
        misses.append((worst, abs(slope - 1)))
    return changed_at, moved, misses, str(weight.dtype).split(".")[-1]


def _given(inputs: Any) -> Any:
    """The stream among a module's arguments."""
    args, kwargs = inputs
    candidates = [*args[:1], kwargs.get("hidden_states"), *args[1:], *kwargs.values()]
    return next(value for value in candidates if isinstance(value, torch.Tensor))


def _returned(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


def _kept(stream: Tensor, keep: Tensor) -> Tensor:
    """The rows to measure: some blocks flatten batch and sequence on their way."""
    return stream.detach().reshape(-1, stream.shape[-1]).index_select(0, keep.to(stream.device))


def _read(
    states: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None, n_vocab: int
) -> tuple[Tensor, Tensor]:
    """Entropy in nats and arg-max of each row; the largest temporary is a tile."""
    entropies, tops = [], []
    words = _WORDS_ON_CPU if weight.device.type == "cpu" else _WORDS
    for rows in states.detach().to(weight.device).float().split(_ROWS):
        top = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        greatest = torch.full((len(rows),), -math.inf, dtype=torch.float32, device=rows.device)
        parts = []
        for start in range(0, n_vocab, words):
            stop = min(start + words, n_vocab)
            added = None if bias is None else bias[start:stop].detach().float()
            logits = finished(_product(rows, weight[start:stop].detach().float()), added, scale, softcap)
            if bias is not None:
                logits.clamp_(min=LOWEST)
            maximum = raise_top(top, logits, greatest, start)
            greatest = torch.maximum(greatest, maximum)
            parts.append(torch.stack([maximum, *tile_sums(logits, maximum)]))
        _, total, moment = joined_sums(*torch.stack(parts, dim=1))
        entropies.append(entropy_of(total, moment, n_vocab))
        tops.append(top)
    return torch.cat(entropies), torch.cat(tops)


def _product(states: Tensor, weight: Tensor) -> Tensor:
    """As `product` in `models/unembed.py`, for many states."""
    if weight.device.type == "cpu" and onednn_multiplies(states.dtype):
        return onednn_product(states, weight)
    return states @ weight.t()
