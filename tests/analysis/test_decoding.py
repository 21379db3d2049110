"""The statistics of section 6.1 against slow readings of their definitions, token by token."""

import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis.decoding import (
    REPORTED,
    by_entropy_band,
    by_relative_position,
    valley_statistics,
    walk_depths,
)
from layerlens.errors import OptionError, RunError
from tests.made_up_run import hybrid_curves, planted, write_run
from tests.refusals import refused

REPORTED_VALUES = Path(__file__).resolve().parents[3] / "shared" / "paper" / "reported_values.csv"
LAYERS, WINDOW = 6, 4


def made_up(seed, lengths, settled=0.3):
    """Prompts with that many generated tokens, each behind two given ones; a share of the tokens is nearly certain."""
    random = np.random.default_rng(seed)
    prompts = {}
    for index, length in enumerate(lengths):
        shape = (length + 2, LAYERS)
        entropy = random.gamma(1.5, 0.5, shape) * np.where(random.random((length + 2, 1)) < settled, 0.01, 1)
        prompts[f"p{index}"] = {
            "entropy": entropy.astype(np.float32),
            "top_token_id": random.integers(0, 3, shape).astype(np.int32),
            "is_generated": np.arange(length + 2) >= 2,
        }
    return prompts


def slow_tokens(prompts):
    """What the definitions say about every generated token, prompt by prompt."""
    read = {}
    for prompt_id, given_columns in prompts.items():
        tokens = []
        for entropy, top, generated in zip(*(given_columns[name] for name in given_columns), strict=True):
            if not generated:
                continue
            layer = LAYERS
            while layer > LAYERS - WINDOW + 1 and entropy[layer - 2] < entropy[layer - 1]:
                layer -= 1
            tokens.append(
                {
                    "h": float(entropy[-1]),
                    "before": float(entropy[-2]),
                    "at_valley": float(entropy[layer - 1]),
                    "valley": layer < LAYERS,
                    "substituted": top[layer - 1] != top[-1],
                    "depth": LAYERS - layer,
                    "perturbed": entropy[-1] > entropy[-2],
                }
            )
        read[prompt_id] = tokens
    return read


@pytest.fixture
def prompts():
    return made_up(3, [23, 4, 11, 1, 30])


def run_of(folder, prompts, **options):
    return write_run(folder, prompts, window=WINDOW, **options)


def test_every_statistic_is_its_plain_reading(tmp_path, prompts):
    broken = {"broken": made_up(9, [12])["p0"]}
    table = valley_statistics(run_of(tmp_path / "run", prompts | broken, finish_reasons={"broken": "non_finite"}))
    assert table.attrs == {"n_prompts": 5, "n_prompts_left_out": 1, "window": WINDOW}
    by_prompt = slow_tokens(prompts)
    tokens = [token for some in by_prompt.values() for token in some]
    valleys = [token for token in tokens if token["valley"]]
    others = [token for token in valleys if not token["substituted"]]
    without = [token for token in tokens if not token["valley"]]
    substituted = [token for token in tokens if token["substituted"]]
    perturbed = [token for token in tokens if token["perturbed"]]

    def mean(of, some):
        return statistics.fmean(of(token) for token in some), len(some)

    def sd(name):
        return statistics.stdev(statistics.fmean(token[name] for token in some) for some in by_prompt.values())

    expected = {
        "decode_steps": (69, 69),
        "valley_rate": mean(lambda token: token["valley"], tokens),
        "sure_rate_without_valley": mean(lambda token: token["h"] < 0.01, without),
        "substitution_rate": mean(lambda token: token["substituted"], tokens),
        "substitution_rate_of_valleys": mean(lambda token: token["substituted"], valleys),
        "entropy_at_substitutions": mean(lambda token: token["h"], substituted),
        "entropy_at_other_valleys": mean(lambda token: token["h"], others),
        "entropy_without_valley": mean(lambda token: token["h"], without),
        "entropy": mean(lambda token: token["h"], tokens),
        "entropy_change_of_perturbed": mean(lambda token: token["h"] - token["before"], perturbed),
        "walk_depth": mean(lambda token: token["depth"], tokens),
        "walk_depth_of_valleys": mean(lambda token: token["depth"], valleys),
        "entropy_drop_mean_of_ratios": mean(lambda token: (token["h"] - token["at_valley"]) / token["h"], others),
        "entropy_drop_ratio_of_means": (
            sum(token["h"] - token["at_valley"] for token in others) / sum(token["h"] for token in others),
            len(others),
        ),
        "valley_rate_sd": (sd("valley"), 69),
        "substitution_rate_sd": (sd("substituted"), 69),
    }
    assert len(substituted) > 5
    found = table.set_index("statistic")
    rest = [name for name in found.index if name not in expected]
    assert rest == [
        *[f"substitution_rate_band_{k}" for k in range(1, 5)],
        *[f"valley_rate_decile_{k}" for k in range(1, 11)],
        *[f"substitution_rate_decile_{k}" for k in range(1, 11)],
    ]
    for name, (value, n_tokens) in expected.items():
        row = found.loc[name]
        assert row["value"] == pytest.approx(value, rel=1e-5), name
        assert row["n_tokens"] == n_tokens, name
        assert name == "decode_steps" or row["value_low"] <= row["value"] <= row["value_high"], name
    assert abs(found.loc["entropy_drop_mean_of_ratios", "value"] - expected["entropy_drop_ratio_of_means"][0]) > 1e-3


def test_planted_rates_have_their_names_and_units(tmp_path):
    """Of ten tokens four have a valley two layers back, one of which is another token; of the six, three are sure."""
    entropy = np.full((10, 5), 2.0)
    entropy[:4, 2:] = [0.1, 0.3, 0.5]
    entropy[4:7, -1] = 0.001
    top = np.ones((10, 5), dtype=np.int32)
    top[0, 2] = 7
    prompts = {f"p{k}": {"entropy": entropy, "top_token_id": top} for k in range(3)}
    found = valley_statistics(write_run(tmp_path / "run", prompts)).set_index("statistic")
    assert found.loc["valley_rate", ["unit", "value"]].tolist() == ["share", 0.4]
    of_three = scipy.stats.beta.ppf([0.025, 0.975], [1.2, 2.2], [2.8, 1.8])  # which are too few to be certain
    assert found.loc["valley_rate", ["value_low", "value_high"]].tolist() == pytest.approx(of_three)
    assert found.loc["sure_rate_without_valley", ["value", "n_tokens", "n_prompts"]].tolist() == [0.5, 18, 3]
    assert found.loc["substitution_rate_of_valleys", "value"] == 0.25
    assert found.loc["substitution_rate", "value"] == 0.1
    assert found.loc["entropy_drop_mean_of_ratios", "value"] == pytest.approx(0.8)
    assert found.loc["walk_depth", ["unit", "value"]].tolist() == ["layers", 0.8]
    assert found.loc["walk_depth_of_valleys", "value"] == 2
    assert found.loc["substitution_rate_sd", ["value", "value_low", "value_high"]].tolist() == pytest.approx([0, 0, 0])
    assert found.loc["decode_steps", ["unit", "value"]].tolist() == ["tokens", 30]
    empty = ["decode_steps", "substitution_rate_band_2", "substitution_rate_band_3"]
    assert found.index[found["value_low"].isna()].tolist() == empty


def slow_rates(tokens):
    """Valley rate, substitution rate and number of some tokens."""
    rates = [statistics.fmean(token[name] for token in tokens) if tokens else math.nan for name in RATES.values()]
    return [*rates, len(tokens)]


RATES = {"valley_rate": "valley", "substitution_rate": "substituted"}


def assert_rates(row, tokens):
    assert row[[*RATES, "n_tokens"]].tolist() == pytest.approx(slow_rates(tokens), nan_ok=True)
    for name in RATES:
        if row["n_prompts"] < 2:
            assert math.isnan(row[f"{name}_low"])
        else:
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


@pytest.mark.parametrize("edges", [(0.01, 0.05, 0.10), (0.3,), (0.001, 1e9)])
def test_bands_are_their_plain_reading(tmp_path, prompts, edges):
    table = by_entropy_band(run_of(tmp_path / "run", prompts), edges)
    tokens = [token for some in slow_tokens(prompts).values() for token in some]
    bounds = [0, *edges, math.inf]
    assert len(table) == len(edges) + 1
    assert table["share"].sum() == pytest.approx(1)
    for (_, row), low, high in zip(table.iterrows(), bounds[:-1], bounds[1:], strict=True):
        assert row[["entropy_from", "entropy_to"]].tolist() == [low, high]
        members = [token for token in tokens if low <= token["h"] < high]
        assert_rates(row, members)
        assert row["share"] == pytest.approx(len(members) / len(tokens))


def test_an_entropy_on_an_edge_belongs_to_the_band_above(tmp_path):
    """0.01 and 0.05 as float32 lie below 0.01 and above 0.05 as Python has them; both are on the edge."""
    entropy = np.array([[9, 0.0], [9, 0.01], [9, 0.05], [9, 0.1], [9, 0.0099], [9, 0.0499]])
    run = write_run(tmp_path / "run", {"p": {"entropy": entropy}})
    table = by_entropy_band(run)
    assert table["band"].tolist() == ["[0, 0.01)", "[0.01, 0.05)", "[0.05, 0.1)", "[0.1, inf)"]
    assert table["n_tokens"].tolist() == [2, 2, 1, 1]
    sure = valley_statistics(run).set_index("statistic").loc["sure_rate_without_valley"]
    assert sure["value"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("bins", [10, 3, 1, 50])
def test_positions_are_their_plain_reading(tmp_path, prompts, bins):
    table = by_relative_position(run_of(tmp_path / "run", prompts), bins)
    members = {place: [] for place in range(bins)}
    for tokens in slow_tokens(prompts).values():
        for index, token in enumerate(tokens):
            members[math.floor(bins * index / len(tokens))].append(token)
    assert table["bin"].tolist() == list(range(1, bins + 1))
    for (_, row), (place, tokens) in zip(table.iterrows(), members.items(), strict=True):
        assert (row["position_from"], row["position_to"]) == (place / bins, (place + 1) / bins)
        assert_rates(row, tokens)


def test_planted_deciles(tmp_path):
    """Valleys in the seventh tenth only; sequences shorter than ten tokens have no token in some tenths."""
    prompts = {}
    for length in (10, 40, 100, 3):
        entropy = np.full((length, 4), 1.0)
        entropy[[10 * i // length == 6 for i in range(length)], -1] = 1.5
        prompts[f"p{length}"] = {"entropy": entropy}
    run = write_run(tmp_path / "run", prompts)
    table = by_relative_position(run)
    assert table["valley_rate"].tolist() == [0] * 6 + [1] + [0] * 3
    assert table["n_prompts"].tolist() == [4, 3, 3, 4, 3, 3, 4, 3, 3, 3]
    assert table["n_tokens"].tolist() == [16, 15, 15, 16, 15, 15, 16, 15, 15, 15]
    statistics_ = valley_statistics(run).set_index("statistic")["value"]
    for k, row in enumerate(table.to_dict("records"), start=1):
        assert statistics_[f"valley_rate_decile_{k}"] == row["valley_rate"]
        assert statistics_[f"substitution_rate_decile_{k}"] == row["substitution_rate"]


def test_depths_are_counted(tmp_path, prompts):
    table = walk_depths(run_of(tmp_path / "run", prompts))
    tokens = [token for some in slow_tokens(prompts).values() for token in some]
    assert table["depth"].tolist() == [0, 1, 2, 3]
    for row in table.to_dict("records"):
        n = sum(token["depth"] == row["depth"] for token in tokens)
        assert (row["n_tokens"], row["share"]) == (n, pytest.approx(n / len(tokens)))
        assert row["share_low"] <= row["share"] <= row["share_high"]
    assert table["share"].sum() == pytest.approx(1)


@given(st.lists(st.integers(1, 14), min_size=1, max_size=5), st.integers(0, 2**16), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_laws(tmp_path_factory, lengths, seed, bins):
    """Whatever the run: parts add up to the whole, rates lie within 0..1, no statistic is outside its interval."""
    run = run_of(tmp_path_factory.mktemp("laws") / "run", made_up(seed, lengths))
    found = valley_statistics(run).set_index("statistic")
    whole = found["value"]
    for table in (by_entropy_band(run), by_relative_position(run, bins)):
        assert table["n_tokens"].sum() == sum(lengths)
        for name in RATES:
            assert (table[name].fillna(0) * table["n_tokens"]).sum() == pytest.approx(whole[name] * sum(lengths))
    depths = walk_depths(run)
    assert (depths["depth"] * depths["share"]).sum() == pytest.approx(whole["walk_depth"])
    known = found[found["value_low"].notna()]
    assert (known["value_low"] <= known["value"]).all()
    assert (known["value"] <= known["value_high"]).all()
    shares = found.loc[(found["unit"] == "share") & ~found.index.str.endswith("_sd")].dropna()
    assert ((shares["value_low"] >= 0) & (shares["value_high"] <= 1)).all()


def test_one_prompt_has_values_and_no_interval(tmp_path):
    run = run_of(tmp_path / "run", made_up(1, [30]))
    found = valley_statistics(run).set_index("statistic")
    assert found.loc["valley_rate", "value"] > 0
    assert found[["value_low", "value_high"]].isna().all(axis=None)
    assert found.loc[["valley_rate_sd", "substitution_rate_sd"], "value"].isna().all()


def test_without_a_valley_what_would_be_counted_among_them_is_missing(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=3, perturbed_share=0))
    found = valley_statistics(run).set_index("statistic")
    assert found.loc[["valley_rate", "substitution_rate", "walk_depth"], "value"].tolist() == [0, 0, 0]
    among = ["substitution_rate_of_valleys", "entropy_at_substitutions", "entropy_drop_ratio_of_means"]
    among += ["entropy_drop_mean_of_ratios", "entropy_change_of_perturbed", "walk_depth_of_valleys"]
    assert found.loc[among, ["value", "value_low", "value_high"]].isna().all(axis=None)
    assert found.loc[among, ["n_tokens", "n_prompts"]].eq(0).all(axis=None)


def test_the_order_of_prompts_and_of_rows_changes_nothing(tmp_path, prompts):
    turned = {name: {column: values[::-1] for column, values in rows.items()} for name, rows in prompts.items()}
    for rows in turned.values():
        rows["position"] = np.arange(len(rows["entropy"]), dtype=np.int32)[::-1] + 5
    first = run_of(tmp_path / "a", prompts)
    second = run_of(tmp_path / "b", dict(reversed(turned.items())))
    for analysis in (valley_statistics, by_entropy_band, by_relative_position, walk_depths):
        pd.testing.assert_frame_equal(analysis(first), analysis(second))


@pytest.mark.parametrize("analysis", [valley_statistics, by_entropy_band, by_relative_position, walk_depths])
def test_runs_that_cannot_have_them_say_which_would(tmp_path, analysis):
    text = write_run(tmp_path / "text", {"p": {"entropy": np.ones((4, 3)), "is_generated": np.zeros(4, dtype=bool)}})
    with refused(RunError, problem="generated token", advice="max_new_tokens"):
        analysis(text)
    single = write_run(tmp_path / "single", {"p": {"entropy": np.ones((4, 1))}})
    with refused(RunError, problem="single layer"):
        analysis(single)


@pytest.mark.parametrize("edges", [(), (0.1, 0.05), (0.1, 0.1), (0.0, 0.1), (0.1, math.inf), (math.nan,)])
def test_edges_that_divide_nothing_are_refused(tmp_path, prompts, edges):
    with refused(OptionError, "edges", advice="rising numbers"):
        by_entropy_band(run_of(tmp_path / "run", prompts), edges)


@pytest.mark.parametrize("bins", [0, -3, 2.5])
def test_bins_that_divide_nothing_are_refused(tmp_path, prompts, bins):
    with pytest.raises(OptionError, match=f"{bins} bins"):
        by_relative_position(run_of(tmp_path / "run", prompts), bins)


def test_every_number_the_paper_reports_has_one_statistic(tmp_path, prompts):
    if not REPORTED_VALUES.exists():
        pytest.skip("the reported values lie beside the checkout")
    reported = pd.read_csv(REPORTED_VALUES, dtype=str)
    quantities = reported.loc[reported["source"] == "S6.1", "quantity"]
    assert sorted(REPORTED.values()) == sorted(quantities)
    table = valley_statistics(run_of(tmp_path / "run", prompts)).set_index("statistic")
    for statistic, quantity in REPORTED.items():
        percent = table.loc[statistic, "unit"] == "share"
        assert percent == ("percent" in quantity), statistic
