"""V_onset and V* on planted curves whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from layerlens.analysis.valleys import lowest_layers, marks_shown, onset_layers, valley_layers
from tests.made_up_run import hybrid_curves, planted, write_run

LN_V = math.log(248320)


def through(n_layers, *corners):
    """A curve of straight lines through (layer, entropy) corners."""
    layers, values = zip(*corners, strict=True)
    return np.interp(np.arange(1, n_layers + 1), layers, values)


# the mean curve of SmolLM2-135M-Instruct's perturbed tokens, measured on twelve short prompts
SMOLLM2 = [1.227, 1.359, 1.382, 1.442, 1.437, 1.412, 1.395, 1.325, 1.157, 1.152, 1.059, 1.033, 1.063, 1.047, 1.041]
SMOLLM2 += [0.970, 1.027, 0.981, 0.905, 0.853, 0.638, 0.565, 0.517, 0.474, 0.567, 0.548, 0.464, 0.455, 0.581, 1.082]

CASES = {  # curve, V_onset, V*
    "plateau, descent, rise": (through(40, (1, 8), (3, 11.3), (28, 11.3), (39, 0.52), (40, 0.89)), 28, 39),
    "valley three layers before the end": (through(32, (1, 11), (20, 11), (29, 0.5), (32, 1.5)), 20, 29),
    "no rise": (through(40, (1, 11), (28, 11), (40, 0.3)), 28, None),
    "no plateau, smollm2": (np.array(SMOLLM2), None, 28),
    "low plateau": (through(30, (1, 2.0), (20, 2.0), (29, 0.3), (30, 0.6)), None, 29),
    "straight descent": (through(40, (1, 11), (39, 0.5), (40, 1)), None, 39),
    "short plateau": (through(40, (1, 1), (8, 1), (9, 11), (15, 11), (39, 0.5), (40, 1)), None, 39),
    "climbs on its way down": (through(40, (1, 11), (25, 11), (30, 5), (33, 8), (39, 0.5), (40, 1)), None, 39),
    "rises throughout": (through(10, (1, 0.5), (10, 3)), None, 1),
    "falls throughout": (through(10, (1, 3), (10, 0.5)), None, None),
    "flat": (np.full(12, 3.0), None, None),
    "few layers": (through(6, (1, 11), (4, 11), (5, 0.5), (6, 0.8)), None, 5),
    "one layer": (np.array([3.0]), None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_planted_marks_are_found(case):
    curve, onset, valley = CASES[case]
    assert onset_layers(curve, LN_V) == pytest.approx(onset or math.nan, nan_ok=True)
    assert valley_layers(curve) == pytest.approx(valley or math.nan, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_small_bumps_move_no_mark(seed):
    """Layers alternate, as a hybrid model's do, and are uneven by up to 0.05 nats of a drop of 10.8."""
    curve = CASES["plateau, descent, rise"][0]
    bumps = np.random.default_rng(seed).uniform(-0.05, 0.05, 40) + 0.2 * (np.arange(40) % 4 == 0) * (np.arange(40) < 28)
    assert onset_layers(curve + bumps, LN_V) in (27, 28, 29)
    assert valley_layers(curve + bumps) == 39


def test_a_dent_in_the_final_rise_is_passed_over():
    curve = through(20, (1, 10), (16, 0.5), (20, 2.5))
    curve[17] = curve[16] - 0.02
    assert valley_layers(curve) == 16
    curve[17] = curve[16] - 1.2
    assert valley_layers(curve) == 18


def slow_valley(curve):
    """The rule for V* as its docstring reads, walking back from the last layer."""
    allowed = 0.01 * (max(curve) - min(curve))
    lowest, at = curve[-1], len(curve)
    for layer in range(len(curve), 0, -1):
        if curve[layer - 1] > lowest + allowed:
            break
        if curve[layer - 1] < lowest:
            lowest, at = curve[layer - 1], layer
    return math.nan if at == len(curve) else at


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.floats(0, 10)))
def test_the_rule_for_the_valley_is_its_plain_reading(curves):
    for curve, found in zip(curves, valley_layers(curves), strict=True):
        assert found == pytest.approx(slow_valley(curve.tolist()), nan_ok=True)


def test_the_table_of_a_run(tmp_path):
    curves = hybrid_curves()
    run = write_run(tmp_path / "run", planted(curves, noise=0.1, n_tokens=60, perturbed_share=0.2), n_vocab=248320)
    table = run.valleys().set_index(["group", "mark"])
    marks = ("V_onset", "V*", "lowest")
    assert list(table.index) == [(group, mark) for group in ("perturbed", "unperturbed", "all") for mark in marks]
    assert table.loc[("perturbed", "lowest"), ["layer", "layer_low", "layer_high", "share"]].tolist() == [39, 39, 39, 1]
    assert table.loc[("unperturbed", "lowest"), "layer"] == 40
    assert table.loc[("perturbed", "V_onset"), "layer"] == 28
    assert table.loc[("perturbed", "V*"), ["layer", "layer_low", "layer_high", "share"]].tolist() == [39, 39, 39, 1]
    assert table.loc[("unperturbed", "V_onset"), "layer"] == 28
    assert table.loc[("unperturbed", "V*"), ["layer", "layer_low", "layer_high"]].isna().all()
    assert table.loc[("unperturbed", "V*"), "share"] == 0
    assert table.loc[("perturbed", "V*"), ["n_tokens", "n_prompts"]].tolist() == [8 * 12, 8]
    perturbed = run.positions["perturbed"].to_numpy()
    there = table.loc[("perturbed", "V*")]
    assert there["entropy"] == pytest.approx(float(run.layers("entropy")[perturbed, 38].mean()), rel=1e-6)
    assert there["entropy_low"] < there["entropy"] < there["entropy_high"]


def test_nothing_is_invented_for_a_model_without_a_plateau(tmp_path):
    smollm2 = {"perturbed": np.array(SMOLLM2), "unperturbed": np.array([*SMOLLM2[:-1], 0.4])}
    table = write_run(tmp_path / "run", planted(smollm2), n_vocab=49152).valleys()
    assert table.loc[table["mark"] == "V_onset", "layer"].isna().all()
    assert (table.loc[table["mark"] == "V_onset", "share"] == 0).all()
    assert table.loc[table["mark"] == "V_onset", "entropy"].isna().all()
    assert table.loc[0:2, "layer"].tolist() == [pd.NA, 28, 28]


LOWER_BEFORE = np.interp(np.arange(1, 31), [1, 10, 20, 24, 28, 30], [3, 2.5, 0.4, 1.0, 0.6, 1.4])


def test_the_lowest_layer_is_told_from_the_lowest_of_the_final_rise(tmp_path):
    run = write_run(
        tmp_path / "run", planted({"perturbed": LOWER_BEFORE, "unperturbed": LOWER_BEFORE * (LOWER_BEFORE < 1.4)})
    )
    table = run.valleys().set_index(["group", "mark"])
    assert table.loc["perturbed", "layer"].tolist() == [pd.NA, 28, 20]
    assert table.loc[("perturbed", "lowest"), "entropy"] == pytest.approx(0.4, rel=1e-6)
    assert table.loc[("perturbed", "V*"), "entropy"] == pytest.approx(0.6, rel=1e-6)
    shown = marks_shown(run.valleys()).set_index(["group", "mark"])
    assert ("perturbed", "lowest") in shown.index
    same = write_run(tmp_path / "same", planted(hybrid_curves())).valleys()
    assert "lowest" not in marks_shown(same)["mark"].tolist()


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.integers(0, 3)))
def test_of_several_lowest_layers_the_last_one_counts(curves):
    for curve, found in zip(curves.tolist(), lowest_layers(curves), strict=True):
        assert found == max(layer for layer, value in enumerate(curve, start=1) if value == min(curve))


def test_prompts_that_disagree_give_an_interval(tmp_path):
    early = {"perturbed": through(20, (1, 10), (16, 0.4), (20, 1.0)), "unperturbed": np.ones(20)}
    late = {"perturbed": through(20, (1, 10), (18, 0.1), (20, 1.0)), "unperturbed": np.ones(20)}
    prompts = {f"e{k}": v for k, v in planted(early, n_prompts=6, n_tokens=10).items()}
    prompts |= {f"l{k}": v for k, v in planted(late, n_prompts=6, n_tokens=10).items()}
    valley = write_run(tmp_path / "run", prompts).valleys().loc[1]  # V* of perturbed tokens
    assert valley["layer_low"] < valley["layer_high"]
    assert valley["layer_low"] <= valley["layer"] <= valley["layer_high"]


def test_a_group_without_tokens_has_neither(tmp_path):
    table = write_run(tmp_path / "run", planted(hybrid_curves(), perturbed_share=0)).valleys()
    assert table.loc[table["group"] == "perturbed", ["layer", "entropy"]].isna().all(axis=None)
    assert (table.loc[table["group"] == "perturbed", ["n_tokens", "n_prompts", "share"]] == 0).all(axis=None)
