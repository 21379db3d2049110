"""The valley against a plain reading of Eq. 7."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens import lens


def valley(entropy: list[float], window: int) -> int:
    """Eq. 7 read aloud: from the last layer, step back while the layer before is strictly lower."""
    layer = len(entropy)
    first = len(entropy) - window + 1
    while layer > first and entropy[layer - 2] < entropy[layer - 1]:
        layer -= 1
    return layer


ENTROPY = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, math.nan, math.inf]), st.floats(0, 12, width=32))


@given(st.data(), st.integers(1, 14).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_valley_is_a_plain_reading_of_eq_7(data, sizes):
    n_layers, window = sizes
    rows = data.draw(st.lists(st.lists(ENTROPY, min_size=n_layers, max_size=n_layers), min_size=1, max_size=4))
    found = lens.valley_layers(torch.tensor(rows), window).tolist()
    assert found == [valley(torch.tensor(row).tolist(), window) for row in rows]
    assert all(n_layers - window < layer <= n_layers for layer in found)


def test_ties_and_nan_end_the_walk():
    rows = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 2.0], [0.0, math.nan, 2.0], [0.0, 1.0, math.nan]])
    assert lens.valley_layers(rows, 3).tolist() == [3, 3, 1, 3, 3]
    assert lens.valley_layers(rows, 2).tolist() == [3, 3, 2, 3, 3]
    assert lens.valley_layers(rows, 1).tolist() == [3] * 5


def test_perturbed_means_strictly_higher():
    rows = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [math.nan, 1.0]])
    assert lens.perturbed(rows).tolist() == [True, False, False, False]
    assert lens.perturbed(torch.tensor([[1.0]])).tolist() == [False]
