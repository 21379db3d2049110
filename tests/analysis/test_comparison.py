"""Two runs side by side: planted differences, and what cannot be paired."""

import statistics

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from layerlens.analysis.comparison import compare, compare_outputs
from layerlens.analysis.decoding import valley_statistics
from layerlens.analysis.uncertainty import resample, tail_level
from layerlens.errors import RunError
from layerlens.run import open_run
from tests.made_up_run import eq7, write_run
from tests.refusals import refused


def made_up(seed, lengths, n_layers=5, shift=0.0):
    """Prompts of so many tokens; what sets a prompt apart is the same for the same seed, whatever the shift."""
    random = np.random.default_rng(seed)
    prompts = {}
    for prompt_id, length in lengths.items():
        entropy = random.gamma(2, 1, (length, n_layers)) * np.exp(random.normal()) + shift
        top = random.integers(0, 3, (length, n_layers)).astype(np.int32)
        prompts[prompt_id] = {"entropy": entropy.astype(np.float32), "top_token_id": top}
    return prompts


def slow_quantities(prompts, window=10):
    """Each quantity's values, one list a prompt."""
    read = {}
    for prompt_id, rows in prompts.items():
        layers = [eq7(entropy, window) for entropy in rows["entropy"]]
        tokens = list(zip(rows["entropy"].tolist(), rows["top_token_id"].tolist(), layers, strict=True))
        read[prompt_id] = {
            "valley_rate": [layer < len(entropy) for entropy, _, layer in tokens],
            "substitution_rate": [top[layer - 1] != top[-1] for _, top, layer in tokens],
            "perturbed_rate": [entropy[-1] > entropy[-2] for entropy, _, _ in tokens],
            "entropy": [entropy[-1] for entropy, _, _ in tokens],
            "walk_depth": [len(entropy) - layer for entropy, _, layer in tokens],
            "generated_tokens": [len(tokens)],
        }
    return read


def test_means_and_differences_are_their_plain_reading(tmp_path):
    first = made_up(1, {"a": 5, "b": 12, "only-first": 40, "c": 3})
    second = made_up(2, {"c": 9, "only-second": 40, "broken": 4, "a": 2, "b": 6})
    first["broken"] = made_up(3, {"broken": 7})["broken"]
    run = write_run(tmp_path / "a", first)
    other = write_run(tmp_path / "b", second, finish_reasons={"broken": "non_finite"})
    table = compare(run, other)
    assert table.attrs == {
        "n_prompts": 3,
        "n_prompts_left_out": 0,
        "n_prompts_unpaired": 3,
        "n_prompts_of_other_text": 0,
    }
    ours, theirs = slow_quantities(first), slow_quantities(second)
    assert table["quantity"].tolist() == list(ours["a"])
    for row in table.to_dict("records"):
        name = row["quantity"]
        left, right = (
            statistics.fmean(value for prompt_id in "abc" for value in read[prompt_id][name]) for read in (ours, theirs)
        )
        assert row["run"] == pytest.approx(left, rel=1e-6)
        assert row["other"] == pytest.approx(right, rel=1e-6)
        assert row["difference"] == pytest.approx(right - left, rel=1e-5, abs=1e-9)
        assert (row["n_tokens"], row["n_tokens_other"], row["n_prompts"]) == (20, 17, 3)
        for column in ("run", "other", "difference"):
            assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]


def test_the_interval_of_the_difference_resamples_prompts_in_pairs(tmp_path):
    """Draw by draw in plain Python; equally long prompts, so that the effective number of prompts is theirs."""
    ids = {f"p{k}": 6 for k in range(7)}
    first, second = made_up(4, ids), made_up(5, ids)
    table = compare(write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)).set_index("quantity")
    ours, theirs = slow_quantities(first), slow_quantities(second)
    for name in ("entropy", "walk_depth"):
        draws = []
        for times in resample(7):
            drawn = [prompt_id for prompt_id, count in zip(ids, times, strict=True) for _ in range(int(count))]
            left, right = (
                statistics.fmean(value for prompt_id in drawn for value in read[prompt_id][name])
                for read in (ours, theirs)
            )
            draws.append(right - left)
        expected = np.quantile(draws, [tail_level(7), 1 - tail_level(7)])
        assert table.loc[name, ["difference_low", "difference_high"]].tolist() == pytest.approx(expected, rel=1e-5)


def test_what_both_runs_share_cancels_in_the_difference(tmp_path):
    """Every entropy is higher by 0.25: the means are uncertain by far more, their difference hardly at all."""
    ids = {f"p{k}": 8 for k in range(10)}
    pair = [write_run(tmp_path / str(shift), made_up(6, ids, shift=shift)) for shift in (0.0, 0.25)]
    row = compare(*pair).set_index("quantity").loc["entropy"]
    assert row["run_high"] - row["run_low"] > 1
    assert row[["difference_low", "difference_high"]].tolist() == pytest.approx([0.25, 0.25], abs=1e-5)
    turned = compare(*reversed(pair)).set_index("quantity").loc["entropy"]
    assert turned["difference"] == pytest.approx(-row["difference"])


def test_a_run_compared_with_itself_differs_in_nothing(tmp_path):
    run = write_run(tmp_path / "run", made_up(7, {"a": 5, "b": 9, "c": 1}))
    table = compare(run, run)
    assert table["difference"].eq(0).all()
    ends = table.set_index("unit")[["difference_low", "difference_high"]]
    assert ends.drop("share").eq(0).all(axis=None)
    assert ends.loc["share"].to_numpy() == pytest.approx(np.array([[-1, 1]] * 3)), "two prompts, effectively"
    alone = valley_statistics(run).set_index("statistic")["value"]
    means = table.set_index("quantity")["run"]
    for name in ("valley_rate", "substitution_rate", "entropy", "walk_depth"):
        assert means[name] == alone[name]
    outputs = compare_outputs(run, run).set_index("statistic")["value"]
    assert outputs.to_dict() == {"identical": 1, "common_prefix": 5}


def emitting(**outputs):
    """Prompts that emitted these token ids."""
    return {
        prompt_id: {"entropy": np.ones((len(ids), 3)), "next_token_id": np.array(ids, dtype=np.int32)}
        for prompt_id, ids in outputs.items()
    }


def test_outputs_are_compared_token_by_token(tmp_path):
    first = emitting(a=[1, 2, 3], b=[1, 2, 3], c=[1, 2, 3], d=[9, 2], only=[1])
    second = emitting(a=[1, 2, 3], b=[1, 2], c=[1, 5, 7, 4, 5], d=[8, 2])
    table = compare_outputs(write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)).set_index("statistic")
    assert table["value"].to_dict() == {"identical": 1 / 4, "common_prefix": (3 + 2 + 1 + 0) / 4}
    assert table["unit"].to_dict() == {"identical": "share", "common_prefix": "tokens"}
    assert table[["n_tokens", "n_prompts"]].to_numpy().tolist() == [[11, 4]] * 2
    assert table.attrs["n_prompts_unpaired"] == 1
    assert (table["value_low"] < table["value"]).all()
    assert (table["value"] < table["value_high"]).all()


def test_outputs_of_other_vocabularies_are_not_compared(tmp_path):
    prompts = emitting(a=[1, 2], b=[1, 3])
    plain = write_run(tmp_path / "plain", prompts, words={1: "one", 2: "two", 3: "three"})
    same = write_run(tmp_path / "same", prompts, words={1: "one", 2: "two", 5: "five"}, n_vocab=50000)
    unlike = write_run(tmp_path / "unlike", prompts, words={1: "one", 2: " deux"})
    sized = write_run(tmp_path / "sized", prompts, n_vocab=50000)
    assert compare_outputs(plain, same)["value"].tolist() == [1, 2]
    for other in (unlike, sized):
        table = compare_outputs(plain, other)
        assert table[["value", "value_low", "value_high"]].isna().all(axis=None)
        assert "have different token ids" in table.attrs["note"]


def test_one_common_prompt_has_differences_and_no_interval(tmp_path):
    first = write_run(tmp_path / "a", made_up(1, {"a": 5, "b": 4}))
    second = write_run(tmp_path / "b", made_up(2, {"a": 7}))
    table = compare(first, second)
    assert table["difference"].notna().all()
    ends = [f"{name}{end}" for name in ("run", "other", "difference") for end in ("_low", "_high")]
    assert table[ends].isna().all(axis=None)


def test_models_of_different_depth_can_be_compared(tmp_path):
    first = write_run(tmp_path / "a", made_up(1, {"a": 5, "b": 4}))
    second = write_run(tmp_path / "b", made_up(2, {"a": 7, "b": 2}, n_layers=9))
    pd.testing.assert_series_equal(compare(first, second)["run"], compare(second, first)["other"], check_names=False)


@pytest.mark.parametrize("comparison", [compare, compare_outputs])
def test_runs_that_cannot_be_paired_say_why(tmp_path, comparison):
    run = write_run(tmp_path / "run", made_up(1, {"a": 5, "b": 4}))
    strangers = write_run(tmp_path / "strangers", made_up(1, {"c": 5}))
    with refused(RunError, problem="in common", advice="prompts"):
        comparison(run, strangers)
    text = {"a": {"entropy": np.ones((4, 3)), "is_generated": np.zeros(4, dtype=bool)}}
    with refused(RunError, problem="generated token"):
        comparison(run, write_run(tmp_path / "text", text))


def test_equal_ids_with_other_reference_answers_are_not_paired(tmp_path):
    pair = [write_run(tmp_path / name, made_up(1, {"1": 5, "2": 4})) for name in "ab"]
    for run, answers in zip(pair, (["72", None], ["18", "5"]), strict=True):
        path = run.path / "prompts.parquet"
        table = pq.read_table(path)
        place = table.schema.get_field_index("reference")
        pq.write_table(table.set_column(place, table.schema.field(place), [answers]), path)
    with refused(RunError, given="1"):
        compare(*(open_run(run.path) for run in pair))
