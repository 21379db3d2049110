"""A causal language model as the rest of layerlens sees it, whatever its family."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerlens.compat import attention_of, told_by_config
from layerlens.models import machine, placement
from layerlens.models.backend import TRANSFORMERS, Connection
from layerlens.models.foundation import Foundation
from layerlens.models.hooks import SubLayers
from layerlens.models.packed import is_plain, plain_tensors
from layerlens.models.unembed import Unembed
from layerlens.notebook import as_html

_LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions")


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
        sublayers: for each block the place where attention and MLP part can be observed, or None.
        unembed: the head, which maps states to logits.
        layer_kinds: "full", "sliding", "linear", ... for each layer.
        mlp_kinds: "dense" or "moe" for each layer.
        backend: what runs its passes.
        overlaps: whether a GPU reads out the states of one block while it computes the next. It is off until a
            measurement on a GPU shows that it pays.
        foundation: what its readings depend on, as it was when the model was loaded; None: not recorded.
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
    backend: Connection = TRANSFORMERS
    overlaps: bool = False
    foundation: Foundation | None = None

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
        """V, the number of vocabulary entries in the readout."""
        return self.unembed.n_vocab

    @property
    def context_length(self) -> int | None:
        """The most positions that the model was built for; None where its config names no limit.

        Where rotary positions are stretched beyond the length of pretraining ("yarn", "dynamic"), this is the stretched
        length.
        """
        config = self.hf.config.get_text_config()
        length = next((length for name in _LENGTHS if (length := getattr(config, name, None))), None)
        return max(int(length), _stretched(config, length)) if length else None

    @property
    def tied(self) -> bool:
        """Whether the unembedding is the embedding."""
        weight = getattr(self.head, "weight", None)
        if weight is self._embedding:
            return True
        if not is_plain(weight) or weight.is_meta:
            return False
        return self._embedding.data_ptr() == weight.data_ptr()

    @property
    def head(self) -> nn.Module:
        """The unembedding module."""
        head = head_of(self.hf)
        assert isinstance(head, nn.Module)
        return head

    @property
    def device(self) -> torch.device:
        """The device of the token ids: the first of several devices; the CPU where the model is on a server."""
        return torch.device("cpu") if self._embedding.is_meta else self._embedding.device

    @property
    def n_known_tokens(self) -> int:
        """Token ids 0..n_known_tokens - 1 have an embedding."""
        return self._embedding.shape[0]

    @property
    def quantization(self) -> str | None:
        """How the weights are quantised: transformers' name ("gptq", "gguf", ...), for bitsandbytes with the bits
        ("bitsandbytes 4-bit"); or None."""
        method = getattr(self.hf, "quantization_method", None) if getattr(self.hf, "is_quantized", False) else None
        scheme = getattr(self.hf.config, "quantization_config", None)
        bits = next((bits for bits in (4, 8) if getattr(scheme, f"load_in_{bits}bit", False)), None)
        name = None if method is None else str(getattr(method, "value", method))
        return f"{name} {bits}-bit" if name and bits else name

    @property
    def _places(self) -> str:
        return ", ".join(placement.devices(self.hf)) if placement.is_spread(self.hf) else str(self.device)

    @property
    def _embedding(self) -> Tensor:
        weight = self.hf.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def fingerprint(self) -> str:
        """SHA-256 over the config and over names, shapes and 16 evenly spaced values of every parameter.

        Where the weights are not in this process, what the backend knows of them takes the place of the values.
        """
        digest = hashlib.sha256(json.dumps(told_by_config(self.hf.config), sort_keys=True, default=str).encode())
        for name, parameter in placement.parameters(self.hf):
            digest.update(f"{name}{tuple(parameter.shape)}{_sample(parameter)}".encode())
        for name, buffer in self.hf.named_buffers() if self.quantization else ():
            digest.update(f"{name}{tuple(buffer.shape)}{_sample(buffer)}".encode())  # some schemes keep weights there
        digest.update(self.backend.identity.encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "source": self.source,
            "revision": self.revision,
            "fingerprint": self.fingerprint(),
            "dtype": str(self.hf.dtype).removeprefix("torch."),
            "quantization": self.quantization,
            "device": self._places if self.backend.is_here else "remote",
            "backend": self.backend.name,
            "attention": attention_of(self.hf.config),
            "family": self.family,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_vocab": self.n_vocab,
            **self.backend.record,
        }

    def hardware(self) -> dict[str, Any]:
        """What a manifest says of the hardware that computes: the model's devices, or that it is a server's."""
        return machine.hardware(self._places.split(", ")) if self.backend.is_here else self.backend.hardware

    def __repr__(self) -> str:
        kinds = ", ".join(f"{self.layer_kinds.count(kind)} {kind}" for kind in dict.fromkeys(self.layer_kinds))
        experts = f", {self.mlp_kinds.count('moe')} with experts" if "moe" in self.mlp_kinds else ""
        parameters = sum(parameter.numel() for parameter in self.hf.parameters())
        context = f"{self.context_length:,}" if self.context_length else "without limit"
        return (
            f"Model {self.source} ({self.family}, {parameters / 1e6:,.0f} million parameters)\n"
            f"  {self.n_layers} layers: {kinds}{experts}\n"
            f"  d_model {self.d_model:,}, vocabulary {self.n_vocab:,}, context {context}\n"
            f"  {str(self.hf.dtype).removeprefix('torch.')} on {self._places if self.backend.is_here else 'a server'}"
            f"{f', quantised by {self.quantization}' if self.quantization else ''}"
            f"{'' if self.backend is TRANSFORMERS else f', run by {self.backend.name}'}\n"
            f"  readout {'with soft-cap' if self.unembed.softcap else 'linear'}, "
            f"{'tied to' if self.tied else 'apart from'} the embeddings"
        )

    def _repr_html_(self) -> str:
        return as_html(repr(self))


def _stretched(config: Any, length: int) -> int:
    """The positions that stretched rotary embeddings reach, where the config's length does not count them; else 0.

    With "dynamic", transformers takes the config's length to be that of pretraining; with "yarn" too, unless the
    parameters name another. With "llama3" and "longrope" the length counts the stretch. With "linear", configs differ:
    Gemma 3's counts it. Where there are several kinds of layers, those that see the whole text decide.
    """
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope
    original = {"dynamic": length, "yarn": rope.get("original_max_position_embeddings") or length}
    return int(original.get(str(rope.get("rope_type")), 0) * (rope.get("factor") or 0))


def head_of(hf: PreTrainedModel) -> Any:
    """The unembedding of the model itself or of the language model inside it; None where there is none."""
    models = (module for module in hf.modules() if isinstance(module, PreTrainedModel))
    return next((head for model in models if (head := model.get_output_embeddings()) is not None), None)


def _sample(parameter: Tensor) -> list[float]:
    """Evenly spaced values, 16 of each tensor that the parameter consists of; none where it is in another process."""
    sample: list[float] = []
    for tensor in plain_tensors(parameter.detach()):
        values = tensor.flatten()
        sample += [] if values.is_meta else values[:: max(1, len(values) // 16)][:16].float().cpu().tolist()
    return sample
