"""Each formula against numpy in float64, or against a loop of plain Python."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from layerlens.formulas import (
    LOWEST,
    changes,
    entropy_of,
    finished,
    joined_sums,
    n_steps_back,
    raise_top,
    steps_back,
    tile_sums,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def changes_in_numpy(before, part, after, parallel):
    """Of one row, from lists of numbers."""
    before, part, after = (np.array(one, dtype=np.float64) for one in (before, part, after))
    size = np.linalg.norm(before)
    cosine = before @ after / size / np.linalg.norm(after)
    middle = before + part if parallel else part
    mlp = np.linalg.norm(after - middle) / (size if parallel else np.linalg.norm(middle))
    return [np.linalg.norm(after - before) / size, cosine, np.linalg.norm(middle - before) / size, mlp]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes(parallel, dtype):
    states = [drawn(7, 12, seed=seed).to(dtype) * size for seed, size in enumerate((1.0, 3.0, 0.5))]
    found = changes(*states, parallel)
    assert found.dtype == torch.float32
    rows = zip(*(one.double().tolist() for one in states), strict=True)
    expected = np.array([changes_in_numpy(*row, parallel) for row in rows]).T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_changes_of_a_block_without_parts():
    before, after = drawn(5, 8), drawn(5, 8, seed=1)
    found = changes(before, None, after, False)
    torch.testing.assert_close(found[:2], changes(before, before, after, False)[:2], rtol=0, atol=0)
    assert found[2:].isnan().all()
    assert found.shape == (4, 5)


def test_a_cosine_stays_within_its_bounds():
    """States that rounding would take beyond 1."""
    states = drawn(4000, 5)
    for sign in (1, -1):
        cosine = changes(states, None, states * (3 * sign), False)[1]
        torch.testing.assert_close(cosine, torch.full((4000,), float(sign)))
        assert cosine.abs().max() == 1


def test_a_state_of_noughts_has_finite_changes():
    """Its norm counts as a millionth."""
    nought, state = torch.zeros(1, 4), torch.full((1, 4), 0.5)
    assert changes(nought, None, state, False)[:2, 0].tolist() == pytest.approx([1e6, 0.0])
    assert changes(state, nought, state, False)[:, 0].tolist() == pytest.approx([0.0, 1.0, 1.0, 1e6])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, -2.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finished_logits(bias, scale, softcap):
    products, biases = drawn(3, 9), drawn(9, seed=1)
    expected = (products.double().numpy() + (biases.double().numpy() if bias else 0)) * scale
    if softcap is not None:
        expected = softcap * np.tanh(expected / softcap)
    found = finished(products, biases if bias else None, scale, softcap)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found is products


def sums_in_numpy(logits):
    """Maximum, Σ exp(z − m) and Σ exp(z − m)·(z − m) of each row."""
    logits = logits.double().numpy()
    below = logits - logits.max(axis=1, keepdims=True)
    return logits.max(axis=1), np.exp(below).sum(axis=1), (np.exp(below) * below).sum(axis=1)


def test_sums_of_a_tile():
    logits = drawn(6, 50) * 3 + 7
    logits[2, 4] = LOWEST
    logits[3] = 1.5
    _, total, moment = sums_in_numpy(logits)
    found = tile_sums(logits, logits.amax(1))
    np.testing.assert_allclose(found[0], total, rtol=1e-5)
    np.testing.assert_allclose(found[1], moment, rtol=1e-5, atol=1e-4)


def test_sums_of_parts_are_those_of_the_whole():
    """One part bans every word of a row, and weighs nothing."""
    logits = drawn(4, 60) * 4
    parts = [logits[:, :20], logits[:, 20:27], logits[:, 27:]]
    parts[1][2] = -math.inf
    of_parts = []
    for part in parts:
        maximum, total, moment = (torch.tensor(one) for one in sums_in_numpy(part.nan_to_num(neginf=LOWEST)))
        none = (part == -math.inf).all(1)
        of_parts.append((maximum.masked_fill(none, -math.inf), *(one.masked_fill(none, 0) for one in (total, moment))))
    found = joined_sums(*(torch.stack(one) for one in zip(*of_parts, strict=True)))
    for ours, theirs in zip(found, sums_in_numpy(logits.nan_to_num(neginf=LOWEST)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_entropy_of_sums():
    logits = drawn(8, 40) * 2
    _, total, moment = map(torch.tensor, sums_in_numpy(logits))
    expected = stats.entropy(special.softmax(logits.double().numpy(), axis=1), axis=1)
    np.testing.assert_allclose(entropy_of(total, moment, 40), expected, rtol=1e-9)


def test_entropy_stays_within_its_bounds_where_sums_are_rounded():
    total, moment = torch.tensor([1.0, 40 * (1 + 1e-6), 1.0]), torch.tensor([1e-6, 0.0, -9.0])
    assert entropy_of(total.double(), moment.double(), 40).tolist() == [0.0, math.log(40), math.log(40)]


@pytest.mark.parametrize("n_words", [1, 63, 64, 65, 127, 128, 150, 320])
def test_the_first_token_of_the_greatest_logit_is_on_top(n_words):
    """Few values, so that many logits are equal; some rows have a greater one already."""
    chance = torch.Generator().manual_seed(n_words)
    for n_values in (3, 1000):
        logits = torch.randint(-n_values, n_values, (40, n_words), generator=chance).float()
        least = torch.randint(-n_values, n_values, (40,), generator=chance).float()
        top = torch.arange(40) - 100
        expected = [
            1000 + row.index(max(row)) if max(row) > bound else before
            for row, bound, before in zip(logits.tolist(), least.tolist(), top.tolist(), strict=True)
        ]
        maximum = raise_top(top, logits, least, 1000)
        assert maximum.tolist() == [max(row) for row in logits.tolist()]
        assert top.tolist() == expected


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([5.0], 0),
        ([1.0, 2.0], 1),
        ([2.0, 1.0], 0),
        ([1.0, 1.0], 0),
        ([1.0, 2.0, 3.0], 2),
        ([9.0, 2.0, 3.0], 1),
        ([0.0, 3.0, 2.0, 4.0], 1),
        ([0.0, math.nan, 2.0, 4.0], 1),
        ([0.0, 1.0, math.nan], 0),
        ([-math.inf, 1.0, math.inf], 2),
    ],
)
def test_steps_back(values, steps):
    assert steps_back(torch.tensor([values, values])).tolist() == [steps, steps]
    assert n_steps_back(values) == steps
