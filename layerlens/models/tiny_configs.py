"""Tiny configs for any model type: the defaults of its config class with every size made small.

Sizes are set by their names in configs. What a name does not show, such as dimensions that must match, is in OVERRIDES.
"""

from dataclasses import fields
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

N_VOCAB = 307  # odd, so that no tile divides it

_MOST_LAYERS = 12

_SIZES: dict[int, tuple[str, ...]] = {
    N_VOCAB: ("vocab_size", "vocab_size_per_layer_input", "pronunciation_vocab_size", "shape_vocab_size"),
    128: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"),
    80: (
        *("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dim_ff", "dff", "d_inner", "ffn_hidden_size", "mlp_dim"),
        *("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "dense_intermediate_size"),
        *("shared_intermediate_size",),
    ),
    64: (
        *("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "embedding_size", "out_hidden_size"),
        *("lru_width", "word_embed_proj_dim", "attention_hidden_size", "hidden_size_global", "output_channels"),
    ),
    32: (
        *("moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size"),
        *("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"),
    ),
    28: ("image_size",),
    24: ("q_lora_rank",),
    16: (
        *("head_dim", "swa_head_dim", "dim_head", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "kv_lora_rank"),
        *("index_head_dim", "kv_channels", "d_head", "mamba_chunk_size", "chunk_size"),
    ),
    14: ("patch_size",),
    8: (
        *("index_n_heads",),  # with fewer, two positions would often have the same score, 0
        *("qk_rope_head_dim", "rotary_dim", "hidden_size_per_layer_input", "linear_key_head_dim", "linear_head_dim"),
        *("linear_value_head_dim", "mamba_d_state", "state_size", "ssm_state_size", "mamba_state_dim", "d_state"),
        *("block_size", "local_attention"),
    ),
    5: ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"),
    4: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"),
        *("linear_num_heads", "linear_num_value_heads", "index_topk", "index_block_size"),
        *("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    ),
    3: ("encoder_layers", "num_encoder_layers"),  # of translators: another number than their decoders have
    2: (
        *("depth", "num_blocks"),
        *("num_key_value_heads", "kv_n_heads", "linear_num_key_heads", "index_topk_blocks"),
        *("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
    ),
    1: ("n_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"),
}
_SIZE = {name: size for size, names in _SIZES.items() for name in names}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PATTERNS = ("layer_types", "mlp_layer_types", "layers_block_type")
# entries whose default is None where checkpoints have a number
_NEVER_NONE = {"head_dim", "num_key_value_heads", "n_routed_experts", "num_experts_per_tok", *_TOKENS}

_LINEAR3_FULL = ["linear_attention"] * 3 + ["full_attention"]
_SLIDE3_FULL = ["sliding_attention"] * 3 + ["full_attention"]
_CONV_FULL = ["conv", "conv", "full_attention", "conv"]
_ROPES = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16}  # heads x their width = twice the hidden size
_DOTS_SLIDING = {
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 16},
    **{"head_dim": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
}
_DOTS = {
    "layer_types": ["indexed_attention"] * 2 + ["sliding_attention"] * 2,
    "head_dim": 24,
    "sliding_window": 5,
    "per_layer_config": {2: _DOTS_SLIDING, 3: _DOTS_SLIDING},
}
_INKLING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "sliding_window_size": 5, "rel_extent": 16}
_QWEN4 = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4},
    **{"indexer_compress_ratio": 2, "hc_lowrank": 8},
}
_ASSISTANT = {
    "text_config": {
        **{"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
        **{"num_hidden_layers": 6, "num_kv_shared_layers": 6},
    },
    "backbone_hidden_size": 64,
}
_SAM = {"mlp_dim": 80, "output_channels": 64, "global_attn_indexes": [1, 3]}  # a vision tower
_PICTURE_WORDS = {"vocabulary_map": {"<image>": 300}}
_COMPASS = {"layer_types": _SLIDE3_FULL, "rope_parameters": _ROPES}


def _sections(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary positions of several axes: these sections make half of a head's size."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}
    return {"text_config": {"rope_parameters": rope}}


OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [2]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": _PICTURE_WORDS,
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "cosmos3_edge": _sections(3, 3, 2),
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": _DOTS,
    "dots3_note": {
        "text_config": _DOTS,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "emu3": _PICTURE_WORDS,
    "ernie4_5_vl_moe": _sections(3, 3, 2),
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "glm46v": _sections(2, 3, 3),
    "glm4v": _sections(2, 3, 3),
    "glm4v_moe": _sections(1, 1, 2, partial_rotary_factor=0.5),
    "glm5_next": {"text_config": {"index_kpool": 2, "qk_rope_head_dim": 0}},
    "glm_ocr": _sections(2, 3, 3),
    "glmga": _sections(2, 3, 3),
    "got_ocr2": {"vision_config": _SAM},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [1, 2]], "downsample_rate": "1/2"},
    "granitemoehybrid": {**_MAMBA2, "layer_types": _LINEAR3_FULL},
    "hunyuan_vl": _sections(2, 3, 3),
    "inkling2": {"text_config": _INKLING, "vision_config": {"text_hidden_size": 64}},
    "inkling_text": _INKLING,
    "inkling2_text": _INKLING,
    "laguna": {"layer_types": ["full_attention"] + ["sliding_attention"] * 3},
    "lfm2": {"layer_types": _CONV_FULL},
    "lfm2_moe": {"layer_types": _CONV_FULL},
    "longcat_flash": {"zero_expert_num": 2},
    "mellum": {"layer_types": _SLIDE3_FULL},
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 1]}},
    "moshi": {"sliding_window": 128},  # as long as its context
    "nemotron_h_omni": {
        "vision_config": {"video_temporal_patch_size": 2},
        "text_config": {"time_step_min": 1e-6},  # as for "nemotron_h" in tiny.py
    },
    "paddleocr_vl": _sections(2, 3, 3),
    "qwen2_5_omni_thinker": _sections(2, 3, 3),
    "qwen2_5_vl": _sections(2, 3, 3),
    "qwen2_vl": _sections(2, 3, 3),
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        **{"is_decoder": True, "attn_layers": ["local", "lsh"] * 2, "num_buckets": 4, "feed_forward_size": 80},
        **{"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [32, 32], "attention_head_size": 16},
        **{"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
    },
    "step3p7": {"text_config": {"sliding_window": 5}},
    "xlstm": {"hidden_size": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{"layers_block_type": ["mamba", "mamba", "hybrid"] * 2, "num_hidden_layers": 6, "num_key_value_heads": 4},
    },
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny model of this type, from the defaults of its config class.

    The model has four layers, or as many as the pattern of layer kinds needs to repeat. Nested configs are made small
    too.

    Args:
        model_type: transformers' name, such as "jamba".
        changes: entries to change.
    """
    overrides = OVERRIDES.get(model_type, {})
    try:
        defaults = AutoConfig.for_model(model_type)
    except Exception:  # some classes refuse their own defaults
        defaults = AutoConfig.for_model(model_type, **overrides)
    return AutoConfig.for_model(model_type, **_merged(_merged(_shrunk(defaults), overrides), changes))


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    declared = {field.name for field in fields(config)}
    stated = {name for name in declared if name in _NEVER_NONE or isinstance(getattr(type(config), name, None), int)}
    entries: dict[str, Any] = {name: value for name, value in (_SIZE | _TOKENS).items() if name in stated}
    # latent attention: as many key heads as query heads, and the rotary part has the head's size
    if "kv_lora_rank" in declared:
        entries |= {name: value for name, value in _LATENT.items() if name in entries}
    entries |= _pattern(config, declared, [name for name in _LAYERS if name in entries])
    nested = {name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    return entries | {name: {**_shrunk(value), "model_type": value.model_type} for name, value in nested.items()}


_LATENT = {"head_dim": _SIZE["qk_rope_head_dim"], "num_key_value_heads": _SIZE["num_attention_heads"]}


def _pattern(config: PreTrainedConfig, declared: set[str], depths: list[str]) -> dict[str, Any]:
    """The number of layers in which every kind of layer occurs, and their kinds where the config lists them."""
    patterns = {name: list(kinds) for name in _PATTERNS if (kinds := getattr(config, name, None))}
    if not patterns or not depths:
        return {}
    whole = (n for n in range(4, _MOST_LAYERS + 1) if all(set(kinds[:n]) == set(kinds) for kinds in patterns.values()))
    n_layers = next(whole, 4)
    shortened = {name: kinds[:n_layers] for name, kinds in patterns.items() if name in declared}
    return dict.fromkeys(depths, n_layers) | shortened


def _merged(entries: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`entries` with `changes`; nested configs are merged in the same way."""
    both = {name: _merged(entries[name], value) for name, value in changes.items() if _nests(entries, name, value)}
    return entries | changes | both


def _nests(entries: dict[str, Any], name: str, value: object) -> bool:
    return isinstance(value, dict) and isinstance(entries.get(name), dict)
