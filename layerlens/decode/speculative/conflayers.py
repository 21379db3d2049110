"""ConfLayers (arXiv 2604.14612): a draft leaves out the blocks that are less confident than their neighbours."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from layerlens.decode.speculative.confidence import (
    below_neighbours,
    confidence,
    local_means,
    next_lambda,
    windows,
)
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.policy import Round, Search, SkipPolicy, candidates, number, whole
from layerlens.decode.speculative.skipping import parts_of
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.errors import ModelError, OptionError, did_you_mean
from layerlens.models import Model
from layerlens.models.hooks import outputs_of

READOUTS = ("hidden", "vocabulary")
_GOOD_ACCEPTED, _GOOD_ACCEPTANCE = 4.0, 0.95
_LEAST_ACCEPTED = 1.0


@dataclass(frozen=True)
class ConfLayers(SkipPolicy):
    """Leaves out the blocks whose confidence is below that of their neighbours, and searches for a good bound."""

    readout: str = "hidden"
    """What the confidence is read from: "hidden", the entries of what attention and MLP add, as in the release; or
    "vocabulary", the logits that the unembedding gives for it."""
    skip_ratio: float = 0.45
    """The least share of the candidates to leave out; lambda follows it. The share may be 0.25 more."""
    lam: float = 0.0
    """Lambda of the first proposal: by how many deviations a block must be below its neighbours."""
    context_window: int = 32
    """How many of the last verified tokens a proposal is based on."""
    search_interval: int = 31
    """Rounds after which another set is proposed."""
    max_proposals: int = 100
    """The search ends after so many proposals, with the set whose drafts were accepted best."""

    def check(self) -> None:
        """As for every policy, and the search's own options."""
        super().check()
        if self.readout not in READOUTS:
            advice = did_you_mean(self.readout, READOUTS, f"give {' or '.join(READOUTS)}")
            raise OptionError.about("readout", self.readout, "is unknown", advice)
        number("skip_ratio", self.skip_ratio, 0, 1)
        number("lam", self.lam, -10, 10)
        for name, least in (("context_window", 1), ("search_interval", 2), ("max_proposals", 1)):
            whole(name, getattr(self, name), least)

    def search(self, model: Model) -> "ConfidenceSearch":
        """A search that has proposed nothing yet.

        Raises:
            ModelError: what attention and MLP add cannot be told apart in this family.
        """
        return ConfidenceSearch(self, model)


class ConfidenceSearch(Search):
    """The search of `ConfLayers`.

    Attributes:
        lam: lambda of the next proposal.
        picture: the last proposal, one row per candidate: block, confidence, local_mean, window, is_skipped; None
            before the first.
    """

    def __init__(self, policy: ConfLayers, model: Model) -> None:
        super().__init__()
        parts = parts_of(model)
        if parts is None:
            raise ModelError(
                f"what attention and MLP add cannot be told apart in {model.source} ({model.family})",
                "give another policy",
                given=model.source,
            )
        self._policy, self._model = policy, model
        self._able = candidates(model)
        self._parts = [(parts[0][block], parts[1][block]) for block in self._able]
        self._outputs: dict[nn.Module, Tensor] = {}
        self._recent: list[
            Tensor
        ] = []  # of each round: what its tokens' parts returned, [candidates, 2, tokens, d_model]
        self._best: tuple[float, SkipSet] | None = None
        self._has_proposed = False
        self._n_rounds, self._n_accepted, self._n_drafted = 0, 0.0, 0.0
        self.lam = policy.lam
        self.picture: pd.DataFrame | None = None

    def watching(self, n_tokens: int) -> AbstractContextManager[None]:
        """Keeps what attention and MLP of each candidate return."""
        self._outputs = {}
        modules = {module for parts in self._parts for of_block in parts for module in of_block}
        return outputs_of(modules, self._keep)

    def _keep(self, module: nn.Module, output: Tensor) -> None:
        self._outputs[module] = output.clone()  # some blocks add to it in place

    def begin(self) -> None:
        """One more proposal is due, once enough tokens of the new prompts are there."""
        self._has_proposed = False

    def after(self, last: Round, lab: Lab) -> None:
        """See what the last drafts were worth; propose a set where one is due."""
        self._recent.append(self._returned(last))
        while sum(states.shape[2] for states in self._recent[1:]) >= self._policy.context_window:
            self._recent.pop(0)
        if last.skips and any(last.drafted):
            self._n_rounds += 1
            self._n_accepted += float(np.mean(last.accepted))
            self._n_drafted += float(np.mean(last.drafted))
        if last.n_emitted <= self._policy.context_window:
            return
        interval, least = self._policy.search_interval, int(len(self._able) * self._policy.skip_ratio) + 1
        is_settled = self._n_rounds >= interval // 2
        acceptance = self._n_accepted / max(self._n_drafted, 1e-9)
        if is_settled and self._accepted > _GOOD_ACCEPTED and acceptance > _GOOD_ACCEPTANCE:
            self.is_over = True
        elif (
            not self._has_proposed
            or len(self.skips.blocks) < least
            or (is_settled and self._accepted < _LEAST_ACCEPTED)
            or self._n_rounds >= interval
        ):
            self._propose()

    @property
    def _accepted(self) -> float:
        """Accepted tokens per round since the set was proposed."""
        return self._n_accepted / max(self._n_rounds, 1)

    def _propose(self) -> None:
        self._keep_if_best()
        values = self._confidences()
        below = below_neighbours(values, self.lam)
        self.n_proposals += 1
        found = {"policy": "conflayers", "readout": self._policy.readout, "lambda": round(self.lam, 6)}
        found |= {"proposals": self.n_proposals}
        self.skips = SkipSet.of_blocks((self._able[index] for index in below), **found)
        self.picture = pd.DataFrame(
            {
                "block": self._able,
                "confidence": values,
                "local_mean": local_means(values)[0],
                "window": windows(values),
                "is_skipped": [index in below for index in range(len(values))],
            }
        )
        self.lam = next_lambda(self.lam, len(below) / len(self._able), self._policy.skip_ratio)
        self._has_proposed = True
        self._n_rounds, self._n_accepted, self._n_drafted = 0, 0.0, 0.0
        if self.n_proposals >= self._policy.max_proposals:
            self.skips = SkipSet() if self._best is None else self._best[1]
            self.is_over = True

    def _keep_if_best(self) -> None:
        if self._n_rounds and self._accepted >= max(_LEAST_ACCEPTED, self._best[0] if self._best else 0.0):
            self._best = (self._accepted, self.skips)

    def _returned(self, last: Round) -> Tensor:
        """What attention and MLP of each candidate returned for the tokens that the last pass added to the texts.

        [candidates, 2, tokens, d_model].
        """
        tokens = [(row, place) for row, places in enumerate(last.read) for place in places]
        rows, places = (torch.tensor(list(of_all)) for of_all in zip(*tokens, strict=True))
        device = self._model.unembed.device
        found = []
        for part in (part for parts in self._parts for part in parts):
            outputs = [self._outputs[module] for module in part]
            output = sum(outputs[1:], outputs[0])
            if output.ndim == 2:  # some blocks flatten batch and sequence on their way to the MLP
                output = output.unflatten(0, (len(last.read), -1))
            found.append(output[rows.to(output.device), places.to(output.device)].to(device))
        stacked: Tensor = torch.stack(found).unflatten(0, (-1, 2))
        return stacked

    def _confidences(self) -> np.ndarray:
        """Of each candidate the confidence, summed over attention and MLP, averaged over the last tokens."""
        recent = torch.cat(self._recent, dim=2)[:, :, -self._policy.context_window :]
        values = []
        for states in recent.flatten(0, 1):
            logits = states if self._policy.readout == "hidden" else self._model.unembed.logits(states)
            values.append(float(confidence(logits).double().mean()))
        summed: np.ndarray = np.array(values).reshape(-1, 2).sum(1)
        return summed
