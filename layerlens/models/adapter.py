"""Brings a model of transformers into one shape. Its blocks, parts and unembedding are found by watching one pass."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerlens.compat import shapes_only
from layerlens.errors import ModelError, first_sentence, is_out_of_memory
from layerlens.models import placement
from layerlens.models.families import Family, family_of
from layerlens.models.hooks import Call, SubLayers, calls_in
from layerlens.models.kinds import layer_kinds, mlp_kinds
from layerlens.models.model import Model, head_of
from layerlens.models.packed import is_plain, matrix_of
from layerlens.models.refusals import unreadable_head
from layerlens.models.unembed import Unembed

_FACTORS, _DIVISORS = (
    ("logit_scale", "lm_head_multiplier", "output_multiplier"),
    ("logits_scaling", "logits_mup_width_multiplier"),
)
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
SCALARS = (*_FACTORS, *_DIVISORS, *_CAPS)
"""Entries of a config that change the logits."""


def adapt(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, revision: str | None = None) -> Model:
    """The model in the shape of `Model`, from its structure, one pass over two tokens, and the families table.

    Raises:
        ModelError: the structure of the model does not show its blocks or its unembedding.
    """
    config = hf.config.get_text_config(decoder=True)
    _refuse_several_heads(hf, source)
    placement.keep_here(hf, [module for module in (hf.get_input_embeddings(), head_of(hf)) if module is not None])
    logits, calls = _watched_pass(hf, source)
    head, n_vocab = _head(hf, logits, source)
    path, blocks = _stack(hf, calls, source)
    kinds = layer_kinds(config, list(hf.get_submodule(path).children()), blocks)
    family = family_of(config.model_type, config)
    tail = _between(hf, blocks[-1], head, calls)
    placement.keep_here(hf, tail)
    return Model(
        hf=hf,
        tokenizer=tokenizer,
        source=source,
        revision=revision,
        family=config.model_type,
        decoder=_decoder(hf, path),
        blocks=blocks,
        sublayers=[_sublayers(block, kind, family) for block, kind in zip(blocks, kinds, strict=True)],
        unembed=_unembed(config, head, tail, n_vocab, calls),
        layer_kinds=kinds,
        mlp_kinds=mlp_kinds(blocks),
    )


def _watched_pass(hf: PreTrainedModel, source: str) -> tuple[Tensor | None, list[Call]]:
    """The logits of a pass over two tokens, and the calls of modules in it."""
    device: Any = hf.get_input_embeddings().weight.device
    without_weights = shapes_only() if device.type == "meta" else nullcontext()
    try:
        with torch.no_grad(), without_weights, calls_in(hf) as calls:
            ids = torch.zeros(1, 2, dtype=torch.long, device=device)
            outputs = hf(input_ids=ids, use_cache=False)
    except Exception as error:  # a model that does not read text may raise anything
        if is_out_of_memory(error):
            raise
        advice = "layerlens traces models that run on text alone"
        if getattr(hf, "is_quantized", False):
            advice = "the package that quantised its weights may not fit them or this processor: load it without"
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: a pass over token ids alone failed "
            f"({first_sentence(error)})",
            advice,
            given=source,
        ) from error
    return getattr(outputs, "logits", None), calls


def _refuse_several_heads(hf: PreTrainedModel, source: str) -> None:
    head = head_of(hf)
    if isinstance(head, nn.ModuleList):
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: it has {len(head)} unembeddings, and predicts as "
            "many tokens at once",
            "layerlens traces models that predict one token at a time",
            given=source,
        )


def _head(hf: PreTrainedModel, logits: Tensor | None, source: str) -> tuple[nn.Module, int]:
    """The unembedding, a module with one weight, plain or packed, and the number of entries in its logits."""
    head = head_of(hf)
    has_weight = isinstance(getattr(head, "weight", None), Tensor) or (
        isinstance(head, nn.Module) and getattr(hf, "is_quantized", False)
    )
    if logits is None or head is None:
        raise ModelError(
            f"{source} cannot be traced: it has no unembedding", "give a model with a language-model head", given=source
        )
    if not has_weight:
        raise unreadable_head(head, source)
    assert isinstance(head, nn.Module)
    weight = getattr(head, "weight", None)
    if is_plain(weight) and not isinstance(weight, nn.Parameter):
        raise ModelError(
            f"{source} cannot be traced: its unembedding makes its weight anew in every pass, by pruning or "
            "another parametrisation",
            "make that permanent (torch.nn.utils.prune.remove, remove_parametrizations), then load it",
            given=source,
        )
    return head, logits.shape[-1]


def _stack(hf: PreTrainedModel, calls: Sequence[Call], source: str) -> tuple[str, list[nn.Module]]:
    """The list of blocks by its path, and those blocks of it that run on text, in order.

    Only the outermost of the module lists that ran count. If there are several, it is the one that hands a stream on.
    """
    lists: dict[str, list[nn.Module]] = {}
    ran = {call.module: call for call in calls}
    for path, module in hf.named_modules():
        called = [child for child in module if child in ran] if isinstance(module, nn.ModuleList) else []
        if called and not any(path.startswith(f"{outer}.") for outer in lists):
            lists[path] = called
    chains = {path: blocks for path, blocks in lists.items() if len(lists) == 1 or _hand_on(blocks, ran)}
    if len(chains) != 1:
        what = f"{len(lists)} lists of modules ({', '.join(lists) or 'none'})"
        how = "several of them hand" if chains else "none of them hands"
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: its layers are in {what}, and {how} a stream "
            "from module to module",
            "layerlens needs one stack of blocks with one residual stream",
            given=source,
        )
    ((path, blocks),) = chains.items()
    n_calls = sum(call.module is blocks[0] for call in calls)
    if n_calls > 1:
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: one pass runs its blocks {n_calls} times",
            "layerlens needs a model in which each block is one layer",
            given=source,
        )
    return path, blocks


def _hand_on(blocks: Sequence[nn.Module], ran: Mapping[nn.Module, Call]) -> bool:
    """Whether each block was given what the one before it returned."""
    pairs = pairwise(blocks)
    return len(blocks) > 1 and all(ran[one].returned is ran[following].given for one, following in pairs)


def _decoder(hf: PreTrainedModel, path: str) -> nn.Module:
    """The innermost owner of the blocks that takes token ids."""
    names = path.split(".")[:-1]
    owners = (hf.get_submodule(".".join(names[:n])) for n in range(len(names), 0, -1))
    return next((owner for owner in owners if "input_ids" in signature(owner.forward).parameters), hf)


def _between(hf: PreTrainedModel, block: nn.Module, head: nn.Module, calls: Sequence[Call]) -> list[nn.Module]:
    """The modules called after the last block and before the unembedding, without those inside of them."""
    modules = [call.module for call in calls]
    after = modules[modules.index(block) + 1 :]
    if head in after:
        after = after[: after.index(head)]
    after = [module for module in after if module not in set(head.modules())]
    around = [module for module in after if not {block, head} & set(module.modules())]
    inside = {inner for module in around for inner in module.modules() if inner is not module}
    return [module for module in around if module not in inside]


def _unembed(config: Any, head: nn.Module, tail: Sequence[nn.Module], n_vocab: int, calls: Sequence[Call]) -> Unembed:
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    is_packed = not is_plain(weight)
    if is_packed:
        given = next(call.given for call in calls if call.module is head)
        assert given is not None
        weight = matrix_of(head, given)
    assert isinstance(weight, Tensor)
    scale = _number(config, *_FACTORS) or 1.0
    return Unembed(
        tail=[placement.beside(module, weight.device) for module in tail],
        weight=weight.detach()[:n_vocab],  # some heads are padded to a round number of vocabulary entries
        bias=bias.detach()[:n_vocab] if isinstance(bias, Tensor) else None,
        scale=scale / (_number(config, *_DIVISORS) or 1.0),
        softcap=_number(config, *_CAPS),
        packed=head if is_packed else None,
    )


def _number(config: Any, *names: str) -> float | None:
    """The first of the config's entries that is a number. If an entry is missed, the readout check finds it."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _sublayers(block: nn.Module, kind: str, family: Family) -> SubLayers | None:
    if not family.additive:
        return None
    modules = named_in(block, family.attention if family.parallel else (family.middle_of(kind),))
    return SubLayers(modules[0], bool(family.parallel)) if modules else None


def named_in(block: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of the block that have one of these names; a name is a path within the block."""
    modules = []
    for name in names:
        module: Any = block
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            modules.append(module)
    return modules
