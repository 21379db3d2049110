"""Tiny random models of any family, with the layer pattern of the real ones: for tests and for trying things out.

The families in CONFIGS are tested in full; for any other type, `shrink.py` makes a config from its class' defaults.

Their weights are large and irregular on purpose. With the usual initialisation every readout is nearly uniform, and a
missing norm, a shifted layer or a lost bias would hardly show.
"""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from layerlens.compat import built_from
from layerlens.errors import ModelError, did_you_mean, first_sentence
from layerlens.models.attention import keep_softcap
from layerlens.models.tiny_configs import N_VOCAB, tiny_config

_DENSE: dict[str, Any] = {
    "vocab_size": N_VOCAB,
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
_LINEAR_FULL = ["linear_attention"] * 3 + ["full_attention"]
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 8,
    "layer_types": _LINEAR_FULL * 2,
}
_LATENT = {
    **{name: value for name, value in _NO_HEAD_DIM.items() if name != "num_key_value_heads"},
    **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
    **{"n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5},
}
_SLIDING = {"sliding_window": 5}
_SLIDE_FULL = ["sliding_attention", "full_attention"] * 2
_SLIDE5_FULL = ["sliding_attention"] * 5 + ["full_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DENSE,
    "llama4_text": {
        **_DENSE,
        "intermediate_size": 32,
        "intermediate_size_mlp": 80,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 5,
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    },
    "qwen2": _NO_HEAD_DIM,
    "qwen3": _DENSE,
    "qwen3_moe": {**_DENSE, **_EXPERTS, "decoder_sparse_step": 2},
    "qwen3_next": {
        **_DENSE,
        **_LINEAR,
        **_EXPERTS,
        "shared_expert_intermediate_size": 24,
        "num_hidden_layers": 4,
        "layer_types": _LINEAR_FULL,
    },
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
        "vocab_size_per_layer_input": N_VOCAB,
        "num_kv_shared_layers": 0,
        "final_logit_softcapping": 3.0,
    },
    "mistral": {**_DENSE, **_SLIDING},
    "mixtral": {**_DENSE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**_LATENT, "n_shared_experts": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**_LATENT, "n_shared_experts": 1},
    "glm4": _DENSE,
    "phi3": _NO_HEAD_DIM,
    "smollm3": _NO_HEAD_DIM,
    "gpt2": {"vocab_size": N_VOCAB, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt_neox": {**_NO_HEAD_DIM, "rotary_pct": 0.5},
    "gptj": {"vocab_size": N_VOCAB, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
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
    "falcon_h1": {
        **_DENSE,
        **{"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8},
        **{"attention_in_multiplier": 0.7, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.2},
        **{"ssm_out_multiplier": 0.6, "key_multiplier": 0.8, "mlp_multipliers": [0.9, 0.5]},
        **{"embedding_multiplier": 2.0, "lm_head_multiplier": 0.4},
    },
    "mamba2": {
        **{"vocab_size": N_VOCAB, "hidden_size": 48, "num_hidden_layers": 4, "state_size": 8, "chunk_size": 8},
        **{"num_heads": 6, "head_dim": 16, "n_groups": 2},
    },
    "nemotron_h": {
        **_DENSE,
        **{"num_hidden_layers": 6, "hybrid_override_pattern": "M-ME*E", "ssm_state_size": 8, "chunk_size": 8},
        **{"mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 2, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 24},
        "time_step_min": 1e-6,  # transformers clamps time steps to this minimum in full passes, not while generating
    },
    "opt": {**_NO_HEAD_DIM, "ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
}


def tiny_names() -> list[str]:
    """The families on which every test of the laws runs; `tiny_model` knows more families."""
    return list(CONFIGS)


def tiny_model(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random transformers model of the family in float32, eval mode, vocabulary 307.

    Args:
        name: a model type in transformers' mappings of causal language models or of models for images and text. A type
            that also takes pictures, such as "gemma3", gives the whole model; "gemma3_text" gives its language model
            alone.
        seed: seed of the weights; the same seed gives the same model. The global generator is left as it was.
        changes: entries of the config to change; entries of a nested config are given as a dict.

    Raises:
        ModelError: the installed transformers has no such type, or cannot build it from a tiny config.
    """
    kind = _class_of(name)
    try:
        config = _config(name, changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = built_from(kind, _fitting(config, kind), dtype=torch.float32)
            _roughen(model)
    except Exception as error:  # of transformers: a check of the config, a package that is missing
        raise ModelError(
            f"this transformers builds no tiny {name} ({first_sentence(error)})", "give another", given=name
        ) from error
    keep_softcap(model)
    model.eval()
    return model


def _class_of(name: str) -> Any:
    mapping = {**MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    if name not in mapping:
        raise ModelError(
            f"there is no tiny model {name!r}",
            did_you_mean(name, mapping, f"give a causal language model's type, such as {', '.join(CONFIGS)}"),
            given=name,
        )
    return getattr(transformers, mapping[name])


def _config(name: str, changes: dict[str, Any]) -> PreTrainedConfig:
    if name not in CONFIGS:
        return tiny_config(name, **changes)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(name, **(CONFIGS[name] | tokens | changes))


def _fitting(config: PreTrainedConfig, kind: Any) -> PreTrainedConfig:
    """The config itself, or the part from which the class is made: for a whole model that of its language model."""
    parts = [config, *(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))]
    return next((part for part in parts if isinstance(part, kind.config_class)), config)


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
