"""Models of sixteen blocks, some of which do nothing that matters: every search finds these, and drafts without them
are right. What is asserted is what was measured, with a block of margin where a search reads rounded numbers."""

from functools import cache

import pytest
import torch

import layerlens as ll
from layerlens.decode.speculative.clasp import Clasp
from layerlens.decode.speculative.fixed import EveryOther, FixedSkip, Traced
from layerlens.decode.speculative.knapspec import KnapSpec
from layerlens.models import tiny_model, tiny_tokenizer
from tests.decode.speculative.drafts import Eager, assert_same, drafted, plain, steady_clock
from tests.decode.test_loop import TEXTS
from tests.refusals import refused
from tests.thorough import some

N_LAYERS = 16
PLANTED = {
    "eight": {2, 4, 5, 7, 8, 10, 12, 13},
    "six": {1, 3, 6, 9, 11, 14},
    "twelve": {1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14},
}
ALWAYS = {"length": 6, "threshold": 0.0, "patience": None}
N_TOKENS = 48


@cache
def planted(which: str) -> ll.Model:
    """A llama in which attention and MLP of some blocks add a thousandth of what others add."""
    hf = tiny_model("llama", num_hidden_layers=N_LAYERS, hidden_size=64)
    with torch.no_grad():
        for number in PLANTED[which]:
            block = hf.model.layers[number]
            block.self_attn.o_proj.weight.mul_(1e-3)
            block.mlp.down_proj.weight.mul_(1e-3)
    return ll.load(hf, tokenizer=tiny_tokenizer())


@cache
def without_drafts(which: str):
    return plain(planted(which), max_new_tokens=N_TOKENS)


def searched(which, policy):
    """The drafter after its search, which changes no token."""
    drafter = Eager(planted(which), policy)
    assert_same(drafted(drafter, max_new_tokens=N_TOKENS), without_drafts(which))
    return drafter


def last_acceptance(drafter):
    return drafter.sets["acceptance"].iloc[-1]


def test_blocks_that_matter_cannot_be_left_out():
    """What a search could find by accident: drafts without other blocks are wrong, and those without the planted ones
    are right."""
    own = PLANTED["eight"]
    others = set(range(1, N_LAYERS - 1)) - own
    assert acceptance_of(own) > 0.95
    assert acceptance_of(others) < 0.1
    assert acceptance_of(own ^ {5, 6}) < 0.6
    assert EveryOther().search(planted("eight")).skips.blocks == {1, 3, 5, 7, 9, 11, 13}
    assert acceptance_of({1, 3, 5, 7, 9, 11, 13}) < 0.1


def acceptance_of(skipped):
    drafter = Eager(planted("eight"), FixedSkip(skipped=skipped, **ALWAYS))
    drafted(drafter, max_new_tokens=16)
    return last_acceptance(drafter)


@pytest.mark.parametrize("readout", ["hidden", "vocabulary"])
@pytest.mark.parametrize("which", ["eight", "six"])
def test_conflayers(which, readout):
    """Its first proposal is all planted blocks: what they return is flat. The search then ends."""
    least = (len(PLANTED[which]) - 1) / 14
    policy = ll.ConfLayers(readout=readout, skip_ratio=least, context_window=8, search_interval=6, **ALWAYS)
    drafter = searched(which, policy)
    found = drafter.skips.blocks
    assert len(found & PLANTED[which]) >= len(PLANTED[which]) - 1
    assert len(found - PLANTED[which]) <= 1
    assert drafter.search.is_over
    assert last_acceptance(drafter) > 0.9


@pytest.mark.parametrize("which", some(["six", "eight"], 1))
def test_clasp(which):
    """As many blocks as were planted: exactly these. Where fewer are asked for, only planted ones."""
    n = len(PLANTED[which])
    drafter = searched(which, Clasp(skip_ratio=n / 14, search_interval=8, **ALWAYS))
    assert drafter.skips.blocks == PLANTED[which]
    assert drafter.skips.found["cosine"] > 0.999
    fewer = searched(which, Clasp(skip_ratio=4 / 14, search_interval=8, **ALWAYS))
    assert fewer.skips.blocks < PLANTED[which]
    assert len(fewer.skips.blocks) == 4
    assert last_acceptance(drafter) > 0.9
    more = searched(which, Clasp(skip_ratio=12 / 14, search_interval=8, **ALWAYS))
    assert last_acceptance(more) < 0.5, "it must leave out what matters"


@pytest.mark.parametrize("which", ["eight", "six"])
def test_knapspec(which, monkeypatch):
    """Attention and MLP of all planted blocks, or all but one part, and at most one part of another block."""
    steady_clock(monkeypatch, part=1 / 40)
    drafter = searched(
        which, KnapSpec(context_window=8, search_interval=8, skip_ratio=0.6, **(ALWAYS | {"length": 12}))
    )
    parts = {(block, "attention") for block in drafter.skips.attention} | {
        (block, "mlp") for block in drafter.skips.mlp
    }
    own = {(block, part) for block in PLANTED[which] for part in ("attention", "mlp")}
    assert len(own - parts) <= 1
    assert len(parts - own) <= 1
    assert drafter.search.expected > 1.2
    assert last_acceptance(drafter) > 0.9


def test_swift():
    """Of random sets of thirteen parts, those of twelve blocks of fourteen planted; by chance two parts are others."""
    drafter = searched("twelve", ll.Swift(context_window=12, **ALWAYS))
    parts = [*drafter.skips.attention, *drafter.skips.mlp]
    assert len(parts) == 13
    assert sum(block in PLANTED["twelve"] for block in parts) >= 12
    assert drafter.search.score > 0.95
    assert drafter.search.is_over
    assert drafter.sets["acceptance"].iloc[0] < 0.2, "the first set was not it"
    assert last_acceptance(drafter) > 0.9


@pytest.mark.parametrize("which", ["eight", "six"])
def test_traced(which, run_of):
    """From a run of the model, by how much each block changed the stream."""
    model, n = planted(which), len(PLANTED[which])
    run = run_of(model, TEXTS, max_new_tokens=4)
    drafter = searched(which, Traced(run=run.path, skip_ratio=n / 14, **ALWAYS))
    assert drafter.skips.blocks == PLANTED[which]
    assert last_acceptance(drafter) > 0.9
    assert searched(which, Traced(run=run.path, skip_ratio=3 / 14, **ALWAYS)).skips.blocks < PLANTED[which]
    other = planted("six" if which == "eight" else "eight")
    with refused(ll.OptionError, "run", str(run.path), advice=other.source):
        ll.Drafter(other, Traced(run=run.path))
