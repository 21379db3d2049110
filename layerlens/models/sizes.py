"""How much memory a model's weights take, from its files, before they are loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from transformers.integrations.gguf.dequant import GGML_BLOCK

from layerlens.compat import built_from, gguf_tensors
from layerlens.errors import ModelError
from layerlens.models.placement import Place
from layerlens.models.safetensors_header import entries
from layerlens.parsing import json_of
from layerlens.paths import expanded

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BYTES = {**_FLOAT_BYTES, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}  # every other type takes one
# with these methods transformers unpacks the whole checkpoint where there is no GPU
_UNPACKED_WITHOUT_GPU = ("fp8", "mxfp4")
# bytes of a weight that bitsandbytes packs: 4 bits and a float32 scale for every 64 of them, or 8 bits
_PACKED_BYTES = {True: 0.5 + 4 / 64, False: 1.0}
_GGUF_FLOATS = {0, 1, 30}  # float32, float16, bfloat16


class Stored(NamedTuple):
    """One tensor of a checkpoint: its name, its type as safetensors names it, and how many values it has."""

    name: str
    dtype: str
    n_values: int
    n_axes: int


@dataclass(frozen=True)
class Weights:
    """How much memory weights will take.

    Attributes:
        source: what `load` was given.
        n_bytes: once they are loaded.
        kind: their type, and how they are changed while they are loaded.
        may_lie_on_disk: whether weights that fit nowhere else can stay on disk.
    """

    source: str
    n_bytes: int
    kind: str
    may_lie_on_disk: bool = True


def of_checkpoint(
    source: str, config: Any, loader: Any, dtype: torch.dtype | None, scheme: Any, revision: str, place: Place
) -> Weights | None:
    """How much memory the weights of a folder or hub id will take; None where its files cannot be read.

    Args:
        source: a folder or hub id.
        config: its config.
        loader: the class of transformers that loads it.
        dtype: the type it is loaded in; None for the type that the checkpoint names.
        scheme: the quantisation config that it is loaded with, if one was asked for.
        revision: of a hub id.
        place: where it is to lie.
    """
    stored = _stored(source, revision)
    folder = expanded(source)
    if stored is None and folder.is_dir() and not any(folder.glob("*.bin")):
        return None
    kind = dtype or dtype_of(config) or _first_dtype(stored)
    if stored is None:  # no file is here yet: as many weights as the model has
        return _of_skeleton(source, config, loader, kind)
    own = getattr(config, "quantization_config", None)
    name = str(kind).removeprefix("torch.")
    if own is not None and method_of(own) in _UNPACKED_WITHOUT_GPU and not place.uses_gpu:
        n_bytes = sum(_unpacked_values(tensor) for tensor in stored) * kind.itemsize
        return Weights(source, n_bytes, f"in {name}, unpacked from {method_of(own)} because there is no GPU")
    if own is not None:
        n_bytes = sum(_loaded_bytes(tensor, kind) for tensor in stored)
        return Weights(source, n_bytes, f"as {method_of(own)} has them, the rest in {name}")
    if scheme is not None:
        n_bytes = sum(_quantized_bytes(tensor, kind, scheme) for tensor in stored)
        return Weights(source, n_bytes, f"quantised by {method_of(scheme)}, the rest in {name}")
    return Weights(source, sum(_loaded_bytes(tensor, kind) for tensor in stored), f"in {name}")


def of_gguf(source: str, path: Path, dtype: torch.dtype, *, packed: bool) -> Weights | None:
    """How much memory the weights of a GGUF file will take; None where its table of tensors cannot be read."""
    try:
        tensors = _gguf_tensors(path)
    except Exception:  # errors of the file are reported when it is loaded
        return None
    name = str(dtype).removeprefix("torch.")
    stay = {kind for _, kind in tensors if packed and kind in GGML_BLOCK}
    n_bytes = sum(_gguf_bytes(n_values, kind, dtype, packed=kind in stay) for n_values, kind in tensors)
    types = ", ".join(sorted(_gguf_type(kind) for kind in stay or {kind for _, kind in tensors} - _GGUF_FLOATS))
    kind = f"in {types}, the rest in {name}" if stay else f"in {name}, unpacked from {types}" if types else f"in {name}"
    return Weights(source, n_bytes, kind, may_lie_on_disk=False)


def _gguf_tensors(path: Path) -> list[tuple[int, int]]:
    """Number of values and type of each tensor."""
    return [(math.prod(shape), kind) for shape, kind in gguf_tensors(str(path))]


def _gguf_bytes(n_values: int, kind: int, dtype: torch.dtype, *, packed: bool) -> int:
    if not packed:
        return n_values * dtype.itemsize
    values, n_bytes = GGML_BLOCK[kind]
    return n_values // values * n_bytes


def _gguf_type(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return str(GGMLQuantizationType(kind).name)


def method_of(scheme: Any) -> str:
    """Transformers' name of a method of quantising, from its config or from the entry in a model's config."""
    method = scheme.get("quant_method") if isinstance(scheme, Mapping) else getattr(scheme, "quant_method", None)
    return str(getattr(method, "value", method))


def _stored(source: str, revision: str) -> list[Stored] | None:
    """The tensors that a checkpoint keeps in safetensors; None where there are none here, or they cannot be read."""
    index, single = _found(source, _INDEX, revision), _found(source, _SINGLE, revision)
    try:
        if index is not None:
            names = json_of(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [tensor for name in sorted(set(names)) for tensor in _in_file(index.parent / name)]
        return None if single is None else _in_file(single)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the last three where it is no index
        return None


def refuse_outside(source: str, revision: str) -> None:
    """ModelError where an index of a checkpoint names a file outside of its folder."""
    for name in (_INDEX, "pytorch_model.bin.index.json"):
        index = _found(source, name, revision)
        try:
            named = [] if index is None else list(json_of(index.read_text(encoding="utf-8"))["weight_map"].values())
            outside = [one for one in named if PurePath(one).is_absolute() or ".." in PurePath(one).parts]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no index, which is told where it is read
            continue
        if outside:
            problem = f"{source} has an index that names {outside[0]!r}, a file outside of its folder"
            raise ModelError(problem, "give a checkpoint that holds its own files", given=source)


def _in_file(path: Path) -> list[Stored]:
    return [Stored(name, one.dtype, math.prod(one.shape), len(one.shape)) for name, one in entries(path).items()]


def _found(source: str, name: str, revision: str) -> Path | None:
    folder = expanded(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def dtype_of(config: Any) -> torch.dtype | None:
    """The type in which a checkpoint asks to be loaded; None where it names none."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return named if isinstance(named, torch.dtype) else None


def _first_dtype(stored: list[Stored] | None) -> torch.dtype:
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return next((names[tensor.dtype] for tensor in stored or () if tensor.dtype in names), torch.float32)


def _of_skeleton(source: str, config: Any, loader: Any, dtype: torch.dtype) -> Weights | None:
    hf = skeleton(config, loader)
    if hf is None:
        return None
    n_bytes = sum(parameter.numel() for parameter in hf.parameters()) * dtype.itemsize
    return Weights(source, n_bytes, f"in {str(dtype).removeprefix('torch.')}, counted from its config")


def skeleton(config: Any, loader: Any) -> Any:
    """The model without its weights; None where transformers cannot build it from its config alone."""
    try:
        with torch.device("meta"):
            return built_from(loader, config)
    except Exception:  # such as code that comes with the checkpoint, or a missing package
        return None


def _loaded_bytes(tensor: Stored, dtype: torch.dtype) -> int:
    width = dtype.itemsize if tensor.dtype in _FLOAT_BYTES else _BYTES.get(tensor.dtype, 1)
    return tensor.n_values * width


def _quantized_bytes(tensor: Stored, dtype: torch.dtype, scheme: Any) -> int:
    """Bytes of a tensor that is quantised while it is loaded, if it is a matrix of a block. Methods other than
    bitsandbytes' count as 4 bits, so that nothing is refused that fits."""
    in_block = any(part.isdecimal() for part in tensor.name.split("."))
    if tensor.n_axes != 2 or not in_block:
        return _loaded_bytes(tensor, dtype)
    return int(tensor.n_values * _PACKED_BYTES[not getattr(scheme, "load_in_8bit", False)])


def _unpacked_values(tensor: Stored) -> int:
    if tensor.name.endswith("_blocks"):  # for MXFP4: two values in a byte
        return tensor.n_values * 2
    return 0 if tensor.name.endswith(("_scales", "_scale_inv")) else tensor.n_values
