"""What the structure of a model cannot tell, by transformers' model type. An unlisted type is taken for DEFAULT.

Whatever stands here or is guessed is checked on the loaded model (`check.py`): a wrong entry is refused, not believed.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """How the blocks of a family are built.

    Attributes:
        middle: the module of a block whose *input* is the stream between attention and MLP.
        attention: names that the module mixing positions has.
        mlp: the module whose output, when zero, means that the MLP adds nothing.
        parallel: attention and MLP read the same stream; a string names the config entry that says so.
        additive: whether a block is stream + attention part + MLP part; a string names the config entry that says so.
        adds_more: the block adds or scales something beyond attention and MLP; it counts to the MLP part.
    """

    middle: str = "post_attention_layernorm"
    attention: tuple[str, ...] = ("self_attn", "linear_attn")
    mlp: str = "mlp"
    parallel: bool | str = False
    additive: bool | str = True
    adds_more: bool = False

    def settled(self, config: Any) -> "Family":
        """The same with entries that the config decides replaced by what it says."""
        return replace(self, parallel=_settle(self.parallel, config), additive=_settle(self.additive, config))


DEFAULT = Family()

_GEMMA = Family(middle="pre_feedforward_layernorm")
_OLMO_POSTNORM = Family(middle="mlp")

FAMILIES: dict[str, Family] = {
    "llama": DEFAULT,
    "qwen2": DEFAULT,
    "qwen3": DEFAULT,
    "qwen3_moe": DEFAULT,
    "qwen3_5_text": DEFAULT,
    "qwen3_5_moe_text": DEFAULT,
    "gpt_oss": DEFAULT,
    "mistral": DEFAULT,
    "mixtral": DEFAULT,
    "phi3": DEFAULT,
    "granite": DEFAULT,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma4_text": replace(_GEMMA, adds_more=True),  # per-layer embeddings and a scalar on the block's output
    "olmo2": _OLMO_POSTNORM,
    "olmo3": _OLMO_POSTNORM,
    "gpt2": Family(middle="ln_2", attention=("attn",)),
    "gptj": Family(attention=("attn",), parallel=True),
    "gpt_neox": Family(attention=("attention",), parallel="use_parallel_residual"),
    "cohere2": Family(parallel=True),
    # OPT-350M norms the stream itself after each sub-layer, so nothing there is "added to the stream"
    "opt": Family(middle="final_layer_norm", mlp="fc2", additive="do_layer_norm_before"),
}


def family_of(model_type: str, config: Any) -> Family:
    """The family of a model type, with what the config decides filled in."""
    return FAMILIES.get(model_type, DEFAULT).settled(config)


def _settle(value: bool | str, config: Any) -> bool:
    return bool(getattr(config, value)) if isinstance(value, str) else value
