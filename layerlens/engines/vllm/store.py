"""What was decided about each token of the requests that asked for records, until somebody fetches it."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from layerlens.decode.log import COLUMNS, Decisions

Place = tuple[str, int]
"""Id of a request, and number of the token among those that it emitted, from 0."""

_MOST_SPOILT = 1000
_STEPS_ON_DEVICE = 64  # steps whose records wait on the device; each copy to the host waits for all earlier work


class Store:
    """Records of tokens by request. A token that is computed again, after a preemption, replaces its first record.

    Args:
        most_bytes: what the records may take. The request that is longest without a new record is dropped first.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._by_id: OrderedDict[str, dict[int, tuple[list[int], list[float]]]] = OrderedDict()
        self._waiting: list[tuple[Sequence[Place], Decisions]] = []
        self._known: set[str] = set()  # with records, here or on the device
        self._spoilt: OrderedDict[str, None] = OrderedDict()

    def add(self, places: Sequence[Place], decisions: Decisions) -> None:
        """Keep the decisions; each row belongs to one place."""
        self._waiting.append((places, decisions))
        self._known.update(id for id, _ in places)
        if len(self._waiting) >= _STEPS_ON_DEVICE:
            self._settle()

    def forget(self, id: str) -> None:
        """Drop the records of that id, if there are any."""
        if id in self._known:
            self._settle()
            self._drop(id)
        self._spoilt.pop(id, None)

    def spoil(self, id: str) -> None:
        """Answer for that id, when it is asked for, that two requests had it at once."""
        self._spoilt[id] = None
        if len(self._spoilt) > _MOST_SPOILT:
            self._spoilt.popitem(last=False)

    def take(self, ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """The records of these requests, or of all, which are then forgotten.

        Returns:
            for each request that has any, lists with an entry for each token: `place`, the number of the token, and
            what `DecodingLog.steps` has of a step. The criterion's values are called `values`. For an id that two
            requests had at once, instead of these, a sentence under `error`.
        """
        self._settle()
        found: dict[str, dict[str, Any]] = {}
        for id in list(self._by_id | self._spoilt) if ids is None else ids:
            is_spoilt = id in self._spoilt
            tokens = self._drop(id)
            self._spoilt.pop(id, None)
            if is_spoilt:
                found[id] = {"error": f"id {id!r} was given to two requests at once; give each a name of its own"}
            elif tokens is not None:
                found[id] = _columns(tokens)
        return found

    def _drop(self, id: str) -> dict[int, tuple[list[int], list[float]]] | None:
        tokens = self._by_id.pop(id, None)
        self._known.discard(id)
        if tokens is not None:
            self._bytes -= sum(map(_size, tokens.values()))
        return tokens

    def _settle(self) -> None:
        """Bring to the host what waits on the device."""
        waiting, self._waiting = self._waiting, []
        for places, decisions in waiting:
            rows = zip(places, decisions.numbers.tolist(), decisions.values.tolist(), strict=True)
            for (id, place), numbers, values in rows:
                tokens = self._by_id.setdefault(id, {})
                self._by_id.move_to_end(id)
                if place in tokens:
                    self._bytes -= _size(tokens[place])
                tokens[place] = (numbers, values)
                self._bytes += _size(tokens[place])
        while self._bytes > self._most_bytes and self._by_id:
            self._drop(next(iter(self._by_id)))


def _columns(tokens: dict[int, tuple[list[int], list[float]]]) -> dict[str, list[Any]]:
    places = sorted(tokens)
    columns: dict[str, list[Any]] = {"place": places}
    # the same names and order as in the log of our own loop, whose first columns say which token it is
    for index, name in enumerate(COLUMNS[4:]):
        columns[name] = [tokens[place][0][index] for place in places]
    columns["is_finite"] = [tokens[place][0][len(COLUMNS) - 4] == 1 for place in places]
    columns["values"] = [tokens[place][1] for place in places]
    return columns


def _size(token: tuple[list[int], list[float]]) -> int:
    """Bytes that a token's record takes, about: 32 for each number and its place in a list."""
    numbers, values = token
    return 200 + 32 * (len(numbers) + len(values))
