"""What each layer does to the tokens of requests that ask for it: reduced to numbers where the states are, and kept
until somebody fetches them."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from layerlens.axes import States
from layerlens.engines.vllm.head import Reads, StockHead, behind_norm
from layerlens.engines.vllm.options import RequestOptions
from layerlens.engines.vllm.shards import Shards
from layerlens.formulas import changes
from layerlens.lens import Reading, kl_from_last, read_with_js, tiled
from layerlens.records.schema import JS, KL, NEXT_LOG_PROB, NEXT_RANK, TOP_K_PROBS, TOP_K_TOKEN_IDS
from layerlens.tracing.meter import NOTHING, Wanted

Array = np.ndarray[Any, np.dtype[Any]]

_ROWS_AT_ONCE = 256  # whose states of all layers lie side by side for one product
_LOGITS_AT_ONCE = 2**27  # 512 MiB in float32
_CHUNKS_ON_DEVICE = 64  # each copy to the host waits for all earlier work


class Span(NamedTuple):
    """The states of a step that belong to one request."""

    options: RequestOptions
    n_prompt: int
    """Length of the request's prompt."""
    start: int
    """Its first state among those of the step."""
    stop: int
    position: int
    """Of the first state in the request's text, from 0."""

    @property
    def traced(self) -> range:
        """The states that are traced, among those of the step."""
        if self.options.trace is None or self.options.id is None:
            return range(0)
        first = self.n_prompt - 1 if self.options.trace == "generated" else 0
        return range(self.start + max(0, first - self.position), self.stop)

    @property
    def positions(self) -> range:
        """Their positions in the request's text."""
        first = self.traced.start + self.position - self.start
        return range(first, first + len(self.traced))


class Unread(NamedTuple):
    """A row whose next token is not known yet: the last of its request so far."""

    position: int
    """In the request's text."""
    states: Tensor
    """Of the layers 0..L, and at the end L's after the final norm: [L + 2, d_model]."""


@torch.no_grad()
def measured(
    states: Sequence[States], last: States, reads: Reads, wanted: Wanted, targets: Tensor | None = None
) -> dict[str, Tensor]:
    """The columns of a trace that can be told from the states of all layers: [rows, L], or [rows, L, K].

    Args:
        states: of the layers 0..L, [rows, d_model] each.
        last: that of L after the final norm.
        reads: how they are read.
        wanted: what is read beside the changes, the entropy and the top token.
        targets: the token that followed each row, [rows], `NOTHING` where it is not known; None: none is.
    """
    if targets is None:
        targets = torch.full((len(last),), NOTHING, device=last.device)
    parts = [
        _measured([layer[rows] for layer in states], last[rows], reads, wanted, targets[rows])
        for rows in (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(last), _ROWS_AT_ONCE))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _measured(
    states: Sequence[States], last: States, reads: Reads, wanted: Wanted, targets: Tensor
) -> dict[str, Tensor]:
    n_rows, n_layers = len(last), len(states) - 1
    ratio, cosine, *_ = torch.stack([changes(before, None, after, False) for before, after in pairwise(states)], dim=2)
    read = [*(reads.at_head(layer, number) for number, layer in enumerate(states[1:-1], 1)), behind_norm(last)]

    def by_layer(values: Tensor) -> Tensor:
        by_row: Tensor = values.unflatten(0, (n_layers, n_rows)).transpose(0, 1)
        return by_row

    changed = {"norm_ratio": ratio, "io_cosine": cosine}
    if reads.shards is not None and not (wanted.top or wanted.from_last or wanted.targets):
        entropy, top = by_shards(torch.cat(read), reads.shards)
        return {**changed, "entropy": by_layer(entropy), "top_token_id": by_layer(top).int()}
    head = StockHead(reads.logits_of, reads.n_vocab, last.device)
    whole = max(1, _LOGITS_AT_ONCE // head.n_vocab), head.n_vocab
    chosen = targets.long().clamp(0, head.n_vocab - 1)
    of_one = chosen.unsqueeze(1) if wanted.targets else None
    divergences = {}
    if wanted.js:
        readings, divergences[JS.name] = read_with_js(read, head, of_one, n_first=wanted.top, tile=whole)
        reading = Reading.joined(readings)
    else:
        of_all = None if of_one is None else of_one.repeat(n_layers, 1)
        reading = tiled.read(torch.cat(read), head, of_all, n_first=wanted.top, tile=whole)
        fields = [[None] * n_layers if field is None else field.split(n_rows) for field in reading]
        readings = [Reading(*of_layer) for of_layer in zip(*fields, strict=True)]
    if wanted.kl:
        divergences[KL.name] = kl_from_last(read, readings, head, tile=whole)
    columns = {
        **changed,
        "entropy": by_layer(reading.entropy),
        "top_token_id": by_layer(reading.top_token_id).int(),
    }
    if wanted.targets:
        assert reading.log_probs is not None
        assert reading.ranks is not None
        is_nothing = (targets != chosen).unsqueeze(1)  # no token, or a token that the head does not have
        columns[NEXT_LOG_PROB.name] = by_layer(reading.log_probs[:, 0]).masked_fill(is_nothing, torch.nan)
        columns[NEXT_RANK.name] = by_layer(reading.ranks[:, 0]).masked_fill(is_nothing, NOTHING).int()
    if wanted.top:
        assert reading.first_ids is not None
        assert reading.first_log_probs is not None
        columns[TOP_K_TOKEN_IDS.name] = by_layer(reading.first_ids).int()
        columns[TOP_K_PROBS.name] = by_layer(reading.first_log_probs.exp())
    columns |= {name: values.t() for name, values in divergences.items()}
    return columns


def by_shards(states: States, shards: Shards) -> tuple[Tensor, Tensor]:
    """Entropy and top token of states on both sides of the norm, from the ranks' parts of the vocabulary."""
    head = StockHead(shards.logits_of, shards.width, states.device)
    parts = states.split(max(1, _LOGITS_AT_ONCE // shards.width))
    logits = (head.logits(part) for part in parts)
    found = [(shards.entropy(one), shards.first_choice(one)) for one in logits]
    entropies, tops = zip(*found, strict=True)
    return torch.cat(entropies), torch.cat(tops)


class Traces:
    """Rows of traces by request. A row that is computed again, after a preemption, replaces the first one.

    Args:
        most_bytes: what the rows may take. The request that is longest without a new row is dropped first.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._by_id: OrderedDict[str, list[dict[str, Array]]] = OrderedDict()
        self._unread: dict[str, Unread] = {}
        self._waiting: list[tuple[Sequence[tuple[str, range]], Mapping[str, Tensor]]] = []

    def add(self, places: Sequence[tuple[str, range]], columns: Mapping[str, Tensor]) -> None:
        """Keep rows; each request's are in order of their positions, one request after the other."""
        self._waiting.append((places, columns))
        if len(self._waiting) >= _CHUNKS_ON_DEVICE:
            self._settle()

    def keep(self, id: str, unread: "Unread") -> None:
        """Keep the states of a row until it is known which token followed, in place of the request's earlier one."""
        self.unread(id)
        self._unread[id] = unread
        self._bytes += unread.states.nbytes
        self._by_id.setdefault(id, [])

    def unread(self, id: str, position: int | None = None) -> "Unread | None":
        """The request's row that waits for its token, which is then forgotten; None where there is none, or where it is
        not the one at `position`."""
        found = self._unread.get(id)
        if found is None or position not in (None, found.position):
            return None
        self._bytes -= found.states.nbytes
        return self._unread.pop(id)

    def take(self, id: str) -> dict[str, Array] | None:
        """The rows of a request by column, with their `position`, in its order; they are then forgotten. None where
        there are none."""
        self._settle()
        chunks = self._drop(id)
        if not chunks:
            return None
        whole = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        # the last one of each position
        _, from_end = np.unique(whole["position"][::-1], return_index=True)
        rows = len(whole["position"]) - 1 - from_end
        return {name: values[rows] for name, values in whole.items()}

    def _settle(self) -> None:
        """Bring to the host what waits on the device."""
        waiting, self._waiting = self._waiting, []
        for places, columns in waiting:
            on_host = {name: values.cpu().numpy() for name, values in columns.items()}
            start = 0
            for id, positions in places:
                rows = slice(start, start + len(positions))
                chunk = {name: values[rows] for name, values in on_host.items()}
                chunk["position"] = np.array(positions, dtype=np.int32)
                start += len(positions)
                self._by_id.setdefault(id, []).append(chunk)
                self._by_id.move_to_end(id)
                self._bytes += _size(chunk)
        while self._bytes > self._most_bytes and self._by_id:
            self._drop(next(iter(self._by_id)))

    def _drop(self, id: str) -> list[dict[str, Array]]:
        self.unread(id)
        chunks = self._by_id.pop(id, [])
        self._bytes -= sum(map(_size, chunks))
        return chunks


def packed(columns: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """The columns as what vLLM hands from one process to another: numbers, texts, lists and bytes."""
    return {
        name: {"dtype": str(values.dtype), "shape": list(values.shape), "data": values.tobytes()}
        for name, values in columns.items()
    }


def unpacked(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, Array]:
    """The arrays of packed columns."""
    return {name: np.frombuffer(one["data"], one["dtype"]).reshape(one["shape"]) for name, one in columns.items()}


def _size(chunk: Mapping[str, Array]) -> int:
    return sum(values.nbytes for values in chunk.values())
