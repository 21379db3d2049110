"""Whole texts in one pass without a cache, whose last tokens go without some attention modules or MLPs. Uses none of
the package's ways to leave them out: what they return is set to zero there."""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import layerlens as ll
from layerlens.decode.speculative.policy import Round
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.models import tiny_model, tiny_tokenizer

Part = tuple[int, str]
"""The number of a block, and "attention" or "mlp"."""

_DEPTH = {
    "llama": {"num_hidden_layers": 8},
    "gemma2": {"num_hidden_layers": 8, "layer_types": ["sliding_attention", "full_attention"] * 4},
    "gpt2": {"n_layer": 8},
}
_MODULES = {"llama": ("self_attn", "mlp"), "gemma2": ("self_attn", "mlp"), "gpt2": ("attn", "mlp")}
# what reads the stream between attention and MLP
_MIDDLE = {"llama": "post_attention_layernorm", "gemma2": "pre_feedforward_layernorm", "gpt2": "ln_2"}


@cache
def deep(family: str, seed: int = 0, damped: float = 1.0) -> ll.Model:
    """A tiny model of eight blocks. Where `damped` is below 1, blocks but the first and last add that much less."""
    hf = tiny_model(family, seed=seed, **_DEPTH[family])
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    if damped == 1:
        return model
    with torch.no_grad():
        for block in model.blocks[1:-1]:
            for name, parameter in block.named_parameters():
                if name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                    parameter.mul_(damped)
    return ll.load(hf, tokenizer=tiny_tokenizer())


def one_round(
    read: Sequence[Sequence[int]],
    skips: SkipSet,
    *,
    n_emitted: int = 100,
    drafted: Sequence[int] | None = None,
    accepted: Sequence[int] | None = None,
) -> Round:
    """What a search is told of a round; without further word nothing was drafted."""
    nothing = [0] * len(read)
    accepted = nothing if accepted is None else accepted
    return Round(
        n_emitted=n_emitted,
        drafted=nothing if drafted is None else drafted,
        accepted=accepted,
        siblings=nothing,
        emitted=[n + 1 for n in accepted],
        read=read,
        skips=skips,
    )


class Read(NamedTuple):
    """Of the last tokens of a text.

    Attributes:
        states: [tokens, d_model] after each half of each block.
        logits: [tokens, vocab].
    """

    states: dict[Part, Tensor]
    logits: Tensor


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def read(model: ll.Model, ids: Sequence[int], left_out: Collection[Part], n_last: int) -> Read:
    """The last tokens of a text without these parts, after the others with all of them; read once."""
    return _read(model, tuple(ids), frozenset(left_out), n_last)


@cache
@torch.no_grad()
def _read(model: ll.Model, ids: tuple[int, ...], left_out: frozenset[Part], n_last: int) -> Read:
    states: dict[Part, Tensor] = {}
    handles = []

    def silence(module: Any, args: Any, output: Any) -> Any:
        changed = _first(output).clone()
        changed[:, -n_last:] = 0
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    for number, block in enumerate(model.blocks):
        for part, name in zip(("attention", "mlp"), _MODULES[model.family], strict=True):
            if (number, part) in left_out:
                handles.append(getattr(block, name).register_forward_hook(silence))
        handles.append(
            getattr(block, _MIDDLE[model.family]).register_forward_pre_hook(
                lambda _, args, number=number: states.__setitem__((number, "attention"), args[0][0, -n_last:].clone())
            )
        )
        handles.append(
            block.register_forward_hook(
                lambda _, __, output, number=number: states.__setitem__(
                    (number, "mlp"), _first(output)[0, -n_last:].clone()
                )
            )
        )
    try:
        text = torch.tensor([ids])
        logits = model.hf(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return Read(states, logits[0, -n_last:])


def cosine(a: Tensor, b: Tensor) -> float:
    """In float64, of two vectors."""
    a, b = a.double(), b.double()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def agreement(model: ll.Model, texts: Sequence[Sequence[int]], left_out: Collection[Part], n_last: int) -> float:
    """The share of the last tokens of the texts after which the best token is the same without these parts."""
    n_same = 0
    for ids in texts:
        best = read(model, ids, (), n_last).logits.argmax(1)
        n_same += int((read(model, ids, left_out, n_last).logits.argmax(1) == best).sum())
    return n_same / (n_last * len(texts))
