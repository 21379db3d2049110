"""What a model's weights take, told from its files before they are read, and what there is."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.integrations.gguf import reader
from transformers.integrations.gguf.dequant import GGML_BLOCK

from layerlens.errors import ModelError, OptionError, first_sentence
from layerlens.models.placement import Place

GIB = 2**30
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BYTES = {**_FLOAT_BYTES, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}  # every other type: one
# with these methods transformers unpacks the whole checkpoint where there is no GPU
_UNPACKED_WITHOUT_GPU = ("fp8", "mxfp4")
# bytes of a weight that bitsandbytes packs: 4 bits and a float32 scale for every 64 of them, or 8 bits
_PACKED_BYTES = {True: 0.5 + 4 / 64, False: 1.0}
_GGUF_FLOATS = {0, 1, 30}  # float32, float16, bfloat16
_SHARE_OF_GPU = 0.9  # what transformers fills of a GPU


class Stored(NamedTuple):
    """One tensor of a checkpoint: its name, its type as safetensors names it, and how many values it has."""

    name: str
    dtype: str
    n_values: int
    n_axes: int


@dataclass(frozen=True)
class Weights:
    """What weights will take.

    Attributes:
        source: what `load` was given.
        n_bytes: once they are loaded.
        kind: their type, and what is done to them while they are loaded.
        may_lie_on_disk: whether what fits nowhere else can.
    """

    source: str
    n_bytes: int
    kind: str
    may_lie_on_disk: bool = True


def of_checkpoint(
    source: str, config: Any, loader: Any, dtype: torch.dtype | None, scheme: Any, revision: str, place: Place
) -> Weights | None:
    """What the weights of a folder or hub id will take; None where its files cannot be made out.

    Args:
        source: a folder or hub id.
        config: its config.
        loader: the class of transformers that loads it.
        dtype: what it is loaded in; None for what the checkpoint says.
        scheme: the quantisation config that it is loaded with, if one was asked for.
        revision: of a hub id.
        place: where it is to lie.
    """
    stored = _stored(source, revision)
    folder = Path(source).expanduser()
    if stored is None and folder.is_dir() and not any(folder.glob("*.bin")):
        return None
    kind = dtype or dtype_of(config) or _first_dtype(stored)
    if stored is None:  # nothing here yet: as many weights as the model has
        return _of_skeleton(source, config, loader, kind)
    own = getattr(config, "quantization_config", None)
    name = str(kind).removeprefix("torch.")
    if own is not None and method_of(own) in _UNPACKED_WITHOUT_GPU and not uses_gpu(place):
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
    """What the weights of a GGUF file will take; None where its table of tensors cannot be made out."""
    try:
        tensors = _gguf_tensors(path)
    except Exception:  # what is wrong with the file is said once it is loaded
        return None
    name = str(dtype).removeprefix("torch.")
    stay = {kind for _, kind in tensors if packed and kind in GGML_BLOCK}
    n_bytes = sum(_gguf_bytes(n_values, kind, dtype, packed=kind in stay) for n_values, kind in tensors)
    types = ", ".join(sorted(_gguf_type(kind) for kind in stay or {kind for _, kind in tensors} - _GGUF_FLOATS))
    kind = f"in {types}, the rest in {name}" if stay else f"in {name}, unpacked from {types}" if types else f"in {name}"
    return Weights(source, n_bytes, kind, may_lie_on_disk=False)


def _gguf_tensors(path: Path) -> list[tuple[int, int]]:
    """Number of values and type of each tensor. transformers' own header refuses types that it cannot leave packed."""
    blob = reader._mapped(str(path))
    _, n_tensors, position = reader._read_metadata(blob, str(path))
    entries, _ = reader._read_tensor_table(blob, n_tensors, position)
    return [(math.prod(shape), kind) for _, shape, kind, _ in entries]


def _gguf_bytes(n_values: int, kind: int, dtype: torch.dtype, *, packed: bool) -> int:
    if not packed:
        return n_values * dtype.itemsize
    values, n_bytes = GGML_BLOCK[kind]
    return n_values // values * n_bytes


def _gguf_type(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return str(GGMLQuantizationType(kind).name)


def method_of(scheme: Any) -> str:
    """What transformers calls a way of quantising, from its config or from the entry of a model's config."""
    method = scheme.get("quant_method") if isinstance(scheme, Mapping) else getattr(scheme, "quant_method", None)
    return str(getattr(method, "value", method))


def room(place: Place) -> dict[str, int]:
    """Bytes free on each device that a model at this place can use, no more than was allowed; without the disk.

    Devices whose free memory cannot be told are left out.
    """
    limits = {str(name): _parsed(limit) for name, limit in (place.max_memory or {}).items()}
    free = {name: _free(name) for name in _device_names(place)}
    return {
        name: min(n_bytes, limits.get(name.removeprefix("cuda:"), limits.get(name, n_bytes)))
        for name, n_bytes in free.items()
        if n_bytes is not None
    }


def refuse_unfit(weights: Weights | None, place: Place) -> None:
    """ModelError where the weights alone are larger than all that is free on their devices, swap included."""
    if weights is None or (may_use_disk(place) and weights.may_lie_on_disk):
        return
    free = room(place)
    if set(free) != set(_device_names(place)):
        return
    limit = sum(free.values()) + (_meminfo().get("SwapFree", 0) if "cpu" in free and not place.max_memory else 0)
    if weights.n_bytes > limit:
        found = " and ".join(f"{gib(n_bytes)} on {name}" for name, n_bytes in free.items())
        ways = "--offload-folder DIR, to leave the rest on disk" if _spreads(place) else "--device-map auto"
        raise ModelError(
            f"{weights.source} needs {gib(weights.n_bytes)} for its weights alone ({weights.kind}), and there are "
            f"{found} free; give {ways}, or load fewer bits (--dtype, --quantize, --keep-quantized), or a smaller model"
        )


def with_room_for_head(place: Place, weights: Weights | None, config: Any) -> Place:
    """The place with less of the first GPU for blocks where some will be offloaded: the unembedding is kept there."""
    if weights is None or place.device_map not in ("auto", "balanced", "sequential") or place.max_memory:
        return place
    free = {name: int(n_bytes * _SHARE_OF_GPU) for name, n_bytes in room(place).items()}
    gpus = [name for name in free if name != "cpu"]
    if not gpus or weights.n_bytes <= sum(free[name] for name in gpus):
        return place
    text = config.get_text_config(decoder=True)
    head_bytes = text.vocab_size * text.hidden_size * (dtype_of(config) or torch.float32).itemsize
    free[gpus[0]] = max(0, free[gpus[0]] - head_bytes)
    limits: dict[str | int, str | int] = {
        name if name == "cpu" else int(name.removeprefix("cuda:")): n_bytes for name, n_bytes in free.items()
    }
    return replace(place, max_memory=limits)


def gib(n_bytes: float) -> str:
    """Bytes as people say them: "1.25 GiB", "3.1 MiB"."""
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:,.1f} MiB"


def _stored(source: str, revision: str) -> list[Stored] | None:
    """The tensors that a checkpoint keeps in safetensors; None where it has none here, or they cannot be read."""
    index, single = _found(source, _INDEX, revision), _found(source, _SINGLE, revision)
    try:
        if index is not None:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return [tensor for name in files for tensor in _header(index.parent / name)]
        return None if single is None else list(_header(single))
    except (OSError, ValueError, KeyError, struct.error):
        return None


def _found(source: str, name: str, revision: str) -> Path | None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _header(path: Path) -> Iterator[Stored]:
    """The tensors of one safetensors file, from the JSON at its beginning."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > 2**28:
            raise ValueError(f"{path} has no header of safetensors")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield Stored(name, entry["dtype"], math.prod(entry["shape"]), len(entry["shape"]))


def dtype_of(config: Any) -> torch.dtype | None:
    """What a checkpoint says that it is to be loaded in; None where it says nothing."""
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return getattr(torch, found) if isinstance(found, str) else found


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
    build = getattr(loader, "from_config", None) or loader._from_config
    try:
        with torch.device("meta"):
            return build(config)
    except Exception:  # code that comes with the checkpoint, a package that is missing
        return None


def _loaded_bytes(tensor: Stored, dtype: torch.dtype) -> int:
    width = dtype.itemsize if tensor.dtype in _FLOAT_BYTES else _BYTES.get(tensor.dtype, 1)
    return tensor.n_values * width


def _quantized_bytes(tensor: Stored, dtype: torch.dtype, scheme: Any) -> int:
    """Of a tensor that is quantised while it is loaded where it is a matrix of a block; of ways that are not
    bitsandbytes' as if to 4 bits, so that nothing is refused that fits."""
    in_block = any(part.isdecimal() for part in tensor.name.split("."))
    if tensor.n_axes != 2 or not in_block:
        return _loaded_bytes(tensor, dtype)
    return int(tensor.n_values * _PACKED_BYTES[not getattr(scheme, "load_in_8bit", False)])


def _unpacked_values(tensor: Stored) -> int:
    if tensor.name.endswith("_blocks"):  # of MXFP4: two values a byte
        return tensor.n_values * 2
    return 0 if tensor.name.endswith(("_scales", "_scale_inv")) else tensor.n_values


def _device_names(place: Place) -> list[str]:
    """The devices that a model at this place can lie on, without the disk."""
    if isinstance(place.device_map, str):
        return [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]
    places = dict.fromkeys(_name(one) for one in place.device_map.values())
    return [name for name in places if name != "disk"]


def _name(device: Any) -> str:
    if isinstance(device, int) or str(device) == "cuda":
        return f"cuda:{0 if str(device) == 'cuda' else device}"
    return str(device)


def uses_gpu(place: Place) -> bool:
    """Whether a model at this place can lie on more than the CPU."""
    return any(name != "cpu" for name in _device_names(place))


def _spreads(place: Place) -> bool:
    return isinstance(place.device_map, str) or set(place.device_map) != {""}


def may_use_disk(place: Place) -> bool:
    """Whether what fits on no device can stay on disk."""
    return place.offload_folder is not None or (
        not isinstance(place.device_map, str) and "disk" in map(str, place.device_map.values())
    )


def _free(name: str) -> int | None:
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            return None
        free, _ = torch.cuda.mem_get_info(name)
        return free + torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)
    return _meminfo().get("MemAvailable") if name == "cpu" else None


def _meminfo() -> dict[str, int]:
    """Bytes by name, as Linux tells them; empty elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}


def _parsed(limit: str | int) -> int:
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(limit))
    except ValueError as error:
        raise OptionError(
            f"max_memory {limit!r} is no size ({first_sentence(error)}); give one such as 20GiB"
        ) from error
