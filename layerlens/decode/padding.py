"""Whether padding a prompt on the left changes what a model generates from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from layerlens.decode.prompts import pad, pad_token_id
from layerlens.errors import OptionError
from layerlens.models import Model

# of the largest logit; linear attention computes a prompt in chunks, so rounding differs with its length
_PADDING_TOLERANCE = {torch.float32: 5e-3, torch.float64: 5e-3, torch.float16: 3e-2}


@torch.no_grad()
def refuse_ignored_padding(model: Model) -> None:
    """OptionError where a prompt, padded on the left beside a longer one, generates from other logits than alone."""
    known = min(model.n_known_tokens, model.n_vocab)
    long = torch.linspace(min(3, known - 1), known - 1, 9).long().tolist()
    alone = _first_logits(model, [long[2:6]])
    padded = _first_logits(model, [long[2:6], long])[: len(alone)]  # alone, it may have come to its end sooner
    # after a near tie was decided otherwise the texts differ, and their logits with them
    agreed = (alone.argmax(1) == padded.argmax(1)).cumprod(0).sum()
    alone, padded = alone[: agreed + 1], padded[: agreed + 1]
    scale = alone.abs().max()
    if not (alone - padded).abs().max() <= _PADDING_TOLERANCE.get(model.hf.dtype, 0.1) * scale:
        raise OptionError(
            f"--batch-size above 1 does not work for {model.source} ({model.family}): padding changes what it "
            "generates; give --batch-size 1"
        )


def _first_logits(model: Model, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The logits of the first prompt at the steps that emit its next tokens, four at most: [steps, vocab]."""
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, pad_token_id(model), left=True))
    hf: Any = model.hf
    out = hf.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=pad_token_id(model),
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    return torch.stack([logits[0].float() for logits in out.logits])
