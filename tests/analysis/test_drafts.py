"""Which layers do least, against scipy and pandas."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import layerlens as ll
from layerlens import analysis
from layerlens.analysis.drafts import rank_correlation, spearman
from layerlens.analysis.uncertainty import resample
from layerlens.errors import RunError
from tests.conftest import tiny
from tests.made_up_run import write_run
from tests.refusals import refused

TEXTS = ["Hello there", "What is it?", "x", "And then some more of it"]
PLAIN = ["norm_ratio", "one_minus_cosine", "entropy_change"]
CONFIDENCES = ["confidence", "vocab_confidence"]


@pytest.mark.parametrize("n", [2, 3, 7, 30])
@pytest.mark.parametrize("n_values", [2, 4, 1000])
def test_spearmans_correlation_is_scipys_with_and_without_ties(n, n_values):
    random = np.random.default_rng(n * n_values)
    for _ in range(20):
        left, right = random.integers(0, n_values, (2, n)) / 7
        if np.ptp(left) == 0 or np.ptp(right) == 0:
            assert math.isnan(spearman(left, right))
        else:
            assert spearman(left, right) == pytest.approx(scipy.stats.spearmanr(left, right).statistic, abs=1e-12)


def test_spearmans_correlation_at_its_ends():
    values = np.array([3.0, 1.0, 2.0, 5.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)
    assert math.isnan(spearman(values, np.ones(4)))
    assert math.isnan(spearman(np.ones(4), values))


def bootstrap(left, right, left_counts, right_counts, weights):
    """Spearman's correlation of the means over tokens and its expanded percentile interval; [prompts, blocks] each."""

    def rhos(of_prompts):
        means = [(of_prompts @ left) / (of_prompts @ left_counts), (of_prompts @ right) / (of_prompts @ right_counts)]
        x, y = (scipy.stats.zscore(scipy.stats.rankdata(of_side, axis=1), axis=1) for of_side in means)
        return (x * y).mean(1)

    n = len(left)
    [whole] = rhos(np.ones((1, n)))
    level = scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(rhos(weights), [level, 1 - level])
    return whole, min(low, whole), max(high, whole)


@pytest.mark.parametrize(("n_prompts", "n_blocks"), [(2, 3), (5, 8), (9, 4)])
def test_the_interval_of_a_rank_correlation_is_a_plain_bootstrap(n_prompts, n_blocks):
    random = np.random.default_rng(n_prompts)
    counts = random.integers(1, 40, (n_prompts, 1)).astype(float)
    common = random.random(n_blocks)
    left, right = ((common + 0.7 * random.random((n_prompts, n_blocks))) * counts for _ in range(2))
    weights = resample(n_prompts, 200)
    found = rank_correlation(left, right, counts, weights)
    expected = bootstrap(left, right, counts, counts, weights)
    assert (found.rho, found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert (found.n_blocks, found.n_prompts) == (n_blocks, n_prompts)
    assert -1 <= found.low <= found.rho <= found.high <= 1
    assert found.low < found.high


def test_one_prompt_has_no_interval():
    found = rank_correlation(np.array([[1.0, 2, 4]]), np.array([[2.0, 1, 3]]), np.array([[2.0]]), resample(1))
    assert found.rho == pytest.approx(0.5)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_resamples_without_a_correlation_are_left_out():
    """Where a measure is the same for all blocks in one of the prompts."""
    left, right = np.array([[1.0, 1, 1], [1, 2, 3]]), np.array([[1.0, 2, 3], [1, 2, 3]])
    found = rank_correlation(left, right, np.ones((2, 1)), resample(2))
    assert (found.rho, found.low, found.high) == pytest.approx((1, 1, 1))
    flat = rank_correlation(np.ones((2, 3)), right, np.ones((2, 1)), resample(2))
    assert all(math.isnan(value) for value in flat[:3])


# a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same texts traced without confidences and with them, through eight layers."""
    model, folder = tiny("llama", num_hidden_layers=8), tmp_path_factory.mktemp("runs")
    options = {"max_new_tokens": 9, "batch_size": 2, "progress": False}
    return {
        asked: ll.trace(model, TEXTS, out=folder / str(asked), confidence=asked, **options) for asked in (False, True)
    }


def measures(run):
    """One row per token of the prompts that count: its prompt, and each measure of layers 2..L-1."""
    rows = run.tokens[run.tokens["prompt_id"].isin(counted(run))]
    names = PLAIN + [name for name in CONFIDENCES if name in rows]
    found = {}
    for name in names:
        column = {"one_minus_cosine": "io_cosine", "entropy_change": "entropy"}.get(name, name)
        values = np.array([[np.nan if one is None else one for one in row] for row in rows[column]], dtype=float)
        if name == "entropy_change":
            values[:, 1:] = [[abs(row[at] - row[at - 1]) for at in range(1, len(row))] for row in values]
        found[name] = pd.DataFrame(values[:, 1:-1] if name != "one_minus_cosine" else 1 - values[:, 1:-1])
    return rows["prompt_id"].reset_index(drop=True), found


def counted(run):
    return set(run.prompts.loc[run.prompts["finish_reason"] != "non_finite", "prompt_id"])


def assert_is_what_pandas_finds(run, names):
    prompt_id, values = measures(run)
    table = run.dispensable()
    pairs = [(one, other) for at, one in enumerate(names) for other in names[at + 1 :]]
    assert list(zip(table["measure"], table["other"], strict=True)) == pairs
    weights = resample(prompt_id.nunique())
    n_layers = run.n_layers - 2
    quarter = math.ceil(n_layers / 4)
    for row in table.to_dict("records"):
        means = [values[row[side]].mean() for side in ("measure", "other")]
        by_prompt = [values[row[side]].groupby(prompt_id) for side in ("measure", "other")]
        sums = [of_side.sum().to_numpy() for of_side in by_prompt]
        counts = [of_side.count().to_numpy() for of_side in by_prompt]
        assert row["rho"] == pytest.approx(scipy.stats.spearmanr(*means).statistic, abs=1e-9)
        expected = bootstrap(*sums, *counts, weights)
        assert [row[f"rho{end}"] for end in ("", "_low", "_high")] == pytest.approx(expected, abs=1e-9)
        lowest = [set(mean.nsmallest(quarter).index) for mean in means]
        assert row["shared"] == len(lowest[0] & lowest[1])
        assert (row["n_lowest"], row["n_layers"], row["n_prompts"]) == (quarter, n_layers, prompt_id.nunique())
    assert table.attrs == {
        "n_prompts": prompt_id.nunique(),
        "n_prompts_left_out": len(run.prompts) - prompt_id.nunique(),
    }


@pytest.mark.parametrize("asked", [False, True])
def test_measures_are_compared_by_their_means_over_tokens(runs, asked):
    assert_is_what_pandas_finds(runs[asked], PLAIN + CONFIDENCES * asked)
    pd.testing.assert_frame_equal(runs[asked].dispensable(), analysis.dispensable(runs[asked]))


def test_confidences_change_nothing_of_the_others(runs):
    both = runs[True].dispensable()
    among = both[both["measure"].isin(PLAIN) & both["other"].isin(PLAIN)].reset_index(drop=True)
    pd.testing.assert_frame_equal(runs[False].dispensable(), among)
    assert len(both) == 10


def made_up(n_layers=12, *, confidence=True):
    """Prompts of different lengths with random measures."""
    random = np.random.default_rng(0)
    prompts = {}
    for number in range(6):
        shape = (5 + 3 * number, n_layers)
        prompts[f"p{number}"] = {
            "entropy": random.gamma(1.0, 2.0, shape),
            "norm_ratio": random.lognormal(-1, 0.5, shape),
            "io_cosine": random.uniform(0.5, 1, shape),
        }
        if confidence:
            prompts[f"p{number}"] |= {name: random.uniform(0, 2, shape) for name in CONFIDENCES}
    return prompts


def test_prompts_with_states_that_are_not_finite_do_not_count(tmp_path):
    run = write_run(tmp_path / "run", made_up(confidence=False), finish_reasons={"p4": "non_finite"})
    assert_is_what_pandas_finds(run, PLAIN)
    assert run.dispensable().attrs == {"n_prompts": 5, "n_prompts_left_out": 1}


@pytest.mark.parametrize("n_layers", [5, 11])
def test_first_and_last_layer_do_not_count(tmp_path, n_layers):
    """However little they do."""
    prompts = made_up(n_layers, confidence=False)
    run = write_run(tmp_path / "run", prompts)
    assert_is_what_pandas_finds(run, PLAIN)
    for measures_of in prompts.values():
        measures_of["norm_ratio"][:, [0, -1]] = 0
        measures_of["io_cosine"][:, [0, -1]] = 1
    pd.testing.assert_frame_equal(write_run(tmp_path / "other", prompts).dispensable(), run.dispensable())


def test_a_measure_that_a_layer_lacks_is_not_compared(tmp_path):
    prompts = made_up()
    for measures_of in prompts.values():
        measures_of["vocab_confidence"][:, 4] = np.nan
    run = write_run(tmp_path / "run", prompts)
    assert_is_what_pandas_finds(run, [*PLAIN, "confidence"])


def test_a_measure_that_some_tokens_lack_has_its_mean_over_the_others(tmp_path):
    prompts = made_up()
    prompts["p5"]["confidence"][1:, 3] = np.nan
    prompts["p4"]["confidence"][:, 7] = np.nan
    run = write_run(tmp_path / "run", prompts)
    assert_is_what_pandas_finds(run, PLAIN + CONFIDENCES)


def test_too_few_layers_are_refused(tmp_path, run_of):
    run = run_of(tiny("llama"), ["Hello"], max_new_tokens=2, confidence=True)
    assert run.n_layers == 4
    with refused(RunError, given=run.path, problem="4 layers"):
        run.dispensable()
    assert len(write_run(tmp_path / "five", made_up(5, confidence=False)).dispensable()) == 3


def test_a_run_without_a_token_that_counts_is_refused(tmp_path):
    prompts = made_up()
    run = write_run(tmp_path / "run", prompts, finish_reasons=dict.fromkeys(prompts, "non_finite"))
    with refused(RunError, "dtype", problem="infinite"):
        run.dispensable()
