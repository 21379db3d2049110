"""Whether the readout is the model's own logits (law 1), and why it may not be."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from layerlens.compat import hooks_of, hooks_of_all
from layerlens.errors import ModelError, first_sentence, is_out_of_memory
from layerlens.models.model import Model
from layerlens.models.probing import mismatch, tolerance
from layerlens.models.unembed import Unembed

_LARGEST_BIAS = 1e-3


class UnknownHead(ModelError):
    """The readout is not the model's own logits: what is between the last block and the logits is not known."""


def with_its_readout(model: Model, logits: Tensor, last: Tensor) -> Model:
    """The model with a head that gives its logits: with the scale and cap that its config names, or without them,
    because wrappers around a language model can leave them out."""
    return with_best_head(model, [_miss(model, unembed, logits, last) for unembed in possible_heads(model)])


def possible_heads(model: Model) -> tuple[Unembed, Unembed]:
    """The readout with the scale and cap that the config names, and the readout without them."""
    return model.unembed, replace(model.unembed, scale=1.0, softcap=None)


def with_best_head(model: Model, misses: Sequence[tuple[float, float]]) -> Model:
    """The model with the first of its readouts that equals its logits up to rounding.

    Args:
        model: as adapted.
        misses: for each of `possible_heads`, how far it is from the logits, at worst and on average, relative to their
            size.

    Raises:
        ModelError: none of them gives the model's logits, or the logits are all 0.
    """
    for (worst, bias), unembed in zip(misses, possible_heads(model), strict=True):
        if _fits(model, unembed, worst, bias):
            return replace(model, unembed=unembed)
    worst, bias = misses[0]
    if worst == 0:  # equal, but without a size
        raise ModelError(
            f"{model.source} ({model.family}) gives a logit of 0 for every token, so that all tokens are equally "
            f"likely at every layer: {_what_is_zero(model)} nothing but zeros",
            "load it with trained weights",
            given=model.source,
        )
    raise UnknownHead(
        f"{model.source} ({model.family}) failed the readout check: final norm and unembedding of the last block's "
        f"output differ from the model's own logits by {worst:.1e} of their size, {bias:.1e} on average",
        _reason(model),
        given=model.source,
    )


def readout_holds(model: Model, logits: Tensor, last: Tensor) -> bool:
    """Whether the readout of the last block's states [batch, seq, d_model] still gives these logits."""
    return _fits(model, model.unembed, *_miss(model, model.unembed, logits, last))


def _fits(model: Model, unembed: Unembed, worst: float, bias: float) -> bool:
    """Whether a readout equals the logits up to rounding; with a NaN it does not."""
    return worst <= tolerance(model, packed=unembed.packed is not None) and bias <= _LARGEST_BIAS


def _what_is_zero(model: Model) -> str:
    weight = model.unembed.weight
    if not weight.is_meta and not weight.any():
        return f"its unembedding ({type(model.head).__name__}) holds"
    return "what it reads after the last block is"


def _reason(model: Model) -> str:
    """Why a readout may not give the model's logits, and what to do."""
    ends = [module for end in (*model.unembed.tail, model.head) for module in end.modules()]
    hooked = next((module for module in ends if hooks_of(module)), None)
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
    """How far the readout of the last states is from the logits: at worst, and on average."""
    try:
        read = unembed.logits(last.flatten(0, 1))
    except Exception as error:  # from a module that was given less than it needs
        if is_out_of_memory(error):
            raise
        tail = ", ".join(type(module).__name__ for module in unembed.tail)
        raise ModelError(
            f"{model.source} ({model.family}) cannot be traced: what follows its last block ({tail}) does not read "
            f"one state alone ({first_sentence(error)})",
            "layerlens needs one residual stream with one state for each token",
            given=model.source,
        ) from error
    own = logits.flatten(0, 1).to(read.device)
    # rounding in half precision is large but goes both ways; a missing scale or soft-cap goes one way
    return mismatch(own, read), abs(_slope(own, read) - 1)


def _slope(left: Tensor, right: Tensor) -> float:
    """The factor on `left` that fits `right` best."""
    left, right = left.double().reshape(-1), right.double().reshape(-1)
    return float(left.dot(right) / left.dot(left).clamp_min(1e-20))
