"""Tables of evaluations against sums in plain Python."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest, mannwhitneyu

import layerlens as ll
from layerlens.analysis.evaluation import evaluation_table
from layerlens.analysis.explanation import explanation_table
from layerlens.analysis.power import needed, power, power_table
from layerlens.errors import OptionError, RunError
from tests.evaluation.made_up_evaluation import write
from tests.refusals import refused


def drawn(n, right, seed, epochs=1):
    draw = random.Random(seed)
    return [[float(draw.random() < right) for _ in range(epochs)] for _ in range(n)]


@pytest.fixture
def folder(tmp_path):
    scores = {("sums", "last"): drawn(60, 0.4, 1), ("sums", "valley"): drawn(60, 0.5, 2)}
    scores |= {("words", "last"): drawn(30, 0.7, 3), ("words", "valley"): drawn(30, 0.6, 4)}
    scores["words", "valley"][3] = [None]
    return write(tmp_path / "made-up", scores)


def row_of(table, task, arm):
    (row,) = table[(table["task"] == task) & (table["arm"] == arm)].to_dict("records")
    return row


def test_scores_differences_and_tests(folder):
    table = evaluation_table(folder)
    assert [tuple(pair) for pair in table[["task", "arm"]].to_numpy()] == [
        ("sums", "last"),
        ("sums", "valley"),
        ("words", "last"),
        ("words", "valley"),
    ]
    ours, last = drawn(60, 0.5, 2), drawn(60, 0.4, 1)
    row = row_of(table, "sums", "valley")
    assert row["score"] == pytest.approx(sum(one[0] for one in ours) / 60)
    exact = binomtest(int(sum(one[0] for one in ours)), 60).proportion_ci(0.95, method="exact")
    assert (row["score_low"], row["score_high"]) == pytest.approx((exact.low, exact.high), abs=1e-9)
    won = sum(a[0] > b[0] for a, b in zip(ours, last, strict=True))
    lost = sum(a[0] < b[0] for a, b in zip(ours, last, strict=True))
    assert (row["won"], row["lost"]) == (won, lost)
    assert row["difference"] == pytest.approx((won - lost) / 60)
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["p"] == pytest.approx(binomtest(won, won + lost).pvalue)
    assert table.attrs["is_complete"]


def test_holm_goes_over_the_tasks_of_an_arm(folder):
    table = evaluation_table(folder)
    p = [row_of(table, task, "valley")["p"] for task in ("sums", "words")]
    adjusted = [row_of(table, task, "valley")["p_holm"] for task in ("sums", "words")]
    low, high = sorted(p)
    wanted = {low: min(1, 2 * low), high: max(min(1, 2 * low), high)}
    assert adjusted == pytest.approx([wanted[value] for value in p])


def test_an_answer_without_a_score_is_told_and_leaves_its_item_out(folder):
    row, last = (row_of(evaluation_table(folder), "words", arm) for arm in ("valley", "last"))
    assert (row["n_items"], row["n_answers"], row["unscored"], last["unscored"]) == (29, 29, 1, 0)
    ours, theirs = drawn(30, 0.6, 4), drawn(30, 0.7, 3)
    both = [n for n in range(30) if n != 3]
    assert row["score"] == pytest.approx(sum(ours[n][0] for n in both) / 29)
    assert row["difference"] == pytest.approx(sum(ours[n][0] - theirs[n][0] for n in both) / 29)


def test_epochs_of_an_item_are_one_unit(tmp_path):
    ours, theirs = drawn(40, 0.5, 5, epochs=4), drawn(40, 0.5, 6, epochs=4)
    folder = write(tmp_path / "epochs", {("sums", "last"): theirs, ("sums", "valley"): ours})
    row = row_of(evaluation_table(folder), "sums", "valley")
    change = [sum(a) / 4 - sum(b) / 4 for a, b in zip(ours, theirs, strict=True)]
    assert (row["n_items"], row["n_answers"]) == (40, 160)
    assert row["difference"] == pytest.approx(sum(change) / 40)
    assert (row["won"], row["lost"]) == (sum(one > 0 for one in change), sum(one < 0 for one in change))
    wide = write(
        tmp_path / "alike",
        {
            (task, arm): [[one[0]] * 4 for one in scores]
            for (task, arm), scores in {("sums", "last"): theirs, ("sums", "valley"): ours}.items()
        },
    )
    alike = row_of(evaluation_table(wide), "sums", "valley")
    assert alike["score_high"] - alike["score_low"] > row["score_high"] - row["score_low"]


def test_grades_are_not_shares(tmp_path):
    ours, theirs = [[0.7], [0.4], [0.9], [0.55]], [[0.6], [0.5], [0.8], [0.55]]
    folder = write(tmp_path / "grades", {("essays", "last"): theirs, ("essays", "valley"): ours})
    row = row_of(evaluation_table(folder), "essays", "valley")
    assert row["score"] == pytest.approx(0.6375)
    assert row["difference"] == pytest.approx(0.025)
    assert (row["won"], row["lost"]) == (2, 1)


def told(task, arm, item, epoch, score):
    """A measure that is higher for right answers, but not always; half the answers have equal values."""
    return None if item % 7 == 0 else round(score * 0.2 + random.Random(item).random(), 1)


def test_auroc_is_that_of_mann_and_whitney(tmp_path):
    scores = {("sums", "last"): drawn(60, 0.4, 1)}
    folder = write(tmp_path / "told", scores, final_entropy=told, n_generated_tokens=lambda *a: 20 + a[2])
    table = explanation_table(folder).set_index("measure")
    pairs = [(told("", "", n, 1, one[0]), one[0]) for n, one in enumerate(scores["sums", "last"]) if n % 7]
    right, wrong = ([value for value, score in pairs if score == wanted] for wanted in (1.0, 0.0))
    wanted = mannwhitneyu(right, wrong).statistic / len(right) / len(wrong)
    row = table.loc["final_entropy"]
    assert (row["auroc"], row["n_right"], row["n_wrong"]) == (pytest.approx(wanted), len(right), len(wrong))
    assert row["low"] < row["auroc"] < row["high"]
    lengths = [20 + n for n in range(60)]
    numbers = {
        value: [lengths[n] for n, one in enumerate(scores["sums", "last"]) if one[0] == value and n % 7]
        for value in (1.0, 0.0)
    }
    of_length = mannwhitneyu(numbers[1.0], numbers[0.0]).statistic / len(right) / len(wrong)
    assert row["beats_length"] == pytest.approx(abs(wanted - 0.5) - abs(of_length - 0.5))
    assert table.loc["n_generated_tokens", "beats_length"] != table.loc["n_generated_tokens", "beats_length"]


def test_the_interval_of_an_auroc_covers(tmp_path):
    inside = 0
    for seed in range(60):
        draw = random.Random(seed)
        scores = {("sums", "last"): [[float(draw.random() < 0.5)] for _ in range(80)]}
        values = [draw.gauss(one[0], 1) for one in scores["sums", "last"]]
        folder = write(tmp_path / str(seed), scores, final_entropy=lambda t, a, item, e, s, v=values: v[item])
        row = explanation_table(folder).set_index("measure").loc["final_entropy"]
        inside += row["low"] <= 0.76025 <= row["high"]  # of two normal distributions that are one deviation apart
    assert inside >= 53


@pytest.mark.parametrize("n_right", [0, 14, 15])
def test_little_is_told_by_few_right_answers(tmp_path, n_right):
    scores = {("sums", "last"): [[float(item < n_right)] for item in range(50)]}
    folder = write(tmp_path / "few", scores, final_entropy=lambda t, a, item, e, s: float(item % 9))
    assert len(explanation_table(folder)) == (n_right == 15)


@pytest.mark.parametrize(("changed", "difference"), [(0.2, 0.05), (0.3, 0.1), (0.5, 0.1)])
def test_so_many_items_find_the_difference(changed, difference):
    n, draw, found = int(needed(changed, difference)), random.Random(0), 0
    gain, loss = (changed + difference) / 2, (changed - difference) / 2
    for _ in range(400):
        throws = [draw.random() for _ in range(n)]
        won, lost = sum(one < gain for one in throws), sum(gain <= one < gain + loss for one in throws)
        found += binomtest(won, won + lost).pvalue < 0.05
    assert 0.74 <= found / 400 <= 0.86


def exactly(n, changed, difference):
    """The power by scipy, over all numbers of items that change."""
    moved = np.arange(n + 1)
    most = binom.ppf(0.025, moved, 0.5).astype(int)
    most = np.where(binom.cdf(most, moved, 0.5) <= 0.025, most, most - 1)
    won = (1 + difference / changed) / 2
    return float((binom.pmf(moved, n, changed) * (binom.cdf(most, moved, won) + binom.cdf(most, moved, 1 - won))).sum())


@pytest.mark.parametrize(
    ("n", "changed", "difference"),
    [(155, 0.05, 0.05), (979, 0.05, 0.02), (40, 0.5, 0.3), (5, 0.5, 0.3), (10, 1.0, 0.5)],
)
def test_the_power_is_exact(n, changed, difference):
    assert power(n, changed, difference) == pytest.approx(exactly(n, changed, difference), abs=1e-9)


@pytest.mark.parametrize(("changed", "difference"), [(0.05, 0.02), (0.1, 0.1), (0.3, 0.05)])
def test_one_item_less_has_less_power_than_80_percent(changed, difference):
    n = int(needed(changed, difference))
    assert exactly(n, changed, difference) >= 0.8 > exactly(n - 1, changed, difference)


def test_a_difference_that_cannot_be_needs_no_number():
    assert np.isnan(needed(0.02, 0.05))
    assert np.isnan(needed(0.0, 0.05))


def test_epochs_of_an_item_are_one_item(tmp_path):
    """Four answers to each of 30 items: the test of McNemar sees 30 items, and so does the power."""
    draw = random.Random(5)
    scores = {
        ("sums", arm): [[float(draw.random() < 0.5) for _ in range(4)] for _ in range(30)] for arm in ("last", "valley")
    }
    row = row_of(power_table(write(tmp_path / "out", scores), 0.3), "sums", "valley")
    by_arm = (scores["sums", arm] for arm in ("last", "valley"))
    pairs = [(sum(a) / 4, sum(b) / 4) for a, b in zip(*by_arm, strict=True)]
    assert row["n_items"] == 30
    assert row["changed"] == pytest.approx(sum(a != b for a, b in pairs) / 30)


def test_an_item_counts_once_however_many_of_its_epochs_have_a_score(tmp_path):
    """Ten items right and ten wrong under both arms; the judge left out three of four epochs of the right ones."""
    last = [[1.0] * 4] * 10 + [[0.0] * 4] * 10
    arm = [[1.0, None, None, None]] * 10 + [[0.0] * 4] * 10
    row = row_of(
        evaluation_table(write(tmp_path / "out", {("sums", "last"): last, ("sums", "valley"): arm})), "sums", "valley"
    )
    assert (row["score"], row["difference"], row["won"], row["lost"]) == (0.5, 0.0, 0, 0)
    assert (row["n_items"], row["n_answers"], row["unscored"]) == (20, 50, 30)


def test_equal_grades_are_no_certainty(tmp_path):
    row = row_of(evaluation_table(write(tmp_path / "out", {("sums", "last"): [[0.5], [0.5]]})), "sums", "last")
    assert row["score"] == 0.5
    assert np.isnan(row["score_low"])
    assert np.isnan(row["score_high"])


def test_noise_does_not_beat_a_baseline_that_says_nothing(tmp_path):
    """All answers are as long as the limit allows: what a measure adds to that has an interval on both sides of 0."""
    above = 0
    for seed in range(40):
        draw = random.Random(seed)
        scores = {("sums", "last"): [[float(draw.random() < 0.5)] for _ in range(60)]}
        values = [draw.gauss(0, 1) for _ in range(60)]
        lengths = [40 - (draw.random() < 0.04) for _ in range(60)]
        folder = write(
            tmp_path / str(seed),
            scores,
            final_entropy=lambda t, a, item, e, s, v=values: v[item],
            n_generated_tokens=lambda t, a, item, e, s, v=lengths: v[item],
        )
        row = explanation_table(folder).set_index("measure").loc["final_entropy"]
        above += row["beats_length_low"] > 0
    assert above <= 6


def test_power_of_what_was_measured(folder):
    row = row_of(power_table(folder, 0.1), "sums", "valley")
    ours, last = drawn(60, 0.5, 2), drawn(60, 0.4, 1)
    changed = sum(a != b for a, b in zip(ours, last, strict=True)) / 60
    assert (row["n_items"], row["changed"]) == (60, pytest.approx(changed))
    assert row["needed"] == needed(changed, 0.1)
    assert row["needed_low"] < row["needed"] < row["needed_high"]
    assert power(60, changed, row["detectable"]) >= 0.8 > power(60, changed, row["detectable"] - 0.001)


def test_the_correlation_and_the_ends_of_what_is_needed(folder):
    row = row_of(power_table(folder, 0.1), "sums", "valley")
    ours, last = ([one[0] for one in drawn(60, right, seed)] for right, seed in ((0.5, 2), (0.4, 1)))
    assert row["correlation"] == pytest.approx(np.corrcoef(ours, last)[0, 1])
    changed = sum(a != b for a, b in zip(ours, last, strict=True))
    exact = binomtest(changed, 60).proportion_ci(0.95, method="exact")
    assert (row["needed_low"], row["needed_high"]) == (needed(exact.low, 0.1), needed(exact.high, 0.1))


def test_items_that_never_change_show_no_difference(tmp_path):
    """All right under one arm, and the same answers under another."""
    same = drawn(40, 0.5, 7)
    scores = {("sums", "last"): [[1.0]] * 40, ("sums", "valley"): [[1.0]] * 40}
    scores |= {("words", "last"): same, ("words", "valley"): same}
    table = power_table(write(tmp_path / "same", scores), 0.2)
    sums, words = (row_of(table, task, "valley") for task in ("sums", "words"))
    assert np.isnan(sums["correlation"])
    assert words["correlation"] == pytest.approx(1)
    for row in (sums, words):
        assert (row["n_items"], row["changed"]) == (40, 0)
        assert np.isnan([row["needed"], row["needed_low"], row["detectable"]]).all()


def test_the_power_is_told_of_answers_that_are_right_or_wrong(tmp_path):
    """Of grades there is no row; items without a score under either arm do not count."""
    grades = {("essays", "last"): [[0.6], [0.5]], ("essays", "valley"): [[0.7], [0.4]]}
    ours = drawn(30, 0.6, 4)
    ours[3] = [None]
    scores = grades | {("words", "last"): drawn(30, 0.7, 3), ("words", "valley"): ours, ("alone", "last"): [[1.0]]}
    table = power_table(write(tmp_path / "both", scores), 0.2)
    assert table[["task", "arm", "n_items"]].to_numpy().tolist() == [["words", "valley", 29]]
    for few in (grades, {("alone", "last"): [[1.0], [0.0]]}):
        folder = write(tmp_path / str(len(few)), few)
        with refused(RunError, given=folder, advice="another strategy"):
            power_table(folder, 0.2)


@pytest.mark.parametrize("difference", [0, -0.1, 1, float("nan")])
def test_a_difference_that_is_none(folder, difference):
    with pytest.raises(OptionError) as error:
        power_table(folder, difference)
    assert error.value.option == "power"


def test_the_documentation_has_the_numbers_of_the_formula():
    text = (Path(__file__).resolve().parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    head, *lines = re.findall(
        r"^\| (?:gain|\d).*% .*change.*$|^\| (?:1|2|3|5|10) \| [\d,-]+ \| .*$", text, re.MULTILINE
    )
    shares = [int(share) for share in re.findall(r"(\d+) %", head)]
    assert shares == [5, 10, 20, 30]
    rows = [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")] for line in lines]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 5, 10]
    for points, *cells in rows:
        for share, cell in zip(shares, cells, strict=True):
            if share >= int(points):
                assert int(cell) == needed(share / 100, int(points) / 100)
    assert f"{needed(0.2, 0.012):,.0f} items" in text


def test_an_evaluation_is_no_run(folder):
    with refused(RunError, given=folder, problem="is an evaluation"):
        ll.open_run(folder)
