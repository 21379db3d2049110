"""From which layer on the emitted token is known, against a slow reading and planted onsets."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis import onset, onset_by_layer
from layerlens.analysis.words import CLASSES, word_class
from layerlens.errors import OptionError, RunError
from tests.made_up_run import write_run
from tests.refusals import refused

FORMS = [" the", "cat", ",", " of", "x1", " valley", " 3"]
WORDS = {number: FORMS[number % len(FORMS)] for number in range(100)}


def made_up(seed, lengths, n_layers=5, least=-1, greatest=2):
    """Prompts of so many tokens whose rank in each layer is drawn from least..greatest; −1 is one that is not known."""
    random = np.random.default_rng(seed)
    return {
        f"p{index}": with_ranks(random.integers(least, greatest + 1, (length, n_layers)))
        for index, length in enumerate(lengths)
    }


def with_ranks(ranks):
    """The columns of a prompt whose emitted tokens have these ranks, [tokens, L]."""
    ranks = np.asarray(ranks, np.int32)
    return {"entropy": np.ones(ranks.shape), "next_rank": ranks, "next_log_prob": -np.log1p(np.maximum(ranks, 0))}


def slow_onset(ranks, rank):
    """The earliest layer from which on every rank is below, or None."""
    for layer in range(1, len(ranks) + 1):
        if all(0 <= one < rank for one in ranks[layer - 1 :]):
            return layer
    return None


def slow_tokens(prompts, rank):
    """(prompt, class of the emitted word, onset or None) of every token."""
    return [
        (name, word_class(FORMS[(index + 1) % len(FORMS)]), slow_onset(list(row), rank))
        for name, rows in prompts.items()
        for index, row in enumerate(rows["next_rank"])
    ]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_every_number_is_its_plain_reading(tmp_path, n_layers, rank):
    prompts = made_up(3, [9, 4, 14, 1, 20, 7, 11], n_layers)
    run = write_run(tmp_path / "run", prompts, words=WORDS)
    tokens = slow_tokens(prompts, rank)
    table = onset(run, rank).set_index("words")
    curves = onset_by_layer(run, rank).set_index(["words", "layer"])
    assert list(table.index) == ["all", *CLASSES]
    for words, row in table.iterrows():
        chosen = [(name, layer) for name, kind, layer in tokens if words in ("all", kind)]
        known = [layer for _, layer in chosen if layer is not None]
        assert row["n_tokens"] == len(chosen)
        assert row["n_prompts"] == len({name for name, _ in chosen})
        assert row["outside"] == pytest.approx(1 - len(known) / len(chosen))
        assert row["at_last"] == pytest.approx(known.count(n_layers) / len(chosen))
        assert row["onset"] == pytest.approx(statistics.fmean(known))
        assert row["onset_sd"] == pytest.approx(statistics.pstdev(known))
        assert row["relative_onset"] == pytest.approx(statistics.fmean(known) / n_layers)
        for name, level in (("onset_q25", 0.25), ("onset_median", 0.5), ("onset_q75", 0.75)):
            assert row[name] == sorted(known)[math.ceil(level * len(known)) - 1]
        rests_on = {"at_last": row["n_prompts"], "outside": row["n_prompts"]}
        for name in ("onset", "relative_onset", "onset_median", "at_last", "outside"):
            bounds = row[[f"{name}_low", f"{name}_high"]]
            if rests_on.get(name, len({prompt for prompt, layer in chosen if layer is not None})) < 2:
                assert bounds.isna().all()
            else:
                assert bounds.iloc[0] <= row[name] <= bounds.iloc[1]
        for layer in range(1, n_layers + 1):
            share = sum(one <= layer for one in known) / len(chosen)
            curve = curves.loc[words, layer]
            assert curve["share"] == pytest.approx(share)
            assert curve["share_low"] <= curve["share"] <= curve["share_high"]
            assert curve["relative_layer"] == layer / n_layers


def test_planted_onsets(tmp_path):
    """Of eight tokens five stay from layer 3 on, one is lost in layer 3 and found again, two are lost in the last."""
    ranks = [[9, 2, 0, 0]] * 5 + [[0, 0, 1, 0]] + [[0, 0, 0, 1]] * 2
    prompts = {f"p{k}": with_ranks(ranks) for k in range(8)}
    run = write_run(tmp_path / "run", prompts, words=WORDS)
    row = onset(run).set_index("words").loc["all"]
    assert row[["onset", "onset_low", "onset_high"]].tolist() == pytest.approx([19 / 6] * 3)
    assert row[["onset_q25", "onset_median", "onset_median_high", "onset_q75"]].tolist() == [3, 3, 3, 3]
    assert row[["at_last", "outside"]].tolist() == [0.125, 0.25]
    assert row[["n_tokens", "n_prompts"]].tolist() == [64, 8]
    wider = onset(run, rank=2).set_index("words").loc["all"]
    assert wider["outside"] == 0
    assert wider["onset"] == (5 * 3 + 1 + 2) / 8


def test_intervals_resample_prompts(tmp_path):
    """The interval is as wide as prompts differ, however many tokens each of them has."""
    prompts = {f"p{k}": with_ranks([[1] * k + [0] * (9 - k)] * 50) for k in range(8)}
    row = onset(write_run(tmp_path / "run", prompts)).iloc[0]
    onsets = np.arange(1, 9)
    half = scipy.stats.t.ppf(0.975, 7) * onsets.std(ddof=1) / math.sqrt(8)
    assert row["onset"] == 4.5
    assert row["onset_high"] - row["onset_low"] == pytest.approx(2 * half, rel=0.15)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_laws(tmp_path_factory, lengths, n_layers, seed):
    """Every token has one onset or none, and among more words none has it later."""
    run = write_run(tmp_path_factory.mktemp("laws") / "run", made_up(seed, lengths, n_layers, 0, 1))
    one, two = (onset(run, rank).iloc[0] for rank in (1, 2))
    curve = onset_by_layer(run)["share"].to_numpy()
    assert (np.diff(curve) >= 0).all()
    assert curve[-1] + one["outside"] == pytest.approx(1)
    assert two[["onset", "outside", "n_tokens"]].tolist() == [1, 0, sum(lengths)]
    if curve[-1] > 0:
        assert 1 <= one["onset_q25"] <= one["onset_median"] <= one["onset_q75"] <= n_layers
    else:
        assert one[["onset", "onset_median", "relative_onset"]].isna().all()
    if len(lengths) > 1:
        assert (onset_by_layer(run)[["share_low", "share_high"]].diff().dropna() >= 0).all(axis=None)
    else:
        assert one[["onset_low", "onset_median_low", "outside_low"]].isna().all()


def test_few_prompts_give_a_share_the_width_of_so_many_answers(tmp_path):
    prompts = made_up(5, [40, 40, 40], least=0, greatest=1)
    for rows in prompts.values():
        rows["next_rank"][:, -1] = 0
    row = onset(write_run(tmp_path / "run", prompts)).iloc[0]
    assert row["outside_high"] == pytest.approx(scipy.stats.binomtest(0, 3).proportion_ci().high)


def test_only_emitted_tokens_count_and_prompts_that_were_not_finite_are_left_out(tmp_path):
    prompts = made_up(2, [5, 7, 4])
    plain = write_run(tmp_path / "a", prompts, words=WORDS)
    read = {name: rows | {"is_generated": np.ones(len(rows["entropy"]), bool)} for name, rows in prompts.items()}
    read["p0"] = {name: np.concatenate([values[:3], values]) for name, values in read["p0"].items()}
    read["p0"]["is_generated"][:3] = False
    read["p0"]["next_token_id"] = np.concatenate([[90, 91, 92], np.arange(1, 6)]).astype(np.int32)
    broken = {"broken": made_up(3, [6])["p0"]} | dict(reversed(read.items()))
    again = write_run(tmp_path / "b", broken, finish_reasons={"broken": "non_finite"}, words=WORDS)
    pd.testing.assert_frame_equal(onset(plain), onset(again))
    assert onset(again).attrs["n_prompts_left_out"] == 1


def test_a_run_without_texts_has_the_row_of_all_words(tmp_path):
    prompts = made_up(2, [5, 7, 4])
    without = onset(write_run(tmp_path / "a", prompts, finish=False))
    pd.testing.assert_frame_equal(without, onset(write_run(tmp_path / "b", prompts, words=WORDS)).head(1))


@pytest.mark.parametrize("rank", [0, -1, 49153, 1.5, True, "1", None])
def test_a_rank_that_cannot_be_is_refused(tmp_path, rank):
    run = write_run(tmp_path / "run", made_up(1, [3]))
    with refused(OptionError, "rank", rank, advice="49152"):
        onset(run, rank)


def test_a_rank_may_be_a_whole_number_of_numpys(tmp_path):
    run = write_run(tmp_path / "run", made_up(1, [3, 4]))
    pd.testing.assert_frame_equal(onset(run, np.int16(2)), onset(run, 2))


def test_a_run_without_ranks_names_the_option(tmp_path):
    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 4))}})
    with refused(RunError, problem="next_rank", advice="targets"):
        onset(run)


def test_a_run_that_generated_nothing_is_refused(tmp_path):
    prompts = made_up(1, [3])
    prompts["p0"]["is_generated"] = np.zeros(3, bool)
    with refused(RunError, problem="no generated token"):
        onset(write_run(tmp_path / "run", prompts))
