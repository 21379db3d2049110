"""The lens of an engine, through which its strategies and traces read layers before the last."""

from collections.abc import Sequence
from typing import Any

from layerlens.engines.vllm.options import EngineOptions
from layerlens.engines.vllm.serving import is_tied
from layerlens.lens import IDENTITY, Affine
from layerlens.lens.opening import opened_for_checkpoint
from layerlens.lens.transport import Identity, refuse_lacking


def lens_of(options: EngineOptions, vllm_config: Any) -> Affine | Identity:
    """The transport of the engine's lens, on the host.

    Raises:
        OptionError: there is no such lens, it was made for another model, or it lacks a layer that is read.
    """
    if options.lens is None:
        return IDENTITY
    config = vllm_config.model_config
    n_layers = config.get_total_num_hidden_layers()
    found = opened_for_checkpoint(options.lens, config.model, config.get_hidden_size(), n_layers)
    read: Sequence[int] = (
        options.layers(n_layers, is_tied(config)) if options.traces is None else range(1, n_layers + 1)
    )
    refuse_lacking(found, read, "this engine")
    return found
