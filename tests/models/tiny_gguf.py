"""A tiny random LFM2 as a GGUF file: of what transformers can leave packed, the family with the plainest names."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Lfm2ForCausalLM
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

from layerlens.models import tiny_model

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.embedding_norm": "token_embd_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "operator_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "conv.conv.": "shortconv.conv.",
}


needs_packed_lfm2 = pytest.mark.skipif(
    "lfm2" not in GGUF_ARCHS, reason="this transformers does not keep GGUF weights of LFM2 packed"
)


def tiny_lfm2() -> Lfm2ForCausalLM:
    """LFM2 with widths that GGUF's blocks of 32 values divide, and a head of its own."""
    if Version(transformers.__version__) < Version("5.18"):
        pytest.skip("transformers 5.17 does not read LFM2 from GGUF")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny_model("lfm2", **sizes, block_auto_adjust_ff_dim=False, tie_word_embeddings=False)


def write_gguf(path: Path, hf: Lfm2ForCausalLM, *, tied: bool = False, more: tuple[str, ...] = ()) -> None:
    """The model with its matrices in blocks of Q8_0 and a tokenizer of single bytes; `tied` leaves the head out, `more`
    adds tensors of those names."""
    config = hf.config
    kv_heads = [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_uint32("lfm2.shortconv.l_cache", config.conv_L_cache)
    letters = sorted(ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters, *(letters[0] * (2 + n) for n in range(config.vocab_size - len(letters)))])
    writer.add_token_merges([f"{letters[0]} {letters[0]}"])  # a writer leaves out an empty list
    writer.add_eos_token_id(config.vocab_size - 1)
    for name, weight in hf.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            _add(writer, name, weight)
    for name in more:
        writer.add_tensor(name, np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor) -> None:
    for theirs, short in _NAMES.items():
        name = name.replace(theirs, short)
    values = weight.squeeze(1).numpy() if "shortconv.conv." in name else weight.numpy()
    if values.ndim == 2 and "shortconv.conv." not in name:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values))
