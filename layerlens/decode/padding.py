"""Whether padding a prompt on the left changes what a model generates from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layerlens.decode.forward import Forward
from layerlens.decode.prompts import pad, pad_token_id
from layerlens.errors import OptionError, spelled
from layerlens.models import Model

# relative to the largest logit; linear attention reads a prompt in chunks, so rounding depends on its length
_PADDING_TOLERANCE = {torch.float32: 5e-3, torch.float64: 5e-3, torch.float16: 3e-2}
_STEPS = 4


def refuse_ignored_padding(model: Model) -> None:
    """OptionError where a prompt that is padded on the left, beside a longer one, has other logits than alone."""
    fault = padding_fault(model)
    if fault is not None:
        raise OptionError(
            f"{spelled('batch_size')} above 1 does not work for {model.source} ({model.family}): padding changes what "
            f"it generates, because {fault}",
            f"give {spelled('batch_size', 1)}",
            option="batch_size",
        )


@torch.no_grad()
def padding_fault(model: Model) -> str | None:
    """Why a prompt that is padded on the left has other logits than alone; None where it has the same."""
    known = min(model.n_known_tokens, model.n_vocab)
    long = torch.linspace(min(3, known - 1), known - 1, 9, dtype=torch.float64).long().tolist()
    pad_id = pad_token_id(model)
    alone = _first_logits(model, [long[2:6]], pad_id)
    padded = _first_logits(model, [long[2:6], long], pad_id)
    if _alike(model, alone, padded) or not bool(alone.isfinite().all()):  # which is no fault of the padding
        return None
    # LLM.int8 looks at all rows of a batch, padding too, to pick the columns that it leaves unquantised
    if model.quantization and not _alike(model, alone, _first_logits(model, [long[2:6], long[4:8]], pad_id)):
        return None
    otherwise = _first_logits(model, [long[2:6], long], (pad_id + 1) % known)
    if _alike(model, padded, otherwise):
        return "it counts padding among its positions"
    return "it reads padding as text, masked or not"


def _alike(model: Model, left: Tensor, right: Tensor) -> bool:
    """Whether logits [steps, vocab] agree, up to the step at which a near tie was decided differently."""
    agreed = (left.argmax(1) == right.argmax(1)).cumprod(0).sum()
    left, right = left[: agreed + 1], right[: agreed + 1]
    return bool((left - right).abs().max() <= _PADDING_TOLERANCE.get(model.hf.dtype, 0.1) * left.abs().max())


def _first_logits(model: Model, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """The logits of the first prompt at the steps that emit its next tokens: [steps, vocab]."""
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, pad_id, left=True))
    forward = Forward(model, ids, mask, _STEPS, static=False)
    steps = [forward.prompts()]
    while len(steps) < _STEPS:
        steps.append(forward.step(steps[-1][:, : model.n_known_tokens].argmax(1, keepdim=True))[:, 0])
    return torch.stack([logits[0].float() for logits in steps])
