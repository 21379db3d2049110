"""Shares and their differences: coverage by exact enumeration, limits against scipy, tokens by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from layerlens.analysis.shares import (
    beta_quantile,
    bonett_price,
    clopper_pearson,
    share_difference,
    share_interval,
    student,
)
from layerlens.analysis.uncertainty import mean_interval, resample

SHARES = np.linspace(0.01, 0.99, 197)
ROOM = 1e-9  # of rounding, in a share


@pytest.fixture(scope="module")
def tables():
    """Low and high of every number of right answers of n, [2, n + 1]."""
    numbers = range(2, 201)
    n = np.concatenate([np.full(n + 1, n) for n in numbers])
    seen = np.concatenate([np.arange(n + 1) for n in numbers])
    ends = np.stack(clopper_pearson(seen / n, n))
    return dict(zip(numbers, np.split(ends, np.cumsum([n + 1 for n in numbers])[:-1], axis=1), strict=True))


@pytest.mark.parametrize("n", [2, 8, 60])
def test_one_answer_a_prompt_has_the_interval_that_is_enumerated(tables, n):
    sums = np.stack([np.arange(n) < k for k in range(n + 1)], axis=1).astype(float)
    share, *ends = share_interval(sums, np.ones((n, 1)), resample(n, resamples=2))
    np.testing.assert_allclose(share, np.arange(n + 1) / n)
    np.testing.assert_allclose(ends, tables[n], atol=1e-9)
    for k in range(n + 1):  # one at a time
        assert share_interval(sums[:, k], np.ones(n), resample(n, 2)) == pytest.approx((k / n, *tables[n][:, k]))


def test_an_answer_from_each_of_8_to_200_prompts_is_covered(tables):
    """Exactly, over every outcome: at least 95.0 % at every n and share, 95.9 % at every n on average over shares."""
    least, means = 1.0, []
    for n in range(8, 201):
        low, high = tables[n]
        chances = stats.binom.pmf(np.arange(n + 1)[:, None], n, SHARES)
        holds = (low[:, None] <= SHARES + ROOM) & (high[:, None] >= SHARES - ROOM)
        covered = (chances * holds).sum(axis=0)
        least = min(least, covered.min())
        means.append(covered.mean())
    assert least >= 0.95
    assert min(means) >= 0.959
    assert np.mean(means) == pytest.approx(0.966, abs=0.0005)


def test_limits_rise_with_what_was_seen_and_never_narrow_near_0(tables):
    for n, (low, high) in tables.items():
        seen = np.arange(n + 1) / n
        assert (np.diff(low) > 0).all()
        assert (np.diff(high) > 0).all()
        assert (np.diff(high - low)[: n // 2] >= -ROOM).all(), "narrower for more"
        assert (low[0], high[-1]) == (0, 1)
        assert (low <= seen).all()
        assert (seen <= high).all()
        np.testing.assert_allclose(low, 1 - high[::-1], atol=1e-9)


@pytest.mark.parametrize(("n_right", "n"), [(0, 60), (1, 60), (14, 60), (60, 60), (1, 2), (3, 200)])
def test_limits_are_scipys(tables, n_right, n):
    known = stats.binomtest(n_right, n).proportion_ci(method="exact")
    assert tables[n][:, n_right] == pytest.approx([known.low, known.high], abs=1e-9)


@given(st.floats(1e-3, 1 - 1e-3), st.floats(0.01, 300), st.floats(0.01, 300))
@settings(deadline=None)
def test_beta_quantiles_are_scipys(level, a, b):
    found = beta_quantile(level, np.array([a]), np.array([b]))[0]
    assert found == pytest.approx(stats.beta.ppf(level, a, b), abs=1e-10)


@pytest.fixture(scope="module")
def chances():
    """Every pair of a gain and a smaller loss in steps of 0.005, finer near 0, [pairs, 3] with what stays."""
    steps = np.unique(np.r_[0, 0.0005, 0.001, 0.002, 0.003, np.arange(201) / 200])
    gain, loss = (part.ravel() for part in np.meshgrid(steps, steps, indexing="ij"))
    found = np.stack([gain, loss, 1 - gain - loss], axis=1)[(gain >= loss) & (gain + loss <= 1 + ROOM)]
    return np.where(found < ROOM, 0, found)


def paired_outcomes(n):
    """Every number of n prompts that gain, lose and stay, [outcomes, 3], and the log of how often each can be."""
    counts = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)], dtype=float)
    return counts, special.gammaln(n + 1) - special.gammaln(counts + 1).sum(axis=1)


def paired_coverage(n, chances):
    """Of every pair of chances, [pairs], how often the interval of n prompts holds the true difference; exactly."""
    counts, ways = paired_outcomes(n)
    low, high = bonett_price((counts[:, 0] - counts[:, 1]) / n, (counts[:, 0] + counts[:, 1]) / n, n)
    covered = []
    for some in np.array_split(chances, 1 + len(chances) * len(counts) // 2_000_000):
        likely = np.exp(np.log(np.maximum(some, 1e-300)) @ counts.T + ways)
        truth = some[:, :1] - some[:, 1:2]
        covered.append((likely * ((low <= truth + ROOM) & (truth - ROOM <= high))).sum(axis=1))
    return np.concatenate(covered)


# n: least coverage, and the gain and loss where it is
LEAST = {
    8: (0.9296, 0.505, 0.495),
    10: (0.9278, 0.735, 0.265),
    12: (0.9321, 0.65, 0.35),
    16: (0.9259, 0.57, 0.43),
    20: (0.9324, 0.585, 0.415),
    40: (0.9379, 0.655, 0.34),
    60: (0.9358, 0.12, 0.0),
    100: (0.9378, 0.1, 0.0),
}


@pytest.mark.parametrize("n", LEAST)
def test_a_difference_of_answers_is_covered(chances, n):
    """Exactly: over every number of prompts that gain and lose, at every chance of either."""
    covered = paired_coverage(n, chances)
    at = covered.argmin()
    assert (covered[at], *chances[at, :2]) == pytest.approx(LEAST[n], abs=6e-5)
    assert covered.mean() >= 0.955


def test_a_difference_of_200_answers_is_covered(chances):
    """On a grid of 0.01, and where little moves, in all its steps."""
    even = np.abs(chances * 100 - np.rint(chances * 100)).max(axis=1) < 1e-6
    covered = paired_coverage(200, chances[even | (chances[:, 2] >= 0.85)])
    assert covered.min() == pytest.approx(0.93725, abs=6e-5)
    assert covered.mean() >= 0.952


@pytest.mark.parametrize("n", range(8, 41))
def test_a_difference_of_8_to_40_answers_is_covered(chances, n):
    """No number of prompts falls below that of 16."""
    covered = paired_coverage(n, chances)
    assert covered.min() >= 0.9258
    assert covered.mean() >= 0.961


@pytest.mark.parametrize("n", [2, 8, 20, 60])
def test_the_limits_of_a_difference_hold_it_and_rise_as_more_gain(n):
    counts, _ = paired_outcomes(n)
    gained, lost = counts[:, :2].astype(int).T
    low, high = bonett_price((gained - lost) / n, (gained + lost) / n, n)
    assert (low <= (gained - lost) / n).all()
    assert ((gained - lost) / n <= high).all()
    for ends in (low, high):
        by_gain = np.full((n + 1, n + 1), np.nan)
        by_gain[gained, lost] = ends
        assert np.nanmin(np.diff(by_gain, axis=0)) >= -ROOM, "one more gains, and a limit falls"


@given(st.floats(1, 2000))
@settings(deadline=None)
def test_students_t_is_scipys(n):
    assert student(n) == pytest.approx(stats.t.ppf(0.975, n), rel=1e-6)


def test_a_paired_difference_is_that_of_the_prompts_that_changed():
    """10 gain, 3 lose, 47 stay: the formula written out; nothing changed still has a width."""
    first = np.r_[np.zeros(10), np.ones(3), np.ones(20), np.zeros(27)]
    second = np.r_[np.ones(10), np.zeros(3), np.ones(20), np.zeros(27)]
    ours, theirs = (first, np.ones(60)), (second, np.ones(60))
    gain, loss = 11 / 62, 4 / 62
    width = stats.t.ppf(0.975, 60) * np.sqrt((gain + loss - (gain - loss) ** 2) / 62)
    expected = [7 / 60, gain - loss - width, gain - loss + width]
    assert np.array(share_difference(ours, theirs, resample(60))) == pytest.approx(expected)
    turned = np.array(share_difference(theirs, ours, resample(60)))
    assert turned == pytest.approx([-expected[0], -expected[2], -expected[1]])
    none = np.array(share_difference(ours, ours, resample(60)))
    half = stats.t.ppf(0.975, 60) * np.sqrt(2) / 62
    assert none == pytest.approx([0, -half, half])


def test_tokens_that_few_prompts_have_are_as_uncertain_as_answers():
    """5 tokens of 800 in 2 of 20 prompts: an eighth of a prompt, which says little of the next."""
    counts = np.full(20, 40.0)
    sums = np.zeros(20)
    sums[[3, 8]] = 4, 1
    share, low, high = share_interval(sums, counts, resample(20))
    x = 20 * 5 / 800
    assert share == 5 / 800
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, x, 21 - x), stats.beta.ppf(0.975, x + 1, 20 - x)))
    assert low > 0
    lacking = share_interval(counts - sums, counts, resample(20))
    assert np.array(lacking) == pytest.approx([1 - share, 1 - high, 1 - low])


@pytest.mark.parametrize("n", [6, 12, 30])
def test_tokens_that_most_prompts_have_are_resampled(n):
    random = np.random.default_rng(n)
    counts = random.integers(30, 60, size=(n, 4)).astype(float)
    sums = random.binomial(counts.astype(int), 0.3).astype(float)
    np.testing.assert_array_equal(share_interval(sums, counts, resample(n)), mean_interval(sums, counts, resample(n)))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_prompts_that_are_divided_alike_are_not_certain_while_they_are_few(n):
    """Three tokens of four in each of two prompts do not make 75 % of all tokens."""
    counts = np.full(n, 4.0)
    _, low, high = share_interval(counts - 1, counts, resample(n))
    x = 0.75 * n
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, x, n - x + 1), stats.beta.ppf(0.975, x + 1, n - x)))
    difference, low, high = share_difference((counts - 1, counts), (counts - 2, counts), resample(n))
    assert difference == -0.25
    assert low < -0.6
    assert high > 0.2


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_shares_of_two_to_five_prompts_are_covered(n, rate):
    random = np.random.default_rng(n)
    logit = np.log(rate / (1 - rate)) + 1.5 * random.normal(size=(n, 1000))
    often = np.log(rate / (1 - rate)) + 1.5 * random.normal(size=400_000)
    truth = (1 / (1 + np.exp(-often))).mean()
    counts = random.integers(5, 50, size=(n, 1000)).astype(float)
    sums = random.binomial(counts.astype(int), 1 / (1 + np.exp(-logit))).astype(float)
    assert coverage(mean_interval, sums, counts, truth) < 0.92
    assert coverage(share_interval, sums, counts, truth) >= 0.95


def test_limits_rise_as_a_second_and_third_token_is_seen():
    """In a prompt that has others; none of it is certain at 0."""
    counts = np.full(30, 25.0)
    ends = [share_interval(np.r_[k, np.zeros(29)].astype(float), counts, resample(30))[1:] for k in range(26)]
    low, high = np.array(ends).T
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) > 0).all()
    assert (np.diff(high - low) > 0).all()


def test_one_prompt_has_a_share_and_a_difference_without_interval():
    one = np.array([3.0]), np.array([4.0])
    for share, low, high in (share_interval(*one, resample(1)), share_difference(one, one, resample(1))):
        assert share in (0.75, 0)
        assert np.isnan([low, high]).all()
    empty = np.zeros((4, 1)), np.zeros((4, 1))
    assert np.isnan(share_interval(*empty, resample(4))).all()
    assert np.isnan(share_difference(empty, empty, resample(4))).all()


def test_prompts_of_unequal_length_count_as_kish_says():
    """Three prompts of 50, 50 and 400 tokens are as good as one and a half; all or nothing in each."""
    counts = np.array([50.0, 50, 50, 400])
    share, low, high = share_interval(np.array([0.0, 0, 0, 400]), counts, resample(4))
    assert (low, high) == pytest.approx(
        (stats.beta.ppf(0.025, 16 / 11, 17 / 11), stats.beta.ppf(0.975, 27 / 11, 6 / 11))
    )
    assert low < share < high


def simulated(kind, rate, n_prompts, runs=600):
    """Per-prompt sums and counts, [prompts, runs] each, and the true share, which a million prompts have."""
    random = np.random.default_rng(n_prompts)

    def prompts(shape):
        counts = np.clip(np.rint(55 * np.exp(0.5 * random.normal(size=shape))), 1, 400)
        if kind == "alike":
            return counts, np.full(shape, rate)
        if kind == "apart":  # log-odds of sd 1.5
            return counts, special.expit(special.logit(rate) + 1.5 * random.normal(size=shape))
        return counts, np.where(random.random(shape) < rate, 0.9, 0.001)  # a few prompts have nearly all

    counts, chance = prompts((1_000_000,))
    truth = np.average(chance, weights=counts)
    counts, chance = prompts((n_prompts, runs))
    return random.binomial(counts.astype(int), chance).astype(float), counts, truth


def coverage(estimate, sums, counts, truth):
    _, low, high = estimate(sums, counts, resample(len(counts), resamples=400))
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize(
    ("kind", "rate", "n_prompts", "resampled"),
    [
        ("alike", 0.0005, 20, 0.55),
        ("alike", 0.002, 10, 0.8),
        ("apart", 0.002, 20, 0.9),
        ("apart", 0.02, 10, 0.9),
        ("few", 0.005, 20, 0.3),
        ("few", 0.02, 20, 0.45),
        ("few", 0.02, 64, 0.75),
        ("few", 0.1, 20, 0.9),
    ],
)
def test_rare_tokens_are_covered_where_resampling_alone_fails(kind, rate, n_prompts, resampled):
    found = simulated(kind, rate, n_prompts)
    assert coverage(mean_interval, *found) < resampled
    assert coverage(share_interval, *found) >= 0.91


def test_tokens_that_many_prompts_have_keep_the_width_of_resampling():
    for kind, rate in (("alike", 0.1), ("apart", 0.3)):
        sums, counts, truth = simulated(kind, rate, 40)
        assert 0.92 <= coverage(share_interval, sums, counts, truth) <= 0.975
        few = share_interval(sums, counts, resample(40, 500))[2] != mean_interval(sums, counts, resample(40, 500))[2]
        assert few.mean() < 0.01


def test_a_difference_of_rare_tokens_is_covered():
    """A few prompts have nearly all, in either run by itself; no difference is true."""
    counts = np.full((20, 1000), 40.0)
    random = np.random.default_rng(2)
    pair = []
    for _ in range(2):
        chance = np.where(random.random(counts.shape) < 0.02, 0.9, 0.001)
        pair.append((random.binomial(40, chance).astype(float), counts))
    difference, low, high = share_difference(*pair, resample(20, resamples=500))
    assert ((low <= 0) & (high >= 0)).mean() >= 0.93
    assert (low < high).all()
    assert (low <= difference).all()
    assert (difference <= high).all()


def test_a_difference_that_most_prompts_have_is_resampled():
    """Draws of a difference of 0.1 in prompts that have much in common."""
    random = np.random.default_rng(5)
    counts = random.integers(40, 80, size=(30, 500))
    own = random.uniform(0.1, 0.7, size=counts.shape)
    pair = [(random.binomial(counts, own + shift).astype(float), counts.astype(float)) for shift in (0, 0.1)]
    _, low, high = share_difference(*pair, resample(30, resamples=500))
    assert 0.92 <= ((low <= 0.1) & (high >= 0.1)).mean() <= 0.975
    assert (high - low).mean() < 0.07
