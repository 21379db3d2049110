"""Tiny random models, one per family, with the layer pattern of the real ones: for tests and for trying things out.

Their weights are large and irregular on purpose: with the usual initialisation every readout is nearly uniform and a
dropped norm, a shifted layer or a lost bias would hardly show.
"""

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from layerlens.errors import ModelError

_VOCAB = 307  # odd, so that no tile divides it
_DENSE: dict[str, Any] = {
    "vocab_size": _VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_HEAD_DIM = {key: value for key, value in _DENSE.items() if key != "head_dim"}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 8,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2,
}
_SLIDING = {"sliding_window": 5}
_SLIDE_FULL = ["sliding_attention", "full_attention"] * 2
_SLIDE5_FULL = ["sliding_attention"] * 5 + ["full_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DENSE,
    "qwen2": _NO_HEAD_DIM,
    "qwen3": _DENSE,
    "qwen3_moe": {**_DENSE, **_EXPERTS, "decoder_sparse_step": 2},
    "qwen3_5_text": {**_DENSE, **_LINEAR},
    "qwen3_5_moe_text": {**_DENSE, **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "gpt_oss": {
        **_DENSE,
        **_SLIDING,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": _SLIDE_FULL,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "gemma2": {
        **_DENSE,
        **_SLIDING,
        "query_pre_attn_scalar": 16,
        "layer_types": _SLIDE_FULL,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        **_DENSE,
        **_SLIDING,
        "query_pre_attn_scalar": 16,
        "num_hidden_layers": 6,
        "layer_types": _SLIDE5_FULL,
    },
    "gemma4_text": {
        **_DENSE,
        **_SLIDING,
        "num_hidden_layers": 6,
        "layer_types": _SLIDE5_FULL,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": _VOCAB,
        "num_kv_shared_layers": 0,
        "final_logit_softcapping": 3.0,
    },
    "mistral": {**_DENSE, **_SLIDING},
    "mixtral": {**_DENSE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": _NO_HEAD_DIM,
    "gpt2": {"vocab_size": _VOCAB, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt_neox": {**_NO_HEAD_DIM, "rotary_pct": 0.5},
    "gptj": {"vocab_size": _VOCAB, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "olmo2": _NO_HEAD_DIM,
    "olmo3": {**_NO_HEAD_DIM, **_SLIDING, "layer_types": _SLIDE_FULL},
    "granite": {
        **_NO_HEAD_DIM,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.2,
    },
    "cohere2": {**_NO_HEAD_DIM, **_SLIDING, "logit_scale": 0.5, "layer_types": _SLIDE_FULL},
    "opt": {**_NO_HEAD_DIM, "ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
}


def tiny_names() -> list[str]:
    """Every family that has a tiny model."""
    return list(CONFIGS)


def tiny_model(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random transformers model of the family in float32, eval mode, vocabulary 307.

    Args:
        name: one of `tiny_names()`; of a family with pictures too, its text model: "gemma4" is "gemma4_text".
        seed: of the weights; the same seed gives the same model. The global generator is left as it was.
        changes: entries of the config to set otherwise.
    """
    name = name if name in CONFIGS else f"{name}_text"
    if name not in CONFIGS:
        raise ModelError(f"there is no tiny model {name.removesuffix('_text')!r}; there are {', '.join(CONFIGS)}")
    config = AutoConfig.for_model(
        name, **(CONFIGS[name] | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | changes)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _roughen(model)
    model.eval()
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer for the tiny models: one token a byte, three special tokens, no chat template."""
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=128
    )


def _roughen(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.15 if parameter.ndim < 2 else 1.3 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * scale)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.7, 1.2)
    model.tie_weights()
