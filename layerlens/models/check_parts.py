"""Whether a model's decoder can stand for the whole model, and whether the parts are what attention and MLP add."""

from contextlib import ExitStack

from torch import Tensor, nn

from layerlens.models.adapter import named_in
from layerlens.models.families import family_of
from layerlens.models.hooks import silenced, watch_blocks
from layerlens.models.model import Model
from layerlens.models.probing import Streams, keeper, mismatch, tolerance, watched


def all_at_once(model: Model, ids: Tensor, streams: Streams) -> bool:
    """Whether one pass shows that the decoder is enough and the parts hold. If it does not, each is checked alone.

    The pass reads the same texts three times: as they are, without attention, and without MLPs.
    """
    parts = _attention_and_mlp(model, streams)
    if parts is None:
        return False
    seen: Streams = []
    with ExitStack() as stack:
        for row, modules in enumerate(parts, start=1):
            stack.enter_context(silenced(modules, row, 3))
        stack.enter_context(watch_blocks(model.blocks, model.sublayers, keeper(seen)))
        try:
            model.decoder(input_ids=ids.repeat(3, 1), use_cache=False)
        except Exception:  # from a module whose output has no rows, or that fails on silenced input
            return False

    def group(stream: Tensor) -> Tensor:
        groups: Tensor = stream.unflatten(0, (3, len(ids)))
        return groups

    plain, without_attention, without_mlp = (
        Streams((group(h_in)[row], group(_present(part))[row], group(h_out)[row]) for h_in, part, h_out in seen)
        for row in range(3)
    )
    is_enough = mismatch(plain[-1][2], streams[-1][2]) <= tolerance(model, packed=model.quantization is not None)
    return is_enough and _add_up(model, plain, without_attention, without_mlp)


def decoder_is_enough(model: Model, ids: Tensor, last: Tensor) -> bool:
    """Whether the decoder, called with token ids alone, computes the states that the whole model does."""
    alone: list[Tensor] = []
    with watch_blocks(model.blocks[-1:], [None], lambda *seen: alone.append(seen[-1])):
        model.decoder(input_ids=ids, use_cache=False)
    return mismatch(alone[0], last) <= tolerance(model, packed=model.quantization is not None)


def parts_hold(model: Model, ids: Tensor, streams: Streams) -> bool:
    """Whether the attention part and the MLP part are what each adds: silencing one leaves only the other."""
    parts = _attention_and_mlp(model, streams)
    if parts is None:
        return False
    attentions, mlps = parts
    with silenced(attentions):
        _, without_attention = watched(model, ids)
    with silenced(mlps):
        _, without_mlp = watched(model, ids)
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
    allowed = tolerance(model, packed=model.quantization is not None)
    if family.parallel:
        # only the first block gets the same input in both passes: there the MLP must not depend on attention
        (_, part, h_out), (_, _, mlp_only) = streams[0], without_attention[0]
        separate = mismatch(h_out - _present(part), mlp_only) <= allowed
        return separate and all(mismatch(h_in + _present(p), h_out) <= allowed for h_in, p, h_out in without_mlp)
    attention_alone = all(mismatch(h_in, _present(part)) <= allowed for h_in, part, _ in without_attention)
    mlp_alone = family.adds_more or all(mismatch(_present(p), h_out) <= allowed for _, p, h_out in without_mlp)
    return attention_alone and mlp_alone


def _present(part: Tensor | None) -> Tensor:
    assert part is not None
    return part
