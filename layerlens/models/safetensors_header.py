"""What a file of safetensors says that it holds, from the JSON at its beginning."""

from pathlib import Path
from typing import NamedTuple

from layerlens.parsing import json_of

_LONGEST = 100_000_000  # bytes, as in the library


class Entry(NamedTuple):
    """A tensor in a file."""

    dtype: str
    """As the format names it, such as "BF16"."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte in the file."""
    end: int
    """The byte after its last."""


def entries(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name, in the order of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no file of safetensors, or names more than it holds.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size - 8
        if not 2 <= length <= min(size, _LONGEST):
            raise ValueError(f"{path} has no safetensors header")
        header = json_of(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path} has a header that is no mapping")
    found = {name: _entry(path, name, said, 8 + length) for name, said in header.items() if name != "__metadata__"}
    beyond = next((name for name, entry in found.items() if entry.end > 8 + size), None)
    if beyond is not None:
        raise ValueError(f"{path} ends before {beyond}")
    return found


def _entry(path: Path, name: str, said: object, after: int) -> Entry:
    if isinstance(said, dict):
        dtype, shape, place = said.get("dtype"), _sizes(said.get("shape")), _sizes(said.get("data_offsets"))
        if isinstance(dtype, str) and shape is not None and place is not None and len(place) == 2:
            begin, end = place
            if begin <= end:
                return Entry(dtype, shape, after + begin, after + end)
    raise ValueError(f"{path} has a header that does not say where {name} is")


def _sizes(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value):
        return tuple(value)
    return None
