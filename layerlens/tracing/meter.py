"""Turns the states that pass through the blocks into numbers, as they pass, on the device where they are."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerlens.axes import States
from layerlens.decode.speculative.confidence import confidence
from layerlens.decode.speculative.skipping import parts_of
from layerlens.formulas import changes
from layerlens.lens import IDENTITY, CoarseHead, Reading, Transport, kl_from_last, read_with_js, tiled
from layerlens.lens.transport import at_head
from layerlens.models import Model
from layerlens.models.placement import is_spread
from layerlens.records.schema import (
    CONFIDENCE,
    HALF_ENTROPY,
    HALF_TOP_TOKEN_ID,
    JS,
    KL,
    NEXT_LOG_PROB,
    NEXT_RANK,
    TOP_K_PROBS,
    TOP_K_TOKEN_IDS,
    VOCAB_CONFIDENCE,
)
from layerlens.tracing.beside import Beside

FLOATS = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")
NOTHING = -1  # in place of a token id where there is none

# States of single decoding steps wait until they fill a tile, so that the unembedding is read once for all of them. In
# large models fewer wait, so that over all layers they take no more than this many bytes.
_MOST_ROWS_WAITING, _LEAST_ROWS_WAITING = 512, 32
_BYTES_WAITING = 128 * 2**20
# Pieces of a long text, so that float32 copies of its states stay small.
_ROWS_AT_ONCE = 2048
_FLOAT_COPIES = 5  # what entered, was between the parts of, and left a block, and two differences
_STREAMS = 3  # kept of each block: what entered it, was between attention and MLP, and left it

Measured = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""The values of each column that a meter fills, [rows, layers] or [rows, layers, K]."""
Select = Callable[[Tensor], States]


@dataclass(frozen=True)
class Wanted:
    """What is read of each layer besides its changes, its entropy and its top token; see the options of a trace."""

    kl: bool = False
    js: bool = False
    targets: bool = False
    top: int = 0
    sublayers: bool = False
    confidence: bool = False

    @property
    def floats(self) -> tuple[str, ...]:
        """The columns that hold one float each, without the divergences from the last layer."""
        more = (
            (NEXT_LOG_PROB, self.targets),
            (HALF_ENTROPY, self.sublayers),
            (CONFIDENCE, self.confidence),
            (VOCAB_CONFIDENCE, self.confidence),
        )
        return (*FLOATS, *(column.name for column, wanted in more if wanted))

    @property
    def ids(self) -> tuple[str, ...]:
        """The columns that hold one whole number each."""
        more = ((NEXT_RANK, self.targets), (HALF_TOP_TOKEN_ID, self.sublayers))
        return ("top_token_id", *(column.name for column, wanted in more if wanted))

    @property
    def from_last(self) -> tuple[str, ...]:
        """The columns of divergences from the last layer."""
        return tuple(column.name for column, wanted in ((KL, self.kl), (JS, self.js)) if wanted)


class Meter:
    """Measures every block on the rows that `select` picks from its streams; use `on_block` as the hook.

    Attributes:
        select: from a stream [batch, seq, d_model] to the states to keep, [rows, d_model]; set before each pass.
    """

    def __init__(
        self,
        model: Model,
        wanted: Wanted | None = None,
        transport: Transport = IDENTITY,
        coarse: CoarseHead | None = None,
    ) -> None:
        """Begin.

        Args:
            model: whose blocks are watched.
            wanted: what is read. For divergences, the states of all layers are kept until the last layer is read. For
                targets, they are kept until `tell` has said which tokens followed.
            transport: that of the lens, which maps states to states that the head can read.
            coarse: reads entropies and top tokens in place of the model's own head, and nothing else.
        """
        self._wanted = wanted or Wanted()
        self._unembed = model.unembed
        self._n_layers = model.n_layers
        rows_waiting = _rows_waiting(model.n_layers, model.d_model, model.hf.dtype)
        self._layers = [
            _Layer(model, index, rows_waiting, self._wanted, transport, coarse) for index in range(model.n_layers)
        ]
        self._parts = parts_of(model) if self._wanted.confidence else None
        self._outputs: dict[nn.Module, Tensor] = {}
        self._next_ids: list[Tensor] = []
        self._n_told = 0
        device = model.unembed.device
        self._beside = Beside(device) if model.overlaps and not is_spread(model.hf) else None
        self.select: Select = lambda stream: stream.flatten(0, 1)

    @property
    def watched_parts(self) -> list[nn.Module]:
        """The modules whose outputs `on_part` wants."""
        return [] if self._parts is None else [module for of in self._parts for block in of for module in block]

    def on_part(self, module: nn.Module, output: Tensor) -> None:
        """Keep what a part of a block returned until the block returns."""
        self._outputs[module] = output.clone()  # some blocks add to it in place

    def on_block(self, index: int, h_in: Tensor, part: Tensor | None, h_out: Tensor) -> None:
        """Keep or measure what the block did to the selected rows."""
        after = self.select(h_out)
        # the first block on a device is seen before its inputs are brought there
        before = self.select(h_in).to(after.device)
        layer = self._layers[index]
        layer.add(before, None if part is None else self.select(part), after, self._of_parts(index, h_out))
        if layer.is_full:
            self._measure(layer)
        if index == self._n_layers - 1:
            self._do(self._compare, [])

    def _of_parts(self, index: int, h_out: Tensor) -> Tensor | None:
        """What attention and MLP of a block returned for the selected rows, [2, rows, d_model]; None if not wanted."""
        if self._parts is None:
            return None
        # some blocks flatten batch and sequence on their way to the MLP
        outputs = [[self._outputs.pop(module).reshape(h_out.shape) for module in of[index]] for of in self._parts]
        return torch.stack([self.select(sum(of_part[1:], of_part[0])) for of_part in outputs])

    def tell(self, next_ids: Tensor) -> None:
        """Which tokens followed the next rows, int64 [rows], `NOTHING` where none did; before or after their pass."""
        self._next_ids.append(next_ids)
        self._n_told += len(next_ids)
        for layer in self._layers:
            if layer.is_full:
                self._measure(layer)
        self._do(self._compare, [])

    @torch.no_grad()
    def collect(self) -> Measured:
        """Everything measured since the last call, in the order of the rows; what a block lacks is NaN or `NOTHING`.
        Only here do numbers leave the device."""
        for layer in self._layers:
            self._measure(layer)
        self._do(self._compare, [])
        if self._beside is not None:
            self._beside.join()
        self._next_ids, self._n_told = [], 0
        by_layer = [layer.drain() for layer in self._layers]
        device = self._unembed.device
        columns: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
        for names, parts in zip(
            ((*self._wanted.floats, *self._wanted.from_last), self._wanted.ids),
            zip(*((one.floats, one.ids) for one in by_layer), strict=True),
            strict=True,
        ):
            numbers = torch.stack([part.to(device) for part in parts], dim=2).cpu().numpy()
            columns |= dict(zip(names, numbers, strict=True))
        if self._wanted.top:
            for column, of_layers in ((TOP_K_TOKEN_IDS, "first_ids"), (TOP_K_PROBS, "first_probs")):
                stacked = torch.stack([getattr(one, of_layers).to(device) for one in by_layer], dim=1)
                columns[column.name] = stacked.cpu().numpy()
        return columns

    def _measure(self, layer: "_Layer") -> None:
        """Measure the states that wait in a layer, once it is known which tokens followed."""
        if not self._wanted.targets:
            self._do(layer.measure_waiting, layer.waiting)
        elif layer.n_seen <= self._n_told:
            targets = torch.cat(self._next_ids)[layer.n_measured : layer.n_seen]
            self._do(lambda: layer.measure_waiting(targets), [*layer.waiting, targets])

    def _do(self, work: Callable[[], None], inputs: list[Tensor]) -> None:
        if self._beside is None:
            work()
        else:
            self._beside.run(work, inputs)

    @torch.no_grad()
    def _compare(self) -> None:
        """Compare the states that the layers kept with those of the last layer, which have just been seen."""
        for pieces in zip(*(layer.kept for layer in self._layers), strict=False):
            states = [piece.states for piece in pieces]
            divergences = []
            if self._wanted.js:
                readings, js = read_with_js(states, self._unembed, pieces[-1].chosen, n_first=self._wanted.top)
                divergences.append(js)
                for layer, piece, reading in zip(self._layers, pieces, readings, strict=True):
                    layer.add_numbers(piece, reading)
            else:
                readings = [piece.reading for piece in pieces if piece.reading is not None]
            if self._wanted.kl:
                divergences.insert(0, kl_from_last(states, readings, self._unembed))
            for layer, *values in zip(self._layers, *divergences, strict=True):
                layer.divergences.append(torch.stack(values))
        n_done = min(len(layer.kept) for layer in self._layers)
        for layer in self._layers:
            del layer.kept[:n_done]


def states_bytes(n_layers: int, d_model: int, dtype: torch.dtype, n_rows: int) -> int:
    """The most bytes of states that a meter holds while texts of `n_rows` tokens pass: steps of decoding that wait in
    every layer, or one layer's states of a full pass, with float32 copies of a piece of them."""
    a_step = _STREAMS * n_layers * d_model * dtype.itemsize * _rows_waiting(n_layers, d_model, dtype)
    a_pass = 2 * _STREAMS * d_model * dtype.itemsize * n_rows
    return max(min(a_step, n_layers * a_pass), a_pass) + 4 * d_model * min(n_rows, _ROWS_AT_ONCE) * _FLOAT_COPIES


def _rows_waiting(n_layers: int, d_model: int, dtype: torch.dtype) -> int:
    a_row = _STREAMS * n_layers * d_model * dtype.itemsize
    return min(_MOST_ROWS_WAITING, max(_LEAST_ROWS_WAITING, _BYTES_WAITING // a_row))


@dataclass
class _Numbers:
    """What was measured of some rows: floats [numbers, rows], ids [numbers, rows], and the first tokens [rows, K]."""

    floats: Tensor
    ids: Tensor
    first_ids: Tensor | None = None
    first_probs: Tensor | None = None


@dataclass
class _Piece:
    """Some rows of a layer, and what is known of them before the head reads them, [numbers, rows] each."""

    states: Tensor
    """As the head reads them."""
    changed: Tensor
    further: Tensor
    """Of the half step and of the parts: floats that follow those of the reading."""
    further_ids: Tensor
    targets: Tensor | None
    chosen: Tensor | None
    """The targets, [rows, 1], with another token where there is none."""
    reading: Reading | None = None


class _Layer:
    """Attributes: kept, what waits for the last layer; divergences from it, of rows so far; n_measured, how many rows
    were measured; n_seen, how many were measured or wait."""

    def __init__(
        self,
        model: Model,
        index: int,
        rows_waiting: int,
        wanted: Wanted,
        transport: Transport,
        coarse: CoarseHead | None,
    ) -> None:
        self._unembed = model.unembed
        self._wanted = wanted
        self._transport = transport
        self._coarse = coarse
        self._number, self._n_layers = index + 1, model.n_layers
        self._rows_waiting = rows_waiting
        self.kept: list[_Piece] = []
        self.divergences: list[Tensor] = []
        sublayer = model.sublayers[index]
        self._parallel = sublayer is not None and sublayer.parallel
        self._waiting: list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]] = []
        self._measured: list[_Numbers] = []
        self.n_measured = self.n_seen = 0

    def add(self, h_in: States, part: States | None, h_out: States, of_parts: Tensor | None) -> None:
        self._waiting.append((h_in, part, h_out, of_parts))
        self.n_seen += len(h_out)

    @property
    def is_full(self) -> bool:
        return self.n_seen - self.n_measured >= self._rows_waiting

    @property
    def waiting(self) -> list[Tensor]:
        return [states for added in self._waiting for states in added if states is not None]

    def drain(self) -> _Numbers:
        parts = self._measured
        floats = torch.cat([one.floats for one in parts], dim=1)
        if self.divergences:
            floats = torch.cat([floats, torch.cat(self.divergences, dim=1).to(floats.device)])
        numbers = _Numbers(floats, torch.cat([one.ids for one in parts], dim=1))
        if self._wanted.top:
            numbers.first_ids = torch.cat([one.first_ids for one in parts if one.first_ids is not None])
            numbers.first_probs = torch.cat([one.first_probs for one in parts if one.first_probs is not None])
        self._measured, self.divergences = [], []
        self.n_measured = self.n_seen = 0
        return numbers

    def measure_waiting(self, targets: Tensor | None = None) -> None:
        if not self._waiting:
            return
        h_in = torch.cat([states for states, _, _, _ in self._waiting])
        parts = [states for _, states, _, _ in self._waiting if states is not None]
        h_out = torch.cat([states for _, _, states, _ in self._waiting])
        of_parts = [states for _, _, _, states in self._waiting if states is not None]
        self._waiting = []
        self.n_measured = self.n_seen
        nothing = [None] * len(h_in)
        pieces = zip(
            h_in.split(_ROWS_AT_ONCE),
            torch.cat(parts).split(_ROWS_AT_ONCE) if parts else nothing,
            h_out.split(_ROWS_AT_ONCE),
            nothing if targets is None else targets.split(_ROWS_AT_ONCE),
            torch.cat(of_parts, dim=1).split(_ROWS_AT_ONCE, dim=1) if of_parts else nothing,
            strict=False,
        )
        for piece in pieces:
            self._measure(*piece)

    def _measure(
        self, h_in: States, part: States | None, h_out: States, targets: Tensor | None, of_parts: Tensor | None
    ) -> None:
        states = at_head(self._transport, h_out.to(self._unembed.device), self._number, self._n_layers)
        floats, ids = self._further(part, of_parts, states)
        piece = _Piece(states, changes(h_in, part, h_out, self._parallel), floats, ids, None, None)
        if targets is not None:
            piece.targets = targets.to(states.device)
            piece.chosen = piece.targets.clamp(0, self._unembed.n_vocab - 1).unsqueeze(1)
        if self._wanted.from_last:
            self.kept.append(piece)
        if not self._wanted.js:  # else it is read beside the last layer
            piece.reading = self._read(states, piece.chosen)
            self.add_numbers(piece, piece.reading)

    def add_numbers(self, piece: _Piece, read: Reading) -> None:
        """Put what was read of a piece beside what is known of it."""
        floats, ids = [read.entropy], [read.top_token_id]
        if piece.targets is not None and piece.chosen is not None:
            assert read.log_probs is not None
            assert read.ranks is not None
            is_nothing = piece.targets != piece.chosen[:, 0]  # no token, or one that the head does not have
            floats.append(read.log_probs[:, 0].masked_fill(is_nothing, torch.nan))
            ids.append(read.ranks[:, 0].masked_fill(is_nothing, NOTHING))
        device = piece.changed.device
        numbers = _Numbers(
            torch.cat([piece.changed, torch.stack(floats).to(device), piece.further.to(device)]),
            torch.cat([torch.stack(ids), piece.further_ids]).to(device),
        )
        if read.first_ids is not None and read.first_log_probs is not None:
            numbers.first_ids, numbers.first_probs = read.first_ids, read.first_log_probs.exp()
        self._measured.append(numbers)

    def _further(self, part: States | None, of_parts: Tensor | None, states: States) -> tuple[Tensor, Tensor]:
        """What is wanted besides the reading of the states, floats and ids, [numbers, rows] each."""
        floats = torch.empty(0, len(states), device=states.device)
        ids = torch.empty(0, len(states), dtype=torch.long, device=states.device)
        if self._wanted.sublayers:
            half = self._half(part, states.device)
            entropy = torch.full_like(states[:, 0], torch.nan, dtype=torch.float32) if half is None else half.entropy
            top = torch.full_like(states[:, 0], NOTHING, dtype=torch.long) if half is None else half.top_token_id
            floats, ids = entropy.unsqueeze(0), top.unsqueeze(0)
        if self._wanted.confidence:
            like = torch.zeros_like(states[:, 0], dtype=torch.float32)
            floats = torch.cat([floats, torch.stack(self._confidences(of_parts, like))])
        return floats, ids

    def _read(self, states: States, chosen: Tensor | None = None) -> Reading:
        if self._coarse is not None:
            return self._coarse.read(states)
        return tiled.read(states, self._unembed, chosen, n_first=self._wanted.top)

    def _confidences(self, of_parts: Tensor | None, like: Tensor) -> list[Tensor]:
        """Over the entries, and over the vocabulary: each the sum over attention and MLP. NaN where there are none."""
        if of_parts is None:
            return [torch.full_like(like, torch.nan)] * 2
        n_vocab = math.log(self._unembed.n_vocab)
        over_entries = sum(confidence(states) for states in of_parts)
        read = [tiled.read(states.to(like.device), self._unembed).entropy for states in of_parts]
        return [torch.as_tensor(over_entries).to(like.device), sum((1 - one / n_vocab for one in read), 0 * like)]

    def _half(self, part: States | None, device: torch.device) -> Reading | None:
        """The reading of the stream between attention and MLP, through the transport of the layer before, because
        attention has added its part to the states of that layer. None where attention and MLP are parallel or cannot be
        told apart, and where the lens lacks that layer."""
        if part is None or self._parallel or self._number - 1 not in self._transport.layers:
            return None
        states = self._transport(part.to(device), self._number - 1)
        return self._coarse.read(states) if self._coarse is not None else tiled.read(states, self._unembed)
