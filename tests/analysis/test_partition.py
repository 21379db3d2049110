"""Shares and entropies of perturbed tokens, and the tokens another layer chose, against slow readings."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.errors import RunError
from tests.made_up_run import hybrid_curves, planted, write_run
from tests.refusals import refused


def test_shares_and_means_are_over_tokens(tmp_path):
    random = np.random.default_rng(11)
    prompts = {f"p{i}": {"entropy": random.gamma(2.0, 1.0, (4 + 3 * i, 5)).astype(np.float32)} for i in range(4)}
    run = write_run(tmp_path / "run", prompts)
    tokens = [list(map(float, token)) for given in prompts.values() for token in given["entropy"]]
    valley = run.valleys().loc[1, "layer"]
    for row in run.partition().to_dict("records"):
        belongs = {
            "perturbed": lambda token: token[4] > token[3],
            "unperturbed": lambda token: not token[4] > token[3],
            "all": lambda token: True,
        }[row["group"]]
        members = [token for token in tokens if belongs(token)]
        assert row["n_tokens"] == len(members)
        assert row["share"] == pytest.approx(len(members) / len(tokens))
        assert row["entropy_change"] == pytest.approx(
            statistics.fmean(token[4] - token[3] for token in members), rel=1e-5
        )
        assert row["entropy_before"] == pytest.approx(statistics.fmean(token[3] for token in members), rel=1e-5)
        assert row["entropy_last"] == pytest.approx(statistics.fmean(token[4] for token in members), rel=1e-5)
        assert row["valley_layer"] == valley
        assert row["entropy_valley"] == pytest.approx(
            statistics.fmean(token[valley - 1] for token in members), rel=1e-5
        )
        for name in ("share", "entropy_change", "entropy_before", "entropy_last", "entropy_valley"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_planted_partition(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(), perturbed_share=0.25))
    table = run.partition().set_index("group")
    assert table["share"].tolist() == [0.25, 0.75, 1.0]
    assert table["share_low"].tolist() == table["share_high"].tolist() == [0.25, 0.75, 1.0]
    assert table["valley_layer"].tolist() == [39, 39, 39]
    assert table.loc["perturbed", "entropy_change"] == pytest.approx(0.37, abs=1e-5)
    assert table.loc["unperturbed", "entropy_change"] == pytest.approx(-2.52, abs=1e-5)
    assert table["entropy_valley"].tolist()[:2] == pytest.approx([0.52, 2.78], abs=1e-5)


def test_without_perturbed_tokens_there_is_no_valley(tmp_path):
    table = write_run(tmp_path / "run", planted(hybrid_curves(), perturbed_share=0)).partition()
    assert table["n_tokens"].tolist() == [0, 320, 320]
    assert table["n_prompts"].tolist() == [0, 8, 8]
    assert table["valley_layer"].isna().all()
    assert table["entropy_valley"].isna().all()
    assert math.isnan(table.loc[0, "entropy_change"])
    assert table.loc[0, "share"] == 0


def test_one_prompt_has_a_share_and_no_interval(tmp_path):
    table = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=1, perturbed_share=0.25)).partition()
    assert table["share"].tolist() == [0.25, 0.75, 1.0]
    assert table[["share_low", "share_high", "entropy_change_low"]].isna().all(axis=None)


@given(st.integers(2, 5), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_laws_of_shares(tmp_path_factory, n_prompts, seed):
    random = np.random.default_rng(seed)
    prompts = {f"p{i}": {"entropy": random.gamma(1.0, 1.0, (random.integers(1, 6), 3))} for i in range(n_prompts)}
    table = write_run(tmp_path_factory.mktemp("laws") / "run", prompts).partition()
    assert table["share"][:2].sum() == pytest.approx(1)
    assert table["n_tokens"][:2].sum() == table["n_tokens"][2]
    assert ((table["share_low"] >= 0) & (table["share_high"] <= 1)).all()
    assert ((table["share_low"] <= table["share"]) & (table["share"] <= table["share_high"])).all()
    changes = table["entropy_change"][:2].tolist()
    assert math.isnan(changes[0]) or changes[0] > 0
    assert math.isnan(changes[1]) or changes[1] <= 0


def test_a_single_layer_cannot_be_perturbed(tmp_path):
    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 1))}})
    with refused(RunError, problem="single layer"):
        run.partition()


def test_two_layers_are_enough(tmp_path):
    entropy = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    table = write_run(tmp_path / "run", {"p": {"entropy": entropy}, "q": {"entropy": entropy}}).partition()
    assert table["n_tokens"].tolist() == [4, 2, 6]
    assert table["entropy_change"].tolist() == [1, -2, 0]
    assert table["valley_layer"].tolist() == [1, 1, 1]
    assert table["entropy_valley"].tolist() == pytest.approx([0.5, 3, 4 / 3])


def test_replacements_are_tokens_of_another_choice(tmp_path):
    top = np.array([[7, 7, 7], [7, 8, 9], [7, 7, 9], [8, 7, 7]], dtype=np.int32)
    selected = np.array([2, 2, 3, 1], dtype=np.int16)
    entropy = np.arange(12, dtype=float).reshape(4, 3)
    given_rows = {"entropy": entropy, "top_token_id": top, "selected_layer": selected}
    given_rows["next_token_id"] = pd.array([7, 8, 9, None], dtype="Int32")
    broken = {"entropy": entropy, "top_token_id": top, "selected_layer": selected}
    run = write_run(tmp_path / "run", {"b": broken, "a": given_rows}, finish_reasons={"b": "non_finite"})
    table = run.replacements()
    assert table["emitted_token_id"].isna().tolist() == [False, True]
    assert table.drop(columns="emitted_token_id").to_dict("list") == {
        "prompt_id": ["a", "a"],
        "position": [6, 8],
        "last_token_id": [9, 7],
        "selected_token_id": [8, 8],
        "selected_layer": [2, 1],
        "entropy_selected": [4.0, 9.0],
        "entropy_last": [5.0, 11.0],
    }
    assert table["emitted_token_id"][0] == 8
    assert table.attrs["n_tokens"] == 4


def test_a_run_of_the_last_layer_has_no_replacement(tmp_path):
    table = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=2)).replacements()
    assert table.empty
    assert "selected_layer" in table.columns
