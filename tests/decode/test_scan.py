"""The walk back against a plain reading of Eq. 7, and what it reads on the way."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerlens.decode.criteria import CRITERIA
from layerlens.decode.readouts import Readouts
from layerlens.decode.scan import SCANS, walk_back
from layerlens.models import Unembed, tiny_model
from tests.reference import own_readout, structure, watch


@dataclass(frozen=True, eq=False)
class States(Unembed):
    """A head that hands the states on as logits."""

    def logits(self, states: Tensor, *, norm: bool = True, often: bool = False) -> Tensor:
        return states.float()


def told(logits: Tensor) -> Tensor:
    """A criterion that the first word spells out."""
    return logits[:, 0]


def readouts_of(values: list[list[float]], may_branch: bool = True) -> Readouts:
    """Rows of one value per layer; the logits of layer l in row r are (value, l, r)."""
    table = torch.tensor(values, dtype=torch.float32)
    rows, n_layers = table.shape
    numbers = torch.arange(rows, dtype=torch.float32)
    states = {
        layer: torch.stack([table[:, layer - 1], torch.full((rows,), float(layer)), numbers], dim=1)
        for layer in range(1, n_layers + 1)
    }
    head = States([], torch.zeros(3, 3))
    return Readouts(head, states, n_layers, torch.zeros(rows), may_branch=may_branch)


def walked(values: list[float], window: int, floor: float = 0.0) -> tuple[int, int]:
    """Eq. 7 read aloud, for one row: steps back, and how many earlier layers had to be looked at."""
    here = len(values)
    if math.isnan(values[-1]) or (floor > 0 and values[-1] < floor):
        return 0, 0
    looked = 0
    while here > len(values) - window + 1:
        looked += 1
        if not values[here - 2] < values[here - 1]:
            break
        here -= 1
    return len(values) - here, looked


VALUE = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf]), st.floats(-3, 12, width=32)
)


@st.composite
def cases(draw) -> tuple[list[list[float]], int]:
    """Up to 9 rows of up to 14 layers, some of which fall all the way back, and a window."""
    n_layers = draw(st.integers(1, 14))
    falling = st.just([float(layer) for layer in range(n_layers)])
    row = st.one_of(st.lists(VALUE, min_size=n_layers, max_size=n_layers), falling)
    return draw(st.lists(row, min_size=1, max_size=9)), draw(st.integers(1, n_layers))


def check(values: list[list[float]], window: int, scan: str, floor: float, may_branch: bool = True) -> None:
    """Every field of the walk and every projection, against `walked`."""
    n_layers = len(values[0])
    expected = [walked(row, window, floor) for row in values]
    readouts = readouts_of(values, may_branch)
    walk = walk_back(readouts, window, told, scan, floor)

    assert walk.steps.tolist() == [steps for steps, _ in expected]
    assert all(0 <= steps < window for steps in walk.steps.tolist())
    layer, row = walk.valley_logits[:, 1].tolist(), walk.valley_logits[:, 2].tolist()
    assert layer == [n_layers - steps for steps, _ in expected]
    assert row == list(range(len(values)))
    assert walk.last_logits[:, 1].tolist() == [n_layers] * len(values)
    torch.testing.assert_close(walk.last_logits[:, 0], told(torch.tensor(values)[:, -1:]), equal_nan=True)

    lazy = may_branch and (scan == "lazy" or (scan == "auto" and len(values) * window > readouts.rows_at_balance))
    for index, (_, looked) in enumerate(expected):
        below_floor = floor > 0 and not values[index][-1] >= floor
        read = 1 + looked if lazy else 1 if below_floor and may_branch else window
        assert readouts.projections[index] == read
        seen = [math.nan] * (window - read) + values[index][n_layers - read :]
        torch.testing.assert_close(walk.values[index], torch.tensor(seen), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.5, 1.0, 7.25]))
@example(([[math.nan, 1.0], [0.0, math.nan], [math.nan, math.nan]], 2), 0.0)
@example(([[-math.inf, 1.0, math.inf], [-math.inf, -math.inf, 0.0], [math.inf, math.inf, math.inf]], 3), 0.0)
@example(([[0.0, 1.0, 2.0]] * 5, 3), 0.0)
@example(([[0.0, 0.5, 1.0], [0.0, 1.0, 2.0], [0.0, 0.1, math.nan]], 3), 1.0)
def test_every_scan_is_a_plain_reading_of_eq_7_and_reads_no_more_than_it_says(case, floor):
    values, window = case
    for scan in SCANS:
        check(values, window, scan, floor)
        check(values, window, scan, floor, may_branch=False)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 10), st.sampled_from(SCANS))
def test_parts_of_a_batch_walk_as_the_whole_does(case, rows, scan):
    values, window = case
    whole = walk_back(readouts_of(values), window, told, scan)
    parts = readouts_of(values).split(rows)
    walks = [walk_back(part, window, told, scan) for part in parts]
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)
    assert sum(len(part) for part in parts) == len(values)
    assert torch.cat([walk.steps for walk in walks]).equal(whole.steps)
    for field in ("valley_logits", "last_logits"):
        together = torch.cat([getattr(walk, field) for walk in walks])
        torch.testing.assert_close(together, getattr(whole, field), rtol=0, atol=0, equal_nan=True)


def test_the_window_counts_the_last_layer():
    falling = [[1.0, 2.0, 3.0, 4.0]]
    steps = [walk_back(readouts_of(falling), window, told).steps.item() for window in (1, 2, 3, 4)]
    assert steps == [0, 1, 2, 3]


def test_auto_is_lazy_from_the_device_s_balance_on():
    falling = [[float(layer) for layer in range(10)]]
    shallow = [[0.0] * 10]
    balance = readouts_of(falling).rows_at_balance
    for rows in (balance // 10, balance // 10 + 1):
        readouts = readouts_of(falling + shallow * (rows - 1))
        walk_back(readouts, 10, told)
        assert readouts.projections.tolist() == [10] + ([10] if rows * 10 <= balance else [2]) * (rows - 1)


def test_many_rows_are_measured_in_pieces_without_a_difference():
    """More states than a criterion gets at once; its rows stay with their layers."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (41, 14), generator=generator).tolist()
    for scan in SCANS:
        check([[float(value) for value in row] for row in values], 13, scan, 0.0)


def test_a_row_at_the_floor_walks_and_one_below_does_not():
    values = [[0.0, 1.0], [0.0, 0.999], [0.0, 0.0], [0.5, math.nan]]
    for scan in SCANS:
        assert walk_back(readouts_of(values), 2, told, scan, floor=1.0).steps.tolist() == [1, 0, 0, 0]
        assert walk_back(readouts_of(values), 2, told, scan).steps.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", list(CRITERIA))
def test_scans_agree_on_a_model_s_own_states(name):
    """Real readouts, where one product of all candidates and one for each layer may round differently; rtol 1e-5."""
    hf = tiny_model("llama", num_hidden_layers=7)
    ids = torch.randint(3, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    blocks, tail = structure(hf)
    streams = [h.flatten(0, 1) for h in watch(hf, blocks, ids).h_out]
    head = Unembed(tail, hf.lm_head.weight.detach())
    with torch.no_grad():
        values = torch.stack([CRITERIA[name](own_readout(hf, tail)(h)) for h in streams], 1).tolist()
    expected = [walked(row, 6)[0] for row in values]
    assert len(set(expected)) > 3, "walks of many lengths"
    for scan in SCANS:
        readouts = Readouts(head, {i + 1: h.float() for i, h in enumerate(streams)}, 7, torch.zeros(120))
        with torch.no_grad():
            walk = walk_back(readouts, 6, CRITERIA[name], scan)
        assert walk.steps.tolist() == expected
        exact = torch.stack([own_readout(hf, tail)(streams[6 - n][i]) for i, n in enumerate(expected)])
        torch.testing.assert_close(walk.valley_logits.double(), exact, rtol=1e-5, atol=1e-5)
