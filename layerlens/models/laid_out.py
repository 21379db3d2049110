"""A copy of an unembedding in the order in which oneDNN multiplies it, for products of a few states made many times."""

import torch
from torch import Tensor

_USES = 8  # the copy is made at this one: it takes as long as it saves in about twenty
_SHARE = 0.25  # of the memory that is free, which the copy may take
_ROWS = 10  # oneDNN orders the weight alike for any number of rows but one


class LaidOut:
    """A float32 unembedding on a CPU and, once products with it are known to come often, its copy in oneDNN's order.

    oneDNN puts a weight into that order within each product, which is a fifth of the time of one with ten states.
    Products with the copy have the same bits, so that nothing depends on whether there is one.
    """

    def __init__(self) -> None:
        self._uses = 0
        self._of: tuple[int, int] | None = None
        self._copy: Tensor | None = None
        self._firsts: Tensor | None = None

    def __reduce__(self) -> tuple[type["LaidOut"], tuple[()]]:
        """A copied or stored model makes its own."""
        return LaidOut, ()

    @property
    def n_bytes(self) -> int:
        """What the copy takes; 0 where there is none."""
        return 0 if self._copy is None else torch.ops.mkldnn._nbytes(self._copy)

    def find(self, weight: Tensor, rows: int) -> Tensor | None:
        """The copy of `weight` [vocab, d], where it serves products of so many states and has been made."""
        fits = rows > 1 and weight.device.type == "cpu" and weight.dtype == torch.float32
        # of other strides oneDNN makes products by another kernel, which would round otherwise
        if not fits or not weight.is_contiguous() or weight.is_inference() or not torch.backends.mkldnn.is_available():
            return None
        of = (weight.data_ptr(), weight._version)
        if of != self._of:
            self.drop()
            self._of = of
        self._uses += 1
        if self._uses == _USES and _is_room(weight):
            self._copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
            self._firsts = weight.detach()[:, 0].clone()
        return self._copy

    def check(self, weight: Tensor) -> None:
        """Drop a copy whose weight was changed past its version, through `.data`: by one value of each word. Takes less
        than 1 ms for 250,000 words."""
        if self._firsts is not None and not (
            weight.shape[0] == len(self._firsts) and torch.equal(weight.detach()[:, 0], self._firsts)
        ):
            self.drop()

    def drop(self) -> None:
        """Be as new."""
        self._uses, self._of, self._copy, self._firsts = 0, None, None, None


def _is_room(weight: Tensor) -> bool:
    from layerlens.models.memory import room
    from layerlens.models.placement import place_for

    free = room(place_for("cpu")).get("cpu", 0)
    return weight.nbytes <= _SHARE * free
