"""Turns the states that pass through the blocks into scalars, as they pass, on the device where they lie."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import States
from layerlens.errors import OptionError
from layerlens.formulas import changes
from layerlens.lens import Lens, LogitLens, Reading, kl_from_last
from layerlens.models import Model
from layerlens.models.placement import is_spread
from layerlens.records import KL
from layerlens.tracing.beside import Beside

FLOATS = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")

# Single steps of decoding wait until a tile is full, so that the unembedding is read once for all of them; in large
# models they wait for less, so that what waits stays within this many bytes over all layers.
_MOST_ROWS_WAITING, _LEAST_ROWS_WAITING = 512, 32
_BYTES_WAITING = 128 * 2**20
# Pieces of a long text, so that float32 copies of its states stay small.
_ROWS_AT_ONCE = 2048
_FLOAT_COPIES = 5  # of what entered, stood between and left a block, and of two differences
_STREAMS = 3  # that are kept of each block: what entered it, stood between attention and MLP, and left it

Measured = tuple[Float[np.ndarray, "numbers rows layers"], Int[np.ndarray, "rows layers"]]
Select = Callable[[Tensor], States]


def names_of(kl: bool) -> tuple[str, ...]:
    """What the numbers of a meter are, with or without the divergences from the last layer."""
    return (*FLOATS, KL.name) if kl else FLOATS


class Meter:
    """Measures every block on the rows that `select` picks from its streams; use `on_block` as the hook.

    Attributes:
        select: from a stream [batch, seq, d_model] to the states to keep, [rows, d_model]; set before each pass.
        names: what the numbers are, FLOATS first.
    """

    def __init__(self, model: Model, *, kl: bool = False, lens: Lens | None = None) -> None:
        """Begin.

        Args:
            model: whose blocks are watched.
            kl: keep the states of all layers until the last one is read, for the divergences from it.
            lens: None for the `LogitLens` of the model's head.

        Raises:
            OptionError: `kl` with a lens, whose readings are not those of the head.
        """
        if kl and lens is not None:
            raise OptionError.about("kl", kl, "compares readings of the model's own head", "leave out the lens")
        self.names = names_of(kl)
        self._unembed = model.unembed
        rows_waiting = _rows_waiting(model.n_layers, model.d_model, model.hf.dtype)
        lens = lens or LogitLens(model.unembed)
        self._layers = [_Layer(model, index, rows_waiting, lens, keeps_states=kl) for index in range(model.n_layers)]
        device = model.unembed.device
        self._beside = Beside(device) if model.overlaps and not is_spread(model.hf) else None
        self.select: Select = lambda stream: stream.flatten(0, 1)

    def on_block(self, index: int, h_in: Tensor, part: Tensor | None, h_out: Tensor) -> None:
        """Keep or measure what the block did to the selected rows."""
        after = self.select(h_out)
        # the first block on a device is seen before its inputs are brought there
        before = self.select(h_in).to(after.device)
        layer = self._layers[index]
        layer.add(before, None if part is None else self.select(part), after)
        if layer.is_full:
            self._do(layer.measure_waiting, layer.waiting)
        if index == len(self._layers) - 1:
            self._do(self._compare, [])

    @torch.no_grad()
    def collect(self) -> Measured:
        """Everything measured since the last call, in the order of the rows: `names` (NaN where a block has no such
        part) and top token ids. The one place where numbers leave the device."""
        for layer in self._layers:
            self._do(layer.measure_waiting, layer.waiting)
        self._do(self._compare, [])
        if self._beside is not None:
            self._beside.join()
        floats, tops = zip(*(layer.drain() for layer in self._layers), strict=True)
        device = floats[-1].device
        return (
            torch.stack([part.to(device) for part in floats], dim=2).cpu().numpy(),
            torch.stack([part.to(device) for part in tops], dim=1).cpu().numpy(),
        )

    def _do(self, work: Callable[[], None], inputs: list[Tensor]) -> None:
        if self._beside is None:
            work()
        else:
            self._beside.run(work, inputs)

    @torch.no_grad()
    def _compare(self) -> None:
        """Compare the readings that the layers kept with those of the last layer, which has just been read."""
        for pieces in zip(*(layer.kept for layer in self._layers), strict=True):
            states, readings = zip(*pieces, strict=True)
            for layer, divergence in zip(self._layers, kl_from_last(states, readings, self._unembed), strict=True):
                layer.divergences.append(divergence)
        for layer in self._layers:
            layer.kept.clear()


def states_bytes(n_layers: int, d_model: int, dtype: torch.dtype, n_rows: int) -> int:
    """What a meter holds at most while texts of `n_rows` tokens pass: steps of decoding that wait in every layer, or
    one layer's states of a full pass, with float32 copies of a piece of them."""
    a_step = _STREAMS * n_layers * d_model * dtype.itemsize * _rows_waiting(n_layers, d_model, dtype)
    a_pass = 2 * _STREAMS * d_model * dtype.itemsize * n_rows
    return max(min(a_step, n_layers * a_pass), a_pass) + 4 * d_model * min(n_rows, _ROWS_AT_ONCE) * _FLOAT_COPIES


def _rows_waiting(n_layers: int, d_model: int, dtype: torch.dtype) -> int:
    a_row = _STREAMS * n_layers * d_model * dtype.itemsize
    return min(_MOST_ROWS_WAITING, max(_LEAST_ROWS_WAITING, _BYTES_WAITING // a_row))


class _Layer:
    """Attributes: kept, states and their readings that wait for the last layer; divergences from it, of rows so far."""

    def __init__(self, model: Model, index: int, rows_waiting: int, lens: Lens, *, keeps_states: bool) -> None:
        self._device = model.unembed.device
        self._lens = lens
        self._number = index + 1
        self._rows_waiting = rows_waiting
        self._keeps_states = keeps_states
        self.kept: list[tuple[Tensor, Reading]] = []
        self.divergences: list[Tensor] = []
        sublayer = model.sublayers[index]
        self._parallel = sublayer is not None and sublayer.parallel
        self._waiting: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self._measured: list[tuple[Tensor, Tensor]] = []

    def add(self, h_in: States, part: States | None, h_out: States) -> None:
        self._waiting.append((h_in, part, h_out))

    @property
    def is_full(self) -> bool:
        return sum(len(states) for _, _, states in self._waiting) >= self._rows_waiting

    @property
    def waiting(self) -> list[Tensor]:
        return [states for added in self._waiting for states in added if states is not None]

    def drain(self) -> tuple[Tensor, Tensor]:
        measured, tops = (torch.cat(parts, dim=-1) for parts in zip(*self._measured, strict=True))
        if self.divergences:
            measured = torch.cat([measured, torch.cat(self.divergences).to(measured.device).unsqueeze(0)])
        self._measured, self.divergences = [], []
        return measured, tops

    def measure_waiting(self) -> None:
        if not self._waiting:
            return
        h_in = torch.cat([states for states, _, _ in self._waiting])
        parts = [states for _, states, _ in self._waiting if states is not None]
        h_out = torch.cat([states for _, _, states in self._waiting])
        self._waiting = []
        pieces = zip(
            h_in.split(_ROWS_AT_ONCE),
            torch.cat(parts).split(_ROWS_AT_ONCE) if parts else [None] * len(h_in),
            h_out.split(_ROWS_AT_ONCE),
            strict=False,
        )
        for piece in pieces:
            changed = changes(*piece, self._parallel)
            states = piece[2].to(self._device)
            reading = self._lens(states, self._number)
            if self._keeps_states:
                self.kept.append((states, reading))
            entropy = reading.entropy.unsqueeze(0).to(changed.device)
            self._measured.append((torch.cat([changed, entropy]), reading.top_token_id.to(changed.device)))
