"""Where words stand among all others, from tiles of logits: how many are above a given one, and which are first."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Logits
from layerlens.formulas import finished
from layerlens.lens.head import Head

_ROUNDING = 2.0**-22  # of a product of two vectors, in units of their lengths: a few steps of float32
_BYTES = 8  # in the integer by which comparisons are counted
_MOST_COUNTED = 255  # by each of its bytes
_STRIPS = 8


def least_above(normed: Tensor, chosen: Int[Tensor, " rows"], head: Head) -> Float[Tensor, "rows 1"]:
    """What a word's logit has to exceed to be greater than the chosen one's by more than rounding.

    The chosen word's own logit in another product, added up in another order, stays below; so do words that are equal.

    Args:
        normed: states as the unembedding sees them, [rows, d_head].
        chosen: a word of each row.
        head: the model's.
    """
    whole = head.whole
    if whole is None:
        return _from_tiles(normed, chosen, head)
    states, weight = whole.operand(normed).float(), whole.weight[chosen].float()
    product = torch.linalg.vecdot(states, weight).unsqueeze(1)
    bias = None if whole.bias is None else whole.bias[chosen].float().unsqueeze(1)
    logit = finished(product, bias, whole.scale, whole.softcap)
    lengths = torch.linalg.vector_norm(states, dim=1) * torch.linalg.vector_norm(weight, dim=1)
    rounding = _ROUNDING * abs(whole.scale) * lengths.unsqueeze(1)
    if bias is not None:
        rounding += _ROUNDING * logit.abs().nan_to_num(posinf=0.0)
    if whole.softcap is not None:  # a cap flattens what is near it
        rounding = rounding * (1 - (logit / whole.softcap).square()) + _ROUNDING * whole.softcap
    least: Tensor = logit + rounding
    return least


def _from_tiles(normed: Tensor, chosen: Tensor, head: Head) -> Tensor:
    """The same of a head in shards, one word after the other."""
    logits = torch.cat(
        [head.logits_tile(state, word, word + 1) for state, word in zip(normed.split(1), chosen.tolist(), strict=True)]
    )
    lengths: Tensor = torch.linalg.vector_norm(normed.float(), dim=1, keepdim=True)
    return logits + _ROUNDING * lengths * logits.abs().clamp_min(1)


def n_above(logits: Logits, least: Float[Tensor, "rows 1"]) -> Int[Tensor, " rows"]:
    """How many logits of each row are greater than `least`.

    On a CPU the bytes of the comparison are added up eight at a time, which takes a third less than adding them one by
    one.
    """
    above = logits > least
    rows, words = above.shape
    if above.device.type != "cpu" or words % _BYTES or words > _MOST_COUNTED * _BYTES:
        return above.sum(1)
    return above.view(torch.int64).sum(1).view(torch.uint8).view(rows, _BYTES).sum(1)


class FirstWords:
    """The K words of each row with the greatest logits, of all tiles so far; of equal words any."""

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self._logits = torch.full((n_rows, k), -torch.inf, dtype=torch.float32, device=device)
        self._ids = torch.zeros(n_rows, k, dtype=torch.long, device=device)

    def add(self, logits: Logits, greatest: Float[Tensor, " rows"], start: int) -> None:
        """Take in a tile.

        Args:
            logits: of its words, [rows, words].
            greatest: of each row.
            start: the first word's number.
        """
        if logits.device.type != "cpu":  # where the host would have to wait to learn which rows matter
            self._logits, self._ids = self._merged(self._logits, self._ids, logits, start)
            return
        rows = (greatest > self._logits.amin(1)).nonzero()[:, 0]
        if len(rows) == len(logits):
            self._logits, self._ids = self._merged(self._logits, self._ids, logits, start)
        elif len(rows):
            merged = self._merged(self._logits[rows], self._ids[rows], logits[rows], start)
            self._logits[rows], self._ids[rows] = merged

    def result(self) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
        """Their logits, the greatest first, and their numbers; of equal ones the lower number first."""
        by_id = self._ids.argsort(dim=1)
        logits, ids = self._logits.gather(1, by_id), self._ids.gather(1, by_id)
        order = logits.argsort(dim=1, descending=True, stable=True)
        return logits.gather(1, order), ids.gather(1, order)

    @staticmethod
    def _merged(known: Tensor, known_ids: Tensor, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        k, words = known.shape[1], logits.shape[1]
        ids = torch.arange(start, start + words, device=logits.device)
        if words % _STRIPS == 0 and words // _STRIPS > 2 * k:
            # Words that lie a strip apart stand together: the first k are among the k such groups with the greatest
            # maxima, and a maximum over strips is quick.
            strips = logits.unflatten(1, (_STRIPS, -1))
            groups = strips.amax(1).topk(k, dim=1, sorted=False).indices.unsqueeze(1).expand(-1, _STRIPS, -1)
            ids = (groups + ids.view(_STRIPS, -1)[:, :1]).flatten(1)
            logits = strips.gather(2, groups).flatten(1)
        else:
            ids = ids.expand(len(logits), -1)
        best = torch.cat([known, logits], dim=1).topk(k, dim=1, sorted=False)
        return best.values, torch.cat([known_ids, ids], dim=1).gather(1, best.indices)
