"""What a model must fulfil before its numbers are believed, checked on the loaded model with three short passes."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from layerlens.errors import ModelError
from layerlens.models.adapter import Model
from layerlens.models.compiled import is_compiled
from layerlens.models.families import family_of
from layerlens.models.hooks import silenced, watch_blocks

Streams = list[tuple[Tensor, Tensor | None, Tensor]]

_LARGEST_BIAS = 1e-3
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def checked(model: Model) -> Model:
    """The model, without the sub-layer parts where they cannot be told apart.

    Two texts that differ in their last token alone go through the model together. Then the block outputs are one
    stream handed from block to block, earlier positions must not see the later token, and the readout of the last
    block's output must be the model's own logits (law 1).

    Raises:
        ModelError: what did not match, with the size of the mismatch.
    """
    ids = _probe(model)
    with torch.no_grad():
        logits, streams = _watched(model, ids)
        _check_finite(model, logits)
        _check_stream(model, streams)
        _check_causal(model, streams[-1][2])
        _check_readout(model, logits, streams[-1][2])
        return model if _parts_hold(model, ids, streams) else replace(model, sublayers=[None] * model.n_layers)


def refuse_unobservable(hf: nn.Module, source: str) -> None:
    """ModelError for a compiled model: hooks do not run in code that was compiled without them."""
    if is_compiled(hf):
        raise ModelError(f"{source} is compiled, and hooks do not run in compiled code; load it without torch.compile")


def still_as_loaded(model: Model, *, may_be_compiled: bool = False) -> None:
    """Refuse a model that was changed after it was loaded and checked: compiled, in training mode, another head."""
    if not may_be_compiled:
        refuse_unobservable(model.hf, model.source)
    if model.hf.training:
        raise ModelError(f"{model.source} is in training mode, where dropout is on; call model.hf.eval() first")
    if model.head.weight.data_ptr() != model.unembed.weight.data_ptr():  # type: ignore[operator]
        raise ModelError(f"{model.source} has another unembedding than when it was loaded; load it again")


def _probe(model: Model) -> Tensor:
    n_words = min(model.n_vocab, model.n_known_tokens)
    ids = torch.linspace(min(3, n_words // 4), n_words - 1 - min(3, n_words // 4), 7).long().repeat(2, 1)
    ids[1, -1] = n_words // 3
    return ids.to(model.device)


def _watched(model: Model, ids: Tensor) -> tuple[Tensor, Streams]:
    streams: Streams = []
    with watch_blocks(model.blocks, model.sublayers, lambda _, *seen: streams.append(seen)):
        logits = model.hf(input_ids=ids, use_cache=False).logits
    return logits, streams


def _check_stream(model: Model, streams: Streams) -> None:
    shape = streams[0][0].shape
    for index, (h_in, _, h_out) in enumerate(streams):
        if h_out.ndim != 3 or h_out.shape != shape:
            raise ModelError(
                f"{model.source} cannot be traced: block {index} hands on a tensor of shape {list(h_out.shape)} where "
                f"[batch, seq, d_model] was expected; models with several residual streams are not supported"
            )
        if index and not torch.equal(h_in.to(h_out.device), streams[index - 1][2].to(h_out.device)):
            raise ModelError(
                f"{model.source} cannot be traced: block {index} does not start from what block {index - 1} handed on; "
                "models that change the residual stream between blocks are not supported"
            )


def _check_finite(model: Model, logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"{model.source} gives NaN or infinite logits for a short probe; check the weights, or load with another "
            f"--dtype than {str(model.hf.dtype).removeprefix('torch.')}"
        )


def _check_causal(model: Model, last: Tensor) -> None:
    worst = _mismatch(last[0, :-1], last[1, :-1])
    if worst > _tolerance(model):
        raise ModelError(
            f"{model.source} ({model.family}) is not causal: changing the last token moves earlier states by "
            f"{worst:.1e} of their size; layerlens traces decoder-only language models, give one of those"
        )


def _check_readout(model: Model, logits: Tensor, last: Tensor) -> None:
    read = model.unembed.logits(last.flatten(0, 1))
    worst = _mismatch(logits.flatten(0, 1).to(read.device), read)
    # the rounding of half precision is large but falls to both sides; a lost scale or soft-cap pulls to one
    bias = abs(_slope(logits.flatten(0, 1).to(read.device), read) - 1)
    if not (worst <= _tolerance(model) and bias <= _LARGEST_BIAS):
        raise ModelError(
            f"{model.source} ({model.family}) failed the readout check: final norm and unembedding of the last block's "
            f"output differ from the model's own logits by {worst:.1e} of their size, {bias:.1e} on average; this "
            "architecture's head is not known, please report it"
        )


def _parts_hold(model: Model, ids: Tensor, streams: Streams) -> bool:
    """Whether attention and MLP part are what each sub-layer adds: silencing one leaves only the other."""
    if any(sublayer is None for sublayer in model.sublayers):
        return False
    config = model.hf.config.get_text_config()
    family = family_of(model.family, config)
    attentions = [_named(block, family.attention) for block in model.blocks]
    mlps = [_named(block, (family.mlp,)) for block in model.blocks]
    if None in attentions or None in mlps:
        return False
    with silenced([module for module in attentions if module is not None]):
        _, without_attention = _watched(model, ids)
    with silenced([module for module in mlps if module is not None]):
        _, without_mlp = _watched(model, ids)
    tolerance = _tolerance(model)
    if family.parallel:
        # only the first block gets the same input in both passes: there the MLP must not notice that attention is gone
        (_, part, h_out), (_, _, mlp_only) = streams[0], without_attention[0]
        separate = _mismatch(h_out - _present(part), mlp_only) <= tolerance
        return separate and all(_mismatch(h_in + _present(p), h_out) <= tolerance for h_in, p, h_out in without_mlp)
    attention_alone = all(_mismatch(h_in, _present(part)) <= tolerance for h_in, part, _ in without_attention)
    mlp_alone = family.adds_more or all(_mismatch(_present(p), h_out) <= tolerance for _, p, h_out in without_mlp)
    return attention_alone and mlp_alone


def _named(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((getattr(block, name) for name in names if getattr(block, name, None) is not None), None)


def _present(part: Tensor | None) -> Tensor:
    assert part is not None
    return part


def _mismatch(left: Tensor, right: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    left, right = left.float().reshape(-1), right.float().reshape(-1)
    scale = torch.maximum(left.abs().max(), right.abs().max()).clamp_min(1e-20)
    return float((left - right).abs().max() / scale)


def _slope(left: Tensor, right: Tensor) -> float:
    """The factor on `left` that fits `right` best."""
    left, right = left.double().reshape(-1), right.double().reshape(-1)
    return float(left.dot(right) / left.dot(left).clamp_min(1e-20))


def _tolerance(model: Model) -> float:
    return _TOLERANCE.get(model.hf.dtype, 3e-2)
