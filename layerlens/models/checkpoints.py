"""Checkpoints in safetensors or pickles, with their tokenizers, read by transformers from a folder or the hub."""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from layerlens.compat import BITSANDBYTES_LOG
from layerlens.errors import ModelError, OptionError, first_sentence, is_out_of_memory, spelled
from layerlens.models import memory, sizes
from layerlens.models.causal import loader_of, refuse_other_kinds
from layerlens.models.choices import QUANTIZED, refuse_unknown
from layerlens.models.locate import OTHER_SOURCES, depths_in, refuse_without_tokenizer
from layerlens.models.placement import Place
from layerlens.models.refusals import refuse_dropped_weights
from layerlens.paths import expanded
from layerlens.sources import hub

_MOST_LAYERS = 10_000
"""Making the modules of so many takes seconds; no model has more than a few hundred."""


def load_checkpoint(
    source: str, dtype: torch.dtype | None, safety: dict[str, Any], allow_pickle: bool, quantize: Any, place: Place
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a checkpoint.

    Args:
        source: a folder or hub id.
        dtype: the type to load it in; None for the type that the checkpoint names.
        safety: for `from_pretrained`: trust_remote_code and revision.
        allow_pickle: read pickled weights.
        quantize: as of `load`.
        place: where it is to lie.

    Raises:
        ModelError: it is missing, it is not a causal decoder, or its weights do not fit into memory or do not match its
            class.
        OptionError: see `scheme_for`.
    """
    config, loader, safety = config_and_loader(source, safety)
    scheme = scheme_for(source, config, quantize, dtype)
    sizes.refuse_outside(source, safety["revision"])
    weights = sizes.of_checkpoint(source, config, loader, dtype, scheme, safety["revision"], place)
    memory.refuse_unfit(weights, place)
    place = memory.with_room_for_head(place, weights, config)
    tokenizer = tokenizer_of(source, safety)
    try:
        loaded: Any = loader.from_pretrained(
            source,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            quantization_config=scheme,
            **place.arguments,
            **safety,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        lacks_package = isinstance(error, ImportError)  # for a method of quantising
        advice = "install the package that it names" if lacks_package else weights_advice(source)
        raise ModelError(f"{source} could not be loaded ({first_sentence(error)})", advice, given=source) from error
    hf, loading = loaded
    refuse_dropped_weights(hf, source, missing=loading["missing_keys"], left_out=loading["unexpected_keys"])
    if getattr(config, "quantization_config", None) is not None and not getattr(hf, "is_quantized", False):
        _in_one_type(hf)
    return hf, tokenizer


def _in_one_type(hf: PreTrainedModel) -> None:
    """Bring weights that were unpacked into the model's type: transformers before 5.23 leaves those of MXFP4 in
    bfloat16, and products with them then are in bfloat16 too."""
    for parameter in hf.parameters():
        if parameter.dtype == torch.bfloat16 != hf.dtype:
            parameter.data = parameter.data.to(hf.dtype)


def tokenizer_of(source: str, safety: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; ModelError where it has none that can be loaded.

    Args:
        source: a folder or hub id.
        safety: for `from_pretrained`, as `config_and_loader` gives it.
    """
    if (folder := expanded(source)).is_dir():
        refuse_without_tokenizer(source, folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **safety)
        return tokenizer
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{source} has no tokenizer that can be loaded ({first_sentence(error)})",
            "add tokenizer.json",
            given=source,
        ) from error


def config_and_loader(source: str, safety: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The config of a checkpoint, the class of transformers that loads it, and how its files are reached."""
    is_folder = expanded(source).is_dir()
    online = not is_folder and hub.answers(source, "config.json", revision=safety["revision"])
    safety = safety | {"local_files_only": not online}
    try:
        config = AutoConfig.from_pretrained(source, **safety)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        advice = "check its config.json" if is_folder else OTHER_SOURCES
        if "trust_remote_code" in str(error):
            advice = f"give {spelled('trust_remote_code', True)} if you trust it"
            problem = f"{source} comes with code of its own"
            raise ModelError(problem, advice, option="trust_remote_code", given=source) from error
        why = (
            first_sentence(error)
            if is_folder or online
            else "no such folder, not in the cache, and the hub cannot be reached"
        )
        raise ModelError(f"{source!r} is not a model that can be loaded ({why})", advice, given=source) from error
    n_layers = max(depths_in(config.to_dict()), default=0)
    if n_layers > _MOST_LAYERS:
        problem = f"{source} has {n_layers:,} layers by its config"
        raise ModelError(problem, f"check its config.json: there can be {_MOST_LAYERS:,} at most", given=n_layers)
    loader = loader_of(config)
    refuse_other_kinds(source, config, known=loader is not None)
    return config, loader, safety


def scheme_for(source: str, config: Any, quantize: Any, dtype: torch.dtype | None) -> Any:
    """The quantisation config to load with; None: the checkpoint itself says it.

    Raises:
        OptionError: the name is unknown, bitsandbytes is not installed, or the checkpoint is already quantised.
    """
    if not isinstance(quantize, str):
        return quantize
    refuse_unknown("quantize", quantize, QUANTIZED)
    own = getattr(config, "quantization_config", None)
    if own is not None:
        problem = f"{source} is quantised already ({sizes.method_of(own)})"
        advice = f"leave {spelled('quantize', quantize)} out"
        raise OptionError(problem, advice, option="quantize", given=quantize)
    if find_spec("bitsandbytes") is None:
        advice = "get it with: pip install bitsandbytes"
        raise OptionError.about("quantize", quantize, "needs bitsandbytes", advice)
    if quantize == "8bit":
        # logged by every layer in every pass, and true of all models in float32 or bfloat16
        logging.getLogger(BITSANDBYTES_LOG).addFilter(_is_news)
        return BitsAndBytesConfig(load_in_8bit=True)
    computes_in = dtype or config.dtype or torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computes_in)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")


def weights_advice(source: str) -> str:
    """What to do about a folder or hub id whose weights cannot be loaded."""
    folder = expanded(source)
    if folder.is_dir():
        if any(folder.glob("*.safetensors")):
            return "check the files of that folder"
        if any(folder.glob("*.bin")):
            allowed = spelled("allow_pickle", True)
            return f"its weights are pickles, which can run code: convert them to safetensors, or give {allowed}"
        return "the folder has no weights: add model.safetensors"
    return f"layerlens reads safetensors or GGUF, pickles only with {spelled('allow_pickle', True)}"
