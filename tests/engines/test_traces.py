"""Rows of traces until they are fetched, and which states of a step belong to them."""

import numpy as np
import torch

from layerlens import Last
from layerlens.engines.vllm.options import RequestOptions
from layerlens.engines.vllm.traces import Span, Traces, Unread, packed, unpacked


def rows(*values):
    return {
        "entropy": torch.tensor([[value, value + 0.5] for value in values]),
        "top_token_id": torch.ones(len(values), 2),
    }


def span(trace, **given):
    options = RequestOptions(Last(), id="a", trace=trace)
    return Span(options, **{"n_prompt": 5, "start": 10, "stop": 14, "position": 3} | given)


def test_traced_states_are_those_that_emit_a_token_or_all():
    whole, emitting = span("all"), span("generated")
    assert (list(whole.traced), list(whole.positions)) == ([10, 11, 12, 13], [3, 4, 5, 6])
    assert (list(emitting.traced), list(emitting.positions)) == ([11, 12, 13], [4, 5, 6])
    assert list(span("generated", position=20).traced) == [10, 11, 12, 13]
    assert list(span("generated", position=0, n_prompt=9).traced) == []
    assert list(span(None).traced) == []


def test_rows_come_out_by_request_in_order_and_once_and_the_last_of_a_position_counts():
    traces = Traces(10**6)
    traces.add([("a", range(2)), ("b", range(4, 5))], rows(0.0, 1.0, 7.0))
    traces.add([("a", range(1, 3))], rows(10.0, 20.0))  # read again after a preemption
    found = traces.take("a")
    assert found["position"].tolist() == [0, 1, 2]
    assert found["entropy"].tolist() == [[0.0, 0.5], [10.0, 10.5], [20.0, 20.5]]
    assert traces.take("a") is None
    assert traces.take("b")["entropy"].tolist() == [[7.0, 7.5]]


def test_memory_is_bounded_and_the_request_that_waits_longest_is_dropped():
    traces = Traces(2 * (2 * 4 * 2 + 4) + 10)  # two rows of two layers
    for step in range(64):
        traces.add([("old", range(step, step + 1))], rows(1.0))
    traces.add([("new", range(1))], rows(2.0))
    assert traces.take("old") is None
    assert traces.take("new")["position"].tolist() == [0]


def test_a_row_that_waits_for_its_token_is_one_of_each_request_and_counts_in_memory():
    traces = Traces(1000)
    for position in (3, 4):
        traces.keep("a", Unread(position, torch.full((4, 8), float(position))))
    assert traces.unread("a", 3) is None
    assert traces.unread("b") is None
    found = traces.unread("a", 4)
    assert (found.position, found.states.unique().tolist()) == (4, [4.0])
    assert traces.unread("a") is None
    traces.keep("old", Unread(0, torch.zeros(100)))
    for id in ("new", "newer", "newest"):
        traces.keep(id, Unread(0, torch.zeros(100)))
    traces.add([("newest", range(1))], rows(1.0))
    assert traces.take("newest")["entropy"].tolist() == [[1.0, 1.5]]
    assert [traces.unread(id) is not None for id in ("old", "new", "newer")] == [False, False, True]
    traces.keep("gone", Unread(0, torch.zeros(8)))
    assert traces.take("gone") is None
    assert traces.unread("gone") is None


def test_what_crosses_processes_is_the_same_afterwards():
    columns = {"entropy": np.array([[0.5, np.nan]], dtype=np.float32), "position": np.array([3], dtype=np.int32)}
    told = packed(columns)
    assert all(type(part) in (str, list, bytes) for one in told.values() for part in one.values())
    for name, values in unpacked(told).items():
        np.testing.assert_array_equal(values, columns[name])
        assert values.dtype == columns[name].dtype
