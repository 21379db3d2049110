"""What a model must fulfil before its numbers are believed, checked on the loaded model with a few short passes."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from layerlens.errors import ModelError, OptionError, first_sentence
from layerlens.models.adapter import Model, named_in
from layerlens.models.changes import changes, foundation_of, hooks_of_all, in_training, note_numbers
from layerlens.models.compiled import is_compiled
from layerlens.models.families import family_of
from layerlens.models.hooks import OnBlock, silenced, watch_blocks
from layerlens.models.unembed import Unembed

Streams = list[tuple[Tensor, Tensor | None, Tensor]]

_LARGEST_BIAS = 1e-3
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_PACKED_TOLERANCE = 3e-2  # schemes that round what goes through a layer too, to 8 bits


class UnknownHead(ModelError):
    """The readout is not the model's own logits: what lies between last block and logits was not understood."""


def checked(model: Model) -> Model:
    """The model, without the sub-layer parts where they cannot be told apart, and with what its readings rest on noted.

    Two texts that differ in their last token alone go through the model together. Then the block outputs are one
    stream handed from block to block, earlier positions must not see the later token, and the readout of the last
    block's output must be the model's own logits (law 1).

    Raises:
        ModelError: what did not match, with the size of the mismatch.
    """
    ids = probe(model)
    with torch.no_grad():
        logits, streams = _watched(model, ids)
        _check_finite(model, logits)
        if logits.shape[:2] == ids.shape:
            refuse_not_causal(model, _mismatch(logits[0, :-1], logits[1, :-1]))
        _check_stream(model, streams, [*ids.shape, model.d_model])
        model = _with_its_readout(model, logits, streams[-1][2])
        if not _all_at_once(model, ids, streams):
            if not _decoder_is_enough(model, ids, streams[-1][2]):
                model = replace(model, decoder=model.hf)
            if not _parts_hold(model, ids, streams):
                model = replace(model, sublayers=[None] * model.n_layers)
    return replace(model, foundation=foundation_of(model))


def refuse_unobservable(hf: nn.Module, source: str) -> None:
    """ModelError for a compiled model: hooks do not run in code that was compiled without them."""
    if is_compiled(hf):
        raise ModelError(f"{source} is compiled, and hooks do not run in compiled code; load it without torch.compile")


def still_as_loaded(model: Model, *, may_be_compiled: bool = False, may_be_remote: bool = False) -> None:
    """Refuse a model whose readings would not be its own: one that was changed in what they rest on after it was loaded
    and checked, or is in training mode, or compiled; and one whose weights are not here, where they are needed.

    What was changed inside of blocks is the model's own affair, and is measured. A change around them is believed
    once a short pass has shown that the readout still gives the model's own logits.

    Raises:
        ModelError: what is another than it was.
        OptionError: the weights lie on a server.
    """
    if not model.backend.is_here:
        if may_be_remote:
            return
        raise OptionError(
            f"--backend {model.backend.name} leaves the weights of {model.source} on a server, and this decodes here; "
            "load it with --backend transformers"
        )
    if not may_be_compiled:
        refuse_unobservable(model.hf, model.source)
    fixed, watched = changes(model)
    if fixed:
        raise _changed(model, fixed)
    if in_training(model.hf):
        names = [name for name, module in model.hf.named_modules() if module.training]
        what = f"{model.source} is" if model.hf.training else f"{names[0]} of {model.source} is"
        raise ModelError(f"{what} in training mode, where dropout is on; call model.hf.eval() first")
    if watched:
        if not _still_holds(model):
            raise _changed(model, watched)
        note_numbers(model)


def _changed(model: Model, phrases: Sequence[str]) -> ModelError:
    more = f" (and {len(phrases) - 2} more)" if len(phrases) > 2 else ""
    return ModelError(
        f"{model.source} was changed after it was loaded: {', '.join(phrases[:2])}{more}; undo that, or load it as it "
        "is now: ll.load(model.hf, tokenizer=model.tokenizer)"
    )


def _still_holds(model: Model) -> bool:
    """Whether the blocks run one after the other, and the readout of the last one gives the model's own logits."""
    ids, order, streams = probe(model), [], Streams()

    def keep(index: int, h_in: Tensor, _: Tensor | None, h_out: Tensor) -> None:
        order.append(index)
        streams.append((h_in.to(h_out.device), None, h_out))

    with torch.no_grad(), watch_blocks(model.blocks, [None] * model.n_layers, keep):
        logits = model.hf(input_ids=ids, use_cache=False).logits
    if order != list(range(model.n_layers)):
        return False
    with torch.no_grad():
        worst, bias = _miss(model, model.unembed, logits, streams[-1][2])
        if not _fits(model, model.unembed, worst, bias):
            return False
        return model.decoder is model.hf or _decoder_is_enough(model, ids, streams[-1][2])


def probe(model: Model) -> Tensor:
    """Two texts that differ in their last token alone; int64 [2, 7]."""
    n_words = min(model.n_vocab, model.n_known_tokens)
    least = min(3, n_words // 4)
    ids = torch.linspace(least, n_words - 1 - least, 7, dtype=torch.float64).long().repeat(2, 1)
    ids[1, -1] = n_words // 3
    for place in _placeholders(model.hf.config):  # an image would be expected there
        ids[ids == place] = place - 1 if place else 1
    return ids.to(model.device)


def _placeholders(config: Any) -> set[int]:
    """Token ids that stand for pictures or sound."""
    media = ("image", "video", "audio", "vision")
    names = [name for name in vars(config) if "_token_" in name and name.startswith(media)]
    return {getattr(config, name) for name in names}


def _watched(model: Model, ids: Tensor) -> tuple[Tensor, Streams]:
    streams: Streams = []
    with watch_blocks(model.blocks, model.sublayers, _keeper(streams)):
        logits = model.hf(input_ids=ids, use_cache=False).logits
    return logits, streams


def _keeper(streams: Streams) -> OnBlock:
    def keep(_: int, h_in: Tensor, part: Tensor | None, h_out: Tensor) -> None:
        # the first block on a device is seen before its inputs are brought there
        here = h_out.device
        streams.append((h_in.to(here), None if part is None else part.to(here), h_out))

    return keep


def _check_stream(model: Model, streams: Streams, shape: list[int]) -> None:
    for index, (h_in, _, h_out) in enumerate(streams):
        if list(h_out.shape) != shape:
            raise ModelError(
                f"{model.source} ({model.family}) cannot be traced: block {index} hands on a tensor of shape "
                f"{list(h_out.shape)} where {shape} was expected; layerlens needs one residual stream with one state "
                "for each token"
            )
        if index and not torch.equal(h_in, streams[index - 1][2].to(h_out.device)):
            raise stream_changed(model, index)


def _check_finite(model: Model, logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise _not_finite(model)


def _not_finite(model: Model) -> ModelError:
    return ModelError(
        f"{model.source} gives NaN or infinite logits for a short probe; check the weights, or load with another "
        f"--dtype than {str(model.hf.dtype).removeprefix('torch.')}"
    )


def stream_changed(model: Model, index: int) -> ModelError:
    """What to raise where a block is not given what the one before it handed on."""
    return ModelError(
        f"{model.source} ({model.family}) cannot be traced: block {index} does not start from what block "
        f"{index - 1} handed on; models that change the residual stream between blocks are not supported"
    )


def refuse_not_causal(model: Model, worst: float) -> None:
    """ModelError where a later token moves earlier logits, at worst by so much of their size; NaN is refused too."""
    if not math.isfinite(worst):
        raise _not_finite(model)
    if worst > _tolerance(model, packed=model.quantization is not None):
        config = model.hf.config
        why = "its config has is_decoder=False, and " if getattr(config, "is_decoder", None) is False else ""
        raise ModelError(
            f"{model.source} ({model.family}) is not causal: {why}changing the last token moves earlier logits by "
            f"{worst:.1e} of their size; layerlens traces decoder-only language models, give one of those"
        )


def _with_its_readout(model: Model, logits: Tensor, last: Tensor) -> Model:
    """The model with a head that gives its logits: as its config says, or without the scale and cap it speaks of, which
    wrappers around a language model can leave out."""
    return with_readout(model, [_miss(model, unembed, logits, last) for unembed in readouts(model)])


def readouts(model: Model) -> tuple[Unembed, Unembed]:
    """The readout as the config says, and without the scale and cap that it speaks of."""
    return model.unembed, replace(model.unembed, scale=1.0, softcap=None)


def with_readout(model: Model, misses: Sequence[tuple[float, float]]) -> Model:
    """The model with the first of its readouts that misses its logits by no more than rounding.

    Args:
        model: as adapted.
        misses: of each of `readouts`: at worst, and on average, as parts of the logits' size.

    Raises:
        ModelError: none of them gives the model's logits, or these are all 0.
    """
    for (worst, bias), unembed in zip(misses, readouts(model), strict=True):
        if _fits(model, unembed, worst, bias):
            return replace(model, unembed=unembed)
    worst, bias = misses[0]
    if worst == 0:  # equal, and yet without a size
        raise ModelError(
            f"{model.source} ({model.family}) gives a logit of 0 for every word, so that all words are equally likely "
            f"at every layer: {_what_is_zero(model)} nothing but zeros; load it with trained weights"
        )
    raise UnknownHead(
        f"{model.source} ({model.family}) failed the readout check: final norm and unembedding of the last block's "
        f"output differ from the model's own logits by {worst:.1e} of their size, {bias:.1e} on average; "
        f"{_reason(model)}"
    )


def _fits(model: Model, unembed: Unembed, worst: float, bias: float) -> bool:
    """Whether a readout misses its logits by rounding alone; a NaN does not."""
    return worst <= _tolerance(model, packed=unembed.packed is not None) and bias <= _LARGEST_BIAS


def _what_is_zero(model: Model) -> str:
    weight = model.unembed.weight
    if not weight.is_meta and not weight.any():
        return f"its unembedding ({type(model.head).__name__}) holds"
    return "what it reads after the last block is"


def _reason(model: Model) -> str:
    """Why a readout may not give the model's logits, and what to do."""
    ends = [module for end in (*model.unembed.tail, model.head) for module in end.modules()]
    hooked = next((module for module in ends if module._forward_hooks or module._forward_pre_hooks), None)
    if hooked is not None:
        return f"its {type(hooked).__name__} after the last block has hooks: take them off, then load it"
    if hooks_of_all():
        return "torch has hooks for all modules, which may change what they compute: take them off, then load it"
    inside = [name for name, _ in model.head.named_children()]
    if inside:
        return (
            f"its unembedding is a {type(model.head).__name__} that holds {', '.join(inside[:3])}, such as an adapter: "
            "merge that into its weight (merge_and_unload), then load it"
        )
    return "this architecture's head is not known, please report it"


def _miss(model: Model, unembed: Unembed, logits: Tensor, last: Tensor) -> tuple[float, float]:
    """By how much the readout of the last states differs from the logits: at worst, and on average."""
    try:
        read = unembed.logits(last.flatten(0, 1))
    except Exception as error:  # of a module that was given less than it needs
        tail = ", ".join(type(module).__name__ for module in unembed.tail)
        raise ModelError(
            f"{model.source} ({model.family}) cannot be traced: what follows its last block ({tail}) does not read one "
            f"state alone ({first_sentence(error)}); layerlens needs one residual stream with one state for each token"
        ) from error
    own = logits.flatten(0, 1).to(read.device)
    # the rounding of half precision is large but falls to both sides; a lost scale or soft-cap pulls to one
    return _mismatch(own, read), abs(_slope(own, read) - 1)


def _all_at_once(model: Model, ids: Tensor, streams: Streams) -> bool:
    """Whether one pass shows that the decoder is enough and the parts hold; where it does not, each is asked alone.

    Three times the same texts: as they are, without attention, and without MLPs.
    """
    parts = _attention_and_mlp(model, streams)
    if parts is None:
        return False
    seen: Streams = []
    with ExitStack() as stack:
        for row, modules in enumerate(parts, start=1):
            stack.enter_context(silenced(modules, row, 3))
        stack.enter_context(watch_blocks(model.blocks, model.sublayers, _keeper(seen)))
        try:
            model.decoder(input_ids=ids.repeat(3, 1), use_cache=False)
        except Exception:  # of a module whose output has no rows, or that minds what is silent
            return False

    def group(stream: Tensor) -> Tensor:
        groups: Tensor = stream.unflatten(0, (3, len(ids)))
        return groups

    plain, without_attention, without_mlp = (
        Streams((group(h_in)[row], group(_present(part))[row], group(h_out)[row]) for h_in, part, h_out in seen)
        for row in range(3)
    )
    is_enough = _mismatch(plain[-1][2], streams[-1][2]) <= _tolerance(model, packed=model.quantization is not None)
    return is_enough and _add_up(model, plain, without_attention, without_mlp)


def _decoder_is_enough(model: Model, ids: Tensor, last: Tensor) -> bool:
    """Whether the decoder, called with token ids alone, computes the states that the whole model does."""
    alone: list[Tensor] = []
    with watch_blocks(model.blocks[-1:], [None], lambda *seen: alone.append(seen[-1])):
        model.decoder(input_ids=ids, use_cache=False)
    return _mismatch(alone[0], last) <= _tolerance(model, packed=model.quantization is not None)


def _parts_hold(model: Model, ids: Tensor, streams: Streams) -> bool:
    """Whether attention and MLP part are what each sub-layer adds: silencing one leaves only the other."""
    parts = _attention_and_mlp(model, streams)
    if parts is None:
        return False
    attentions, mlps = parts
    with silenced(attentions):
        _, without_attention = _watched(model, ids)
    with silenced(mlps):
        _, without_mlp = _watched(model, ids)
    return _add_up(model, streams, without_attention, without_mlp)


def _attention_and_mlp(model: Model, streams: Streams) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """The modules that are the parts of all blocks; None where a block has no such part."""
    family = family_of(model.family, model.hf.config.get_text_config(decoder=True))
    attentions = [named_in(block, family.attention) for block in model.blocks]
    mlps = [named_in(block, family.mlp) for block in model.blocks]
    seen = all(sublayer is not None for sublayer in model.sublayers) and all(part is not None for _, part, _ in streams)
    if not (seen and all(attentions) and all(mlps)):
        return None
    return [module for modules in attentions for module in modules], [module for modules in mlps for module in modules]


def _add_up(model: Model, streams: Streams, without_attention: Streams, without_mlp: Streams) -> bool:
    family = family_of(model.family, model.hf.config.get_text_config(decoder=True))
    tolerance = _tolerance(model, packed=model.quantization is not None)
    if family.parallel:
        # only the first block gets the same input in both passes: there the MLP must not notice that attention is gone
        (_, part, h_out), (_, _, mlp_only) = streams[0], without_attention[0]
        separate = _mismatch(h_out - _present(part), mlp_only) <= tolerance
        return separate and all(_mismatch(h_in + _present(p), h_out) <= tolerance for h_in, p, h_out in without_mlp)
    attention_alone = all(_mismatch(h_in, _present(part)) <= tolerance for h_in, part, _ in without_attention)
    mlp_alone = family.adds_more or all(_mismatch(_present(p), h_out) <= tolerance for _, p, h_out in without_mlp)
    return attention_alone and mlp_alone


def _present(part: Tensor | None) -> Tensor:
    assert part is not None
    return part


def _mismatch(left: Tensor, right: Tensor) -> float:
    """Largest absolute difference at a position over the largest absolute value there, at worst; [..., width] both.

    Position by position, because the first token of a text can be thousands of times as large as the others.
    """
    left, right = left.float().flatten(0, -2), right.float().flatten(0, -2)
    scale = torch.maximum(left.abs().amax(1), right.abs().amax(1)).clamp_min(1e-20)
    return float(((left - right).abs().amax(1) / scale).max())


def _slope(left: Tensor, right: Tensor) -> float:
    """The factor on `left` that fits `right` best."""
    left, right = left.double().reshape(-1), right.double().reshape(-1)
    return float(left.dot(right) / left.dot(left).clamp_min(1e-20))


def _tolerance(model: Model, *, packed: bool) -> float:
    """Of rounding, in the model's type or, where what was computed went through quantised weights, by their scheme."""
    tolerance = _TOLERANCE.get(model.hf.dtype, 3e-2)
    return max(tolerance, _PACKED_TOLERANCE) if packed else tolerance
