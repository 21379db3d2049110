"""Records of tokens until they are fetched."""

import torch

from layerlens.decode.log import Decisions
from layerlens.engines.vllm.store import Store


def decisions(*tokens: tuple[int, int, float]) -> Decisions:
    """Of tokens: last layer's token, selected layer, entropy."""
    numbers = torch.tensor([[token, layer, layer, 3, 1] for token, layer, _ in tokens], dtype=torch.int32)
    return Decisions(numbers, torch.tensor([[entropy, 0.0] for *_, entropy in tokens]))


def test_records_come_out_by_request_and_in_the_order_of_tokens_and_once():
    store = Store(10**6)
    store.add([("a", 1), ("b", 0)], decisions((5, 2, 0.5), (6, 3, 1.5)))
    store.add([("a", 0)], decisions((4, 1, 0.25)))
    assert store.take(["a", "unknown"]) == {
        "a": {
            "place": [0, 1],
            "last_token_id": [4, 5],
            "selected_layer": [1, 2],
            "valley_layer": [1, 2],
            "projections": [3, 3],
            "is_finite": [True, True],
            "values": [[0.25, 0.0], [0.5, 0.0]],
        }
    }
    assert store.take(["a"]) == {}
    assert list(store.take()) == ["b"]
    assert store.take() == {}


def test_a_token_that_is_computed_again_replaces_its_record():
    store = Store(10**6)
    for layer in (1, 2, 3):
        store.add([("a", 0), ("a", 1)], decisions((4, layer, 0.0), (5, 9 - layer, 0.0)))
    assert store.take()["a"]["selected_layer"] == [3, 6]


def test_memory_is_bounded_and_the_request_longest_without_a_record_goes_first():
    store = Store(5000)
    for place in range(300):
        store.add([("old", place)] if place < 5 else [("new", place)], decisions((1, 1, 0.0)))
    kept = store.take()
    assert list(kept) in (["new"], [])  # what is larger than the bound by itself is dropped too
    store = Store(5000)
    for number in range(300):
        store.add([(str(number), 0)], decisions((1, 1, 0.0)))
    kept = list(store.take())
    assert 5 <= len(kept) <= 5000 // 200
    assert kept == [str(number) for number in range(300 - len(kept), 300)]


def test_a_bound_of_nothing_keeps_nothing():
    store = Store(0)
    store.add([("a", 0)], decisions((1, 1, 0.0)))
    assert store.take() == {}


def test_what_an_earlier_request_of_the_same_id_left_is_forgotten():
    store = Store(10**6)
    store.add([("a", 0), ("a", 1), ("a", 2)], decisions((1, 1, 0.0), (2, 1, 0.0), (3, 1, 0.0)))
    store.forget("a")
    store.add([("a", 0)], decisions((9, 2, 0.0)))
    assert store.take(["a"])["a"]["last_token_id"] == [9]


def test_an_id_that_two_requests_had_at_once_is_answered_with_a_sentence_once():
    store = Store(10**6)
    store.add([("a", 0)], decisions((1, 1, 0.0)))
    store.spoil("a")
    store.add([("a", 1)], decisions((2, 1, 0.0)))
    found = store.take()["a"]
    assert set(found) == {"error"}
    assert "'a'" in found["error"]
    assert store.take() == {}
    store.spoil("a")
    store.forget("a")  # a third request, which has the name alone
    store.add([("a", 0)], decisions((3, 1, 0.0)))
    assert store.take()["a"]["last_token_id"] == [3]
