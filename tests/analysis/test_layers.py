"""Means by layer against a slow reading: token by token, prompt by prompt."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis import entropy_curves
from layerlens.analysis.layers import MEASURES
from layerlens.errors import RunError
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused


@pytest.fixture
def noisy():
    """Five prompts of 3, 4, ... tokens over three layers; layer 2 has no attention part."""
    random = np.random.default_rng(5)
    prompts = {}
    for index in range(5):
        shape = (3 + index, 3)
        prompts[f"p{index}"] = {name: random.uniform(0.1, 3, shape).astype(np.float32) for name in MEASURES}
        prompts[f"p{index}"]["attn_ratio"][:, 1] = np.nan
    return prompts


def tokens_of(prompts, measure, layer):
    """The values of a measure at a layer (from 1), one a token."""
    return [float(token[layer - 1]) for given in prompts.values() for token in given[measure]]


def test_means_and_deviations_are_over_tokens(tmp_path, noisy):
    table = write_run(tmp_path / "run", noisy, layer_kinds=["linear", "full", "linear"]).by_layer()
    assert list(table["layer"]) == [1, 2, 3]
    assert list(table["kind"]) == ["linear", "full", "linear"]
    assert set(table["n_tokens"]) == {3 + 4 + 5 + 6 + 7}
    assert set(table["n_prompts"]) == {5}
    for row in table.to_dict("records"):
        for measure in MEASURES:
            values = tokens_of(noisy, measure, row["layer"])
            if measure == "attn_ratio" and row["layer"] == 2:
                assert all(math.isnan(row[measure + part]) for part in ("", "_low", "_high", "_sd"))
                continue
            assert row[measure] == pytest.approx(statistics.fmean(values), rel=1e-6)
            assert row[f"{measure}_sd"] == pytest.approx(statistics.pstdev(values), rel=1e-6)
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]


def test_prompts_that_were_not_finite_are_left_out_and_counted(tmp_path, noisy):
    broken = {**noisy, "broken": {name: np.full((4, 3), np.nan) for name in MEASURES}}
    with_broken = write_run(tmp_path / "a", broken, finish_reasons={"broken": "non_finite"}).by_layer()
    without = write_run(tmp_path / "b", noisy).by_layer()
    pd.testing.assert_frame_equal(with_broken, without)
    assert with_broken.attrs == {"n_prompts": 5, "n_prompts_left_out": 1}
    assert without.attrs == {"n_prompts": 5, "n_prompts_left_out": 0}


def test_the_interval_is_of_prompts_and_not_of_tokens(tmp_path):
    """Two prompts apart by 1 with 500 equal tokens each: resampling tokens would give an interval of width 0.06."""
    prompts = {name: {"entropy": np.full((500, 2), value)} for name, value in (("low", 1.0), ("high", 2.0))}
    row = write_run(tmp_path / "run", prompts).by_layer().iloc[0]
    assert (row["entropy_low"], row["entropy"], row["entropy_high"]) == (1.0, 1.5, 2.0)


def test_one_prompt_has_means_and_no_interval(tmp_path):
    table = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=1)).by_layer()
    assert table["norm_ratio"].to_numpy() == pytest.approx(hybrid_curves()["norm_ratio"])
    assert table[["norm_ratio_low", "entropy_high"]].isna().all(axis=None)


def test_the_order_of_prompts_changes_nothing(tmp_path):
    prompts = planted(hybrid_curves(), n_prompts=6, n_tokens=8, noise=0.3)
    turned = dict(reversed(prompts.items()))
    pair = [write_run(tmp_path / name, rows) for name, rows in (("a", prompts), ("b", turned))]
    for analysis in ("by_layer", "phases", "partition", "valleys"):
        first, second = (getattr(run, analysis)() for run in pair)
        pd.testing.assert_frame_equal(first, second)


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_laws_of_means(tmp_path_factory, n_layers, n_prompts, seed):
    """Within its interval, within its prompts' range, as many tokens as there are; whatever the run."""
    random = np.random.default_rng(seed)
    prompts = {
        f"p{i}": {"entropy": random.gamma(1.0, 2.0, (random.integers(1, 6), n_layers))} for i in range(n_prompts)
    }
    table = write_run(tmp_path_factory.mktemp("laws") / "run", prompts).by_layer()
    for layer, row in enumerate(table.to_dict("records")):
        means = [float(given["entropy"][:, layer].mean()) for given in prompts.values()]
        assert min(means) - 1e-5 <= row["entropy_low"] <= row["entropy"] <= row["entropy_high"] <= max(means) + 1e-5
        assert row["n_tokens"] == sum(len(given["entropy"]) for given in prompts.values())


def test_curves_split_the_tokens(tmp_path):
    curves = hybrid_curves()
    run = write_run(tmp_path / "run", planted(curves, perturbed_share=0.25), layer_kinds=hybrid_kinds())
    table = entropy_curves(run)
    for group, n_tokens in (("perturbed", 80), ("unperturbed", 240)):
        rows = table[table["group"] == group]
        assert rows["entropy"].to_numpy() == pytest.approx(curves[group], rel=1e-6)
        assert rows["entropy_sd"].to_numpy() == pytest.approx(0, abs=1e-5)
        assert set(rows["n_tokens"]) == {n_tokens}
    mixed = 0.25 * curves["perturbed"] + 0.75 * curves["unperturbed"]
    assert table.loc[table["group"] == "all", "entropy"].to_numpy() == pytest.approx(mixed, rel=1e-6)
    assert list(table["kind"][:40]) == hybrid_kinds()


def test_runs_without_a_token_to_count_are_refused(tmp_path):
    empty = write_run(tmp_path / "empty", {"p": {"entropy": np.zeros((0, 3))}})
    with refused(RunError, problem="complete prompt"):
        empty.by_layer()
    broken = write_run(tmp_path / "broken", {"p": {"entropy": np.ones((2, 3))}}, finish_reasons={"p": "non_finite"})
    for analysis in ("by_layer", "phases", "partition", "valleys", "substitutions"):
        with refused(RunError, "dtype", problem="infinite"):
            getattr(broken, analysis)()
