"""The walk back when the readout is fused, by Triton's interpreter, where the host may not look at values."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.decode.criteria import max_prob, shannon
from layerlens.decode.readouts import Readouts
from layerlens.decode.scan import SCANS, walk_back
from layerlens.models import Unembed
from tests.decode.test_scan import walked

pytest.importorskip("triton", reason="pip install triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_LAYERS, D_MODEL, N_VOCAB = 12, 24, 301
NEAR_TIE = 1e-4  # nats


def case(seed: int, n_rows: int):
    """Random states, some of whose entropies fall a long way back; exact entropies and logits [rows, layers, ...]."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = 0.2 + 3 * torch.rand(n_rows, N_LAYERS, 1, generator=generator)
    falls = torch.linspace(6, 0.2, N_LAYERS).unsqueeze(1)
    directions = torch.randn(n_rows, N_LAYERS, D_MODEL, generator=generator)
    falling = torch.rand(n_rows, 1, 1, generator=generator) < 0.4
    states = torch.where(falling, falls * directions[:, :1], sharpness * directions).to(torch.bfloat16)
    weight = (0.3 * torch.randn(N_VOCAB, D_MODEL, generator=generator)).to(torch.bfloat16)
    logits = states.double() @ weight.double().t()
    log_probs = logits.log_softmax(2)
    entropies = -(log_probs.exp() * log_probs).sum(2)
    head = Unembed([], weight.to(DEVICE), fused=True)
    return head, {layer: states[:, layer - 1].to(DEVICE) for layer in range(1, N_LAYERS + 1)}, entropies, logits


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_rows=st.sampled_from([1, 2, 7, 19]),
    window=st.integers(1, N_LAYERS),
    scan=st.sampled_from(SCANS),
    floor=st.sampled_from([0.0, 2.0, 9.0]),
    may_branch=st.booleans(),
)
def test_every_walk_is_a_plain_reading_of_eq_7(seed, n_rows, window, scan, floor, may_branch):
    head, states, entropies, logits = case(seed, n_rows)
    readouts = Readouts(head, states, N_LAYERS, torch.zeros(n_rows, device=DEVICE), may_branch=may_branch)
    walk = walk_back(readouts, window, shannon, scan, floor)
    torch.testing.assert_close(walk.last_logits.cpu().double(), logits[:, -1], atol=1e-3, rtol=1e-4)
    for row in range(n_rows):
        values = entropies[row].tolist()
        steps, _ = walked(values, window, floor)
        compared = values[::-1][: steps + 2]
        gaps = [abs(a - b) for a, b in zip(compared[1:], compared, strict=False)] + [abs(values[-1] - floor)]
        if min(gaps) < NEAR_TIE:
            continue
        assert walk.steps[row] == steps
        expected = logits[row, N_LAYERS - 1 - steps]
        torch.testing.assert_close(walk.valley_logits[row].cpu().double(), expected, atol=1e-3, rtol=1e-4)
        read = walk.values[row].cpu()
        torch.testing.assert_close(
            read[~read.isnan()].double(), entropies[row, -window:][~read.isnan()], atol=1e-4, rtol=1e-4
        )
        assert not read[-1 - steps :].isnan().any()


def test_rows_that_do_not_walk_are_left_out_of_the_graph():
    """In turn each stage takes those that fell all the way so far: 1, 2, 4 and the rest of the layers."""
    n_rows, window = 40, 10
    head, states, entropies, _ = case(3, n_rows)
    steps = [walked(row, window)[0] for row in entropies.tolist()]
    assert {0, 9} < set(steps)
    lazy = Readouts(head, states, N_LAYERS, torch.zeros(n_rows, device=DEVICE), may_branch=False)
    walk = walk_back(lazy, window, shannon, "lazy")
    assert walk.steps.tolist() == steps
    read = [next(end for end in (2, 4, 8, 10) if end > n + 1 or end == window) for n in steps]
    assert (~walk.values.isnan()).sum(1).tolist() == read
    assert lazy.projections.tolist() == [n + 1 for n in read], "and once more for the logits"

    floor = entropies[:, -1].median().item() + 1e-3
    above = Readouts(head, states, N_LAYERS, torch.zeros(n_rows, device=DEVICE), may_branch=False)
    walk = walk_back(above, window, shannon, "auto", floor)
    walks = entropies[:, -1] >= floor
    assert walk.steps.tolist() == [n if walks[row] else 0 for row, n in enumerate(steps)]
    assert above.projections.tolist() == [11 if walks[row] else 2 for row in range(n_rows)]


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter
def test_a_state_that_is_not_a_number_ends_its_walk_alone():
    head, states, entropies, _ = case(5, 6)
    states[N_LAYERS][0] = math.nan
    states[N_LAYERS - 1][1] = math.nan
    for scan in SCANS:
        readouts = Readouts(head, states, N_LAYERS, torch.zeros(6, device=DEVICE), may_branch=False)
        steps = walk_back(readouts, 8, shannon, scan).steps.tolist()
        assert steps == [0, 0, *(walked(row, 8)[0] for row in entropies[2:].tolist())]


def test_other_criteria_are_told_from_logits():
    head, states, _, _ = case(6, 5)
    readouts = Readouts(head, states, N_LAYERS, torch.zeros(5, device=DEVICE), may_branch=False)
    assert readouts.measures_itself(shannon)
    assert not readouts.measures_itself(max_prob)
    plain = Readouts(replace(head, fused=False), states, N_LAYERS, torch.zeros(5, device=DEVICE), may_branch=False)
    assert not plain.measures_itself(shannon)
