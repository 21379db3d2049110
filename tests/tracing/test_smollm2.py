"""A real model: every recorded number against hooks and whole float32 logits, none of the package's code."""

from functools import cache

import gguf
import numpy as np
import pytest
import torch

from layerlens.models.locate import SMOLLM2, built_in_file
from tests.thorough import some

HELD_BACK = [
    "A ferry carries 38 cars and makes 7 crossings a day. How many cars does it carry in five days?",
    "Name the gas that plants take up in daylight, and say in one sentence what they make from it.",
    "If all mirrors in the hall are round and this one is square, is it a mirror of the hall?",
]
N_TOKENS = 10


@pytest.fixture(scope="module")
def traced(smollm2, tmp_path_factory):
    import layerlens as ll

    def trace(**options):
        out = tmp_path_factory.mktemp("smollm2") / "run"
        return ll.trace(smollm2, HELD_BACK, out=out, max_new_tokens=N_TOKENS, progress=False, **options)

    return {
        "generate": trace(),
        "batched": trace(batch_size=3),
        "replay": trace(mode="replay", positions="all", batch_size=2),
    }


@cache  # the same texts come out of every way to trace
def reference(hf, sequence: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Per-layer numbers of every position, from one full pass with hooks: [positions, 30] each."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    middles: list[torch.Tensor] = []
    layers = hf.model.layers
    handles = [
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0][0], out[0]))) for layer in layers
    ] + [layer.self_attn.register_forward_hook(lambda _, args, out: middles.append(out[0][0])) for layer in layers]
    with torch.no_grad():
        hf(input_ids=torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    columns = {name: [] for name in ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy", "top_token_id")}
    for (before, after), attention in zip(seen, middles, strict=True):
        with torch.no_grad():
            logits = hf.lm_head(hf.model.norm(after))
        probs = torch.softmax(logits.double(), -1)
        middle = before + attention
        columns["norm_ratio"].append((after - before).norm(dim=1) / before.norm(dim=1))
        columns["io_cosine"].append(torch.cosine_similarity(before.double(), after.double(), dim=1))
        columns["attn_ratio"].append(attention.norm(dim=1) / before.norm(dim=1))
        columns["mlp_ratio"].append((after - middle).norm(dim=1) / middle.norm(dim=1))
        columns["entropy"].append(torch.special.entr(probs).sum(1))
        columns["top_token_id"].append(logits.argmax(1))
    return {name: torch.stack(values, 1).numpy() for name, values in columns.items()}


@pytest.mark.parametrize("how", some(["batched", "generate", "replay"], 1))
def test_every_recorded_number_agrees_with_whole_float32_logits(smollm2, traced, how):
    run = traced[how]
    for prompt_id, rows in run.positions.groupby("prompt_id"):
        text = run.prompts.set_index("prompt_id").loc[prompt_id, "prompt"]
        ids = smollm2.tokenizer(text, add_special_tokens=False).input_ids
        emitted = [int(token) for token in rows.loc[rows["is_generated"], "next_token_id"]]
        expected = reference(smollm2.hf, (*ids, *emitted[:-1]))
        places = rows["position"].to_numpy()
        found = {name: run.layers(name)[rows.index] for name in expected}
        assert np.abs(found["entropy"] - expected["entropy"][places]).max() <= 1e-3
        assert np.abs(found["io_cosine"] - expected["io_cosine"][places]).max() <= 1e-4
        for name in ("norm_ratio", "attn_ratio", "mlp_ratio"):
            np.testing.assert_allclose(found[name], expected[name][places], rtol=1e-3, err_msg=name)
        assert (found["top_token_id"] == expected["top_token_id"][places]).all()
        assert found["entropy"].shape[1] == 30


def test_the_emitted_tokens_are_transformers_own(smollm2, traced):
    for prompt_id, rows in traced["generate"].positions.groupby("prompt_id"):
        inputs = smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": HELD_BACK[int(prompt_id)]}], add_generation_prompt=True, return_tensors="pt"
        )
        whole = smollm2.hf.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)[0]
        assert rows["next_token_id"].tolist() == whole[inputs["input_ids"].shape[1] :].tolist()
        assert traced["generate"].layers("top_token_id")[rows.index][:, -1].tolist() == rows["next_token_id"].tolist()


def test_the_weights_are_the_dequantised_ones_of_the_file(smollm2):
    reader = gguf.GGUFReader(built_in_file(SMOLLM2))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in (
        ("token_embd.weight", smollm2.hf.model.embed_tokens.weight),
        ("blk.7.ffn_down.weight", smollm2.hf.model.layers[7].mlp.down_proj.weight),
        ("output_norm.weight", smollm2.hf.model.norm.weight),
    ):
        tensor = tensors[name]
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(weight.detach().numpy(), dense)


def test_the_three_phases_of_a_small_real_model(traced):
    """What was measured before on other prompts: a huge first write, a plateau, a strong last write."""
    layers = traced["generate"].by_layer().set_index("layer")
    phases = traced["generate"].phases().set_index("phase")
    assert layers.loc[1, "norm_ratio"] > 10
    assert layers.loc[10:28, "norm_ratio"].max() < 0.7
    assert phases.loc["III", "first"] == 30
    assert phases.loc["II", "last"] == 29
