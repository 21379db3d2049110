"""JSON in which an entry is missing, or holds what it should not."""

import copy
from collections.abc import Iterator
from typing import Any

GONE = object()
VALUES = (
    *(GONE, None, True, "x", "", "\x1b[31m", "\ud800", -1, 0, 1, 3.5, 10**30, -(2**70), float("nan"), float("inf")),
    *([], {}, [1], ["x"], [[]], {"a": 1}, [None], [["\x00"]]),
)
Path = tuple[Any, ...]


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every entry, and of the first two of a list."""
    yield path
    if isinstance(value, dict):
        for name, one in value.items():
            yield from paths(one, (*path, name))
    elif isinstance(value, list):
        for place, one in enumerate(value[:2]):
            yield from paths(one, (*path, place))


def changed(content: Any, path: Path, value: Any) -> Any:
    """The content with another value at a path, or without it."""
    content = copy.deepcopy(content)
    if not path:
        return None if value is GONE else value
    place = content
    for name in path[:-1]:
        place = place[name]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def shown(path: Path, value: Any) -> str:
    """For messages."""
    return f"{'.'.join(map(str, path))} {'missing' if value is GONE else repr(value)}"
