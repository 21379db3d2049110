"""What a layer is called, against what its output depends on."""

import pytest
import torch

from layerlens.models import tiny_names
from layerlens.models.hooks import first_tensor
from tests.conftest import tiny

N_TOKENS = 26  # five windows and more
LOCAL = {"sliding", "chunked", "conv", "mlp", "moe"}


@pytest.mark.parametrize("family", [*tiny_names(), "gpt_neo", "lfm2", "modernbert-decoder", "moshi"])
def test_only_layers_with_a_window_are_blind_to_what_is_far(family):
    """The first position's state is changed at one block: does that block's last position see it?"""
    model = tiny(family)
    for block, kind in zip(model.blocks, model.layer_kinds, strict=True):
        if kind in ("linear", "mamba"):
            continue  # what they remember fades, sooner in some random models than in others
        assert sees_the_first_position(model, block) == (kind not in LOCAL), kind


def sees_the_first_position(model, block):
    ids = torch.randint(3, 250, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))
    last = []

    def changed(_, args, kwargs):
        states = (args[0] if args else kwargs["hidden_states"]).clone()
        states[:, 0] += torch.randn(states[:, 0].shape, generator=torch.Generator().manual_seed(0))
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    keep = block.register_forward_hook(lambda _, __, output: last.append(first_tensor(output)[0, -1]))
    with torch.no_grad():
        model.decoder(input_ids=ids, use_cache=False)
        change = block.register_forward_pre_hook(changed, with_kwargs=True)
        model.decoder(input_ids=ids, use_cache=False)
    change.remove()
    keep.remove()
    return not torch.equal(*last)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gpt_neo", ["full", "sliding"] * 2),
        ("rwkv", ["linear"] * 4),
        ("mamba", ["mamba"] * 4),
        ("mamba2", ["mamba"] * 4),
        ("xlstm", ["recurrent"] * 4),
        ("recurrent_gemma", ["recurrent", "recurrent", "sliding", "recurrent"]),
        ("jamba", ["mamba"] * 4 + ["full"]),
        ("bamba", ["mamba", "mamba", "full", "mamba"]),
        ("zamba", ["mamba", "mamba", "hybrid"] * 2),
        ("falcon_h1", ["hybrid"] * 4),
        ("nemotron_h", ["mamba", "mlp", "mamba", "moe", "full", "moe"]),
        ("lfm2", ["conv", "conv", "full", "conv"]),
        ("minimax", ["full", "linear"] * 2),
        ("llama4_text", ["chunked"] * 3 + ["full"]),
        ("deepseek_v32", ["indexed"] * 4),
        ("moshi", ["full"] * 4),  # its window is as long as its context
        ("qwen3_next", ["linear"] * 3 + ["full"]),
    ],
)
def test_kinds_have_the_fields_names(family, kinds):
    assert tiny(family).layer_kinds == kinds


def test_layers_with_experts():
    assert tiny("llama4_text").mlp_kinds == ["dense", "moe"] * 2
    assert tiny("deepseek_v3").mlp_kinds == ["dense", "moe", "moe", "moe"]
    assert tiny("jetmoe").mlp_kinds == ["moe"] * 4
    assert tiny("nemotron_h").mlp_kinds == ["dense", "dense", "dense", "moe", "dense", "moe"]
