"""What a lens gains over reading states as they are: KL(p_L ‖ p_l) of each layer, on texts that it was not fitted
on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from layerlens.analysis.uncertainty import mean_interval, resample
from layerlens.errors import PromptError
from layerlens.fitting.states import states_of
from layerlens.fitting.texts import Text
from layerlens.lens import kl_from_last, read
from layerlens.lens.transport import Transport
from layerlens.models import Model
from layerlens.tracing.progress import Progress

_ROWS_AT_ONCE = 256


def gain(model: Model, transport: Transport, texts: Sequence[Text], skip: int, progress: Progress) -> pd.DataFrame:
    """Mean KL(p_L ‖ p_l) in nats of each layer that the transport maps, by the logit lens and through the transport.

    Args:
        model: from `load`.
        transport: the transport that is measured.
        texts: texts that it was not fitted on.
        skip: positions at the beginning of each text that are left out.
        progress: where it is shown.

    Returns:
        One row for each layer below L: layer, kl_logit and kl_lens, each with `_low` and `_high`, the 95 % interval
        over texts (see `layerlens.analysis.uncertainty`), n_tokens, n_texts.

    Raises:
        PromptError: a text has states or logits that are NaN or infinite.
    """
    layers = [layer for layer in range(model.n_layers) if layer in transport.layers]
    sums = np.zeros((len(texts), 2, len(layers)))
    counts = np.array([len(text.token_ids) - skip for text in texts], dtype=float)
    progress.begin("measuring the gain", len(texts), "texts")
    for place, text in enumerate(texts):
        states = states_of(model, text, skip)
        for rows in zip(*(layer.split(_ROWS_AT_ONCE) for layer in states), strict=True):
            sums[place] += _divergences(model, transport, layers, rows).sum(2).double().cpu().numpy()
        if not np.isfinite(sums[place]).all():
            problem = f"text {text.text_id} has NaN or infinite logits"
            raise PromptError(
                problem, "leave it out, or load the model in float32", option="prompts", given=text.text_id
            )
        progress.advance(1, len(states[0]))
    means = mean_interval(sums, counts[:, np.newaxis, np.newaxis], resample(len(texts)))
    columns: dict[str, Any] = {"layer": layers}
    for row, name in enumerate(("kl_logit", "kl_lens")):
        for end, values in zip(("", "_low", "_high"), means, strict=True):
            columns[f"{name}{end}"] = values[row]
    columns |= {"n_tokens": int(counts.sum()), "n_texts": len(texts)}
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


@torch.no_grad()
def _divergences(
    model: Model, transport: Transport, layers: Sequence[int], states: Sequence[torch.Tensor]
) -> torch.Tensor:
    """[2, layers, rows]: as the states are, and through the transport."""
    plain = [states[layer] for layer in layers]
    every = [*plain, *(transport(states[layer], layer) for layer in layers), states[-1]]
    readings = [read(one, model.unembed) for one in every]
    divergences = kl_from_last(every, readings, model.unembed)[:-1]
    return torch.stack(divergences.split(len(layers)))
