"""Reading GGUF files."""

import contextlib
import functools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from layerlens.compat import gguf_reader
from layerlens.errors import ModelError, first_sentence, is_out_of_memory
from layerlens.models.refusals import refuse_dropped_weights


def load_gguf(
    source: str, path: Path, dtype: torch.dtype, *, packed: bool = False, **arguments: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a GGUF file.

    Args:
        source: what the file is called in messages.
        path: of the file.
        dtype: the type of its weights; for packed weights, the type of what is computed with them.
        packed: whether weights stay packed; otherwise they are unpacked once.
        arguments: of `from_pretrained`, such as a device_map.
    """
    place: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    scheme = GgufConfig(dequantize=not packed)
    if packed:  # else transformers asks the hub for a kernel of attention, and some versions keep its name without it
        arguments = {"attn_implementation": "sdpa", **arguments}
    try:
        with _parsed_once() as taken:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
            _add_what_the_file_says(tokenizer, path)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                quantization_config=scheme,
                dtype=dtype,
                output_loading_info=True,
                **place,
                **arguments,
            )
            held = _tensors(path)
    except Exception as error:  # a damaged or unknown file fails anywhere in the reader
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{source} could not be loaded as GGUF ({first_sentence(error)})", "check the file", given=source
        ) from error
    hf, loading = loaded
    refuse_dropped_weights(hf, source, missing=loading["missing_keys"], left_out=loading["unexpected_keys"])
    _refuse_left_out(hf, source, held, taken)
    return hf, tokenizer


def _add_what_the_file_says(tokenizer: Any, path: Path) -> None:
    """Let the tokenizer begin and end texts as the file says, which transformers before 5.23 does not read."""
    if Version(transformers.__version__) >= Version("5.23"):
        return

    import gguf

    fields = gguf.GGUFReader(path).fields

    def value(name: str) -> Any:
        field = fields.get(f"tokenizer.ggml.{name}")
        return field and field.parts[field.data[0]]

    kind = value("model")
    kind = "" if kind is None else bytes(kind).decode()
    for name, otherwise in (("add_bos_token", kind == "llama"), ("add_eos_token", False)):
        said = value(name)
        wanted = otherwise if said is None else bool(said[0])
        # the template of a chat begins texts of Gemma 4, whatever their files say
        if wanted and kind != "gemma4" and not getattr(tokenizer, name, True):
            setattr(tokenizer, name, True)


def _tensors(path: Path) -> list[str]:
    import gguf

    return [str(tensor.name) for tensor in gguf.GGUFReader(path).tensors]


def _refuse_left_out(hf: PreTrainedModel, source: str, held: Sequence[str], taken: Collection[str]) -> None:
    """ModelError where transformers silently left out tensors of the file, so that the model would be another one.

    Args:
        hf: the loaded model.
        source: what the file is called in messages.
        held: names of the tensors in the file.
        taken: names that transformers' older reader of GGUF asked for. None were recorded where the newer reader read
            the file; it says itself what it leaves out.
    """
    ropes = getattr(hf.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    # neither reader takes the table of rotation frequencies that files of Llama 3.1 and others have
    left_out = [] if kinds - {None, "default"} else [name for name in held if name.startswith("rope_")]
    left_out += [name for name in held if name not in taken and f"{name.removesuffix('bias')}weight" in taken]
    if left_out:
        raise ModelError(
            f"{source} holds {len(left_out)} tensors that transformers does not take from GGUF ({left_out[0]} "
            "...), and without them it is another model",
            "give the model as safetensors",
            given=source,
        )


def config_of(source: str, path: Path) -> Any:
    """The config that a GGUF file stands for; ModelError where it cannot be read."""
    try:
        with _parsed_once():
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{source} could not be loaded as GGUF ({first_sentence(error)})", "check the file", given=source
        ) from error


@contextlib.contextmanager
def _parsed_once() -> Iterator[set[str]]:
    """While open, transformers parses the file once. By itself it parses the file three times, for config, tokenizer
    and weights, and builds the table of tensor names for every module, which is half of the loading time. Its progress
    bar has no setting, and is hidden.

    Yields the names of the tensors that transformers knows, which are filled in once it has asked for them."""
    import gguf  # imported here, so that every other source works where gguf is not installed
    from transformers import modeling_gguf_pytorch_utils

    parsed, taken = functools.cache(gguf_reader()), set[str]()
    names_of = modeling_gguf_pytorch_utils.get_gguf_hf_weights_map

    def noted_names(*args: Any, **kwargs: Any) -> dict[str, str]:
        names: dict[str, str] = names_of(*args, **kwargs)
        taken.update(names)
        return names

    replaced: list[tuple[ModuleType, str, Any]] = [
        (modeling_gguf_pytorch_utils, "get_gguf_hf_weights_map", noted_names),
        (gguf, "GGUFReader", lambda path, *mode: parsed(os.fspath(path), *mode)),
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (modeling_gguf_pytorch_utils, "tqdm", lambda iterable, **_: iterable),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, substitute in replaced:
            setattr(module, name, substitute)
        yield taken
    finally:
        for (module, name, _), original in zip(replaced, before, strict=True):
            setattr(module, name, original)
