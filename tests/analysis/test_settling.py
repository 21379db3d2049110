"""Settling depth and deep-thinking ratio against a slow reading of arXiv 2602.13517, and planted divergences."""

import math
import statistics
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis import THRESHOLDS, settling, settling_by_layer
from layerlens.analysis.words import CLASSES, word_class
from layerlens.errors import OptionError, RunError
from tests.made_up_run import write_run
from tests.refusals import refused

FORMS = [" the", "cat", ",", " of", "x1", " valley", " 3"]
WORDS = {number: FORMS[number % len(FORMS)] for number in range(100)}


def made_up(seed, lengths, n_layers=7):
    """Prompts of so many tokens whose divergences wander; NaN in a layer here and there."""
    random = np.random.default_rng(seed)
    prompts = {}
    for index, length in enumerate(lengths):
        divergence = random.random((length, n_layers)) * np.linspace(math.log(2), 0.05, n_layers)
        divergence[:, :-1][random.random((length, n_layers - 1)) < 0.05] = np.nan
        prompts[f"p{index}"] = with_divergences(divergence)
        prompts[f"p{index}"]["js_from_last"][:, -1] = 1e-7  # what rounding leaves
    return prompts


def with_divergences(nats):
    """The columns of a prompt with these divergences from the last layer, [tokens, L]."""
    return {"entropy": np.ones(np.shape(nats)), "js_from_last": np.array(nats, np.float32)}


def slow_depth(divergences, g_nats):
    """The first layer at which the least divergence so far is at most g; the last layer's own is 0."""
    least = math.inf
    for layer, divergence in enumerate([*divergences[:-1], 0.0], start=1):
        least = least if math.isnan(divergence) else min(least, divergence)
        if least <= g_nats:
            return layer
    raise AssertionError("the last layer is near itself")


def slow_tokens(prompts, g_nats):
    """(prompt, class of the emitted word, settling depth) of every token."""
    return [
        (name, word_class(FORMS[(index + 1) % len(FORMS)]), slow_depth([float(one) for one in row], g_nats))
        for name, rows in prompts.items()
        for index, row in enumerate(rows["js_from_last"])
    ]


@pytest.mark.parametrize(("rho", "n_layers"), [(0.85, 7), (0.85, 20), (0.7, 10), (0.55, 20), (1.0, 4), (0.1, 7)])
def test_every_number_is_its_plain_reading(tmp_path, rho, n_layers):
    prompts = made_up(3, [9, 4, 14, 1, 20, 7, 11], n_layers)
    run = write_run(tmp_path / "run", prompts, words=WORDS)
    deep_from = math.ceil(Fraction(str(rho)) * n_layers)
    table = settling(run, (0.3, 0.6), rho).set_index(["g", "words"])
    curves = settling_by_layer(run, (0.3, 0.6)).set_index(["g", "words", "layer"])
    assert [*table.index] == [(g, words) for g in (0.3, 0.6) for words in ("all", *CLASSES)]
    for (g, words), row in table.iterrows():
        chosen = [(name, c) for name, kind, c in slow_tokens(prompts, g * math.log(2)) if words in ("all", kind)]
        depths = [c for _, c in chosen]
        assert row["g_nats"] == pytest.approx(g * math.log(2))
        assert row["n_tokens"] == len(chosen)
        assert row["n_prompts"] == len({name for name, _ in chosen})
        assert row["settling_depth"] == pytest.approx(statistics.fmean(depths))
        assert row["settling_depth_sd"] == pytest.approx(statistics.pstdev(depths))
        assert row["relative_depth"] == pytest.approx(statistics.fmean(depths) / n_layers)
        assert row["deep_from"] == deep_from
        assert row["deep_thinking_ratio"] == pytest.approx(statistics.fmean(c >= deep_from for c in depths))
        by_prompt = [
            statistics.fmean(c >= deep_from for other, c in chosen if other == name)
            for name in sorted({name for name, _ in chosen})
        ]
        assert row["ratio_of_prompts"] == pytest.approx(statistics.fmean(by_prompt))
        for name in ("settling_depth", "relative_depth", "deep_thinking_ratio", "ratio_of_prompts"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        for layer in range(1, n_layers + 1):
            curve = curves.loc[g, words, layer]
            assert curve["share"] == pytest.approx(statistics.fmean(c <= layer for c in depths))
            assert curve["share_low"] <= curve["share"] <= curve["share_high"]
            assert curve["relative_layer"] == layer / n_layers
        assert curve[["share", "share_low", "share_high"]].tolist() == [1, 1, 1]


def test_the_threshold_that_was_asked_for_is_in_the_table_as_it_was_asked_for(tmp_path):
    run = write_run(tmp_path / "run", made_up(1, [3, 4]))
    asked = [0.1, 0.4, 0.3]
    for of in (settling, settling_by_layer):
        assert of(run, asked)["g"].unique().tolist() == asked
        assert of(run, asked, unit="nats")["g_nats"].unique().tolist() == asked
    assert settling(run, np.float32(0.5))["g"].unique().tolist() == [0.5]
    assert settling(run, Fraction(1, 4))["g_nats"].unique().tolist() == [0.25 * math.log(2)]


def test_the_deep_layers_begin_at_the_first_at_the_earliest(tmp_path):
    run = write_run(tmp_path / "run", made_up(1, [3, 4], n_layers=20))
    for rho in (1e-12, Fraction(1, 10**400)):
        row = settling(run, rho=rho).iloc[0]
        assert row[["deep_from", "deep_thinking_ratio", "ratio_of_prompts"]].tolist() == [1, 1, 1]
    assert settling(run, rho=np.float32(0.85))["deep_from"].iloc[0] == 17


def test_planted_divergences_settle_by_bits_and_by_nats(tmp_path):
    """0.4 nats are 0.577 bits: near enough by 0.5 nats, and not by 0.5 bits."""
    rows = [[0.6, 0.4, 0.6, 0.38, 0]] * 5 + [[0.3, 0.6, 0.6, 0.6, 0]] * 3
    prompts = {f"p{k}": with_divergences(rows) for k in range(9)}
    run = write_run(tmp_path / "run", prompts)
    in_bits, in_nats = (settling(run, 0.5, unit=unit).iloc[0] for unit in ("bits", "nats"))
    assert in_bits[["settling_depth", "deep_thinking_ratio"]].tolist() == [(5 * 5 + 3 * 1) / 8, 5 / 8]
    assert in_nats[["settling_depth", "deep_thinking_ratio"]].tolist() == [(5 * 2 + 3 * 1) / 8, 0]
    assert in_nats["g"] == pytest.approx(0.5 / math.log(2))
    assert in_bits["deep_from"] == 5  # ⌈0.85 · 5⌉


def test_every_token_settles_at_once_by_the_greatest_divergence_and_at_the_end_by_none(tmp_path):
    run = write_run(tmp_path / "run", {f"p{k}": with_divergences([[0.69, 0.5, 0.1, 0.01, 0]] * 4) for k in range(3)})
    loosest, strictest = (settling(run, g).iloc[0] for g in (1, 0))
    assert loosest[["settling_depth", "deep_thinking_ratio"]].tolist() == [1, 0]
    assert strictest[["settling_depth", "deep_thinking_ratio"]].tolist() == [5, 1]


def test_long_answers_do_not_dominate_the_ratio_of_prompts(tmp_path):
    deep, shallow = [0.6, 0.6, 0.6, 0.6, 0], [0.1, 0.1, 0.1, 0.1, 0]
    prompts = {f"long{k}": with_divergences([deep] * 30) for k in range(6)}
    prompts |= {f"short{k}": with_divergences([shallow] * 10) for k in range(6)}
    row = settling(write_run(tmp_path / "run", prompts)).iloc[0]
    assert row[["deep_thinking_ratio", "ratio_of_prompts"]].tolist() == [0.75, 0.5]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_laws(tmp_path_factory, lengths, n_layers, seed):
    """By a looser threshold no token settles later, every token settles, and the curve and the ratio agree."""
    run = write_run(tmp_path_factory.mktemp("laws") / "run", made_up(seed, lengths, n_layers))
    table, curves = settling(run, THRESHOLDS), settling_by_layer(run)
    assert (np.diff(table["settling_depth"]) <= 0).all()
    assert (np.diff(table["deep_thinking_ratio"]) <= 0).all()
    for row in table.to_dict("records"):
        share = curves.loc[curves["g"] == row["g"], "share"].to_numpy()
        assert (np.diff(share) >= 0).all()
        assert share[-1] == 1
        before = share[row["deep_from"] - 2] if row["deep_from"] > 1 else 0
        assert row["deep_thinking_ratio"] == pytest.approx(1 - before)
        assert 1 <= row["settling_depth"] <= n_layers
    if len(lengths) == 1:
        bounds = ["settling_depth_low", "deep_thinking_ratio_high", "ratio_of_prompts_low"]
        assert table[bounds].isna().all(axis=None)
        assert curves["share_low"].isna().all()


def test_few_prompts_give_a_ratio_the_width_of_so_many_answers(tmp_path):
    run = write_run(tmp_path / "run", {f"p{k}": with_divergences([[0.1, 0.1, 0.1, 0]] * 40) for k in range(3)})
    row = settling(run).iloc[0]
    assert row["deep_thinking_ratio"] == 0
    assert row["deep_thinking_ratio_high"] == pytest.approx(scipy.stats.binomtest(0, 3).proportion_ci().high)


def test_prompts_that_were_not_finite_are_left_out_and_order_changes_nothing(tmp_path):
    prompts = made_up(2, [5, 7, 4])
    broken = {"broken": made_up(3, [6])["p0"]} | dict(reversed(prompts.items()))
    first = write_run(tmp_path / "a", prompts, words=WORDS)
    second = write_run(tmp_path / "b", broken, finish_reasons={"broken": "non_finite"}, words=WORDS)
    pd.testing.assert_frame_equal(settling(first, THRESHOLDS), settling(second, THRESHOLDS))


@pytest.mark.parametrize(
    ("options", "option", "given"),
    [
        ({"g": -0.1}, "g", -0.1),
        ({"g": 1.01}, "g", 1.01),
        ({"g": 0.75, "unit": "nats"}, "g", 0.75),
        ({"g": (0.5, math.nan)}, "g", math.nan),
        ({"g": []}, "g", []),
        ({"rho": 0}, "rho", 0),
        ({"rho": 1.5}, "rho", 1.5),
        ({"rho": math.nan}, "rho", math.nan),
        ({"g": True}, "g", True),
        ({"g": "0.5"}, "g", "0.5"),
        ({"g": [0.1, "x"]}, "g", "x"),
        ({"g": None}, "g", None),
        ({"rho": True}, "rho", True),
        ({"rho": "0.85"}, "rho", "0.85"),
        ({"unit": "trits"}, "unit", "trits"),
        ({"unit": ["bits"]}, "unit", ["bits"]),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, option, given):
    run = write_run(tmp_path / "run", made_up(1, [3]))
    with refused(OptionError, option, given):
        settling(run, **options)


def test_a_run_without_divergences_names_the_option(tmp_path):
    with refused(RunError, problem="js_from_last", advice="js"):
        settling(write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 4))}}))
