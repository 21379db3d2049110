"""What cannot be told from the structure of a model, by transformers' model type. Types not listed are like DEFAULT.

All entries and guesses are checked on the loaded model (`check.py`): where one is wrong, the model is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """How the blocks of a family are built. Names of modules are paths within a block.

    Attributes:
        middle: the module of a block whose *input* is the stream between attention and MLP; by layer kind where the
            kinds differ in it.
        attention: names of the modules that mix positions; a block has some of them.
        mlp: names of the modules whose outputs must be zero for the MLP to add nothing.
        parallel: attention and MLP read the same stream; a string names the config entry that says so.
        additive: whether a block is stream + attention part + MLP part; a string names the config entry that says so.
        adds_more: the block adds or scales something besides attention and MLP; this counts as a part of the MLP.
        has_encoder: models of the family are a decoder beside an encoder, and only the decoder is read.
    """

    middle: str | Mapping[str, str] = "post_attention_layernorm"
    attention: tuple[str, ...] = ("self_attn", "linear_attn")
    mlp: tuple[str, ...] = ("mlp",)
    parallel: bool | str = False
    additive: bool | str = True
    adds_more: bool = False
    has_encoder: bool = False

    def settled(self, config: Any) -> "Family":
        """The same, with entries that depend on the config replaced by its values."""
        return replace(self, parallel=_settle(self.parallel, config), additive=_settle(self.additive, config))

    def middle_of(self, kind: str) -> str:
        """The name of `middle` in a layer of this kind."""
        return self.middle if isinstance(self.middle, str) else self.middle[kind]


DEFAULT = Family()

_GEMMA = Family(middle="pre_feedforward_layernorm")
_SCALED_GEMMA = replace(_GEMMA, adds_more=True)  # a scalar on the block's output
_OLMO_POSTNORM = Family(middle="mlp")
_GPT2 = Family(middle="ln_2", attention=("attn",))
_COHERE = Family(parallel=True)
_JAMBA = Family(middle="pre_ff_layernorm", attention=("self_attn", "mamba"), mlp=("feed_forward",))
_LFM2 = Family(middle="ffn_norm", attention=("self_attn", "conv"), mlp=("feed_forward",))
_BART_PRENORM = Family(middle="final_layer_norm", mlp=("fc2",))
_BART_DECODER = replace(_BART_PRENORM, has_encoder=True)
_GRANITE_MOE = Family(attention=("self_attn", "mamba"), mlp=("block_sparse_moe", "shared_mlp"))
_NOT_ADDITIVE = Family(additive=False)

# tested in full, on the tiny model of the same name
FAMILIES: dict[str, Family] = {
    "llama": DEFAULT,
    "llama4_text": Family(mlp=("feed_forward",)),
    "qwen2": DEFAULT,
    "qwen3": DEFAULT,
    "qwen3_moe": DEFAULT,
    "qwen3_next": DEFAULT,
    "qwen3_5_text": DEFAULT,
    "qwen3_5_moe_text": DEFAULT,
    "gpt_oss": DEFAULT,
    "mistral": DEFAULT,
    "mixtral": DEFAULT,
    "deepseek_v2": DEFAULT,
    "deepseek_v3": DEFAULT,
    "glm4": DEFAULT,
    "phi3": DEFAULT,
    "smollm3": DEFAULT,
    "granite": DEFAULT,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma4_text": _SCALED_GEMMA,  # and per-layer embeddings
    "olmo2": _OLMO_POSTNORM,
    "olmo3": _OLMO_POSTNORM,
    "gpt2": _GPT2,
    "gptj": Family(attention=("attn",), parallel=True),
    "gpt_neox": Family(attention=("attention",), parallel="use_parallel_residual"),
    "cohere2": _COHERE,
    # OPT-350M normalises the stream itself after each sub-layer, so nothing is "added to the stream" there
    "opt": Family(middle="final_layer_norm", mlp=("fc2",), additive="do_layer_norm_before"),
    "falcon_h1": _JAMBA,
    "mamba2": _NOT_ADDITIVE,  # a mixer alone; so has each block of the next family
    "nemotron_h": _NOT_ADDITIVE,
}

# verified on tiny models, by the check at load and by `coverage.py`
FAMILIES |= {
    "afmoe": Family(middle="pre_mlp_layernorm"),
    "apertus": Family(middle="feedforward_layernorm"),
    "bamba": _JAMBA,
    "bigbird_pegasus": _BART_DECODER,
    "biogpt": _BART_PRENORM,
    "blenderbot": _BART_DECODER,
    # the outputs of attention and MLP include the stream
    "bloom": Family(attention=("self_attention.dense",), mlp=("mlp.dense_4h_to_h",)),
    "codegen": Family(attention=("attn",), parallel=True),
    "cohere": _COHERE,
    "cohere2_moe": _COHERE,
    "cohere_compass_text": _COHERE,
    "ctrl": Family(middle="layernorm2", attention=("multi_head_attention",), mlp=("ffn",)),
    "dbrx": Family(middle="norm_attn_norm.norm_2", attention=("norm_attn_norm.attn",), mlp=("ffn",)),
    "exaone4": _OLMO_POSTNORM,
    "falcon": Family(attention=("self_attention",), parallel="parallel_attn"),
    "flex_olmo": _OLMO_POSTNORM,
    "gemma4_unified_text": _SCALED_GEMMA,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _GPT2,
    "granitemoe": _GRANITE_MOE,
    "granitemoe_swa": _GRANITE_MOE,
    "granitemoehybrid": _GRANITE_MOE,
    "granitemoeshared": _GRANITE_MOE,
    "jamba": _JAMBA,
    "jetmoe": Family(attention=("self_attention",)),
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "lfm3": _LFM2,
    "mbart": _BART_DECODER,
    "modernbert-decoder": Family(middle="mlp_norm", attention=("attn",)),
    "mpt": Family(middle="norm_2", attention=("attn",), mlp=("ffn.down_proj",)),
    "olmo_hybrid": Family(middle={"linear": "post_attention_layernorm", "full": "mlp"}),
    "pegasus": _BART_DECODER,
    "phi": _COHERE,
    "recurrent_gemma": Family(middle="channel_pre_norm", attention=("temporal_block",), mlp=("mlp_block",)),
    "vaultgemma": _GEMMA,
    "whisper": _BART_DECODER,
    "xglm": _BART_PRENORM,
    "xlstm": Family(middle="norm_ffn", attention=("mlstm_layer",), mlp=("ffn",)),
}


def family_of(model_type: str, config: Any) -> Family:
    """The family of a model type, with what the config decides filled in."""
    return FAMILIES.get(model_type, DEFAULT).settled(config)


def _settle(value: bool | str, config: Any) -> bool:
    return bool(getattr(config, value)) if isinstance(value, str) else value
