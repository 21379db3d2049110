"""Ranks of tokens, from tiles of logits: how many tokens are above a given one, and which are first."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Logits
from layerlens.formulas import LOWEST, finished
from layerlens.lens.head import Head
from layerlens.native import count_above

_ROUNDING = 2.0**-21  # of a product of two vectors, in units of their lengths: a few steps of float32
_STRIPS = 8


class Chosen:
    """One token of each row: its logit, and how many tokens have a logit that is greater by more than rounding.

    The bound that others must exceed is computed before the tiles, from the product of each state with its token alone.
    The chosen token does not count against itself, although its logit is added up in another order in its tile. Tokens
    with an equal logit do not count either.
    """

    def __init__(self, ids: Int[Tensor, " rows"], normed: Tensor, head: Head, words: int) -> None:
        """Begin.

        Args:
            ids: the chosen tokens.
            normed: states as the unembedding sees them, [rows, d_head].
            head: the model's.
            words: number of tokens of a tile.
        """
        self._ids = ids
        # of logits that are made all at once the token's own is among them
        self._normed = normed if head.whole is None and words >= head.n_vocab else None
        self._least = normed.new_empty(0) if self._normed is not None else _least_above(normed, ids, head)
        self.logits = normed.new_full((len(ids),), -torch.inf, dtype=torch.float32)
        self._above = torch.zeros_like(ids)
        # which rows have their token in which tile: on an accelerator the host would have to wait to learn that
        self._rows: list[Tensor] | None = None
        if ids.device.type == "cpu":
            order = ids.argsort()
            starts = torch.tensor(range(words, head.n_vocab, words), dtype=torch.long)
            self._rows = list(order.tensor_split(torch.searchsorted(ids[order], starts)))
        self._n_tiles = 0

    def add(self, logits: Logits, start: int) -> None:
        """Take in a tile of the vocabulary, tile after tile; `start` is the id of its first token."""
        if self._normed is not None:
            self._least = _above_rounding(logits.gather(1, self._ids.unsqueeze(1)), self._normed)
        if not count_above(logits, self._least[:, 0], self._above):
            self._above += (logits > self._least).sum(1)
        if self._rows is None:
            inside = (self._ids >= start) & (self._ids < start + logits.shape[1])
            own = logits.gather(1, (self._ids - start).clamp(0, logits.shape[1] - 1).unsqueeze(1))
            self.logits = torch.where(inside, own[:, 0], self.logits)
            self._above -= (inside & (own > self._least)[:, 0]).long()
        elif len(rows := self._rows[self._n_tiles]):
            own = logits[rows, self._ids[rows] - start]
            self.logits[rows] = own
            self._above[rows] -= (own > self._least[rows, 0]).long()
        self._n_tiles += 1

    def ranks(self, top: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """How many tokens are above, once all tiles are in; 0 where the chosen token is on top."""
        return self._above.masked_fill(top == self._ids, 0)


def _least_above(normed: Tensor, chosen: Tensor, head: Head) -> Float[Tensor, "rows 1"]:
    """The bound that a logit must exceed to be greater than the chosen token's by more than rounding."""
    whole = head.whole
    if whole is None:
        pairs = zip(normed.split(1), chosen.tolist(), strict=True)
        return _above_rounding(torch.cat([head.logits_tile(state, word, word + 1) for state, word in pairs]), normed)
    states, weight = whole.operand(normed).float(), whole.weight[chosen].float()
    product = torch.linalg.vecdot(states, weight).unsqueeze(1)
    bias = None if whole.bias is None else whole.bias[chosen].float().unsqueeze(1)
    logit = finished(product, bias, whole.scale, whole.softcap)
    lengths = torch.linalg.vector_norm(states, dim=1) * torch.linalg.vector_norm(weight, dim=1)
    rounding = _ROUNDING * abs(whole.scale) * lengths.unsqueeze(1)
    if bias is not None:
        rounding += _ROUNDING * logit.abs().nan_to_num(posinf=0.0)
    if whole.softcap is not None:  # a cap flattens logits near it
        rounding = rounding * (1 - (logit / whole.softcap).square()) + _ROUNDING * whole.softcap
    least: Tensor = (logit + rounding).clamp(min=LOWEST)  # as for banned tokens in tiles
    return least


def _above_rounding(logit: Float[Tensor, "rows 1"], normed: Tensor) -> Float[Tensor, "rows 1"]:
    """The same bound, where the unembedding's rows are not at hand."""
    length: Tensor = torch.linalg.vector_norm(normed.float(), dim=1, keepdim=True)
    return logit + _ROUNDING * length * logit.abs().clamp_min(1)


class FirstWords:
    """The K tokens of each row with the greatest logits, of all tiles so far; of equal ones any."""

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self._logits = torch.full((n_rows, k), -torch.inf, dtype=torch.float32, device=device)
        self._ids = torch.zeros(n_rows, k, dtype=torch.long, device=device)

    def add(self, logits: Logits, greatest: Float[Tensor, " rows"], start: int) -> None:
        """Take in a tile.

        Args:
            logits: those of its tokens, [rows, tokens].
            greatest: the greatest of each row.
            start: the id of its first token.
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

    def result(
        self, top: Int[Tensor, " rows"], maximum: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
        """Their logits, the greatest first, and their ids: first the token on top; of equal ones the lower id first.

        Args:
            top: the token on top, chosen among all with the greatest logit.
            maximum: its logit.
        """
        by_id = self._ids.argsort(dim=1)
        logits, ids = self._logits.gather(1, by_id), self._ids.gather(1, by_id)
        order = logits.argsort(dim=1, descending=True, stable=True)
        logits = torch.cat([maximum.unsqueeze(1), logits.gather(1, order)], dim=1)
        ids = torch.cat([top.unsqueeze(1), ids.gather(1, order)], dim=1)
        again = ids == top.unsqueeze(1)
        again[:, 0] = False
        # drops the second occurrence of the token on top, or the last token
        order = again.int().argsort(dim=1, stable=True)[:, :-1]
        return logits.gather(1, order), ids.gather(1, order)

    @staticmethod
    def _merged(known: Tensor, known_ids: Tensor, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        k, words = known.shape[1], logits.shape[1]
        ids = torch.arange(start, start + words, device=logits.device)
        if words % _STRIPS == 0 and words // _STRIPS > 2 * k:
            # Tokens that lie a strip apart form a group. The first k tokens are among the k groups with the greatest
            # maxima, and a maximum over strips is quick.
            strips = logits.unflatten(1, (_STRIPS, -1))
            groups = strips.amax(1).topk(k, dim=1, sorted=False).indices.unsqueeze(1).expand(-1, _STRIPS, -1)
            ids = (groups + ids.view(_STRIPS, -1)[:, :1]).flatten(1)
            logits = strips.gather(2, groups).flatten(1)
        else:
            ids = ids.expand(len(logits), -1)
        best = torch.cat([known, logits], dim=1).topk(k, dim=1, sorted=False)
        return best.values, torch.cat([known_ids, ids], dim=1).gather(1, best.indices)
