"""The first entries of a GGUF file. Existing readers take seconds, because they also read the whole vocabulary."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

# by the number of a type, as in the description of the format
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9


def n_layers(path: Path) -> int | None:
    """How many blocks the model has according to the file; None where it does not say so before its vocabulary."""
    try:
        with path.open("rb") as file:
            magic, _, _, n_entries = file.read(4), _number(file, 4), _number(file, 10), _number(file, 10)
            if magic != b"GGUF":
                return None
            for _ in range(n_entries):
                name, kind = _text(file), _number(file, 4)
                if name.startswith("tokenizer."):
                    return None
                value = _value(file, kind)
                if name.endswith(".block_count"):
                    return int(value)
    except (OSError, struct.error, KeyError, ValueError, TypeError, OverflowError, MemoryError):
        pass  # the reader will refuse a damaged file
    return None


def _number(file: BinaryIO, kind: int) -> Any:
    layout = f"<{_FORMATS[kind]}"
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, 10)).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _LIST:
        inner, length = _number(file, 4), _number(file, 10)
        return [_value(file, inner) for _ in range(length)]
    return _number(file, kind)
