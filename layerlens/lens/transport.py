"""Transports map states of a layer to states that the model's own head can read: the first half of a lens."""

from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable
from weakref import ref

import torch
from torch import Tensor, nn

from layerlens.axes import States
from layerlens.errors import OptionError, spelled
from layerlens.models.unembed import product


@runtime_checkable
class Transport(Protocol):
    """Maps states of a layer to states that the head can read, [rows, d_model] each; layer L is not changed."""

    @property
    def layers(self) -> Container[int]:
        """The layers that it can map, of 0..L; L is one of them."""

    def __call__(self, states: States, layer: int) -> States:
        """States that stand for those of that layer at the last layer, in their own dtype and on their device. Not
        called for layer L."""

    def record(self) -> dict[str, Any]:
        """What a manifest says of it: "kind", "source" (where it came from) and "sha256" (of what was read there)."""


class Identity:
    """Leaves all states as they are: the logit lens."""

    layers: Container[int] = range(2**31)

    def __call__(self, states: States, layer: int) -> States:
        """The states themselves."""
        return states

    def record(self) -> dict[str, Any]:
        """The record of the logit lens."""
        return {"kind": "logit"}


IDENTITY = Identity()


def at_head(transport: Transport, states: States, layer: int, n_layers: int) -> States:
    """States of a layer as the head is to read them; those of layer L are left as they are, whatever the transport."""
    return states if layer == n_layers else transport(states, layer)


class Affine:
    """A matrix for each layer, with or without a bias vector: the linear, the tuned and the Jacobian lens.

    A state h is mapped to A h + b by a linear lens (arXiv 2303.09435), to h + (A h + b) by a tuned lens (arXiv
    2303.08112), and to J h by a Jacobian lens.
    """

    def __init__(
        self,
        kind: str,
        weights: Mapping[int, Tensor],
        biases: Mapping[int, Tensor],
        n_layers: int,
        *,
        adds: bool,
        source: str = "",
        sha256: str | None = None,
    ) -> None:
        """Begin.

        Args:
            kind: "linear", "tuned" or "jacobian".
            weights: by layer 0..L − 1, [d_model, d_model] each: columns read the state.
            biases: by layer, [d_model] each; layers without one have none.
            n_layers: L.
            adds: whether the result is added to the state.
            source: where it was read.
            sha256: of the file or folder that was read.

        Raises:
            OptionError: a matrix or vector holds NaN or infinity.
        """
        self._n_layers = n_layers
        self._weights, self._biases = dict(weights), dict(biases)
        self._adds = adds
        self._opened_for: ref[nn.Module] | None = None
        self._record = {"kind": kind, "source": source, "sha256": sha256}
        for layer, tensors in self.tensors().items():
            if not all(tensor.float().isfinite().all() for tensor in tensors if tensor is not None):
                problem = f"{spelled('lens', self.spec)} holds NaN or infinity for layer {layer}"
                raise OptionError(problem, "fit it again, or restore the file", option="lens", given=self.spec)

    @property
    def layers(self) -> Sequence[int]:
        """The layers that it has a matrix for, and L."""
        return [*sorted(self._weights), self._n_layers]

    @property
    def spec(self) -> str:
        """The lens as an option names it: "linear:lens.safetensors"."""
        return f"{self._record['kind']}:{self._record['source']}"

    def tensors(self) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Matrix and vector of each layer."""
        return {layer: (weight, self._biases.get(layer)) for layer, weight in self._weights.items()}

    def opened(self, hf: nn.Module, device: torch.device, dtype: torch.dtype) -> "Affine":
        """The lens for a model, with its tensors on the device of the head."""
        moved = self.moved(device, dtype)
        moved._opened_for = ref(hf)
        return moved

    def moved(self, device: torch.device, dtype: torch.dtype) -> "Affine":
        """The lens with its tensors on a device: on a CPU in float32, else in that type."""
        wanted = torch.float32 if device.type == "cpu" else dtype
        moved = type(self).__new__(type(self))
        moved.__dict__ |= self.__dict__
        moved._weights = {layer: one.to(device, wanted).contiguous() for layer, one in self._weights.items()}
        moved._biases = {layer: one.to(device, torch.float32) for layer, one in self._biases.items()}
        return moved

    @property
    def is_opened(self) -> bool:
        """Whether it was read from a file, for one model."""
        return self._opened_for is not None

    def was_opened_for(self, hf: nn.Module) -> bool:
        """Whether it was read from a file for this model."""
        return self._opened_for is not None and self._opened_for() is hf

    def __call__(self, states: States, layer: int) -> States:
        """The states of that layer as the last layer would write them; summed up in float32."""
        if layer == self._n_layers:
            return states
        weight, bias = self._weights[layer], self._biases.get(layer)
        mapped = product(states.to(weight.dtype), weight)
        if bias is not None:
            mapped += bias
        if self._adds:
            mapped += states
        return mapped.to(states.dtype)

    def record(self) -> dict[str, Any]:
        """Its kind, where it was read, and the SHA-256 of what was read."""
        return dict(self._record)


class Watched:
    """A transport of somebody else's, each of whose results is looked at."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.layers = transport.layers

    def __call__(self, states: States, layer: int) -> States:
        """What the transport makes of the states.

        Raises:
            OptionError: it makes no states of them, or NaN or infinity of finite ones.
        """
        moved = self._transport(states, layer)
        name = type(self._transport).__name__
        if not isinstance(moved, Tensor) or moved.layout != torch.strided:
            problem = f"the lens {name} makes {type(moved).__name__} of states of layer {layer}"
            raise OptionError(problem, "let it make a dense tensor", option="lens", given=name)
        ours, theirs = ((tuple(one.shape), one.dtype, one.device) for one in (states, moved))
        if ours != theirs:
            differ = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
            (before, after), *_ = differ
            problem = f"the lens {name} makes {after} of states of {before} of layer {layer}"
            raise OptionError(problem, "let it keep shape, type and device", option="lens", given=name)
        if _captured(moved.device):
            return moved  # a graph that is being captured has no values yet
        if not bool((moved.isfinite().all(-1) | ~states.isfinite().all(-1)).all()):
            problem = f"the lens {name} makes NaN or infinity of finite states of layer {layer}"
            raise OptionError(problem, "let it make finite ones", option="lens", given=name)
        return moved

    def record(self) -> dict[str, Any]:
        """What the transport says of itself."""
        return self._transport.record()


def _captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_lacking(transport: Transport, layers: Sequence[int], who: str) -> None:
    """OptionError where the transport cannot map a layer that is to be read.

    Args:
        transport: of a lens.
        layers: the layers to be read, of 0..L.
        who: what reads them, such as "a trace".
    """
    lacking = [layer for layer in layers if layer not in transport.layers]
    if lacking:
        record = transport.record()
        named = f"{record['kind']}:{record.get('source')}"
        which = f"layer{'s' if len(lacking) > 1 else ''} {', '.join(map(str, lacking[:5]))}"
        which += ", ..." if len(lacking) > 5 else ""
        what = f"has no matrix for {which}, which {who} reads"
        raise OptionError.about("lens", named, what, f"give a lens that has it, or leave {spelled('lens')} out")
