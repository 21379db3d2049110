"""Any causal language model in one shape: blocks, unembed, and what each layer is. Found by watching one pass."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import ModelError
from layerlens.models.families import Family, family_of
from layerlens.models.hooks import SubLayers, call_order
from layerlens.models.unembed import Unembed
from layerlens.notebook import as_html

_KINDS = {"full_attention": "full", "sliding_attention": "sliding", "linear_attention": "linear"}


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A causal language model as the rest of layerlens sees it.

    Attributes:
        hf: the transformers model itself.
        tokenizer: its tokenizer.
        source: what `load` was given.
        revision: the hub commit, or None.
        family: transformers' model type.
        decoder: the module that owns the blocks; called directly it computes states without logits.
        blocks: the L blocks; `blocks[i]` yields layer i + 1.
        sublayers: for each block where attention and MLP part can be observed, or None.
        unembed: from a state to logits.
        layer_kinds: "full", "sliding", "linear", ... for each layer.
        mlp_kinds: "dense" or "moe" for each layer.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    revision: str | None
    family: str
    decoder: nn.Module
    blocks: Sequence[nn.Module]
    sublayers: Sequence[SubLayers | None]
    unembed: Unembed
    layer_kinds: Sequence[str]
    mlp_kinds: Sequence[str]

    @property
    def n_layers(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.get_text_config().hidden_size)

    @property
    def n_vocab(self) -> int:
        """V, the number of words in the readout."""
        return self.unembed.n_vocab

    @property
    def context_length(self) -> int | None:
        """Most positions the model was built for; None where its config names no limit."""
        config = self.hf.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(length) if length else None

    @property
    def tied(self) -> bool:
        """Whether the unembedding is the embedding."""
        return self._embedding.data_ptr() == self.unembed.weight.data_ptr()

    @property
    def head(self) -> nn.Module:
        """The unembedding module."""
        head: Any = self.hf.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self._embedding.device

    @property
    def n_known_tokens(self) -> int:
        """Token ids 0..n_known_tokens - 1 have an embedding."""
        return self._embedding.shape[0]

    @property
    def _embedding(self) -> Tensor:
        weight = self.hf.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def fingerprint(self) -> str:
        """SHA-256 over the config and over names, shapes and 16 evenly spaced values of every parameter."""
        config = self.hf.config.to_dict()
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, parameter in self.hf.named_parameters():
            values = parameter.detach().flatten()
            sample = values[:: max(1, len(values) // 16)][:16].float().cpu()
            digest.update(f"{name}{tuple(parameter.shape)}{sample.tolist()}".encode())
        return digest.hexdigest()

    def record(self) -> dict[str, str | int | None]:
        """What a manifest says of it."""
        return {
            "source": self.source,
            "revision": self.revision,
            "fingerprint": self.fingerprint(),
            "dtype": str(self.hf.dtype).removeprefix("torch."),
            "device": str(self.device),
            "backend": "transformers",
            "attention": getattr(self.hf.config, "_attn_implementation", None),
            "family": self.family,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_vocab": self.n_vocab,
        }

    def __repr__(self) -> str:
        kinds = ", ".join(f"{self.layer_kinds.count(kind)} {kind}" for kind in dict.fromkeys(self.layer_kinds))
        experts = f", {self.mlp_kinds.count('moe')} with experts" if "moe" in self.mlp_kinds else ""
        parameters = sum(parameter.numel() for parameter in self.hf.parameters())
        context = f"{self.context_length:,}" if self.context_length else "without limit"
        return (
            f"Model {self.source} ({self.family}, {parameters / 1e6:,.0f} million parameters)\n"
            f"  {self.n_layers} layers: {kinds}{experts}\n"
            f"  d_model {self.d_model:,}, vocabulary {self.n_vocab:,}, context {context}\n"
            f"  {str(self.hf.dtype).removeprefix('torch.')} on {self.device}\n"
            f"  readout {'with soft-cap' if self.unembed.softcap else 'linear'}, "
            f"{'tied to' if self.tied else 'apart from'} the embeddings"
        )

    def _repr_html_(self) -> str:
        return as_html(repr(self))


def adapt(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, revision: str | None = None) -> Model:
    """The model in the adapter's shape, found by structure, by one forward pass of a token, and by the families table.

    Raises:
        ModelError: no blocks, or no unembedding, can be told from the model's structure.
    """
    config = hf.config.get_text_config()
    decoder = _decoder(hf)
    blocks = _blocks(decoder, config, source)
    family = family_of(config.model_type, config)
    return Model(
        hf=hf,
        tokenizer=tokenizer,
        source=source,
        revision=revision,
        family=config.model_type,
        decoder=decoder,
        blocks=blocks,
        sublayers=[_sublayers(block, family) for block in blocks],
        unembed=_unembed(hf, decoder, blocks[-1], source),
        layer_kinds=_layer_kinds(config, len(blocks)),
        mlp_kinds=["moe" if _has_experts(block) else "dense" for block in blocks],
    )


def _decoder(hf: PreTrainedModel) -> nn.Module:
    decoder: Any = hf.get_decoder()
    if decoder is None or decoder is hf:
        decoder = hf.base_model
    assert isinstance(decoder, nn.Module)
    return decoder


def _blocks(decoder: nn.Module, config: Any, source: str) -> list[nn.Module]:
    n_layers = config.num_hidden_layers
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == n_layers]
    if len(lists) != 1:
        raise ModelError(
            f"{source} ({config.model_type}) cannot be traced: its {type(decoder).__name__} has {len(lists)} lists of "
            f"{n_layers} blocks where one was expected; layerlens needs a decoder-only model with one residual stream"
        )
    return list(lists[0])


def _unembed(hf: PreTrainedModel, decoder: nn.Module, last_block: nn.Module, source: str) -> Unembed:
    head: Any = hf.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor):
        raise ModelError(f"{source} cannot be traced: it has no unembedding; give a model with a language-model head")
    config = hf.config.get_text_config()
    scale = _number(config, "logit_scale", "lm_head_multiplier") or 1.0
    return Unembed(
        tail=_called_after(decoder, last_block, head.weight.device),
        weight=head.weight.detach(),
        bias=head.bias.detach() if isinstance(getattr(head, "bias", None), Tensor) else None,
        scale=scale / (_number(config, "logits_scaling") or 1.0),
        softcap=_number(config, "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"),
    )


def _number(config: Any, *names: str) -> float | None:
    """The first of the config's entries that is a number; whatever is missed shows in the readout check."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _called_after(decoder: nn.Module, last_block: nn.Module, device: torch.device) -> list[nn.Module]:
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    with torch.no_grad(), call_order(decoder) as order:
        decoder(input_ids=ids, use_cache=False)
    return order[order.index(last_block) + 1 :]


def _sublayers(block: nn.Module, family: Family) -> SubLayers | None:
    if not family.additive:
        return None
    names = family.attention if family.parallel else (family.middle,)
    found = [getattr(block, name) for name in names if getattr(block, name, None) is not None]
    return SubLayers(found[0], bool(family.parallel)) if found else None


def _layer_kinds(config: Any, n_layers: int) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types:
        return [_KINDS.get(kind, kind) for kind in types]
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return ["sliding" if slides else "full"] * n_layers


def _has_experts(block: nn.Module) -> bool:
    return any("experts" in name.split(".") for name, _ in block.named_modules())
