"""Passes that a search makes over the text so far, and that leave nothing behind."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layerlens.decode.forward import Forward
from layerlens.decode.speculative.skipping import skipping
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.lens.sums import arg_max
from layerlens.models import Model


class Lab:
    """What a search can try on a batch.

    Args:
        model: the model.
        forward: of the batch.
        texts: the tokens of each row that were read, prompt included.
        chosen: for each row, the verifier's arg-max after each of its last tokens; the last entry is about the last
            token that was read.
    """

    def __init__(
        self, model: Model, forward: Forward, texts: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]]
    ) -> None:
        self.model = model
        self._forward = forward
        self._texts = texts
        self._chosen = chosen

    @property
    def n_known(self) -> int:
        """How many of the last tokens `agreement` can look at: the fewest that any row has emitted."""
        return min(map(len, self._chosen))

    def agreement(self, skips: SkipSet, n_tokens: int) -> float:
        """The share of the last tokens, 0..1, for which a draft would have chosen the token that the verifier chose.

        Args:
            skips: what the draft leaves out.
            n_tokens: at most `n_known`.
        """
        device = self.model.device
        again = torch.tensor([text[-n_tokens:] for text in self._texts], device=device)
        with self._forward.aside(n_tokens), skipping(self.model, skips):
            logits = self._forward.step(again, n_read=n_tokens)
        wanted = torch.tensor([chosen[-n_tokens:] for chosen in self._chosen], device=device)
        return float((arg_max(logits.flatten(0, 1)).view_as(wanted) == wanted).float().mean())

    def variants(self, n_variants: int) -> Tensor:
        """Read the last token of each row again, as so many independent continuations of the text before it.

        Only for hooks on the blocks, which see states [rows, n_variants, d_model].

        Returns:
            the logits of the last variant of each row, [rows, vocab].
        """
        last = torch.tensor([[text[-1]] * n_variants for text in self._texts], device=self.model.device)
        with self._forward.aside(1):
            return self._forward.branch(last, torch.full_like(last, -1), 1)[:, 0]
