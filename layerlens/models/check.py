"""What must hold for a model before its numbers are used, checked on the loaded model with a few short passes."""

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
    """The checked model. Its readings' foundation is recorded; sub-layer parts that cannot be told apart are left out.

    Two texts that differ only in their last token go through the model together. The block outputs must be one stream
    that is handed from block to block. Earlier positions must not see the later token. The readout of the last block's
    output must be the model's own logits (law 1).

    Raises:
        ModelError: says what did not match, and by how much.
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
    """The error for a block whose input is not what the block before it handed on."""
    return ModelError(
        f"{model.source} ({model.family}) cannot be traced: block {index} does not start from what block "
        f"{index - 1} handed on",
        "models that change the residual stream between blocks are not supported",
        given=model.source,
    )


def refuse_not_causal(model: Model, worst: float) -> None:
    """ModelError where a later token changes earlier logits, at worst by this share of their size; also for NaN."""
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
