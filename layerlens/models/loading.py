"""Load a model from any source: hub id, folder, .gguf file, built-in name, or a model already in memory."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from layerlens.compat import module_in
from layerlens.errors import OptionError, spelled
from layerlens.models import checkpoints, gguf, memory, nnsight, packed_gguf, sizes, transformer_lens, vllm
from layerlens.models.adapter import adapt
from layerlens.models.attention import keep_softcap, notice_lost_softcap
from layerlens.models.backend import TRANSFORMER_LENS, TRANSFORMERS
from layerlens.models.causal import is_known, refuse_other_kinds
from layerlens.models.check import checked
from layerlens.models.choices import BACKENDS, DTYPES, refuse_unknown
from layerlens.models.locate import located, refuse_no_name
from layerlens.models.model import Model
from layerlens.models.placement import Place, place_for
from layerlens.models.quiet import quiet
from layerlens.models.refusals import (
    refuse_no_model,
    refuse_unobservable,
    refuse_without_values,
)
from layerlens.models.use import alone, own_terms
from layerlens.paths import expanded
from layerlens.sources import hub

if TYPE_CHECKING:
    from nnsight.modeling.language import LanguageModel
    from transformer_lens.model_bridge import TransformerBridge

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    engine_options: Mapping[str, Any] | None = None,
) -> Model:
    """A causal language model in the shape of `Model`, in eval mode, checked: its last readout is its own logits.

    Args:
        model: a hub id, a folder, a .gguf file, a name in `locate.BUILT_IN`, a transformers model, a TransformerBridge
            of TransformerLens, or nnsight's LanguageModel (TransformersModel).
        tokenizer: needed with a transformers model. If given, it replaces that of a bridge or of nnsight; a bridge's
            own may put a begin token before every text where the model's does not.
        backend: what runs the passes: "transformers"; "transformer-lens" (which puts its own components into the model,
            in place); "nnsight"; "nnsight-remote", where the weights stay on nnsight's server and only scalars come
            back; "nnsight-simulated", nnsight's own simulation of a server; or "vllm", whose engine `trace`, `generate`
            and `ablate` start when they need it. None: what the given model belongs to.
        dtype: "auto" (what the checkpoint says; float32 for GGUF), "float32", "bfloat16" or "float16".
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
        device_map: spreads the model over several devices; what does not fit on GPUs goes to memory, and the rest to
            disk. "auto", "balanced" or "sequential", or a dict from module names to devices, "cpu" and "disk". Replaces
            `device`.
        max_memory: with a device_map: the most memory to use of each device, such as {0: "20GiB", "cpu": "60GiB"}.
        offload_folder: with a device_map: allow offloading to disk; weights that the checkpoint stores in another form
            are written to this folder.
        quantize: quantise weights while loading: "4bit" or "8bit" (by bitsandbytes), or a quantisation config of
            transformers.
        keep_quantized: keep the weights of a GGUF file packed; they are then unpacked in every pass.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the checkpoint.
        allow_pickle: read pickled weights, which can run code while they load.
        engine_options: with backend "vllm": further arguments of vLLM's `LLM`, such as {"tensor_parallel_size": 8}.

    Raises:
        ModelError: not found, not loadable, not a causal decoder, or it failed a check; or inside torch.autocast.
        OptionError: the arguments contradict each other.
    """
    if backend is not None:
        refuse_unknown("backend", backend, BACKENDS)
    if engine_options and backend != vllm.NAME:
        what = f"belongs to {spelled('backend', vllm.NAME)}"
        raise OptionError.about("engine_options", engine_options, what, "leave it out, or give that backend")
    if not isinstance(model, str | os.PathLike):
        places = (device, device_map, max_memory, offload_folder)
        if dtype != "auto" or keep_quantized or any(given is not None for given in (*places, quantize, revision)):
            raise OptionError(
                "a model in memory keeps its dtype, devices, quantisation and revision",
                "leave those options out",
                option="model",
            )
        return _from_memory(model, tokenizer, backend)
    if tokenizer is not None:
        raise OptionError(
            f"{model} is loaded with its own tokenizer",
            "give a tokenizer only with a model in memory",
            option="tokenizer",
            given=tokenizer,
        )
    refuse_unknown("dtype", dtype, DTYPES)
    place = place_for(device, device_map, max_memory, offload_folder)
    _refuse_other_backends(backend, {"device_map": device_map, "quantize": quantize, "keep_quantized": keep_quantized})
    source = os.fspath(model)
    if revision is not None and expanded(source).exists():
        what = f"belongs to a hub id, and {source} is a local path"
        raise OptionError.about("revision", revision, what, "leave it out")
    refuse_no_name(source)
    if backend == vllm.NAME:
        _refuse_placed({"device": device, "allow_pickle": allow_pickle})
        with quiet():
            _, _, gguf_file = located(source)
            if gguf_file is not None:
                what = f"does not run GGUF files, and {source} is one"
                raise OptionError.about("backend", backend, what, "give a hub id or a folder, or another backend")
            return vllm.loaded(source, _DTYPES.get(dtype), revision, trust_remote_code, engine_options or {})
    if backend == "nnsight-remote":
        with quiet():
            return nnsight.loaded(nnsight.named(source, revision), None, source, backend)
    with quiet():
        _, folder, gguf_file = located(source)
        _refuse_other_formats(source, gguf_file, quantize, keep_quantized)
        if gguf_file is not None:
            kind = _DTYPES.get(dtype, torch.float32)
            memory.refuse_unfit(sizes.of_gguf(source, folder / gguf_file, kind, packed=keep_quantized), place)
            load_file = packed_gguf.load_packed if keep_quantized else gguf.load_gguf
            hf, tokenizer = load_file(source, folder / gguf_file, kind, **place.arguments)
        else:
            safety = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
            hf, tokenizer = checkpoints.load_checkpoint(
                source, _DTYPES.get(dtype), safety, allow_pickle, quantize, place
            )
    keep_softcap(hf)
    is_hub_id = gguf_file is None and not folder.is_dir()
    commit = hub.commit_of(source, "config.json", revision or "main") if is_hub_id else None
    return _backed(hf.eval(), tokenizer, source, commit, backend or TRANSFORMERS.name)


class Sized(NamedTuple):
    """A model before it is loaded: its config, the class of transformers that loads it, the type that it computes in,
    and how much memory its weights will take (None where that is unknown)."""

    config: Any
    loader: Any
    dtype: torch.dtype
    weights: sizes.Weights | None


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
    """What `load` would load, from its config and the headers of its files; the arguments are those of `load`."""
    refuse_unknown("dtype", dtype, DTYPES)
    _, folder, gguf_file = located(source)
    _refuse_other_formats(source, gguf_file, quantize, keep_quantized)
    if gguf_file is not None:
        kind = _DTYPES.get(dtype, torch.float32)
        if keep_quantized:
            packed_gguf.refuse_other_architectures(source, folder / gguf_file)
        weights = sizes.of_gguf(source, folder / gguf_file, kind, packed=keep_quantized)
        return Sized(gguf.config_of(source, folder / gguf_file), AutoModelForCausalLM, kind, weights)
    safety = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
    config, loader, _ = checkpoints.config_and_loader(source, safety)
    given = _DTYPES.get(dtype)
    scheme = checkpoints.scheme_for(source, config, quantize, given)
    weights = sizes.of_checkpoint(source, config, loader, given, scheme, revision or "main", place)
    return Sized(config, loader, given or sizes.dtype_of(config) or torch.float32, weights)


def _refuse_other_formats(source: str, gguf_file: str | None, quantize: Any, keep_quantized: bool) -> None:
    """OptionError for a quantisation that does not fit how the weights are stored."""
    if gguf_file is not None and quantize is not None:
        what = f"does not work on GGUF files, and {source} is one"
        raise OptionError.about("quantize", quantize, what, "leave it out")
    if gguf_file is None and keep_quantized:
        what = f"is for GGUF files, and {source} is not one"
        raise OptionError.about("keep_quantized", keep_quantized, what, "leave it out")


def _refuse_other_backends(backend: str | None, given: dict[str, Any]) -> None:
    """OptionError for options that only work where transformers runs the passes."""
    name = next((name for name, value in given.items() if value), None)
    if name is not None and backend not in (None, TRANSFORMERS.name):
        what = f"does not work with {spelled('backend', backend)}"
        raise OptionError.about(name, given[name], what, "leave one of them out")


def _refuse_placed(given: dict[str, Any]) -> None:
    """OptionError for options that vLLM has under names of its own."""
    name = next((name for name, value in given.items() if value), None)
    if name is not None:
        what = f"does not work with {spelled('backend', vllm.NAME)}"
        raise OptionError.about(name, given[name], what, f"give vLLM's own by {spelled('engine_options')}")


def _backed(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, commit: str | None, backend: str
) -> Model:
    """The model, with that backend running its passes."""
    if backend in (TRANSFORMERS.name, TRANSFORMER_LENS.name):
        is_bridge = backend == TRANSFORMER_LENS.name
        hf = transformer_lens.bridged(hf, source) if is_bridge else hf
        model = checked(adapt(hf, tokenizer, source, commit))
        return replace(model, backend=TRANSFORMER_LENS if is_bridge else TRANSFORMERS)
    if backend == "nnsight-remote":
        what = f"runs models that its server has, and {source} is here"
        raise OptionError.about("backend", backend, what, "give the hub id of one of them")
    return replace(nnsight.loaded(nnsight.wrapped(hf, tokenizer), tokenizer, source, backend), revision=commit)


def _from_memory(model: object, tokenizer: PreTrainedTokenizerBase | None, backend: str | None) -> Model:
    if backend == vllm.NAME:
        what = "loads a model by its name, and this one is in memory"
        raise OptionError.about("backend", backend, what, "give a hub id or a folder")
    if transformer_lens.is_bridge(model):
        return _from_bridge(model, tokenizer, backend)
    if nnsight.is_language_model(model):
        if backend in (TRANSFORMERS.name, TRANSFORMER_LENS.name):
            raise OptionError(
                f"nnsight's model is run by nnsight, not by {backend}",
                "load the transformers model itself",
                option="backend",
                given=backend,
            )
        return nnsight.loaded(model, tokenizer, _name_of(model), backend or "nnsight")
    if not isinstance(model, PreTrainedModel):
        refuse_no_model(model)
    hf = model
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        given = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise OptionError(
            f"a model in memory needs its tokenizer, {given} was given",
            "call load(model, tokenizer=tokenizer)",
            option="tokenizer",
            given=tokenizer,
        )
    source = hf.name_or_path or type(hf).__name__
    refuse_other_kinds(source, hf.config, known=is_known(hf))
    refuse_unobservable(hf, source)
    refuse_without_values(hf, source)
    notice_lost_softcap(hf, source)
    with alone(hf):
        return _backed(hf.eval(), tokenizer, source, None, backend or TRANSFORMERS.name)


def _from_bridge(model: Any, tokenizer: PreTrainedTokenizerBase | None, backend: str | None) -> Model:
    if backend not in (None, TRANSFORMER_LENS.name):
        raise OptionError(
            f"a TransformerBridge is run by TransformerLens, not by {backend}",
            "leave the backend out",
            option="backend",
            given=backend,
        )
    source = str(model.cfg.model_name)
    tokenizer = tokenizer or model.tokenizer
    if tokenizer is None:
        raise OptionError(
            f"the bridge of {source} has no tokenizer",
            "call load(bridge, tokenizer=tokenizer)",
            option="tokenizer",
            given=source,
        )
    hf = transformer_lens.module_of(model, source)
    refuse_unobservable(hf, source)
    refuse_without_values(hf, source)
    notice_lost_softcap(hf, source)
    with alone(hf):
        return replace(checked(adapt(hf.eval(), tokenizer, source)), backend=TRANSFORMER_LENS)


def _name_of(language_model: Any) -> str:
    """The name of nnsight's model: its hub id, or that of the transformers model inside it."""
    hf = module_in(language_model)
    return str(getattr(language_model, "repo_id", None) or hf.name_or_path or type(hf).__name__)
