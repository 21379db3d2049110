"""Loading a model from wherever it lies: hub id, folder, .gguf file, built-in name, or already in memory."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from layerlens.errors import ModelError, OptionError, first_sentence
from layerlens.garbage import uncollected
from layerlens.models import bridge, gguf, memory, nnsight, packed_gguf
from layerlens.models.adapter import Model, adapt
from layerlens.models.backend import BACKENDS, TRANSFORMER_LENS, TRANSFORMERS
from layerlens.models.check import checked, refuse_unobservable
from layerlens.models.placement import Place, place_for
from layerlens.models.refusals import (
    refuse_adapter_folder,
    refuse_dropped_weights,
    refuse_no_model,
    refuse_without_values,
)
from layerlens.models.use import alone, own_terms
from layerlens.sources import hub

if TYPE_CHECKING:
    from nnsight.modeling.language import LanguageModel
    from transformer_lens.model_bridge import TransformerBridge

_OTHER_SOURCES = (
    f"give a hub id that exists and can be reached, a folder, a .gguf file, or {' or '.join(gguf.BUILT_IN)}"
)
# a model for images and text is traced through its language model
_CLASSES = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(), *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BITS = ("4bit", "8bit")


@uncollected()
@own_terms()
def load(
    model: "str | os.PathLike[str] | PreTrainedModel | TransformerBridge | LanguageModel",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    backend: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | Mapping[str, str | int | torch.device] | None = None,
    max_memory: Mapping[str | int, str | int] | None = None,
    offload_folder: "str | os.PathLike[str] | None" = None,
    quantize: Any = None,
    keep_quantized: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Model:
    """A causal language model in the adapter's shape, in eval mode, checked (law 1).

    Args:
        model: a hub id, a folder, a .gguf file, a name in `gguf.BUILT_IN`, a transformers model, a TransformerBridge
            of TransformerLens, or nnsight's LanguageModel (TransformersModel).
        tokenizer: needed with a transformers model. In place of the bridge's or nnsight's own, if given; a bridge's own
            may put a begin token before every text where the model's does not.
        backend: what runs the passes: "transformers"; "transformer-lens" (which puts its own components into the
            model, in place); "nnsight"; "nnsight-remote", where the weights stay on nnsight's server and only scalars
            come back; or "nnsight-simulated", nnsight's own simulation of a server. None: what the model came in.
        dtype: "auto" (what the checkpoint says; float32 for GGUF), "float32", "bfloat16" or "float16".
        device: such as "cpu" or "cuda:0"; by default a GPU where there is one.
        device_map: over several devices, what does not fit on GPUs in memory, and the rest on disk: "auto", "balanced"
            or "sequential", or a dict from module names to devices, "cpu" and "disk". In place of `device`.
        max_memory: with a device_map: the most to use of each device, such as {0: "20GiB", "cpu": "60GiB"}.
        offload_folder: with a device_map: let it go to disk, and write there what a checkpoint keeps in another form.
        quantize: while loading: "4bit" or "8bit" (by bitsandbytes), or a quantisation config of transformers.
        keep_quantized: leave the weights of a GGUF file as they are packed there; they are unpacked in every pass.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the checkpoint.
        allow_pickle: read pickled weights, which can run code while they load.

    Raises:
        ModelError: not found, not loadable, not a causal decoder, or it failed a check; or inside torch.autocast.
        OptionError: the arguments do not fit each other.
    """
    if backend not in (None, *BACKENDS):
        raise OptionError(f"--backend {backend} is unknown; give {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    if not isinstance(model, str | os.PathLike):
        places = (device, device_map, max_memory, offload_folder)
        if dtype != "auto" or keep_quantized or any(given is not None for given in (*places, quantize, revision)):
            raise OptionError(
                "a model in memory keeps its dtype, devices, quantisation and revision; leave those options out"
            )
        return _from_memory(model, tokenizer, backend)
    if tokenizer is not None:
        raise OptionError(f"{model} is loaded with its own tokenizer; give a tokenizer only with a model in memory")
    _refuse_unknown_dtype(dtype)
    place = place_for(device, device_map, max_memory, offload_folder)
    _refuse_other_backends(backend, {"device-map": device_map, "quantize": quantize, "keep-quantized": keep_quantized})
    source = os.fspath(model)
    if revision is not None and Path(source).expanduser().exists():
        raise OptionError(f"--revision {revision} belongs to a hub id, and {source} is a local path; leave it out")
    _refuse_no_name(source)
    if backend == "nnsight-remote":
        with quiet():
            return nnsight.loaded(nnsight.named(source, revision), None, source, backend)
    with quiet():
        folder, gguf_file = _locate(source)
        _refuse_other_formats(source, gguf_file, quantize, keep_quantized)
        if gguf_file is not None:
            kind = _DTYPES.get(dtype, torch.float32)
            memory.refuse_unfit(memory.of_gguf(source, folder / gguf_file, kind, packed=keep_quantized), place)
            load_file = packed_gguf.load_packed if keep_quantized else gguf.load_gguf
            hf, tokenizer = load_file(source, folder / gguf_file, kind, **place.arguments)
        else:
            safety = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
            hf, tokenizer = _load_checkpoint(source, dtype, safety, allow_pickle, quantize, place)
    is_hub_id = gguf_file is None and not folder.is_dir()
    commit = hub.commit_of(source, "config.json", revision or "main") if is_hub_id else None
    return _backed(hf.eval(), tokenizer, source, commit, backend or TRANSFORMERS.name)


class Sized(NamedTuple):
    """A model before it is loaded: its config, the class of transformers that loads it, the type that it computes in,
    and what its weights will take, None where that cannot be told."""

    config: Any
    loader: Any
    dtype: torch.dtype
    weights: memory.Weights | None


def sized(
    source: str,
    place: Place,
    *,
    dtype: str = "auto",
    quantize: Any = None,
    keep_quantized: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Sized:
    """What `load` would load, told from its config and the heads of its files; the arguments are those of `load`."""
    _refuse_unknown_dtype(dtype)
    _refuse_no_name(source)
    folder, gguf_file = _locate(source)
    _refuse_other_formats(source, gguf_file, quantize, keep_quantized)
    if gguf_file is not None:
        kind = _DTYPES.get(dtype, torch.float32)
        if keep_quantized:
            packed_gguf.refuse_other_architectures(source, folder / gguf_file)
        weights = memory.of_gguf(source, folder / gguf_file, kind, packed=keep_quantized)
        return Sized(gguf.config_of(source, folder / gguf_file), AutoModelForCausalLM, kind, weights)
    config, loader, _ = _config(source, {"trust_remote_code": trust_remote_code, "revision": revision or "main"})
    scheme, given = _scheme(source, config, quantize, dtype), _DTYPES.get(dtype)
    weights = memory.of_checkpoint(source, config, loader, given, scheme, revision or "main", place)
    return Sized(config, loader, given or memory.dtype_of(config) or torch.float32, weights)


def _refuse_no_name(source: str) -> None:
    if not source:
        raise ModelError(f"the model's name is empty; {_OTHER_SOURCES}")


def _refuse_unknown_dtype(dtype: str) -> None:
    if dtype != "auto" and dtype not in _DTYPES:
        raise OptionError(f"--dtype {dtype} is unknown; give auto, {', '.join(_DTYPES)}")


def _refuse_other_formats(source: str, gguf_file: str | None, quantize: Any, keep_quantized: bool) -> None:
    """OptionError for a way of quantising that does not fit how the weights are stored."""
    if gguf_file is not None and quantize is not None:
        raise OptionError(f"--quantize {quantize} packs other weights than GGUF, which {source} is; leave it out")
    if gguf_file is None and keep_quantized:
        raise OptionError(f"--keep-quantized is for GGUF files, and {source} is none; leave it out")


def _refuse_other_backends(backend: str | None, given: dict[str, Any]) -> None:
    """OptionError for what only transformers' own passes can do."""
    name = next((name for name, value in given.items() if value), None)
    if name is not None and backend not in (None, TRANSFORMERS.name):
        value = "" if given[name] is True else f" {given[name]}"
        raise OptionError(f"--{name}{value} does not work with --backend {backend}; leave one of them out")


def _backed(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, commit: str | None, backend: str
) -> Model:
    """The model with its passes run by that backend."""
    if backend in (TRANSFORMERS.name, TRANSFORMER_LENS.name):
        is_bridge = backend == TRANSFORMER_LENS.name
        hf = bridge.bridged(hf, source) if is_bridge else hf
        model = checked(adapt(hf, tokenizer, source, commit))
        return replace(model, backend=TRANSFORMER_LENS if is_bridge else TRANSFORMERS)
    if backend == "nnsight-remote":
        raise OptionError(f"--backend nnsight-remote runs models that its server has, by hub id; {source} is here")
    return replace(nnsight.loaded(nnsight.wrapped(hf, tokenizer), tokenizer, source, backend), revision=commit)


def _from_memory(model: object, tokenizer: PreTrainedTokenizerBase | None, backend: str | None) -> Model:
    if bridge.is_bridge(model):
        return _from_bridge(model, tokenizer, backend)
    if nnsight.is_language_model(model):
        if backend in (TRANSFORMERS.name, TRANSFORMER_LENS.name):
            raise OptionError(
                f"nnsight's model is run by nnsight, not by {backend}; load the transformers model itself"
            )
        return nnsight.loaded(model, tokenizer, _name_of(model), backend or "nnsight")
    if not isinstance(model, PreTrainedModel):
        refuse_no_model(model)
    hf = model
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        given = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise OptionError(
            f"a model in memory needs its tokenizer, {given} was given; call load(model, tokenizer=tokenizer)"
        )
    source = hf.name_or_path or type(hf).__name__
    _refuse_other_kinds(source, hf.config, known=type(hf).__name__ in _CLASSES or _loader(hf.config) is not None)
    refuse_unobservable(hf, source)
    refuse_without_values(hf, source)
    with alone(hf):
        return _backed(hf.eval(), tokenizer, source, None, backend or TRANSFORMERS.name)


def _from_bridge(model: Any, tokenizer: PreTrainedTokenizerBase | None, backend: str | None) -> Model:
    if backend not in (None, TRANSFORMER_LENS.name):
        raise OptionError(f"a TransformerBridge is run by TransformerLens, not by {backend}; leave the backend out")
    source = str(model.cfg.model_name)
    tokenizer = tokenizer or model.tokenizer
    if tokenizer is None:
        raise OptionError(f"the bridge of {source} has no tokenizer; call load(bridge, tokenizer=tokenizer)")
    hf = bridge.module_of(model, source)
    refuse_unobservable(hf, source)
    refuse_without_values(hf, source)
    with alone(hf):
        return replace(checked(adapt(hf.eval(), tokenizer, source)), backend=TRANSFORMER_LENS)


def _name_of(language_model: Any) -> str:
    """What nnsight's model is called: its hub id, or that of the transformers model inside of it."""
    hf = language_model._module
    return str(getattr(language_model, "repo_id", None) or hf.name_or_path or type(hf).__name__)


def _locate(source: str) -> tuple[Path, str | None]:
    """The folder of the model, and its GGUF file where it has one."""
    path = gguf.built_in_file(source) if source in gguf.BUILT_IN else Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {source}; give the path of a .gguf file, a folder, or a hub id")
        return path.parent, path.name
    if path.is_dir():
        refuse_adapter_folder(source, path)
    if path.is_dir() and not (path / "config.json").exists():
        ggufs = sorted(entry.name for entry in path.glob("*.gguf"))
        if len(ggufs) == 1:
            return path, ggufs[0]
        if ggufs:
            raise ModelError(f"{source} holds {len(ggufs)} .gguf files ({', '.join(ggufs[:4])}); give the path of one")
        raise ModelError(f"{source} holds no model: it has no config.json and no .gguf file; give a folder that does")
    return path, None


def _load_checkpoint(
    source: str, dtype: str, safety: dict[str, Any], allow_pickle: bool, quantize: Any, place: Place
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config, loader, safety = _config(source, safety)
    scheme = _scheme(source, config, quantize, dtype)
    weights = memory.of_checkpoint(source, config, loader, _DTYPES.get(dtype), scheme, safety["revision"], place)
    memory.refuse_unfit(weights, place)
    place = memory.with_room_for_head(place, weights, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **safety)
    except Exception as error:
        raise ModelError(
            f"{source} has no tokenizer that can be loaded ({first_sentence(error)}); add tokenizer.json"
        ) from error
    try:
        loaded: Any = loader.from_pretrained(
            source,
            config=config,
            dtype=_DTYPES.get(dtype, "auto"),
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            quantization_config=scheme,
            **place.arguments,
            **safety,
        )
    except Exception as error:
        lacks_package = isinstance(error, ImportError)  # of a way of quantising
        advice = "install the package that it names" if lacks_package else weights_advice(source)
        raise ModelError(f"{source} could not be loaded ({first_sentence(error)}); {advice}") from error
    hf, loading = loaded
    refuse_dropped_weights(hf, source, missing=loading["missing_keys"], left_out=loading["unexpected_keys"])
    return hf, tokenizer


def _config(source: str, safety: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The config of a checkpoint, the class of transformers that loads it, and how it is to be reached."""
    is_folder = Path(source).expanduser().is_dir()
    online = not is_folder and hub.answers(source, "config.json", revision=safety["revision"])
    safety = safety | {"local_files_only": not online}
    try:
        config = AutoConfig.from_pretrained(source, **safety)
    except Exception as error:
        advice = "check its config.json" if is_folder else _OTHER_SOURCES
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source} comes with code of its own; give --trust-remote-code if you trust it"
            ) from error
        why = first_sentence(error) if is_folder or online else "no such folder, not in the cache, hub not reached"
        raise ModelError(f"{source!r} is no model that can be loaded ({why}); {advice}") from error
    loader = _loader(config)
    _refuse_other_kinds(source, config, known=loader is not None)
    return config, loader, safety


def _scheme(source: str, config: Any, quantize: Any, dtype: str) -> Any:
    """The quantisation config to load with, or None for what the checkpoint itself says.

    Raises:
        OptionError: an unknown name, no bitsandbytes, or a checkpoint that is quantised already.
    """
    if not isinstance(quantize, str):
        return quantize
    if quantize not in _BITS:
        raise OptionError(f"--quantize {quantize} is unknown; give {' or '.join(_BITS)}")
    own = getattr(config, "quantization_config", None)
    if own is not None:
        raise OptionError(f"{source} is quantised already ({memory.method_of(own)}); leave --quantize {quantize} out")
    if find_spec("bitsandbytes") is None:
        raise OptionError(f"--quantize {quantize} needs bitsandbytes; get it with: pip install bitsandbytes")
    if quantize == "8bit":
        # said in every layer of every pass, and true of all models in float32 or bfloat16
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
        return BitsAndBytesConfig(load_in_8bit=True)
    computes_in = _DTYPES.get(dtype, config.dtype or torch.float32)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computes_in)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")


def _loader(config: Any) -> Any:
    """The class of transformers that loads a checkpoint with this config, or None."""
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "auto_map", None):
        return AutoModelForCausalLM
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    architectures = config.architectures or [None]  # the text half of some models, saved alone, has a type of its own
    return getattr(transformers, architectures[0]) if architectures[0] in _CLASSES else None


def _refuse_other_kinds(source: str, config: Any, *, known: bool) -> None:
    """ModelError for what is no decoder. `known`: transformers lists it as one, or it comes with code of its own."""
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        raise ModelError(
            f"{source} ({config.model_type}) is an encoder-only model: its config has is_decoder=False, so that every "
            "token sees the whole text; layerlens traces decoder-only language models, give one of those"
        )
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source} ({config.model_type}) is an encoder-decoder model; layerlens traces decoder-only language models"
        )
    if not known:
        raise ModelError(
            f"{source} ({config.model_type}) is not a causal language model in this transformers; layerlens traces "
            "decoder-only language models"
        )


def weights_advice(source: str) -> str:
    folder = Path(source).expanduser()
    if folder.is_dir():
        if any(folder.glob("*.safetensors")):
            return "check the files of that folder"
        if any(folder.glob("*.bin")):
            return "its weights are pickles, which can run code: convert them to safetensors, or give --allow-pickle"
        return "the folder has no weights: add model.safetensors"
    return "layerlens reads safetensors or GGUF; pickles only with --allow-pickle"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars and advice of transformers and others would stand between a user and what was asked for."""
    from transformers.utils import logging as transformers_logging

    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    others = [logging.getLogger(name) for name in ("accelerate", "bitsandbytes")]
    levels = [logger.level for logger in others]
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for logger in others:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        for logger, level in zip(others, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
