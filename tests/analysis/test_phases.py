"""Phases on planted curves whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from layerlens.analysis.phases import hidden_phases, plateau_bounds
from layerlens.errors import OptionError
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused

ROOT = Path(__file__).resolve().parents[2]


def curves(n_layers, plateau, ends):
    """Ratio and cosine by layer: the plateau's values in turn, and other values at some layers (from 1)."""
    ratio = np.resize([pair[0] for pair in plateau], n_layers).astype(float)
    cosine = np.resize([pair[1] for pair in plateau], n_layers).astype(float)
    for layer, (value, cos) in ends.items():
        ratio[layer - 1], cosine[layer - 1] = value, cos
    return ratio, cosine


PLATEAU_35B = [(0.23, 0.97), (0.3, 0.96), (0.35, 0.95), (0.57, 0.91)]
PLATEAU_9B = [(0.26, 0.97), (0.3, 0.96), (0.35, 0.95), (0.58, 0.88)]
PLATEAU_SMOL = [(0.25, 0.97), (0.29, 0.96), (0.45, 0.92)]
ENDS = {1: (5, 0.3), 2: (2.5, 0.5), 40: (0.85, 0.69)}
FALLING = dict(enumerate([(5, 0.3), (3, 0.4), (2, 0.5), (1.5, 0.6), (1.2, 0.65)], start=1))
SIX = dict.fromkeys(range(1, 7), (2.0, 0.3))
CASES = {
    "35b": (curves(40, PLATEAU_35B, {1: (1.6, 0.67), 2: (1.0, 0.75), 40: (0.85, 0.69)}), 2, 40),
    "9b": (curves(32, PLATEAU_9B, {1: (8.5, 0.14), 32: (0.84, 0.80)}), 1, 32),
    "smollm2": (curves(30, PLATEAU_SMOL, {1: (16.9, 0.011), 2: (0.94, 0.81), 30: (0.76, 0.70)}), 2, 30),
    "outlier outside the middle": (curves(30, PLATEAU_SMOL, {1: (16, 0), 25: (0.68, 0.82), 30: (0.76, 0.7)}), 1, 30),
    "gemma, no phase III": (curves(18, [(0.3, 0.95)], {1: (3.0, 0.3), 18: (0.24, 0.98)}), 1, None),
    "stretched, not turned": (curves(24, [(0.3, 0.95)], {1: (3.0, 0.99), 24: (0.9, 0.99)}), None, None),
    "turned, not larger": (curves(24, [(0.3, 0.95)], {1: (0.3, 0.5), 24: (0.2, 0.6)}), None, None),
    "three layers of III": (curves(24, [(0.3, 0.95)], {22: (0.6, 0.8), 23: (0.7, 0.8), 24: (0.8, 0.8)}), None, 22),
    "eight layers": (curves(8, [(0.3, 0.95)], {1: (2.0, 0.3), 8: (0.9, 0.7)}), 1, 8),
    "one uneven layer in the middle": (curves(40, [(0.35, 0.95)], ENDS | {20: (0.75, 0.75)}), 2, 40),
    "two uneven layers beside each other": (curves(40, [(0.35, 0.95)], ENDS | {20: (2, 0.2), 21: (3, 0.1)}), 2, 40),
    "one uneven layer of eight": (curves(8, [(0.3, 0.95)], {1: (2.0, 0.3), 5: (0.8, 0.75), 8: (0.85, 0.69)}), 1, 8),
    "three of ten in phase I": (curves(10, [(0.3, 0.95)], dict.fromkeys((1, 2, 3), (2, 0.3))), 3, None),
    "a falling phase I of five": (curves(16, [(0.35, 0.95)], FALLING | {16: (0.85, 0.69)}), 5, 16),
    "a level phase I of six": (curves(16, [(0.35, 0.95)], SIX | {16: (0.85, 0.69)}), 6, 16),
    "a long phase III": (curves(16, [(0.35, 0.95)], {1: (5, 0.3)} | dict.fromkeys(range(11, 17), (0.85, 0.69))), 1, 11),
    "I and III longer than II": (
        curves(24, [(0.35, 0.95)], dict.fromkeys((*range(1, 8), *range(18, 25)), (2.0, 0.3))),
        7,
        18,
    ),
    "the last layer only has full attention": (curves(24, [(0.3, 0.96)] * 3 + [(0.6, 0.9)], {1: (2, 0.3)}), 1, None),
    "a plateau that climbs to twice its height": (
        (np.geomspace(0.3, 0.6, 24), np.cos(np.geomspace(0.3, 0.6, 24))),
        None,
        None,
    ),
    "flat": (curves(12, [(0.3, 0.95)], {}), None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_plateau_rule_on_curves_like_real_ones(tmp_path, case):
    (ratio, cosine), last_of_one, first_of_three = CASES[case]
    n_layers = len(ratio)
    flat = {"perturbed": np.ones(n_layers), "unperturbed": np.ones(n_layers)}
    run = write_run(
        tmp_path / "run", planted({"norm_ratio": ratio, "io_cosine": cosine, **flat}, n_prompts=4, n_tokens=5)
    )
    before_two, after_two = last_of_one or 0, first_of_three or n_layers + 1
    expected = {"I": (1, before_two), "II": (before_two + 1, after_two - 1), "III": (after_two, n_layers)}
    for row in run.phases().to_dict("records"):
        first, last = expected[row["phase"]]
        if last < first:
            assert all(pd.isna(row[name]) for name in ("first", "last", "first_low", "first_high"))
            assert math.isnan(row["norm_ratio"])
            assert row["share"] == 0
            continue
        assert (row["first"], row["last"], row["first_low"], row["first_high"]) == (first, last, first, first)
        assert row["share"] == 1
        assert row["norm_ratio"] == pytest.approx(ratio[first - 1 : last].mean(), rel=1e-6)
        assert row["io_cosine"] == pytest.approx(cosine[first - 1 : last].mean(), rel=1e-6)


def test_full_attention_layers_that_stick_out_do_not_break_the_plateau(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(), noise=0.1, n_tokens=20), layer_kinds=hybrid_kinds())
    table = run.phases()
    assert table["first"].tolist() == [1, 5, 40]
    assert table["last"].tolist() == [4, 39, 40]
    assert (table["norm_ratio_low"] < table["norm_ratio"]).all()
    assert (table["norm_ratio"] < table["norm_ratio_high"]).all()


UNEVEN = {
    "five to one": (40, range(6, 37, 6), 2, 40),
    "three to one": (40, range(4, 37, 4), 2, 40),
    "in a block": (40, range(15, 22), 2, 40),
    "scattered": (40, [8, 9, 16, 23, 24, 37], 2, 40),
    "five to one of 18": (18, [6, 12], 2, 18),
    "five to one of 62": (62, range(6, 61, 6), 2, 62),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_many_uneven_layers_are_named_with_the_phases_that_they_hide(tmp_path, case):
    """They write and turn more than the last layer, whose phase III vanishes, and than layer 2."""
    n_layers, uneven, last_of_one, first_of_three = UNEVEN[case]
    ends = {1: (5, 0.3), 2: (1.2, 0.65), n_layers: (0.85, 0.69)}
    ratio, cosine = curves(n_layers, [(0.35, 0.95)], ends | dict.fromkeys(uneven, (1.3, 0.55)))
    assert hidden_phases(ratio, cosine) == (list(uneven), [0, last_of_one, first_of_three - 1, n_layers])
    assert plateau_bounds(ratio, cosine).tolist() == [0, 1, n_layers, n_layers]
    flat = {"perturbed": np.ones(n_layers), "unperturbed": np.ones(n_layers)}
    run = write_run(tmp_path / "run", planted({"norm_ratio": ratio, "io_cosine": cosine, **flat}, n_prompts=4))
    table = run.phases()
    assert table["first"].isna().tolist() == [False, False, True]
    names = ", ".join(map(str, uneven))
    assert table.attrs["note"] == (
        f"layers {names} stand out of the middle and hide a phase; without these layers the rule finds "
        f"I layers 1–2, II layers 3–{n_layers - 1}, III layer {n_layers}"
    )
    assert "note" not in run.phases(rule="paper").attrs
    without = np.setdiff1d(np.arange(1, n_layers + 1), list(uneven)) - 1
    left = len(without)
    assert plateau_bounds(ratio[without], cosine[without]).tolist() == [0, 2, left - 1, left]


@pytest.mark.parametrize("case", [case for case in CASES if case != "the last layer only has full attention"])
def test_where_no_phase_is_hidden_nothing_is_said(case):
    assert hidden_phases(*CASES[case][0]) == ([], [])


def test_layers_as_high_as_the_last_are_named():
    """Full attention in every fourth layer, the last among them: alone it would be a phase III."""
    (ratio, cosine), *_ = CASES["the last layer only has full attention"]
    assert hidden_phases(ratio, cosine) == ([4, 8, 12, 16, 20], [0, 1, 23, 24])


@pytest.mark.parametrize("n_layers", [8, 16, 24, 40, 80])
@pytest.mark.parametrize("climb", [1.0, 1.5, 2.0, 4.0])
def test_a_steady_climb_hides_no_phase(n_layers, climb):
    turn = np.geomspace(0.2, 0.2 * climb, n_layers)
    assert hidden_phases(turn, np.cos(turn)) == ([], [])
    assert hidden_phases(turn[::-1], np.cos(turn[::-1])) == ([], [])


@pytest.mark.parametrize("folder", ["smollm2-gsm8k", "smollm2-sample", "gemma3-sample"])
def test_the_committed_curves_have_the_phases_of_the_findings(folder):
    table = pd.read_csv(ROOT / "figures" / folder / "figure2.csv").drop_duplicates("layer")
    means = table["norm_ratio"].to_numpy(), table["io_cosine"].to_numpy()
    assert plateau_bounds(*means).tolist() == ([0, 2, 18, 18] if folder == "gemma3-sample" else [0, 2, 29, 30])
    assert hidden_phases(*means) == ([], [])


def slow_rule(ratio, cosine):
    """The rule as its docstring reads, layer by layer."""
    n_layers = len(ratio)
    turn = [math.acos(max(-1.0, min(1.0, value))) for value in cosine]

    def height(values):
        return sorted(values, reverse=True)[max(1, len(values) // 10)]

    def runs(limits):
        out = [all(1.2 * limit < value for limit, value in zip(limits, pair, strict=True)) for pair in layers]
        first = next((index for index, stands_out in enumerate(out) if not stands_out), n_layers)
        last = n_layers - next((index for index, stands_out in enumerate(out[::-1]) if not stands_out), n_layers)
        return first, last

    layers = list(zip(ratio, turn, strict=True))
    quarter = max(4, n_layers // 4)
    starts = range(n_layers - quarter + 1)
    first, last = runs([min(height(values[at : at + quarter]) for at in starts) for values in (ratio, turn)])
    while True:
        shorter, later = runs([height(values[first:last]) for values in (ratio, turn)])
        if shorter >= first and later <= last:
            return [0, first, last, n_layers]
        first, last = min(first, shorter), max(last, later)


@given(
    st.integers(8, 40).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float64, (3, n), elements=st.sampled_from([0.1, 0.3, 0.35, 0.5, 2.0])),
            hnp.arrays(np.float64, (3, n), elements=st.sampled_from([-1.0, 0.3, 0.8, 0.95, 1.0])),
        )
    )
)
def test_the_plateau_rule_is_its_plain_reading(curves):
    ratios, cosines = curves
    bounds = plateau_bounds(ratios, cosines)
    for row in range(3):
        assert bounds[row].tolist() == slow_rule(ratios[row], cosines[row])


@st.composite
def planted_phases(draw):
    """Mean ratios and turns, [L] each, with the last layer of phase I and the first of III, either absent at times.

    The plateau holds more than a quarter of the layers. Its noise is at most 9 %, and one layer inside it is uneven.
    Where it has three layers of full attention or more, every fourth, these may write and turn up to twice as much. The
    phases are at least half as high again as its highest layers.
    """
    n_layers = draw(st.integers(8, 64))
    n_plateau = draw(st.integers(max(6, n_layers // 4 + 1), n_layers))
    first = draw(st.integers(0, n_layers - n_plateau))
    last = first + n_plateau
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layer = np.arange(1, n_layers + 1)
    full = draw(st.floats(1, 2)) if n_plateau >= 12 else 1.0
    plateau = np.where(layer % 4 == 0, full, 1.0) * random.uniform(1 / 1.09, 1.09, (2, n_layers))
    outside = (layer <= first) | (layer > last)
    values = np.where(outside, full * 1.5 * 1.09 * random.uniform(1, 2, (2, n_layers)), plateau)
    # not beside a phase, which an uneven layer would lengthen, nor at an end, where it would be one
    uneven = draw(st.integers(first + 1, last - 2))
    values[:, uneven] *= random.uniform(1, 3, 2)
    return draw(st.floats(0.1, 0.5)) * values[0], draw(st.floats(0.05, 0.3)) * values[1], first, last


@given(planted_phases())
def test_planted_phases_are_found_whatever_their_lengths(planted_curves):
    ratio, turn, first, last = planted_curves
    assert plateau_bounds(ratio, np.cos(turn)).tolist() == [0, first, last, len(ratio)]


def test_an_uncertain_boundary_has_an_interval_and_a_share(tmp_path):
    """Layer 2 is far off the plateau in half of the prompts and on it in the others: its mean is near the limit."""
    base = {"norm_ratio": np.full(12, 0.3), "io_cosine": np.full(12, 0.95), "perturbed": np.ones(12)}
    base["unperturbed"] = base["perturbed"]
    base["norm_ratio"][[0, -1]], base["io_cosine"][[0, -1]] = 3.0, 0.1
    off = {name: curve.copy() for name, curve in base.items()}
    off["norm_ratio"][1], off["io_cosine"][1] = 0.42, 0.90
    off["norm_ratio"][-1], off["io_cosine"][-1] = 0.42, 0.90
    base["norm_ratio"][-1], base["io_cosine"][-1] = 0.3, 0.95
    prompts = {f"off-{k}": v for k, v in planted(off, n_prompts=10, n_tokens=4).items()}
    prompts |= {f"on-{k}": v for k, v in planted(base, n_prompts=9, n_tokens=4).items()}
    table = write_run(tmp_path / "run", prompts).phases().set_index("phase")
    assert (table.loc["II", "first_low"], table.loc["II", "first_high"]) == (2, 3)
    assert 0.2 < table.loc["III", "share"] < 0.9
    assert table.loc["I", "share"] == 1


@pytest.mark.parametrize(("n_layers", "first", "last"), [(40, [1, 7, 38], [6, 37, 40]), (30, [1, 5, 29], [4, 28, 30])])
def test_the_papers_rule_counts_layers(tmp_path, n_layers, first, last):
    table = write_run(tmp_path / "run", planted(hybrid_curves(n_layers), n_prompts=2, n_tokens=2)).phases(rule="paper")
    assert (table["first"].tolist(), table["last"].tolist()) == (first, last)
    assert table.attrs["rule"] == "paper"


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 6, 7])
def test_few_layers_have_no_phases_and_it_is_said(tmp_path, n_layers):
    run = write_run(
        tmp_path / "run", {"p": {"entropy": np.ones((3, n_layers))}, "q": {"entropy": np.ones((3, n_layers))}}
    )
    table = run.phases()
    assert table[["first", "last", "norm_ratio"]].isna().all(axis=None)
    assert table.attrs["note"] == f"no phases: {n_layers} layers are too few to find a plateau; at least 8 are needed"
    paper = run.phases(rule="paper")
    assert paper["last"].max() == n_layers


def test_one_prompt_has_phases_without_intervals(tmp_path):
    table = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=1)).phases()
    assert table["first"].tolist() == [1, 5, 40]
    assert table[["first_low", "norm_ratio_low", "io_cosine_high"]].isna().all(axis=None)


def test_an_unknown_rule_is_refused_with_those_there_are(tmp_path):
    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 8))}})
    with refused(OptionError, "rule", "knee", advice="plateau, paper"):
        run.phases(rule="knee")
