"""What a token costs, against counts by hand, and against what torch counts while a token goes through the model."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from layerlens.analysis.overhead import PAPER_CONDITIONS
from layerlens.analysis.reported import reported_value
from layerlens.decode.flops import decoding_flops
from layerlens.errors import ModelError, OptionError
from layerlens.models import tiny_model
from tests.refusals import refused

# of the tiny models: vocabulary 307, width 48, 4 heads of 16 (2 of keys and values), MLP 80
ATTENTION = 48 * 64 + 2 * 48 * 32 + 64 * 48
GATED_ATTENTION = 48 * 128 + 2 * 48 * 32 + 64 * 48  # Qwen3.5: the query projection holds a gate too
MLP = 3 * 48 * 80
ROUTED = 48 * 4 + 2 * 3 * 48 * 32  # 4 experts of 32, of which 2 are active
# 2 key heads and 4 value heads of 8: q, k, v; gate; two gates a head; output; a convolution over 4 tokens
LINEAR_ATTENTION = 48 * (16 + 16 + 32) + 48 * 32 + 2 * 48 * 4 + 32 * 48 + 4 * 64
SHARED = 3 * 48 * 24 + 48  # and its gate

BY_HAND = {
    "llama": 4 * (ATTENTION + MLP),
    "gpt2": 4 * (48 * 3 * 48 + 48 * 48 + 2 * 48 * 4 * 48),  # positions are looked up
    "qwen3_moe": 2 * (ATTENTION + MLP) + 2 * (ATTENTION + ROUTED),  # every second layer
    "qwen3_5_moe_text": 6 * LINEAR_ATTENTION + 2 * GATED_ATTENTION + 8 * (ROUTED + SHARED),
}
DENSE = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma4_text", "phi3", "gpt2", "gpt_neox", "gptj", "opt"]
WITH_EXPERTS = ["qwen3_moe", "gpt_oss", "mixtral", "qwen3_5_moe_text"]


@pytest.mark.parametrize(("name", "forward"), BY_HAND.items())
def test_counts_by_hand(name, forward):
    flops = decoding_flops(tiny_model(name), 4)
    assert (flops.forward, flops.unembedding) == (forward, 48 * 307)


@pytest.mark.parametrize("name", [*DENSE, *WITH_EXPERTS])
def test_what_torch_counts_while_one_token_goes_through(name):
    """Products with parameters are `mm` and `addmm`; attention itself and rotary angles are not."""
    hf = tiny_model(name)
    hf.set_experts_implementation("eager")  # torch does not count the grouped product
    flops = decoding_flops(hf, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hf(input_ids=torch.tensor([[5]]), use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    counted = counts.get(torch.ops.aten.mm, 0) + counts.get(torch.ops.aten.addmm, 0)
    convolutions = sum(module.weight.numel() for module in hf.modules() if isinstance(module, nn.Conv1d))
    assert 2 * (flops.forward + flops.unembedding - convolutions) == counted


def test_experts_that_are_modules_of_their_own_count_as_those_in_one_parameter():
    hf = tiny_model("mixtral")
    before = decoding_flops(hf, 4)
    for layer in hf.model.layers:
        layer.mlp.experts = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(48, 160, bias=False), "down": nn.Linear(80, 48, bias=False)})
            for _ in range(4)
        )
    assert decoding_flops(hf, 4) == before


def test_the_rows():
    flops = decoding_flops(tiny_model("llama"), 4, 0.25)
    rows = {row.name: row for row in flops.rows()}
    one = 48 * 307
    assert {name: row.multiply_adds for name, row in rows.items()} == {
        "forward": flops.forward, "unembedding": one, "worst": 3 * one, "lazy": 1.25 * one, "depth": 0.25 * one,
    }  # fmt: skip
    assert rows["depth"].flops == 0.5 * one
    assert rows["worst"].percent_of_forward == pytest.approx(300 * one / flops.forward)
    assert rows["forward"].percent_of_forward == 100
    assert rows["forward"].percent_of_last + rows["unembedding"].percent_of_last == pytest.approx(100)
    assert rows["worst"].percent_of_last == pytest.approx(300 * one / (flops.forward + one))
    assert [row.name for row in decoding_flops(tiny_model("llama"), 4).rows()] == ["forward", "unembedding", "worst"]


def test_a_walk_to_the_windows_end_reads_no_layer_more():
    assert decoding_flops(tiny_model("llama"), 4, 3.0).lazy == 3 * 48 * 307
    assert decoding_flops(tiny_model("llama"), 1, 0.0).lazy == 0


def test_the_papers_model_from_its_config_alone():
    """Table 5 of arXiv 2606.21906 says 5,212 and 389 million; the checkpoint's config gives others."""
    config = AutoConfig.for_model(
        "qwen3_5_moe_text", vocab_size=248_320, hidden_size=2048, num_hidden_layers=40, num_experts=256,
        num_experts_per_tok=8, moe_intermediate_size=512, shared_expert_intermediate_size=512, num_attention_heads=16,
        num_key_value_heads=2, head_dim=256, linear_num_value_heads=32, linear_num_key_heads=16,
        linear_key_head_dim=128, linear_value_head_dim=128,
    )  # fmt: skip
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config)
    depth = reported_value("S6.1", quantity="mean walk depth, layers")
    flops = decoding_flops(hf, 10, depth)
    linear = 2048 * (8192 + 4096 + 2 * 32 + 4096) + 4 * 8192
    full = 2048 * (2 * 4096 + 2 * 512 + 4096)
    experts = 2048 * 256 + 9 * 3 * 2048 * 512 + 2048
    assert flops.forward == 30 * linear + 10 * full + 40 * experts == 2_437_693_440
    assert flops.unembedding == 2048 * 248_320
    shares = {row.name: round(row.percent_of_forward, 1) for row in flops.rows()}
    assert shares == {"forward": 100, "unembedding": 20.9, "worst": 187.8, "lazy": 23.3, "depth": 2.4}
    paper = {
        name: reported_value("5", condition=condition, quantity="MFLOPs per token")
        for name, condition in PAPER_CONDITIONS.items()
    }
    assert paper["unembedding"] == pytest.approx(2560 * 151_936 / 1e6, abs=0.1)  # multiply-adds, not FLOPs
    assert paper["worst"] == 10 * paper["unembedding"]  # K of them
    assert paper["depth"] == pytest.approx(depth * 389, abs=0.5)


@pytest.mark.parametrize(("window", "depth"), [(0, None), (4, -0.1), (4, 3.1)])
def test_what_cannot_be_is_refused(window, depth):
    with refused(OptionError, *(("window", window) if depth is None else ("mean_depth", depth))):
        decoding_flops(tiny_model("llama"), window, depth)


def test_experts_without_a_number_of_active_ones_are_refused():
    hf = tiny_model("llama")
    hf.model.layers[0].mlp.experts = nn.ParameterList([torch.zeros(4, 48, 48)])
    with pytest.raises(ModelError, match="num_experts_per_tok"):
        decoding_flops(hf, 4)
