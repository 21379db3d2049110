"""Which layers ConfLayers leaves out, against the formulas in plain loops."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from layerlens.decode.speculative.confidence import below_neighbours, confidence, local_means, next_lambda, windows


def mean(values):
    return math.fsum(values) / len(values)


def deviation(values):
    middle = mean(values)
    return math.sqrt(mean([(value - middle) ** 2 for value in values]))


def gradient(values):
    """Half the difference of both neighbours; at the ends the difference to the one there is."""
    n = len(values)
    found = []
    for i in range(n):
        before, after = max(i - 1, 0), min(i + 1, n - 1)
        found.append((values[after] - values[before]) / (after - before))
    return found


def plain_bends(values):
    """The g of each candidate, 0..1."""
    middle, spread = mean(values), deviation(values)
    z = [(value - middle) / (spread + 1e-6) for value in values]
    bends = gradient(gradient(z)) if len(z) > 1 else [0.0]
    least, most = min(bends), max(bends)
    scaled = [(bend - least) / (most - least) if most > least else 0.5 for bend in bends]
    shift = 0.5 - mean(scaled)
    return [min(1.0, max(0.0, one + shift)) for one in scaled]


def plain_windows(values):
    return [2 + int(5 * g * (i + 1) / len(values)) for i, g in enumerate(plain_bends(values))]


def plain_neighbours(values, widths, i):
    """Up to w // 2 on either side, without the candidate itself."""
    reach = widths[i] // 2
    return [values[j] for j in range(len(values)) if j != i and i - reach <= j <= i + reach]


def plain_below(values, lam):
    found, widths = [], plain_windows(values)
    for i, value in enumerate(values):
        near = plain_neighbours(values, widths, i)
        if near and value < mean(near) - lam * deviation(near):
            found.append(i)
    return found


def made_up(kind, n, seed):
    draw = random.Random(f"{kind} {n} {seed}")
    if kind == "noise":
        return [draw.uniform(0, 2) for _ in range(n)]
    if kind == "walk":
        values = [1.0]
        while len(values) < n:
            values.append(values[-1] + draw.gauss(0, 0.01))
        return values
    if kind == "ties":
        return [draw.choice([0.25, 0.5, 0.75]) for _ in range(n)]
    if kind in ("peak", "dip"):  # so that g is clipped, below or above
        height = 10.0 if kind == "peak" else -10.0
        return [1.0 + (height if i == n // 2 else 0.0) + 0.01 * math.sin(i + seed) for i in range(n)]
    return [draw.uniform(0, 2)] * n  # "constant"


KINDS = ["noise", "walk", "ties", "peak", "dip", "constant"]
CASES = [
    (kind, n, seed) for kind in KINDS for n in (*range(1, 12), 22, 38, 80) for seed in (range(6) if n > 1 else (0,))
]


def doubtful(values, lam):
    """Whether rounding could decide a window or a candidate. It does where three candidates differ: they bend alike."""
    if len(values) == 3 and len(set(values)) > 1:
        return True
    widths = plain_windows(values)
    steps = [5 * g * (i + 1) / len(values) for i, g in enumerate(plain_bends(values)) if g > 0]
    gaps = []
    for i, value in enumerate(values):
        near = plain_neighbours(values, widths, i)
        if near:
            gaps.append(abs(value - mean(near) + lam * deviation(near)))
    close = any(abs(step - round(step)) < 1e-9 for step in steps)
    return close or any(0 < gap < 1e-9 for gap in gaps)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_neighbours_are_those_of_the_formulas(kind):
    n_compared = 0
    for values in (made_up(*case) for case in CASES if case[0] == kind):
        if doubtful(values, 0.0):
            continue
        widths = plain_windows(values)
        assert windows(np.array(values)).tolist() == widths
        means, deviations = local_means(np.array(values))
        for i in range(len(values)):
            near = plain_neighbours(values, widths, i)
            if not near:
                assert math.isnan(means[i])
                assert math.isnan(deviations[i])
                continue
            assert means[i] == pytest.approx(mean(near), abs=1e-12)
            assert deviations[i] == pytest.approx(deviation(near), abs=1e-12)
        n_compared += 1
    assert n_compared > 30


@pytest.mark.parametrize("lam", [0.0, 0.3, -0.3, 2.0, -2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_below_its_neighbours(kind, lam):
    found = []
    for values in (made_up(*case) for case in CASES if case[0] == kind):
        if doubtful(values, lam):
            continue
        below = plain_below(values, lam)
        assert below_neighbours(np.array(values), lam) == below
        assert all(type(index) is int for index in below_neighbours(np.array(values), lam))
        found.append(len(below))
    assert len(found) > 30
    assert (sum(found) > 0) == (kind != "constant"), "equal values are not below one another"


def test_windows_are_wider_where_the_confidence_bends_and_further_back():
    """They are 2 to 7, and differ."""
    widths = windows(np.array(made_up("walk", 80, 0)))
    assert widths.dtype == np.int64
    assert set(widths.tolist()) >= {2, 3, 4, 5}
    assert widths.max() <= 7
    assert widths[:16].max() <= 3, "2 + int(5 g (i + 1) / 80), g at most 1"
    assert windows(np.full(10, 0.3)).tolist() == [2, 2, 2, 3, 3, 3, 3, 4, 4, 4], "g is 0.5 where nothing bends"


def test_a_higher_lambda_leaves_out_fewer():
    """Where deviations are above 0."""
    values = np.array(made_up("noise", 60, 1))
    found = [set(below_neighbours(values, lam)) for lam in (-1.0, 0.0, 0.25, 0.5, 1.0, 3.0)]
    assert all(more >= fewer for more, fewer in pairwise(found))
    assert len(set(map(len, found))) > 3


def test_there_is_nothing_to_compare_a_single_candidate_with():
    assert windows(np.array([0.7])).tolist() == [2 + int(5 * 0.5)]
    assert np.isnan(local_means(np.array([0.7]))).all()
    assert below_neighbours(np.array([0.7]), -5.0) == []


@pytest.mark.parametrize(
    ("share", "skip_ratio", "moved"),
    [
        (0.0, 0.45, -0.05),
        (0.44, 0.45, -0.05),
        (0.45, 0.45, 0.0),
        (0.6, 0.45, 0.0),
        (0.7, 0.45, 0.0),
        (0.71, 0.45, 0.05),
        (1.0, 0.45, 0.05),
        (0.0, 0.0, 0.0),
        (0.25, 0.0, 0.0),
        (0.26, 0.0, 0.05),
        (1.0, 1.0, 0.0),
        (0.99, 1.0, -0.05),
    ],
)
def test_lambda_follows_the_share(share, skip_ratio, moved):
    for lam in (0.0, -1.2, 3.4):
        assert next_lambda(lam, share, skip_ratio) == pytest.approx(lam + moved)


def plain_confidence(row):
    greatest = max(row)
    weights = [math.exp(entry - greatest) for entry in row]
    total = math.fsum(weights)
    probs = [weight / total for weight in weights]
    return 1 + math.fsum(p * math.log(p) for p in probs if p > 0) / math.log(len(row))


@pytest.mark.parametrize("width", [2, 3, 48, 1000])
def test_confidence_is_one_less_the_share_of_the_greatest_entropy(width):
    draw = random.Random(width)
    rows = [[draw.gauss(0, scale) for _ in range(width)] for scale in (0.01, 0.3, 1, 3, 10, 100) for _ in range(4)]
    found = confidence(torch.tensor(rows))
    assert found.shape == (24,)
    for one, row in zip(found.tolist(), rows, strict=True):
        assert one == pytest.approx(plain_confidence(row), abs=2e-6)
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    assert found.max() - found.min() > 0.5


def test_the_ends_of_confidence():
    """Equal entries say nothing, one that stands out says all, even where the others underflow or cannot be."""
    assert confidence(torch.full((2, 48), 3.25)).tolist() == pytest.approx([0, 0], abs=1e-6)
    sure = torch.zeros(3, 48)
    sure[0, 5], sure[1, 5] = 30.0, 3e4
    sure[2, :] = -torch.inf
    sure[2, 5] = 0.0
    assert confidence(sure).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    two = torch.zeros(1, 64)
    two[0, :8] = 60.0
    assert confidence(two).item() == pytest.approx(0.5, abs=1e-6), "8 of 64: ln 8 is half of ln 64"


def test_confidence_is_computed_in_float32():
    """Two float16 rows that differ in the fourth digit of their confidence differ."""
    rows = torch.zeros(2, 48, dtype=torch.float16)
    rows[:, 0] = torch.tensor([1.0, 1.001])
    found = confidence(rows)
    assert found.dtype == torch.float32
    assert found[1] > found[0]
    assert found.tolist() == pytest.approx([plain_confidence(row) for row in rows.tolist()], abs=1e-6)
