"""Agreement with the last layer against a slow reading, and planted layers of agreement."""

import statistics

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis.agreement import agreement, earliest_agreement
from layerlens.errors import RunError
from tests.made_up_run import write_run
from tests.refusals import refused

SHARES = ("agreement", "flip", "settled")


def made_up(seed, lengths, n_layers=5, n_words=3):
    """Prompts of so many tokens whose layers choose among a few tokens at random."""
    random = np.random.default_rng(seed)
    return {
        f"p{index}": {
            "entropy": np.ones((length, n_layers)),
            "top_token_id": random.integers(0, n_words, (length, n_layers)).astype(np.int32),
        }
        for index, length in enumerate(lengths)
    }


def slow_layers(prompts):
    """The chosen tokens of every state, layer by layer from 1 as lists."""
    return [top.tolist() for rows in prompts.values() for top in rows["top_token_id"]]


def kept_from(top):
    """The earliest layer from which on every layer chooses the last one's token."""
    layer = len(top)
    while layer > 1 and top[layer - 2] == top[-1]:
        layer -= 1
    return layer


@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_shares_by_layer_are_their_plain_reading(tmp_path, n_layers):
    prompts = made_up(4, [3, 9, 1, 14], n_layers)
    table = agreement(write_run(tmp_path / "run", prompts, layer_kinds=["linear"] * n_layers))
    tops = slow_layers(prompts)
    assert table["layer"].tolist() == list(range(1, n_layers + 1))
    assert set(table["kind"]) == {"linear"}
    assert set(table["n_tokens"]) == {27}
    assert set(table["n_prompts"]) == {4}
    for row in table.to_dict("records"):
        layer = row["layer"]
        assert row["agreement"] == pytest.approx(statistics.fmean(top[layer - 1] == top[-1] for top in tops))
        assert row["settled"] == pytest.approx(statistics.fmean(kept_from(top) == layer for top in tops))
        assert row["kept"] == pytest.approx(statistics.fmean(kept_from(top) <= layer for top in tops))
        assert row["kept_low"] <= row["kept"] <= row["kept_high"]
        if layer == 1:
            assert np.isnan([row["flip"], row["flip_low"], row["flip_high"]]).all()
        else:
            assert row["flip"] == pytest.approx(statistics.fmean(top[layer - 1] != top[layer - 2] for top in tops))
        for name in SHARES[: 3 if layer > 1 else 1]:
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_the_earliest_layer_is_its_plain_reading(tmp_path):
    prompts = made_up(8, [3, 9, 1, 14])
    table = earliest_agreement(write_run(tmp_path / "run", prompts)).set_index("reading")
    tops = slow_layers(prompts)
    expected = {"first": [1 + top.index(top[-1]) for top in tops], "kept": [kept_from(top) for top in tops]}
    for reading, layers in expected.items():
        row = table.loc[reading]
        assert row["layer"] == pytest.approx(statistics.fmean(layers))
        assert row["layer_sd"] == pytest.approx(statistics.pstdev(layers))
        assert row["layer_low"] < row["layer"] < row["layer_high"]
        assert row[["n_tokens", "n_prompts"]].tolist() == [27, 4]
    assert table.loc["first", "layer"] < table.loc["kept", "layer"]


def test_planted_layers_of_agreement(tmp_path):
    """Three quarters have the final token from layer 4 on, a quarter at layer 2 and then again from layer 5 on."""
    top = np.array([[1, 2, 3, 9, 9, 9]] * 6 + [[1, 9, 3, 4, 9, 9]] * 2, dtype=np.int32)
    prompts = {f"p{k}": {"entropy": np.ones((8, 6)), "top_token_id": top} for k in range(3)}
    run = write_run(tmp_path / "run", prompts)
    table = agreement(run)
    assert table["agreement"].tolist() == [0, 0.25, 0, 0.75, 1, 1]
    assert table["settled"].tolist() == [0, 0, 0, 0.75, 0.25, 0]
    assert table["flip"].tolist()[1:] == [1, 1, 1, 0.25, 0]
    seen = 3 * table["agreement"].to_numpy()[1:5]  # by three prompts that are alike
    low, high = scipy.stats.beta.ppf(0.025, seen, 4 - seen), scipy.stats.beta.ppf(0.975, seen + 1, 3 - seen)
    unseen = scipy.stats.binomtest(0, 3).proportion_ci().high
    assert table["agreement_low"].tolist() == pytest.approx([0, low[0], 0, low[2], 1 - unseen, 1])
    assert table["agreement_high"].tolist() == pytest.approx([unseen, high[0], unseen, high[2], 1, 1])
    earliest = earliest_agreement(run).set_index("reading")
    assert earliest["layer"].to_dict() == {"first": 3.5, "kept": 4.25}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_laws(tmp_path_factory, lengths, n_layers, seed):
    """The last layer agrees with itself, every token settles once, and the earliest layer is where it does."""
    run = write_run(tmp_path_factory.mktemp("laws") / "run", made_up(seed, lengths, n_layers))
    table = agreement(run)
    assert table["agreement"].iloc[-1] == 1
    assert table["settled"].sum() == pytest.approx(1)
    earliest = earliest_agreement(run).set_index("reading")
    assert (table["layer"] * table["settled"]).sum() == pytest.approx(earliest.loc["kept", "layer"])
    assert 1 <= earliest.loc["first", "layer"] <= earliest.loc["kept", "layer"] <= n_layers
    if len(lengths) == 1:
        assert table[["agreement_low", "flip_high", "settled_low"]].isna().all(axis=None)
        assert earliest["layer_low"].isna().all()


def test_prompts_that_were_not_finite_are_left_out_and_order_changes_nothing(tmp_path):
    prompts = made_up(2, [5, 7, 4])
    broken = {"broken": made_up(3, [6])["p0"]} | dict(reversed(prompts.items()))
    first = write_run(tmp_path / "a", prompts)
    second = write_run(tmp_path / "b", broken, finish_reasons={"broken": "non_finite"})
    for analysis in (agreement, earliest_agreement):
        pd.testing.assert_frame_equal(analysis(first), analysis(second))
        assert analysis(second).attrs == {"n_prompts": 3, "n_prompts_left_out": 1}


def test_runs_without_a_token_to_count_are_refused(tmp_path):
    empty = write_run(tmp_path / "run", {"p": {"entropy": np.zeros((0, 3))}})
    for analysis in (agreement, earliest_agreement):
        with refused(RunError, problem="complete prompt"):
            analysis(empty)


def test_divergences_are_averaged_where_the_run_has_them(tmp_path):
    prompts = made_up(3, [3, 9, 1, 14])
    assert not [name for name in agreement(write_run(tmp_path / "without", prompts)) if name.startswith("kl")]
    random = np.random.default_rng(0)
    for rows in prompts.values():
        rows["kl_last_to_layer"] = random.gamma(2.0, size=rows["entropy"].shape) * [5, 4, 3, 2, 0]
    table = agreement(write_run(tmp_path / "with", prompts))
    values = [rows["kl_last_to_layer"][:, layer].tolist() for layer in range(5) for rows in prompts.values()]
    for layer, row in enumerate(table.to_dict("records")):
        of_layer = [value for part in values[4 * layer : 4 * layer + 4] for value in part]
        assert row["kl_last_to_layer"] == pytest.approx(statistics.fmean(of_layer))
        assert row["kl_last_to_layer_sd"] == pytest.approx(statistics.pstdev(of_layer))
        assert row["kl_last_to_layer_low"] <= row["kl_last_to_layer"] <= row["kl_last_to_layer_high"]
        assert (row["kl_last_to_layer_low"] < row["kl_last_to_layer_high"]) == (layer < 4)


def test_a_run_without_divergences_says_how_to_get_them(tmp_path):
    run = write_run(tmp_path / "run", made_up(3, [3]))
    with refused(RunError, given=run.path, advice="kl=True"):
        run.layers("kl_last_to_layer")


@pytest.mark.parametrize("lengths", [[3, 9, 1, 14], [5], [2, 2]])
def test_the_median_is_the_first_layer_that_half_of_the_tokens_do_not_exceed(tmp_path, lengths):
    prompts = made_up(11, lengths, 7)
    table = earliest_agreement(write_run(tmp_path / "run", prompts)).set_index("reading")
    for reading, layer_of in (("first", lambda top: 1 + top.index(top[-1])), ("kept", kept_from)):
        layers = sorted(map(layer_of, slow_layers(prompts)))
        row = table.loc[reading]
        assert row["median"] == statistics.median_low(layers)
        if len(lengths) == 1:
            assert np.isnan([row["median_low"], row["median_high"]]).all()
        else:
            assert 1 <= row["median_low"] <= row["median"] <= row["median_high"] <= 7


def test_shares_from_a_layer_on_cannot_fall(tmp_path):
    table = agreement(write_run(tmp_path / "run", made_up(5, [4, 8, 15, 16, 23, 42], 9)))
    for end in ("kept", "kept_low", "kept_high"):
        assert (table[end].diff().dropna() >= 0).all()
    assert table.iloc[-1][["kept", "kept_low", "kept_high"]].tolist() == [1, 1, 1]
