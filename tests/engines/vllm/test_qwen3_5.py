"""Qwen3.5, whose kernel of linear attention on a CPU is for bfloat16 alone: numbers of given tokens are near those that
transformers has in float32."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.engines.vllm.engines import answers, engine, ragged
from tests.engines.vllm.test_traces import plain

PROMPTS = ragged(6)
SIZES = {
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if find_spec("torchvision") is None:
        pytest.skip("vLLM loads Qwen3.5 only where torchvision is, even for text")
    path = tmp_path_factory.mktemp("qwen3_5")
    model = tiny_model("qwen3_5_text", **SIZES)
    model.to(torch.bfloat16).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_records_and_traces_of_given_tokens(folder):
    traced = {"strategy": "valley", "window": 4, "traces": True}
    with engine(folder, traced, dtype="bfloat16") as llm:
        found = answers(llm, PROMPTS, [{"trace": "all"}] * len(PROMPTS))
    model = ll.load(folder, dtype="float32")
    assert set(model.layer_kinds) == {"linear", "full"}
    for prompt, tokens, record in zip(PROMPTS, found.token_ids, found.records, strict=True):
        wanted = plain(model, [*prompt, *tokens[:-1]], tokens[-1])
        n, first = len(tokens), len(prompt) - 1
        values = np.array(record["values"][:n], dtype=float)
        assert_near(values, wanted["entropy"][first:, -4:])
        layers = record["layers"]
        n_states = len(wanted["entropy"])
        assert list(layers["position"][:n_states]) == list(range(n_states))
        assert_near(layers["entropy"][:n_states], wanted["entropy"])
        np.testing.assert_allclose(layers["norm_ratio"][:n_states], wanted["norm_ratio"], rtol=0.1)
        np.testing.assert_allclose(layers["io_cosine"][:n_states], wanted["io_cosine"], atol=0.02)


def assert_near(given, wanted):
    """Entropies within 0.05 nats for 19 of 20, and within 0.1 for all. vLLM rounds the logits to bfloat16, too."""
    miss = np.abs(given - wanted)
    assert np.quantile(miss, 0.95) < 0.05
    assert miss.max() < 0.1
