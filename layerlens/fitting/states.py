"""The states of all layers at the positions of a text."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from layerlens.axes import States
from layerlens.errors import PromptError
from layerlens.fitting.texts import Split, Text
from layerlens.models import Model
from layerlens.models.hooks import watch_blocks
from layerlens.tracing.progress import Progress


@torch.no_grad()
def states_of(model: Model, text: Text, skip: int) -> list[States]:
    """The states [rows, d_model] of each layer 0..L, from one full pass, on the device of the head.

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


def held_out_states(model: Model, split: Split, seed: int, n: int, progress: Progress) -> list[States]:
    """States of layers 0..L at about `n` positions of the texts to choose by, equally many of each text."""
    progress.begin("reading what is held out", len(split.chosen_by), "texts")
    share = max(2, n // len(split.chosen_by))
    of_texts = []
    for number, text in enumerate(split.chosen_by):
        of_texts.append(drawn(states_of(model, text, split.skip), share, np.random.default_rng([seed, 0, number])))
        progress.advance(1, len(of_texts[-1][0]))
    return [torch.cat(layer) for layer in zip(*of_texts, strict=True)]


def drawn(states: Sequence[States], n: int, draws: np.random.Generator) -> list[States]:
    """The states at `n` positions that are drawn, or at all positions where there are fewer."""
    rows = len(states[0])
    if rows <= n:
        return list(states)
    chosen = torch.from_numpy(np.sort(draws.choice(rows, n, replace=False))).to(states[0].device)
    return [layer[chosen] for layer in states]
