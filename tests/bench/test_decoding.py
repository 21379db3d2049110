"""What decoding costs, as it was counted and as it was made."""

import pytest
import torch

import layerlens as ll
from layerlens.bench.decoding import mean_depth, measure_decoding
from layerlens.decode.log import Decisions
from layerlens.decode.options import GenerateOptions
from tests.conftest import tiny


@pytest.fixture
def model():
    return tiny("qwen3_moe")


def test_projections_and_depth_are_those_that_were_made(model):
    """The scan in one product makes K; layer by layer, one more than the depth, except at the window's end."""
    prompts = [list(range(20, 40)), list(range(60, 80))]
    options = GenerateOptions(max_new_tokens=12, min_new_tokens=12, batch_size=2)
    batched, lazy = (
        measure_decoding(model, ll.Valley(window=3, scan=scan), prompts, options, 1) for scan in ("batched", "lazy")
    )
    assert batched["projections_per_token"] == 3
    assert batched["mean_depth"] == lazy["mean_depth"] > 0
    assert 1 < lazy["projections_per_token"] <= min(3, 2 + lazy["mean_depth"])
    costs = {row["name"]: row["multiply_adds"] for row in lazy["flops"]}
    assert costs["lazy"] == pytest.approx((lazy["projections_per_token"] - 1) * 48 * 307)
    walked = [row["multiply_adds"] for row in lazy["flops"] if row["name"] == "depth"]
    assert walked == [lazy["mean_depth"] * 48 * 307]


def test_a_strategy_that_does_not_walk_has_no_depth(model):
    options = GenerateOptions(max_new_tokens=3, min_new_tokens=3)
    report = measure_decoding(model, ll.Fixed(1), [[20, 21]], options, 1)
    assert report["mean_depth"] is None
    assert [row["name"] for row in report["flops"]] == ["forward", "unembedding", "worst"]
    assert report["projections_per_token"] == report["window"] == 2
    assert measure_decoding(model, ll.Last(), [[20, 21]], options, 1)["projections_per_token"] == 1


def test_every_way_emits_the_same_number_of_tokens_past_an_end_token(model, monkeypatch):
    """Otherwise the speeds would be of different work."""
    greedy = ll.generate(model, "abc", max_new_tokens=1).token_ids[0]
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", greedy)
    passes = []
    handle = model.hf.register_forward_hook(lambda *_: passes.append(1))
    options = GenerateOptions(max_new_tokens=20, min_new_tokens=20)
    measure_decoding(model, ll.Valley(window=4), [model.tokenizer("abc").input_ids], options, 2)
    handle.remove()
    assert len(passes) == 20 * 3 * 3  # tokens, ways, rounds and the one before


def test_mean_depth():
    numbers = torch.tensor([[0, 4, 4, 4, 1], [0, 2, 2, 4, 1]])
    assert mean_depth(Decisions(numbers, torch.zeros(2, 0)), 4) == 1.0
    numbers[0, 2] = -1
    assert mean_depth(Decisions(numbers, torch.zeros(2, 0)), 4) is None
