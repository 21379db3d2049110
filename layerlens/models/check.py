"""What a model must fulfil before its numbers are believed, checked on the loaded model with a few short passes."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from layerlens.errors import ModelError, spelled
from layerlens.models.changes import foundation_of
from layerlens.models.check_parts import all_at_once, decoder_is_enough, parts_hold
from layerlens.models.check_readout import with_its_readout
from layerlens.models.model import Model
from layerlens.models.probing import Streams, mismatch, probe, tolerance, watched


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
        logits, streams = watched(model, ids)
        _check_finite(model, logits)
        if logits.shape[:2] == ids.shape:
            refuse_not_causal(model, mismatch(logits[0, :-1], logits[1, :-1]))
        _check_stream(model, streams, [*ids.shape, model.d_model])
        model = with_its_readout(model, logits, streams[-1][2])
        if not all_at_once(model, ids, streams):
            if not decoder_is_enough(model, ids, streams[-1][2]):
                model = replace(model, decoder=model.hf)
            if not parts_hold(model, ids, streams):
                model = replace(model, sublayers=[None] * model.n_layers)
    return replace(model, foundation=foundation_of(model))


def _check_stream(model: Model, streams: Streams, shape: list[int]) -> None:
    for index, (h_in, _, h_out) in enumerate(streams):
        if list(h_out.shape) != shape:
            raise ModelError(
                f"{model.source} ({model.family}) cannot be traced: block {index} hands on a tensor of shape "
                f"{list(h_out.shape)} where {shape} was expected",
                "layerlens needs one residual stream with one state for each token",
                given=model.source,
            )
        if index and not torch.equal(h_in, streams[index - 1][2].to(h_out.device)):
            raise stream_changed(model, index)


def _check_finite(model: Model, logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise _not_finite(model)


def _not_finite(model: Model) -> ModelError:
    return ModelError(
        f"{model.source} gives NaN or infinite logits for a short probe",
        f"check the weights, or load with another {spelled('dtype')} than {str(model.hf.dtype).removeprefix('torch.')}",
        option="dtype",
        given=model.source,
    )


def stream_changed(model: Model, index: int) -> ModelError:
    """What to raise where a block is not given what the one before it handed on."""
    return ModelError(
        f"{model.source} ({model.family}) cannot be traced: block {index} does not start from what block "
        f"{index - 1} handed on",
        "models that change the residual stream between blocks are not supported",
        given=model.source,
    )


def refuse_not_causal(model: Model, worst: float) -> None:
    """ModelError where a later token moves earlier logits, at worst by so much of their size; NaN is refused too."""
    if not math.isfinite(worst):
        raise _not_finite(model)
    if worst > tolerance(model, packed=model.quantization is not None):
        config = model.hf.config
        why = "its config has is_decoder=False, and " if getattr(config, "is_decoder", None) is False else ""
        raise ModelError(
            f"{model.source} ({model.family}) is not causal: {why}changing the last token moves earlier logits by "
            f"{worst:.1e} of their size",
            "layerlens traces decoder-only language models, give one of those",
            given=model.source,
        )
