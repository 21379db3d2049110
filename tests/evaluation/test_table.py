"""What an ablation found, against a slow reading answer by answer."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from layerlens.analysis.ablation import ablation_table, table7
from layerlens.analysis.uncertainty import resample, tail_level
from layerlens.errors import RunError
from tests.evaluation.made_up import drawn, like_the_paper, write_ablation
from tests.evaluation.made_up_evaluation import write
from tests.refusals import refused

ROOT = Path(__file__).parents[2]
SHARES = {("last", 0.0): 0.5, ("valley", 0.5): 0.55, ("valley", 1.0): 0.7, ("last-1", 0.5): 0.4, ("last-1", 1.0): 0.3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    answers = drawn(SHARES, n_items=14, repeats=3)
    return answers, write_ablation(tmp_path_factory.mktemp("made") / "a", answers)


def values(answers, what):
    """Of each item, in order, the values of its answers."""
    index, meant = {"score": (0, True), "generated_tokens": (1, None), "finished": (2, "stop")}[what]
    return [
        [float(one[index]) if meant is None else float(one[index] == meant) for one in answers[item]]
        for item in sorted(answers)
    ]


def mean(of_items):
    return statistics.fmean(value for item in of_items for value in item)


def quantiles(draws, n):
    return np.quantile(draws, tail_level(n)), np.quantile(draws, 1 - tail_level(n))


def resamples(n_items):
    """Of each resample, which items it holds, an item as often as it was drawn."""
    return [[item for item, times in enumerate(drawn) for _ in range(int(times))] for drawn in resample(n_items)]


def test_answers_that_the_context_cut_short_are_counted_by_task(made, tmp_path):
    folder = shutil.copytree(made[1], tmp_path / "evaluation")
    answers = pq.read_table(folder / "answers.parquet")
    column = answers.schema.get_field_index("stop_reason")
    reasons = pa.array(["model_length"] * 3 + ["stop"] * (len(answers) - 3), answers.schema.field(column).type)
    pq.write_table(answers.set_column(column, answers.schema.field(column), reasons), folder / "answers.parquet")
    assert ablation_table(folder).attrs["too_long"] == {"gsm8k": 3}


@pytest.mark.parametrize("what", ["score", "generated_tokens", "finished"])
def test_means_and_intervals_are_those_of_resampled_items(made, what):
    answers, folder = made
    table = ablation_table(folder)
    for row in table.to_dict("records"):
        of_items = values(
            answers["last", 0.0] if row["p"] == 0 or row["arm"] == "last" else answers[row["arm"], row["p"]], what
        )
        assert row[what] == pytest.approx(mean(of_items))
        divided = sum(0 < statistics.fmean(of_item) < 1 for of_item in of_items)
        if what == "generated_tokens" or divided >= 6:
            draws = [mean([of_items[item] for item in items]) for items in resamples(14)]
            expected = quantiles(draws, 14)
        else:
            right = 14 * mean(of_items)
            expected = scipy.stats.beta.ppf([0.025, 0.975], [right, right + 1], [15 - right, 14 - right])
        assert (row[f"{what}_low"], row[f"{what}_high"]) == pytest.approx(expected)
        assert row["n_items"] == 14
        assert row["n_answers"] == 14 * (3 if row["p"] == 0.5 and row["arm"] != "last" else 1)
    assert [(row["arm"], row["p"]) for row in table.to_dict("records")] == [
        (arm, p) for arm in ("last", "valley", "last-1") for p in (0.0, 0.5, 1.0)
    ]
    assert table.attrs == {
        "model": "made up",
        "lens": "logit",
        "temperature": {"gsm8k": 0.0},
        "n_items": {"gsm8k": 14},
        "is_complete": True,
        "too_long": {},
    }


def test_the_difference_is_paired(made):
    answers, folder = made
    table = ablation_table(folder).set_index(["arm", "p"])
    last = values(answers["last", 0.0], "score")
    for condition in list(SHARES)[1:]:
        arm, row = values(answers[condition], "score"), table.loc[condition]
        assert row["difference"] == pytest.approx(mean(arm) - mean(last))
        if sum(0 < statistics.fmean(of_item) < 1 for of_item in arm) < 6:
            change = [statistics.fmean(a) - b for a, (b,) in zip(arm, last, strict=True)]
            gain, loss = ((1 + sum(max(sign * part, 0) for part in change)) / 16 for sign in (1, -1))
            half = scipy.stats.t.ppf(0.975, 14) * np.sqrt((gain + loss - (gain - loss) ** 2) / 16)
            expected = gain - loss - half, gain - loss + half
        else:
            draws = [mean([arm[i] for i in items]) - mean([last[i] for i in items]) for items in resamples(14)]
            expected = quantiles(draws, 14)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected)
    for condition in (("last", 0.0), ("last", 1.0), ("valley", 0.0)):
        assert table.loc[condition, ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]


def test_pairs_that_agree_have_a_narrow_difference_and_wide_scores(tmp_path):
    """Items differ, conditions do not: an interval of the difference that forgot the pairs would be wider."""
    last = {f"i{n:02d}": [(n % 2 == 0, 5, "stop")] for n in range(30)}
    row = ablation_table(write_ablation(tmp_path / "a", {("last", 0.0): last, ("valley", 1.0): last})).iloc[-1]
    half = scipy.stats.t.ppf(0.975, 30) * np.sqrt(2) / 32
    assert row["score_high"] - row["score_low"] > 0.3 > 2 * half
    assert row[["difference_low", "difference", "difference_high"]].tolist() == pytest.approx([-half, 0, half])


def test_items_that_are_all_alike_leave_the_doubt_of_their_number(tmp_path):
    """As Clopper and Pearson have it: none of 12 right can come of an arm that is right for a quarter of all items."""
    wrong, right = ({f"i{n}": [(is_right, 5, "stop")] for n in range(12)} for is_right in (False, True))
    answers = {("last", 0.0): wrong, ("valley", 0.5): right, ("valley", 1.0): {"i3": wrong["i3"]}}
    table = ablation_table(write_ablation(tmp_path / "a", answers)).set_index(["arm", "p"])
    none, every = (scipy.stats.binomtest(k, 12).proportion_ci() for k in (0, 12))
    columns = ["score", "score_low", "score_high"]
    assert table.loc[("last", 0.0), columns].tolist() == pytest.approx([0, none.low, none.high])
    assert table.loc[("valley", 0.5), columns].tolist() == pytest.approx([1, every.low, every.high])
    assert table.loc[("valley", 0.5), ["finished_low", "finished_high"]].tolist() == pytest.approx([every.low, 1])
    gain, loss = 13 / 14, 1 / 14
    low = gain - loss - scipy.stats.t.ppf(0.975, 12) * np.sqrt((gain + loss - (gain - loss) ** 2) / 14)
    assert table.loc[("valley", 0.5), ["difference_low", "difference_high"]].tolist() == pytest.approx([low, 1])
    assert table.loc[("last", 0.0), ["difference_low", "difference_high"]].tolist() == [0, 0], "with itself"
    assert table.loc[("last", 0.0), ["generated_tokens_low", "generated_tokens_high"]].tolist() == [5, 5]
    assert table.loc[("valley", 1.0), columns[1:]].isna().all(), "one item has no interval"


def test_an_unfinished_ablation_pairs_the_items_that_both_have(tmp_path):
    right, wrong = [(True, 5, "stop")], [(False, 5, "max_tokens")]
    answers = {
        ("last", 0.0): {"a": right, "b": wrong, "c": right},
        ("valley", 0.5): {"b": right, "c": right},
    }
    folder = write_ablation(tmp_path / "a", answers, arms=[("valley", 1.0)], items=["a", "b", "c", "d"], finish=False)
    table = ablation_table(folder).set_index(["arm", "p"])
    assert not table.attrs["is_complete"]
    assert table.attrs["n_items"] == {"gsm8k": 4}
    assert ("valley", 1.0) not in table.index, "nothing was answered there"
    assert table.loc[("last", 0.5), "score"] == pytest.approx(2 / 3)
    row = table.loc[("valley", 0.5)]
    assert (row["score"], row["difference"], row["n_items"]) == (1, 0.5, 2)


def test_one_item_has_means_and_no_intervals(tmp_path):
    answers = {("last", 0.0): {"a": [(True, 5, "stop")]}, ("valley", 1.0): {"a": [(False, 7, "stop")]}}
    row = ablation_table(write_ablation(tmp_path / "a", answers)).iloc[-1]
    assert (row["score"], row["difference"], row["generated_tokens"]) == (0, -1, 7)
    assert row[[name for name in row.index if name.endswith(("_low", "_high"))]].isna().all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no manifest.json"),
        ("{oops", "manifest.json cannot"),
        ("[]", "not an"),
        ('{"format": 1, "model": {}}', "not an"),
        ('{"format": 2, "evaluation": {}}', "format 2"),
    ],
)
def test_what_is_no_ablation(tmp_path, content, words):
    (tmp_path / "a").mkdir()
    if content is not None:
        (tmp_path / "a" / "manifest.json").write_text(content)
    with refused(RunError, given=tmp_path / "a", problem=words):
        ablation_table(tmp_path / "a")
    with refused(RunError, given=tmp_path / "none", advice="ll.evaluate"):
        ablation_table(tmp_path / "none")


def test_an_ablation_without_answers_and_a_broken_table(tmp_path):
    folder = write_ablation(tmp_path / "a", {("last", 0.0): {"a": [(True, 5, "stop")]}})
    table = folder / "answers.parquet"
    table.write_bytes(table.read_bytes()[:50])
    with refused(RunError, given=table):
        ablation_table(folder)
    table.unlink()
    with refused(RunError, given=folder, advice="ll.evaluate"):
        ablation_table(folder)


def test_arms_of_an_evaluation_without_a_p_always_act(tmp_path):
    """Names of one's own are kept, even such as look like the name of an arm with a p."""
    scores = {("gsm8k", arm): [[value]] * 3 for arm, value in (("last", 1.0), ("dola", 0.0), ("mine_p0.5", 0.0))}
    table = ablation_table(write(tmp_path / "a", scores))
    assert list(zip(table["arm"], table["p"], table["score"], strict=True)) == [
        *(("last", 0.0, 1.0), ("last", 1.0, 1.0), ("dola", 0.0, 1.0), ("dola", 1.0, 0.0)),
        *(("mine_p0.5", 0.0, 1.0), ("mine_p0.5", 1.0, 0.0)),
    ]


@pytest.mark.parametrize("source", ["made up", "Qwen/Qwen3.5-35B-A3B"])
def test_table_7_has_what_was_measured_beside_what_is_reported(tmp_path, source):
    model = source.split("/")[-1]
    shares = {condition: share for condition, share in like_the_paper().items() if condition[0] in ("last", "valley")}
    shares |= {("valley", 0.5): 0.8, ("last-1", 1.0): 0.0}
    cold = write_ablation(tmp_path / "cold", drawn(shares, n_items=40), dataset="gpqa", model=source)
    hot = {("last", 0.0): 0.7, ("valley", 1.0): 0.8}
    warm = write_ablation(tmp_path / "warm", drawn(hot, n_items=40, seed=1), dataset="gsm8k", temperature=0.7)
    table = table7([cold, warm])
    assert table.iloc[:10]["reported"].tolist() == [82.8, 80.0, 81.8, 81.3, 80.8, 81.8, 80.0, 79.8, 78.3, 76.3]
    assert set(table["condition"][10:]) == {"T=0.0 p=0.5", "T=0.7 p=0.0"}
    assert table["reported"][10:].isna().all()
    rows = table.set_index("condition")
    measured = ablation_table(cold).set_index(["arm", "p"])
    for p in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0):
        row, found = rows.loc[f"T=0.0 p={p}"], measured.loc[("valley", p)]
        assert (row["measured"], row["low"], row["high"]) == pytest.approx(
            tuple(100 * found[["score", "score_low", "score_high"]])
        )
        assert (row["n_items"], row["measured_data"], row["measured_model"]) == (40, "GPQA-Diamond", model)
        expected = row["measured"] - row["reported"] if model == "Qwen3.5-35B-A3B" else np.nan
        assert row["difference"] == pytest.approx(expected, nan_ok=True)
    assert rows.loc["T=0.0 p=0.2"].drop("difference").notna().all()
    assert set(table["reported_model"][:10]) == {"Qwen3.5-35B-A3B"}
    assert set(table["reported_data"][:10]) == {"GPQA-Diamond"}
    other = rows.loc["T=0.7 p=1.0"]
    assert other["measured_data"] == "GSM8K"
    assert np.isnan(other["difference"])
    empty = rows.loc[["T=0.1 p=1.0", "T=0.4 p=1.0", "T=1.0 p=1.0"]]
    assert empty[["measured", "low", "high", "n_items", "measured_model", "difference"]].isna().all(axis=None)
    assert table7([])["measured"].isna().all()


def test_table_7_needs_the_valley_and_one_measurement_of_each_condition(tmp_path):
    answers = drawn({("last", 0.0): 0.5, ("last-1", 1.0): 0.1}, n_items=4)
    without = write_ablation(tmp_path / "without", answers)
    with refused(RunError, "arms", advice="ll.ablate"):
        table7([without])
    folder = write_ablation(tmp_path / "a", drawn(SHARES, n_items=4))
    with refused(RunError, problem="T=0.0 p=0.0"):
        table7([folder, folder])


def test_table_7_puts_the_papers_own_benchmark_beside_it(tmp_path):
    right, wrong = [[1.0]] * 3, [[0.0]] * 3
    scores = {("gsm8k", "last"): right, ("gsm8k", "valley"): right, ("gpqa", "last"): wrong, ("gpqa", "valley"): wrong}
    table = table7([write(tmp_path / "a", scores)])
    here = table[table["condition"] == "T=0.0 p=1.0"]
    assert list(zip(here["measured_data"], here["measured"], here["reported"].isna(), strict=True)) == [
        ("GPQA-Diamond", 0.0, False),
        ("GSM8K", 100.0, True),
    ]


def test_ablations_are_read_and_drawn_without_torch(tmp_path):
    folder = write_ablation(tmp_path / "a", drawn(SHARES, n_items=4))
    program = (
        "import sys; from layerlens.plots.ablation import figure3; from layerlens.evaluation import scoring\n"
        f"print(json.dumps([len(figure3({str(folder)!r})[1]), 'torch' in sys.modules, scoring.last_number('5', '5')]))"
    )
    run = [sys.executable, "-c", "import json\n" + program]
    assert json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout) == [9, False, True]
    run[-1] = "import json, torch\n" + program
    assert json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout) == [9, True, True]
