"""The theory's simulation against loops, closed forms and scipy, and its parameters read off planted runs."""

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from analyses import theory as analysis
from layerlens.analysis.theory import (
    PAPER,
    RULES,
    Parameters,
    algorithm_layers,
    argmin_layers,
    critical_rise,
    dominance_table,
    expected_gain,
    first_step,
    forms_table,
    last_layers,
    parameters_from,
    parameters_table,
    prediction_table,
    simulate,
    theorem_layers,
    theorem_table,
    walk_depths,
)
from layerlens.errors import OptionError, RunError
from layerlens.tables.save import cell
from tests.made_up_run import hybrid_curves, planted, write_run
from tests.refusals import refused

ROOT = Path(__file__).parents[3]
NOISY = replace(PAPER, noise=0.37)
FLAT = Parameters(n_layers=8, onset=1, valley=7, plateau=3.0, lowest=3.0, rise=0.0, noise=0.4)
SMALL = Parameters(n_layers=9, onset=3, valley=7, plateau=3.0, lowest=1.0, rise=0.5, noise=0.6, early_factor=2.0)
HIGH = Parameters(n_layers=24, onset=12, valley=21, plateau=11.0, lowest=2.0, rise=0.9, noise=0.2, early_factor=2.5)


def slow_algorithm(entropy, window):
    """max{l <= L : l is the window's end or H(l-1) >= H(l)}, by trying every layer."""
    n_layers = len(entropy)
    end = n_layers - window + 1
    return max(x for x in range(end, n_layers + 1) if x == end or not entropy[x - 2] < entropy[x - 1])


def slow_theorem(entropy, window):
    """max{l < L : l is the window's end or H(l-1) >= H(l)}, by trying every layer."""
    n_layers = len(entropy)
    end = n_layers - window + 1
    return max(x for x in range(end, n_layers) if x == end or not entropy[x - 2] < entropy[x - 1])


def slow_argmin(entropy, window):
    """The latest layer of the window than which none is lower."""
    candidates = entropy[-window:]
    return max(x for x in range(len(entropy) - window + 1, len(entropy) + 1) if entropy[x - 1] == min(candidates))


SLOW = {
    "last": lambda entropy, _: len(entropy),
    "algorithm": slow_algorithm,
    "theorem": slow_theorem,
    "argmin": slow_argmin,
}


def slow_curve(parameters):
    """H* and S of every layer by the formulas."""
    p, bare, whole = parameters, [], []
    for layer in range(1, p.n_layers + 1):
        if layer <= p.onset:
            value = p.plateau
        elif layer <= p.valley:
            value = p.plateau - (p.plateau - p.lowest) * (layer - p.onset) / (p.valley - p.onset)
        else:
            value = p.lowest
        bare.append(value)
        late = p.rise * (layer - p.valley) / (p.n_layers - p.valley) if layer > p.valley else 0.0
        whole.append(value + late)
    return bare, whole


entropies = st.one_of(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 12)), elements=st.floats(-5, 12)),
    hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 12)), elements=st.sampled_from([0, 1, 2])),
)


@given(entropies, st.data())
def test_rules_are_their_plain_readings_ties_included(entropy, data):
    window = data.draw(st.integers(2, entropy.shape[1]))
    for rule, choose in RULES.items():
        expected = [SLOW[rule](row.tolist(), window) for row in entropy]
        assert choose(entropy, window).tolist() == expected
        if window == entropy.shape[1]:
            assert choose(entropy, None).tolist() == expected


@given(entropies)
def test_the_two_forms_differ_exactly_where_the_last_layer_is_not_higher(entropy):
    differ = algorithm_layers(entropy) != theorem_layers(entropy)
    assert differ.tolist() == [bool(row[-2] >= row[-1]) for row in entropy]


def test_a_nan_ends_the_walk():
    entropy = np.array([[1.0, 2.0, math.nan, 4.0, 5.0]])
    assert algorithm_layers(entropy).tolist() == [4]
    assert theorem_layers(entropy).tolist() == [4]


@pytest.mark.parametrize("parameters", [PAPER, SMALL, HIGH, FLAT, replace(PAPER, valley=40, rise=0.0)])
def test_the_curve_is_its_formula(parameters):
    bare, whole = slow_curve(parameters)
    assert parameters.bare == pytest.approx(bare)
    assert parameters.noiseless == pytest.approx(whole)


CASES = {  # V*, L, window: Algorithm 1, Theorem 1
    "one layer before the end": (39, 40, 10, 39, 39),
    "four layers before the end": (36, 40, 10, 36, 36),
    "the rise is longer than the window": (30, 40, 5, 36, 36),
    "the last layer is the lowest": (40, 40, 10, 40, 39),
}


@pytest.mark.parametrize("case", CASES)
def test_without_noise_the_layer_is_known(case):
    valley, n_layers, window, algorithm, theorem = CASES[case]
    parameters = replace(PAPER, valley=valley, n_layers=n_layers, rise=0.37 * (valley < n_layers))
    entropy = simulate(parameters, n_draws=3)
    assert algorithm_layers(entropy, window).tolist() == [algorithm] * 3
    assert theorem_layers(entropy, window).tolist() == [theorem] * 3
    table = theorem_table(parameters, windows=[window], n_draws=3).set_index("rule")
    assert table.loc["algorithm", "inside"] == (algorithm <= valley)
    curve = slow_curve(parameters)[1]
    for rule, layer in (("last", n_layers), ("algorithm", algorithm), ("theorem", theorem)):
        assert table.loc[rule, "loss"] == pytest.approx(curve[layer - 1] - min(curve[-window:]))
        assert table.loc[rule, "loss_low"] == pytest.approx(table.loc[rule, "loss"])


def test_noise_has_the_sd_and_the_correlation_asked_for():
    parameters = replace(HIGH, correlation=0.7)
    noise = simulate(parameters, n_draws=40_000, seed=3) - slow_curve(parameters)[1]
    sd = [0.2 * 2.5 ** ((24 - layer) / 23) for layer in range(1, 25)]
    assert noise.std(axis=0) == pytest.approx(sd, rel=0.02)
    assert noise.mean(axis=0) == pytest.approx(0, abs=0.02)
    for apart in (1, 2, 5):
        found = np.corrcoef(noise[:, 10], noise[:, 10 + apart])[0, 1]
        assert found == pytest.approx(0.7**apart, abs=0.02)
    alone = simulate(HIGH, n_draws=40_000, seed=3) - slow_curve(HIGH)[1]
    assert np.corrcoef(alone[:, 10], alone[:, 11])[0, 1] == pytest.approx(0, abs=0.02)


def test_a_seed_gives_the_same_draws_and_another_gives_others():
    assert np.array_equal(simulate(NOISY, n_draws=50, seed=1), simulate(NOISY, n_draws=50, seed=1))
    assert not np.array_equal(simulate(NOISY, n_draws=50, seed=1), simulate(NOISY, n_draws=50, seed=2))
    twice = simulate(replace(NOISY, noise=0.74), n_draws=50) - PAPER.noiseless
    assert twice == pytest.approx(2 * (simulate(NOISY, n_draws=50) - PAPER.noiseless))
    pd.testing.assert_frame_equal(theorem_table(NOISY, n_draws=99), theorem_table(NOISY, n_draws=99))


def test_the_table_counts_what_a_loop_counts():
    table = theorem_table(SMALL, windows=[4, None], n_draws=300, seed=5)
    draws = simulate(SMALL, n_draws=300, seed=5).tolist()
    bare, whole = slow_curve(SMALL)
    assert table["window"].tolist() == [4] * 4 + [9] * 4
    for row in table.to_dict("records"):
        window = row["window"]
        layers = [SLOW[row["rule"]](draw, window) for draw in draws]
        assert row["inside"] == pytest.approx(sum(3 <= layer <= 7 for layer in layers) / 300)
        assert row["early"] == pytest.approx(sum(layer < 3 for layer in layers) / 300)
        assert row["late"] == pytest.approx(sum(layer > 7 for layer in layers) / 300)
        depths = [9 - layer for layer in layers]
        assert row["depth"] == pytest.approx(statistics.fmean(depths))
        width = 1.959964 * statistics.stdev(depths) / math.sqrt(300)
        assert row["depth_high"] - row["depth"] == pytest.approx(width, rel=1e-6)
        for name, curve in (("loss", whole), ("loss_bare", bare)):
            losses = [curve[layer - 1] - min(curve[-window:]) for layer in layers]
            assert row[name] == pytest.approx(statistics.fmean(losses), abs=1e-12)
        wilson = stats.binomtest(sum(3 <= layer <= 7 for layer in layers), 300).proportion_ci(method="wilson")
        assert (row["inside_low"], row["inside_high"]) == pytest.approx((wilson.low, wilson.high))
        assert row["n_draws"] == 300


def test_the_table_of_the_two_forms_counts_what_a_loop_counts():
    (row,) = forms_table(SMALL, [0.9], windows=[5], n_draws=400, seed=2).to_dict("records")
    draws = simulate(replace(SMALL, noise=0.9), n_draws=400, seed=2).tolist()
    apart = [slow_algorithm(draw, 5) - slow_theorem(draw, 5) for draw in draws]
    assert row["n_differ"] == sum(x != 0 for x in apart) > 100
    assert row["differ"] == row["n_differ"] / 400
    assert row["layers_apart"] == pytest.approx(statistics.fmean(x for x in apart if x))
    assert row["contradicted"] == 0
    (never,) = forms_table(PAPER, windows=[5], n_draws=10).to_dict("records")
    assert math.isnan(never["layers_apart"])
    assert never["n_differ"] == 0


@pytest.mark.parametrize(
    ("parameters", "scale"),
    [
        (NOISY, 0.37 * math.sqrt(2)),
        (replace(NOISY, noise=1.3), 1.3 * math.sqrt(2)),
        (replace(NOISY, correlation=0.6), 0.37 * math.sqrt(2 * (1 - 0.6))),
        (replace(NOISY, early_factor=8.0), 0.37 * math.sqrt(1 + 8 ** (2 / 39))),
    ],
)
def test_the_first_step_is_taken_with_the_closed_form_probability(parameters, scale):
    assert first_step(parameters) == pytest.approx(stats.norm.cdf(0.37 / scale))
    draws = simulate(parameters, n_draws=40_000, seed=11).tolist()
    taken = sum(draw[-2] < draw[-1] for draw in draws) / 40_000
    assert taken == pytest.approx(first_step(parameters), abs=4 * 0.5 / 200)


def test_without_noise_the_first_step_is_certain_or_not_taken():
    assert first_step(PAPER) == 1
    assert first_step(replace(PAPER, rise=0.0)) == 0


def orthant(parameters, depth):
    """P(H(L-depth) < ... < H(L)) as a normal orthant probability by scipy."""
    curve, sd = slow_curve(parameters)[1][-depth - 1 :], parameters.sd[-depth - 1 :]
    differences = np.diff(np.eye(depth + 1), axis=0)
    covariance = differences @ np.diag(sd**2) @ differences.T
    return float(stats.multivariate_normal(differences @ curve, covariance).cdf(np.full(depth, np.inf), lower_limit=0))


@pytest.mark.parametrize("parameters", [SMALL, replace(SMALL, noise=0.2), replace(SMALL, valley=8, noise=1.5), FLAT])
def test_walk_depths_are_orthant_probabilities(parameters):
    depths = walk_depths(parameters, 5)
    assert depths.sum() == pytest.approx(1)
    for depth in (1, 2, 3, 4):
        assert depths[depth:].sum() == pytest.approx(orthant(parameters, depth), abs=1e-4)


def test_exchangeable_layers_are_walked_back_by_factorials():
    depths = walk_depths(FLAT, 7)
    assert [depths[k:].sum() for k in range(7)] == pytest.approx(
        [1 / math.factorial(k + 1) for k in range(7)], abs=1e-5
    )
    found = [float((8 - algorithm_layers(simulate(FLAT, n_draws=40_000)) >= k).mean()) for k in range(4)]
    assert found == pytest.approx([1, 1 / 2, 1 / 6, 1 / 24], abs=0.01)


def test_without_noise_the_depth_is_that_of_the_curve():
    assert walk_depths(replace(PAPER, valley=36), 10).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("parameters", [NOISY, replace(NOISY, valley=36), replace(SMALL, noise=1.0)])
def test_the_simulated_loss_is_the_integrated_one(parameters):
    row = theorem_table(parameters, windows=[6], n_draws=40_000, seed=4).set_index("rule").loc["algorithm"]
    depths, curve = walk_depths(parameters, 6), slow_curve(parameters)[1]
    expected = sum(p * curve[-1 - k] for k, p in enumerate(depths)) - min(curve[-6:])
    standard_error = (row["loss_high"] - row["loss"]) / 1.96
    assert row["loss"] == pytest.approx(expected, abs=4 * standard_error)
    assert expected_gain(parameters, 6) == pytest.approx(curve[-1] - min(curve[-6:]) - expected)


def test_intervals_hold_the_truth_nineteen_times_in_twenty():
    parameters, held = replace(SMALL, noise=1.0), np.zeros(2)
    truth = [stats.norm.cdf(0.25 / math.hypot(1, 2 ** (1 / 8))), walk_depths(parameters, 6) @ np.arange(6)]
    for seed in range(400):
        row = forms_table(parameters, windows=[6], n_draws=250, seed=seed).iloc[0]
        depth = theorem_table(parameters, windows=[6], n_draws=250, seed=seed).iloc[1]
        held += [
            1 - row["differ_high"] <= truth[0] <= 1 - row["differ_low"],
            depth["depth_low"] <= truth[1] <= depth["depth_high"],
        ]
    assert ((held / 400 > 0.92) & (held / 400 < 0.98)).all(), held / 400


def test_gains_are_simulated_and_integrated_alike():
    table = dominance_table([0.0, 0.3, 1.5], [0.2, 1.0], window=6, n_draws=20_000, seed=9)
    assert table[["descent", "rise"]].to_numpy().tolist() == [[s, d] for s in (0.2, 1.0) for d in (0.0, 0.3, 1.5)]
    for row in table.to_dict("records"):
        assert row["gain"] == pytest.approx(
            row["gain_expected"], abs=4 * (row["gain_high"] - row["gain"]) / 1.96 + 1e-4
        )
        assert row["step"] == pytest.approx(stats.norm.cdf(row["rise"] / math.sqrt(2)), abs=0.015)
        assert row["first_step"] == pytest.approx(stats.norm.cdf(row["rise"] / math.sqrt(2)))
    one = dominance_table([0.3], [0.2], window=6, n_draws=200, seed=9).iloc[0]
    shape = Parameters(n_layers=7, onset=1, valley=6, plateau=1.0, lowest=0.0, rise=0.3, noise=1.0)
    curve = slow_curve(shape)[1]
    gains = [curve[-1] - curve[slow_algorithm(draw, 6) - 1] for draw in simulate(shape, n_draws=200, seed=9).tolist()]
    assert one["gain"] == pytest.approx(statistics.fmean(gains))
    assert one["better"] == sum(gain > 0 for gain in gains) / 200
    assert one["worse"] == sum(gain < 0 for gain in gains) / 200


def test_the_critical_rise_is_where_the_two_steps_balance():
    """With three candidates the gain is d P(first step) - s P(both steps)."""
    for descent in (0.3, 1.0, 2.0):
        rise = critical_rise(descent, window=3)
        two = stats.multivariate_normal([rise, -descent], [[2, -1], [-1, 2]])
        both = float(two.cdf([math.inf, math.inf], lower_limit=[0, 0]))
        assert rise * stats.norm.cdf(rise / math.sqrt(2)) == pytest.approx(descent * both, abs=2e-4 * descent)


def test_the_critical_rise_has_the_limits_that_are_known():
    assert critical_rise(0.001) / 0.001 == pytest.approx(2 * math.e - 5, abs=2e-3)
    assert critical_rise(0.001, window=4) / 0.001 == pytest.approx(2 * (1 / 6 + 1 / 24), abs=2e-3)
    assert critical_rise(1.0, window=2) == pytest.approx(0, abs=2e-4)  # nothing to overshoot
    assert critical_rise(0.0) == 0
    assert critical_rise(6.0) < 1e-3


def simulated_run(folder, parameters, *, n_prompts=10, n_tokens=60, **options):
    """A run whose entropies are draws of the theory."""
    entropy = simulate(parameters, n_draws=n_prompts * n_tokens, seed=8).reshape(n_prompts, n_tokens, -1)
    prompts = {f"p{index}": {"entropy": rows} for index, rows in enumerate(entropy)}
    return write_run(folder, prompts, n_vocab=248320, **options)


def test_parameters_of_a_simulated_run_are_those_it_was_made_with(tmp_path):
    run = simulated_run(tmp_path / "run", HIGH)
    table = parameters_table(run).set_index("parameter")
    assert table.loc[["V_onset", "V*"], "value"].tolist() == [12, 21]
    expected = {"plateau": 11.0, "lowest": 2.0, "descent": 1.0, "rise": 0.9, "noise": 0.2, "early_factor": 2.5}
    for name, value in expected.items():
        row = table.loc[name]
        assert row["value"] == pytest.approx(value, rel=0.08), name
        assert row["low"] < row["value"] < row["high"], name
    assert table["found"].all()
    assert (table["n_tokens"] == 600).all()
    assert (table["n_prompts"] == 10).all()
    read = parameters_from(run)
    assert (read.n_layers, read.onset, read.valley, read.correlation) == (24, 12, 21, 0)
    assert read.noise == table.loc["noise", "value"]
    assert "note" not in parameters_table(run).attrs


def test_a_run_of_the_theory_is_predicted_and_another_is_not(tmp_path):
    shape = replace(HIGH, noise=0.5, early_factor=1.0)
    table = prediction_table(simulated_run(tmp_path / "run", shape)).set_index("measure")
    assert list(table.index) == ["first_step", "inside", "early", "late", "depth"]
    for name in ("first_step", "inside", "depth"):
        row = table.loc[name]
        assert row["measured_low"] - 0.02 < row["predicted"] < row["measured_high"] + 0.02
    assert table.loc["first_step", "predicted"] == pytest.approx(stats.norm.cdf(0.3 / (0.5 * math.sqrt(2))), abs=0.05)
    two_kinds = planted(hybrid_curves(), n_prompts=4, perturbed_share=0.3)
    table = prediction_table(write_run(tmp_path / "two", two_kinds, n_vocab=248320), "all").set_index("measure")
    assert table.loc["first_step", ["measured", "predicted"]].tolist() == pytest.approx([0.3, 0])


def test_measured_is_counted_token_by_token(tmp_path):
    run = simulated_run(tmp_path / "run", replace(HIGH, noise=0.5), window=6)
    table = prediction_table(run, "unperturbed", n_draws=100).set_index("measure")["measured"]
    rows = [list(map(float, row)) for row in run.tokens["entropy"] if not row[-1] > row[-2]]
    assert table["depth"] == statistics.fmean(24 - slow_algorithm(row, 6) for row in rows) == 0
    table = prediction_table(run, n_draws=100).set_index("measure")["measured"]
    layers = [slow_algorithm(list(map(float, row)), 6) for row in run.tokens["entropy"]]
    assert table["depth"] == pytest.approx(statistics.fmean(24 - layer for layer in layers))
    assert table["late"] == pytest.approx(sum(layer > 21 for layer in layers) / 600)


def test_the_noise_is_the_plain_reading_of_its_definition(tmp_path):
    run = simulated_run(tmp_path / "run", SMALL, n_prompts=2, n_tokens=9)
    rows = [[float(value) for value in row] for row in run.tokens["entropy"]]
    sd = {}
    for layer in range(2, 9):
        sd[layer] = statistics.pstdev(row[layer - 2] - 2 * row[layer - 1] + row[layer] for row in rows) / math.sqrt(6)
    early, late = (statistics.median(sd[layer] for layer in half) for half in ((2, 3, 4), (5, 6, 7, 8)))
    per_layer = math.log(early / late) / (6.5 - 3)
    value = parameters_table(run).set_index("parameter")["value"]
    assert value["noise"] == pytest.approx(late * math.exp(-per_layer * (9 - 6.5)), rel=1e-5)
    assert value["early_factor"] == pytest.approx(math.exp(per_layer * 8), rel=1e-5)


def test_planted_curves_without_noise_are_read_off(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=3), n_vocab=248320)
    value = parameters_table(run, "perturbed").set_index("parameter")["value"]
    assert value[["V_onset", "V*"]].tolist() == [28, 39]
    assert value[["plateau", "lowest", "rise"]].tolist() == pytest.approx([11.3, 0.52, 0.37], rel=1e-5)
    assert value[["noise", "early_factor"]].tolist() == pytest.approx([0, 1], abs=2e-5)


def test_stand_ins_are_marked(tmp_path):
    falls = {"perturbed": np.ones(10), "unperturbed": np.array([1, 2, 3, 2.8, 2.5, 2, 1.5, 1, 0.7, 0.5])}
    table = parameters_table(write_run(tmp_path / "run", planted(falls, perturbed_share=0)), "unperturbed")
    assert table.set_index("parameter")["value"][["V_onset", "V*", "rise"]].tolist() == [3, 10, 0]
    assert table["found"].tolist() == [False, False, *[True] * 6]
    assert table.attrs["note"] == "the highest layer before V* stands in for V_onset; L stands in for V*"


def test_selection_alone_makes_perturbed_tokens_rise(tmp_path):
    run = simulated_run(tmp_path / "run", replace(HIGH, rise=0.0, early_factor=1.0, noise=0.3), n_tokens=400)
    change = run.layers("entropy")[:, -1] - run.layers("entropy")[:, -2]
    selected = [float(x) for x in change if x > 0]
    assert statistics.fmean(selected) == pytest.approx(2 * 0.3 / math.sqrt(math.pi), abs=0.02)
    rise = parameters_table(run, "perturbed").set_index("parameter")["value"]["rise"]
    assert rise > 0.1
    assert parameters_table(run, "all").set_index("parameter")["value"]["rise"] < 0.03


def test_one_prompt_has_no_interval(tmp_path):
    run = simulated_run(tmp_path / "run", HIGH, n_prompts=1, n_tokens=200)
    table = parameters_table(run)
    assert table["value"].notna().all()
    assert table[["low", "high"]].isna().all(axis=None)
    assert prediction_table(run, n_draws=50)[["measured_low", "measured_high"]].isna().all(axis=None)


def test_what_a_run_lacks_is_one_sentence(tmp_path):
    run = simulated_run(tmp_path / "run", HIGH, n_prompts=2, n_tokens=5)
    with refused(OptionError, "group", "some", advice="perturbed, unperturbed"):
        parameters_table(run, "some")
    short = write_run(tmp_path / "short", {"p": {"entropy": np.ones((4, 3))}})
    with refused(RunError, problem="3 layers", advice="4"):
        parameters_from(short)
    rising = write_run(tmp_path / "rising", {"p": {"entropy": np.tile(np.arange(1.0, 9), (4, 1))}})
    with refused(RunError, problem="final rise"):
        parameters_from(rising)
    with refused(RunError, problem="group 'unperturbed'"):
        prediction_table(rising, "unperturbed")


BAD = {
    "V_onset after V*": {"onset": 39},
    "V* after L": {"valley": 41},
    "a plateau below the valley": {"plateau": 0.1},
    "a negative rise": {"rise": -0.1},
    "a rise after the last layer": {"valley": 40},
    "negative noise": {"noise": -1.0},
    "no early noise": {"early_factor": 0.0},
    "full correlation": {"correlation": 1.0},
    "not a number": {"plateau": math.nan},
}


@pytest.mark.parametrize("case", BAD)
def test_parameters_that_contradict_each_other_are_refused(case):
    with pytest.raises(OptionError):
        replace(PAPER, **BAD[case])


def test_options_out_of_range_are_refused():
    with pytest.raises(OptionError, match="1 draws"):
        simulate(PAPER, n_draws=1)
    for window in (0, 41):
        for choose in RULES.values():
            with refused(OptionError, "window", window):
                choose(np.ones((2, 40)), window)
    with refused(OptionError, "window", 1):
        theorem_layers(np.ones((2, 40)), 1)
    assert algorithm_layers(np.ones((2, 40)), 1).tolist() == last_layers(np.ones((2, 40)), 1).tolist() == [40, 40]
    assert argmin_layers(np.zeros((1, 40)), 1).tolist() == [40]
    with refused(OptionError, "correlation", 0.5):
        walk_depths(replace(NOISY, correlation=0.5))
    with pytest.raises(OptionError, match="descent -1"):
        critical_rise(-1.0)
    with pytest.raises(OptionError, match="window 1 "):
        dominance_table([0.1], [0.1], window=1)


def test_the_script_writes_claims_that_agree_with_what_is_known(tmp_path, capsys):
    run = simulated_run(tmp_path / "run", HIGH, n_prompts=3)
    analysis.main([str(tmp_path / "out"), "--draws", "2000", "--seed", "7", "--run", str(run.path)])
    names = ["theory.png", "theory.pdf", "theory.csv", "parameters.csv", "prediction.csv", "claims.csv", "claims.md"]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    table = pd.read_csv(tmp_path / "out" / "claims.csv")
    assert sorted(set(table["claim"])) == [1, 2, 3, 4, 5, 6]
    known = table[table["expected"].notna() & table["low"].notna() & (table["claim"] < 6)]
    assert len(known) > 20
    for row in known.to_dict("records"):
        assert abs(row["value"] - row["expected"]) <= 2.5 * (row["high"] - row["low"]) / 2 + 0.003, row
    first = table[table["claim"] == 1]
    premise = first[first["what"].str.contains("wherever the premise holds")]
    assert premise[["value", "expected", "n"]].to_numpy().tolist() == [[8000] * 3] * 2
    exact = first[first["what"].str.contains("Algorithm 1, no noise")]
    assert len(exact) == 3
    assert (exact["value"] == exact["expected"]).all()
    # rows of one label are of one curve and one noise
    assert not table.duplicated(["claim", "what", "setting"]).any()


def test_rows_that_share_a_curve_share_its_descent():
    falls = {round(analysis.descent(curve), 9) for curve in (PAPER, analysis.EARLY, analysis.ENDS_LOWEST)}
    assert falls == {round(10.8 / 11, 9)}
    assert analysis.descent(analysis.one_curve()) < 0.7
    labels = [analysis.claim(1, "", curve, "")["setting"] for curve in (analysis.ENDS_LOWEST, analysis.one_curve())]
    assert "s = 0.98" in labels[0]
    assert "s = 0.69" in labels[1]


def test_the_script_refuses_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        analysis.main([str(tmp_path / "out"), "--run", str(tmp_path / "none")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "no run" in said
    assert str(tmp_path / "none") in said
    assert not (tmp_path / "out").exists()


def test_the_one_curve_has_the_share_and_the_rise_that_the_paper_reports():
    one = analysis.one_curve()
    change = stats.norm(one.noiseless[-1] - one.noiseless[-2], one.noise * math.sqrt(2))
    assert change.sf(0) == pytest.approx(0.162)
    assert change.expect(lambda x: x, lb=0, conditional=True) == pytest.approx(0.37, rel=1e-4)


def test_the_page_shows_the_numbers_of_the_committed_table():
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    rows = (ROOT / "figures" / "theory" / "claims.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in page.splitlines() if line[:2] == "| " and line[2:3].isdigit() and line[3:5] == " |"]
    assert len(shown) > 15
    assert set(shown) <= set(rows)


def test_the_page_predicts_for_a_run_what_the_committed_tables_say():
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"\*\*Your model\.\*\*(.*)", " ".join(page.split()))
    quoted = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", paragraph)
    known = set()
    for name, kinds in (("parameters", ["value"]), ("prediction", ["predicted", "measured"])):
        table = pd.read_csv(ROOT / "figures" / "smollm2-gsm8k" / "last" / f"{name}.csv")
        for kind in kinds:
            ends = ("low", "high") if kind == "value" else (f"{kind}_low", f"{kind}_high")
            known |= {tuple(cell(value) for value in row) for row in table[[kind, *ends]].to_numpy()}
    assert len(quoted) == 5
    assert set(quoted) <= known


def test_the_page_says_which_intervals_miss_their_closed_form():
    table = pd.read_csv(ROOT / "figures" / "theory" / "claims.csv")
    table = table[table["expected"].notna() & table["low"].notna() & ~table["what"].str.endswith("of the others")]
    missed = table[(table["expected"] < table["low"]) | (table["high"] < table["expected"])]
    assert len(table) == 27
    assert missed[["claim", "setting"]].to_numpy().tolist() == [
        [2, "V* = 39, s = 0.98, σ = 1.48"],
        [3, "V* = 39, s = 0.98, σ = 1.48"],
        [4, "V* = 36, s = 0.98, σ = 0.37"],
    ]
    page = " ".join((ROOT / "docs" / "theory.md").read_text(encoding="utf-8").split())
    assert "Three of the 27 intervals" in page
    assert f"{missed['expected'].iloc[2]:g} is below {missed['low'].iloc[2]:g}" in page
