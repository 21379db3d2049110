"""How often intervals hold the true value, simulated with tokens that resemble each other within a prompt."""

import numpy as np
import pytest

from layerlens.analysis.uncertainty import effective_prompts, mean_interval, resample

RUNS = 2000
LENGTH_SD = 0.5  # of the logarithm: answers of 20 to 150 tokens about a median of 55


def simulated(n_prompts, length_sd, *, follows_length=0.0):
    """Per-prompt sums of a rate and of a mean, counts, [prompts, runs] each, and the two true values.

    Each prompt has its own chance (log-odds of sd 0.6 about -1.5) and its own mean (sd 1); tokens vary about them. Both
    may follow the prompt's length, with that correlation. The truth is what a run of all prompts would find: means over
    tokens, weighted by length, from a million prompts.
    """
    random = np.random.default_rng(n_prompts)

    def prompts(shape):
        length, own = random.normal(size=(2, *shape))
        effect = follows_length * length + np.sqrt(1 - follows_length**2) * own
        counts = np.clip(np.rint(55 * np.exp(length_sd * length)), 1, 400)
        return counts, 1 / (1 + np.exp(1.5 - 0.6 * effect)), effect

    counts, chance, level = prompts((1_000_000,))
    truth = {"rate": np.average(chance, weights=counts), "mean": np.average(level, weights=counts)}
    counts, chance, level = prompts((n_prompts, RUNS))
    noise = np.sqrt(counts) * random.normal(size=counts.shape)  # the sum of as many normal tokens
    sums = {"rate": random.binomial(counts.astype(int), chance).astype(float), "mean": counts * level + noise}
    return sums, counts, truth


def coverage(n_prompts, length_sd=LENGTH_SD, **options):
    """The share of simulated runs whose interval holds the true rate, and the true mean."""
    sums, counts, truth = simulated(n_prompts, length_sd, **options)
    weights = resample(n_prompts, resamples=1000)
    shares = {}
    for name, values in sums.items():
        _, low, high = mean_interval(values, counts, weights)
        shares[name] = float(((low <= truth[name]) & (truth[name] <= high)).mean())
    return shares


@pytest.mark.parametrize("n_prompts", [10, 20, 50])
def test_the_interval_covers_93_to_97_percent(n_prompts):
    """Of 2,000 runs a share of 95 % strays by 1 percentage point once in twenty times."""
    for name, share in coverage(n_prompts).items():
        assert 0.93 <= share <= 0.97, name


@pytest.mark.parametrize(("n_prompts", "least", "most"), [(3, 0.70, 0.80), (4, 0.84, 0.91), (5, 0.88, 0.94)])
def test_fewer_than_six_prompts_cover_less_as_is_documented(n_prompts, least, most):
    for name, share in coverage(n_prompts).items():
        assert least <= share <= most, name


def test_answers_of_very_different_length_cover_less_and_no_less_than_is_documented():
    assert min(coverage(20, 0.8, follows_length=0.3).values()) >= 0.90
    assert min(coverage(10, 0.8).values()) >= 0.93


def test_the_simulation_sees_an_interval_that_counts_tokens_and_not_prompts():
    """Tokens of a prompt resemble each other: as if they did not, the interval would be far too narrow."""
    sums, counts, truth = simulated(20, LENGTH_SD)
    share = sums["rate"].sum(axis=0) / counts.sum(axis=0)
    half = 1.96 * np.sqrt(share * (1 - share) / counts.sum(axis=0))
    assert (abs(share - truth["rate"]) <= half).mean() < 0.75


def test_effective_prompts_are_kishs_rounded_down():
    counts = np.array([[1.0, 1, 0, 0, 5], [1, 3, 0, 0, 1], [1, 0, 0, 2, 1]])
    assert effective_prompts(counts).tolist() == [3, 2, 0, 1, 2]  # Kish: 3, 16/10 of two prompts, none, one, 49/27
    lengths = np.random.default_rng(0).integers(1, 200, 30).astype(float)
    assert effective_prompts(lengths) == int(sum(lengths) ** 2 / sum(length**2 for length in lengths))
    for n in range(2, 200):
        assert effective_prompts(np.full(n, 0.1)) == n
