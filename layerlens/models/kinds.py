"""The kind of each layer: how it mixes positions, and whether it routes tokens to experts."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

_KINDS = {
    **{"full_attention": "full", "attention": "full", "global": "full"},
    **{"sliding_attention": "sliding", "local": "sliding"},
    **{"chunked_attention": "chunked", "indexed_attention": "indexed"},
    "deepseek_sparse_attention": "indexed",
    **{"linear_attention": "linear", "mamba": "linear"},
}
_PATTERNS = ("layer_types", "layers_block_type", "attention_layers")
# configs call every recurrence "linear attention", or say nothing; the modules' names tell more
_RECURRENCES = {
    **{"Mamba": "mamba", ".mamba": "mamba", "Rwkv": "linear"},
    **{"xLSTM": "recurrent", "RecurrentBlock": "recurrent"},
}


def layer_kinds(config: Any, listed: Sequence[nn.Module], blocks: Sequence[nn.Module]) -> list[str]:
    """How each block mixes positions: "full", "sliding", "chunked", "indexed" attention, "linear", "mamba", ...

    Args:
        config: of the language model.
        listed: all modules of the stack, which the pattern in the config is about.
        blocks: those of them that run on text.
    """
    patterns = (getattr(config, name, None) for name in _PATTERNS)
    types = next((types for types in patterns if types and len(types) == len(listed)), None)
    if types is None:
        types = ["sliding" if _slides(config) else "full"] * len(listed)
    elif getattr(config, "attention_window_size", None) and _slides(config):
        # RecurrentGemma: transformers before 5.23 calls its windows "attention"
        types = ["sliding_attention" if kind == "attention" else kind for kind in types]
    return [_kind(_KINDS.get(kind, kind), block) for kind, block in zip(types, listed, strict=True) if block in blocks]


def mlp_kinds(blocks: Sequence[nn.Module]) -> list[str]:
    """For each block "moe" where it has experts, else "dense"."""
    return ["moe" if _has_experts(block) else "dense" for block in blocks]


def _kind(stated: str, block: nn.Module) -> str:
    names = [f"{type(module).__name__} .{path}" for path, module in block.named_modules()]
    kinds = (kind for part, kind in _RECURRENCES.items() if any(part in name for name in names))
    return next(kinds, stated) if stated in ("linear", "full", "sliding") else stated


def _slides(config: Any) -> bool:
    """Whether every layer has a window that is shorter than the context."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window is not None and 0 < window < (getattr(config, "max_position_embeddings", None) or math.inf)


def _has_experts(block: nn.Module) -> bool:
    return any(
        "experts" in name.split(".") or "Experts" in type(module).__name__ for name, module in block.named_modules()
    )
