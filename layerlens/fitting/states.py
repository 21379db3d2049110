"""The states of all layers at the positions of a text."""

import torch
from torch import Tensor

from layerlens.axes import States
from layerlens.errors import PromptError
from layerlens.fitting.texts import Text
from layerlens.models import Model
from layerlens.models.hooks import watch_blocks


@torch.no_grad()
def states_of(model: Model, text: Text, skip: int) -> list[States]:
    """[rows, d_model] of each layer 0..L, from one full pass, where the head lies.

    Args:
        model: from `load`.
        text: not longer than the model's context.
        skip: positions at its beginning that are left out.

    Raises:
        PromptError: a state is NaN or infinite.
    """
    kept: list[Tensor] = []

    def keep(index: int, h_in: Tensor, _part: Tensor | None, h_out: Tensor) -> None:
        for stream in (h_in, h_out) if index == 0 else (h_out,):
            kept.append(stream[0, skip:].to(model.unembed.device, copy=True))

    with watch_blocks(model.blocks, [None] * model.n_layers, keep):
        model.decoder(input_ids=torch.tensor([text.token_ids], device=model.device), use_cache=False)
    for layer, states in enumerate(kept):
        if not states.isfinite().all():
            raise PromptError(
                f"text {text.text_id} has NaN or infinite states at layer {layer}",
                "leave it out, or load the model in float32",
                option="prompts",
                given=text.text_id,
            )
    return kept
