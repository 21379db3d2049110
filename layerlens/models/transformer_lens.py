"""TransformerLens: a model as its TransformerBridge runs it, with the weights as they are."""

from typing import Any

from transformers import PreTrainedModel

from layerlens.compat import has_processed_weights
from layerlens.errors import ModelError, OptionError, first_sentence, is_out_of_memory, spelled


def is_bridge(model: object) -> bool:
    """Whether this is a TransformerBridge; TransformerLens is not imported where it is not in use."""
    return any(kind.__module__.startswith("transformer_lens.model_bridge") for kind in type(model).__mro__)


def bridged(hf: PreTrainedModel, source: str) -> PreTrainedModel:
    """The same model with TransformerLens' components in place of its modules; `hf` itself is changed."""
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        advice = "get it with: pip install 'transformer-lens>=4.3,<5'"
        raise OptionError.about("backend", "transformer-lens", "needs TransformerLens 4", advice) from error
    architecture = type(hf).__name__
    try:
        # without a tokenizer: TransformerLens would have it put a begin token before every text
        bridge = build_bridge_from_module(hf, architecture, hf_config=hf.config, tokenizer=None, model_name=source)
    except Exception as error:  # an architecture that TransformerLens lacks or does not support
        if is_out_of_memory(error):
            raise
        problem = f"TransformerLens has no bridge for {source} ({first_sentence(error)})"
        raise ModelError(problem, f"leave {spelled('backend')} out", option="backend", given=source) from error
    return module_of(bridge, source)


def module_of(bridge: Any, source: str) -> PreTrainedModel:
    """The transformers model that a bridge runs.

    Raises:
        ModelError: its weights were folded or centred, which changes the residual stream, or it wraps another kind.
    """
    if has_processed_weights(bridge):
        raise ModelError(
            f"the weights of {source} were folded and centred (enable_compatibility_mode), which changes the "
            "residual stream that is measured",
            "give a bridge as boot_transformers makes it, or set no_processing=True",
            given=source,
        )
    hf = getattr(bridge, "original_model", None)
    if not isinstance(hf, PreTrainedModel):
        raise ModelError(
            f"{source} wraps a {type(hf).__name__}", "give a bridge around a transformers model", given=source
        )
    return hf
