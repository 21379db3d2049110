"""Models whose drafts are often right and often wrong, and what is emitted with drafts and without."""

import itertools
from functools import cache

import pytest
import torch

import layerlens as ll
from layerlens.decode.batch import Decoded, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.speculative import knapspec
from layerlens.decode.speculative.loop import decode_drafted
from layerlens.decode.speculative.policy import candidates
from layerlens.models import hooks, tiny_model, tiny_names, tiny_tokenizer
from tests.conftest import STATEFUL
from tests.decode.test_forward import RECURRENT

PROMPTS = [[5, 9, 20, 7, 44, 8], [7, 13, 99], [50, 60, 70, 80, 90]]
DRAFTING = [family for family in [*tiny_names(), *STATEFUL] if family not in RECURRENT]
GREEDY = {"max_new_tokens": 12, "eos_token_id": -1}


class Eager(ll.Drafter):
    """Drafts in every round: none is decoded plainly to compare with."""

    def length(self, n_rows):
        return (self.search.length or self.policy.length) if self.skips else 0


@cache
def damped(family: str, by: float = 0.6, **changes: object) -> ll.Model:
    """A tiny model of which all weights of the blocks that a draft can leave out are this much smaller."""
    model = ll.load(tiny_model(family, **changes), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for block in candidates(model):
            for parameter in model.blocks[block].parameters():
                parameter.mul_(by)
    return model


def plain(model: ll.Model, strategy=None, prompts=PROMPTS, seed: int = 0, **options: object) -> Decoded:
    """What is emitted without drafts."""
    strategy = strategy or ll.Last()
    given = ll.GenerateOptions(**(GREEDY | options))
    return decode_batch(model, prompts, Chooser(model, strategy, seed), given, seed)


def drafted(drafter: ll.Drafter, strategy=None, prompts=PROMPTS, seed: int = 0, **options: object) -> Decoded:
    """What is emitted with drafts."""
    given = ll.GenerateOptions(**(GREEDY | options))
    return decode_drafted(drafter.model, prompts, strategy or ll.Last(), given, seed, drafter)


def assert_same(found: Decoded, expected: Decoded) -> None:
    """The same tokens, ends and decisions. A wide pass can read fewer layers of the window: the walk is the same."""
    assert found.outputs == expected.outputs
    assert found.finish_reasons == expected.finish_reasons
    for ours, theirs in zip(found.decisions, expected.decisions, strict=True):
        for number in ("selected_layer", "valley_layer", "is_finite"):
            assert getattr(ours, number).tolist() == getattr(theirs, number).tolist(), number
        assert ours.numbers[:, 0].tolist() == theirs.numbers[:, 0].tolist(), "the last layer's tokens"
        both = ours.values.isfinite() & theirs.values.isfinite()
        assert both.any() or not both.numel()
        torch.testing.assert_close(ours.values[both], theirs.values[both], atol=1e-3, rtol=1e-3)


def n_accepted_and_rejected(*drafters: ll.Drafter) -> tuple[int, int]:
    """Sums over all texts; what a draft holds beyond the first token that is wrong counts as rejected."""
    tables = [drafter.rounds for drafter in drafters]
    accepted = sum(round((table["accepted"] * table["n_rows"]).sum()) for table in tables)
    return accepted, sum(round((table["drafted"] * table["n_rows"]).sum()) for table in tables) - accepted


def steady_clock(monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    """For KnapSpec: every pass takes a second, and each attention module and MLP of the candidates this part of one."""
    monkeypatch.setattr(knapspec, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(hooks, "perf_counter", itertools.count(0, part).__next__)
