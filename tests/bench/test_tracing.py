"""What a trace costs, and the floor that it stands beside."""

import pytest
import torch

from layerlens.bench import tracing
from layerlens.bench.tracing import measure_trace, products, torch_product


def test_the_trace_that_is_measured_is_of_so_many_tokens(tiny_llama, monkeypatch):
    seen, trace = [], tracing.trace

    def counted(*args, **options):
        run = trace(*args, **options)
        seen.append(len(run.positions))
        return run

    monkeypatch.setattr(tracing, "trace", counted)
    measure_trace(tiny_llama, 50, 1)
    assert seen == [50, 50]


@pytest.mark.parametrize("tile", [None, (7, 3), (100, 100)])
def test_the_floor_makes_every_product_once_a_layer(tile):
    """Whatever the tile: the multiply-adds of one matrix product, and its sum."""
    states, weight = torch.randn(20, 4, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    made = []

    def multiply(rows, words):
        made.append(torch_product(rows, words))
        return made[-1]

    products(states, weight, 3, multiply, tile)
    assert sum(one.numel() for one in made) == 3 * 20 * 11
    assert float(sum(one.sum() for one in made)) == pytest.approx(3 * float((states @ weight.T).sum()))
