"""Runs work of a GPU on a second stream, at the same time as its other work."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MOST_BEHIND = 1  # so that waiting inputs do not pile up


class Beside:
    """Runs work on a stream of its own, one piece after the other.

    The other stream continues. It waits only where it would get more than one piece ahead: at the end of block l + 1 it
    waits for the work on block l. The host never waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._streams: Any = torch.get_device_module(device)
        self._device = device
        self._stream = self._streams.Stream(device) if device.type != "cpu" else self._streams.Stream()
        self._under_way: deque[tuple[Any, list[Tensor]]] = deque()

    def run(self, work: Callable[[], None], inputs: list[Tensor]) -> None:
        """Begin the work once everything that the device was given so far is done.

        Args:
            work: its results may be read only after `join`, or in other work.
            inputs: tensors that it reads and that the other stream made. They are kept until the other stream has
                waited, because freed memory is reused at once by the stream that allocated it.
        """
        other = self._streams.current_stream(self._device)
        self._stream.wait_stream(other)
        with self._streams.stream(self._stream):
            work()
        self._under_way.append((self._stream.record_event(), inputs))
        while len(self._under_way) > _MOST_BEHIND:
            done, _ = self._under_way.popleft()
            other.wait_event(done)

    def join(self) -> None:
        """Let the other stream wait for all work."""
        self._streams.current_stream(self._device).wait_stream(self._stream)
        self._under_way.clear()
