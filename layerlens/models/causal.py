"""Which class of transformers loads a model by its config, and which models are not causal decoders."""

from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from layerlens.errors import ModelError

# a model for images and text is traced through its language model
_CLASSES = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(), *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}


def is_known(hf: PreTrainedModel) -> bool:
    """Whether transformers lists the model as causal, or the model comes with code of its own."""
    return type(hf).__name__ in _CLASSES or loader_of(hf.config) is not None


def loader_of(config: Any) -> Any:
    """The class of transformers that loads a checkpoint with this config, or None."""
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "auto_map", None):
        return AutoModelForCausalLM
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    architectures = config.architectures or [None]  # the text half of some models, saved alone, has a type of its own
    return getattr(transformers, architectures[0]) if architectures[0] in _CLASSES else None


def refuse_other_kinds(source: str, config: Any, *, known: bool) -> None:
    """ModelError unless the model is a decoder. `known`: transformers lists it as one, or it has its own code."""
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        raise ModelError(
            f"{source} ({config.model_type}) is an encoder-only model: its config has is_decoder=False, so that "
            "every token sees the whole text",
            "layerlens traces decoder-only language models, give one of those",
            given=source,
        )
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source} ({config.model_type}) is an encoder-decoder model",
            "layerlens traces decoder-only language models",
            given=source,
        )
    if not known:
        raise ModelError(
            f"{source} ({config.model_type}) is not a causal language model in this transformers",
            "layerlens traces decoder-only language models",
            given=source,
        )
