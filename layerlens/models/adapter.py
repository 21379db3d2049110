"""Any causal language model in one shape: blocks, unembed, and what each layer is. Found by watching one pass."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import ModelError, first_sentence
from layerlens.models import machine, placement
from layerlens.models.backend import TRANSFORMERS, Backend
from layerlens.models.families import Family, family_of
from layerlens.models.foundation import Foundation
from layerlens.models.hooks import Call, SubLayers, calls_in
from layerlens.models.kinds import layer_kinds, mlp_kinds
from layerlens.models.packed import is_plain, matrix_of, plain_tensors
from layerlens.models.refusals import unreadable_head
from layerlens.models.unembed import Unembed
from layerlens.notebook import as_html

_LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions")
_FACTORS, _DIVISORS = (
    ("logit_scale", "lm_head_multiplier", "output_multiplier"),
    ("logits_scaling", "logits_mup_width_multiplier"),
)
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
SCALARS = (*_FACTORS, *_DIVISORS, *_CAPS)
"""Entries of a config that act on the logits."""


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
        backend: what runs its passes.
        foundation: what its readings rest on, as it was when it was loaded; None: not noted.
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
    backend: Backend = TRANSFORMERS
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
        """V, the number of words in the readout."""
        return self.unembed.n_vocab

    @property
    def context_length(self) -> int | None:
        """Most positions the model was built for; None where its config names no limit.

        Where rotary positions are stretched beyond the length of pretraining ("yarn", "dynamic"), the stretched length.
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
        """Where token ids go in, on the first of several devices; the CPU where the model lies on a server."""
        return torch.device("cpu") if self._embedding.is_meta else self._embedding.device

    @property
    def n_known_tokens(self) -> int:
        """Token ids 0..n_known_tokens - 1 have an embedding."""
        return self._embedding.shape[0]

    @property
    def quantization(self) -> str | None:
        """How the weights are quantised, as transformers calls it ("gptq", "gguf", ...), bitsandbytes with its bits
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

        Without values where the weights lie on a server.
        """
        config = self.hf.config.to_dict()
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, parameter in placement.parameters(self.hf):
            digest.update(f"{name}{tuple(parameter.shape)}{_sample(parameter)}".encode())
        for name, buffer in self.hf.named_buffers() if self.quantization else ():
            digest.update(f"{name}{tuple(buffer.shape)}{_sample(buffer)}".encode())  # some schemes keep weights there
        return digest.hexdigest()

    def record(self) -> dict[str, str | int | None]:
        """What a manifest says of it."""
        return {
            "source": self.source,
            "revision": self.revision,
            "fingerprint": self.fingerprint(),
            "dtype": str(self.hf.dtype).removeprefix("torch."),
            "quantization": self.quantization,
            "device": self._places if self.backend.is_here else "remote",
            "backend": self.backend.name,
            "attention": getattr(self.hf.config, "_attn_implementation", None),
            "family": self.family,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_vocab": self.n_vocab,
        }

    def hardware(self) -> dict[str, Any]:
        """What a manifest says of the machine that computes it: its own devices, or that it is a server's."""
        return machine.hardware(self._places.split(", ")) if self.backend.is_here else {"processor": "remote"}

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
    """Positions that stretched rotary embeddings reach, which the config's length need not count; 0 where it does.

    transformers takes that length for the one of pretraining with "dynamic", and with "yarn" where the parameters name
    no other. With "llama3" and "longrope" it counts the stretch, and with "linear" configs are of two minds: Gemma 3's
    counts it. (Of several kinds of layers those count that see the whole text.)
    """
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope
    original = {"dynamic": length, "yarn": rope.get("original_max_position_embeddings") or length}
    return int(original.get(str(rope.get("rope_type")), 0) * (rope.get("factor") or 0))


def adapt(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, revision: str | None = None) -> Model:
    """The model in the adapter's shape, found by structure, by one pass over two tokens, and by the families table.

    Raises:
        ModelError: no blocks, or no unembedding, can be told from the model's structure.
    """
    config = hf.config.get_text_config(decoder=True)
    _refuse_several_heads(hf, source)
    placement.keep_here(hf, [module for module in (hf.get_input_embeddings(), head_of(hf)) if module is not None])
    logits, calls = _watched_pass(hf, source)
    head, n_vocab = _head(hf, logits, source)
    path, blocks = _stack(hf, calls, source)
    kinds = layer_kinds(config, list(hf.get_submodule(path).children()), blocks)
    family = family_of(config.model_type, config)
    tail = _between(hf, blocks[-1], head, calls)
    placement.keep_here(hf, tail)
    return Model(
        hf=hf,
        tokenizer=tokenizer,
        source=source,
        revision=revision,
        family=config.model_type,
        decoder=_decoder(hf, path),
        blocks=blocks,
        sublayers=[_sublayers(block, kind, family) for block, kind in zip(blocks, kinds, strict=True)],
        unembed=_unembed(config, head, tail, n_vocab, calls),
        layer_kinds=kinds,
        mlp_kinds=mlp_kinds(blocks),
    )


def _watched_pass(hf: PreTrainedModel, source: str) -> tuple[Tensor | None, list[Call]]:
    """Of a pass over two tokens: the logits, and the calls of its modules."""
    device: Any = hf.get_input_embeddings().weight.device
    without_weights = FakeTensorMode(allow_non_fake_inputs=True) if device.type == "meta" else nullcontext()
    try:
        with torch.no_grad(), without_weights, calls_in(hf) as calls:
            ids = torch.zeros(1, 2, dtype=torch.long, device=device)
            outputs = hf(input_ids=ids, use_cache=False)
    except Exception as error:  # whatever a model raises that does not read text
        advice = "layerlens traces models that run on text alone"
        if getattr(hf, "is_quantized", False):
            advice = "the package that quantised its weights may not fit them or this processor: load it without"
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: a pass over token ids alone failed "
            f"({first_sentence(error)}); {advice}"
        ) from error
    return getattr(outputs, "logits", None), calls


def head_of(hf: PreTrainedModel) -> Any:
    """The unembedding, of the model itself or of the language model inside of it; None where there is none."""
    models = (module for module in hf.modules() if isinstance(module, PreTrainedModel))
    return next((head for model in models if (head := model.get_output_embeddings()) is not None), None)


def _refuse_several_heads(hf: PreTrainedModel, source: str) -> None:
    head = head_of(hf)
    if isinstance(head, nn.ModuleList):
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: it has {len(head)} unembeddings, and predicts as "
            "many tokens at once; layerlens traces models that predict one token at a time"
        )


def _head(hf: PreTrainedModel, logits: Tensor | None, source: str) -> tuple[nn.Module, int]:
    """The unembedding, a module with one weight, plain or packed, and the number of words in its logits."""
    head = head_of(hf)
    has_weight = isinstance(getattr(head, "weight", None), Tensor) or (
        isinstance(head, nn.Module) and getattr(hf, "is_quantized", False)
    )
    if logits is None or head is None:
        raise ModelError(f"{source} cannot be traced: it has no unembedding; give a model with a language-model head")
    if not has_weight:
        raise unreadable_head(head, source)
    assert isinstance(head, nn.Module)
    weight = getattr(head, "weight", None)
    if is_plain(weight) and not isinstance(weight, nn.Parameter):
        raise ModelError(
            f"{source} cannot be traced: its unembedding makes its weight anew in every pass, by pruning or another "
            "parametrisation; make that permanent (torch.nn.utils.prune.remove, remove_parametrizations), then load it"
        )
    return head, logits.shape[-1]


def _stack(hf: PreTrainedModel, calls: Sequence[Call], source: str) -> tuple[str, list[nn.Module]]:
    """The list of blocks by its path, and those blocks of it that run on text, in order.

    Of the module lists that ran, the outermost count. Where there are several it is the one that hands a stream on.
    """
    lists: dict[str, list[nn.Module]] = {}
    ran = {call.module: call for call in calls}
    for path, module in hf.named_modules():
        called = [child for child in module if child in ran] if isinstance(module, nn.ModuleList) else []
        if called and not any(path.startswith(f"{outer}.") for outer in lists):
            lists[path] = called
    chains = {path: blocks for path, blocks in lists.items() if len(lists) == 1 or _hand_on(blocks, ran)}
    if len(chains) != 1:
        what = f"{len(lists)} lists of modules ({', '.join(lists) or 'none'})"
        how = "several of them hand" if chains else "none of them hands"
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: its layers are in {what}, and {how} a stream from "
            "module to module; layerlens needs one stack of blocks with one residual stream"
        )
    ((path, blocks),) = chains.items()
    n_calls = sum(call.module is blocks[0] for call in calls)
    if n_calls > 1:
        raise ModelError(
            f"{source} ({hf.config.model_type}) cannot be traced: one pass runs its blocks {n_calls} times; layerlens "
            "needs a model in which each block is one layer"
        )
    return path, blocks


def _hand_on(blocks: Sequence[nn.Module], ran: Mapping[nn.Module, Call]) -> bool:
    """Whether each block was given what the one before it returned."""
    pairs = pairwise(blocks)
    return len(blocks) > 1 and all(ran[one].returned is ran[following].given for one, following in pairs)


def _decoder(hf: PreTrainedModel, path: str) -> nn.Module:
    """The innermost owner of the blocks that takes token ids."""
    names = path.split(".")[:-1]
    owners = (hf.get_submodule(".".join(names[:n])) for n in range(len(names), 0, -1))
    return next((owner for owner in owners if "input_ids" in signature(owner.forward).parameters), hf)


def _between(hf: PreTrainedModel, block: nn.Module, head: nn.Module, calls: Sequence[Call]) -> list[nn.Module]:
    """The modules called after the last block and before the unembedding, without those inside of them."""
    modules = [call.module for call in calls]
    after = modules[modules.index(block) + 1 :]
    if head in after:
        after = after[: after.index(head)]
    after = [module for module in after if module not in set(head.modules())]
    around = [module for module in after if not {block, head} & set(module.modules())]
    inside = {inner for module in around for inner in module.modules() if inner is not module}
    return [module for module in around if module not in inside]


def _unembed(config: Any, head: nn.Module, tail: Sequence[nn.Module], n_vocab: int, calls: Sequence[Call]) -> Unembed:
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    is_packed = not is_plain(weight)
    if is_packed:
        given = next(call.given for call in calls if call.module is head)
        assert given is not None
        weight = matrix_of(head, given)
    assert isinstance(weight, Tensor)
    scale = _number(config, *_FACTORS) or 1.0
    return Unembed(
        tail=[placement.beside(module, weight.device) for module in tail],
        weight=weight.detach()[:n_vocab],  # some heads are padded to a round number of words
        bias=bias.detach()[:n_vocab] if isinstance(bias, Tensor) else None,
        scale=scale / (_number(config, *_DIVISORS) or 1.0),
        softcap=_number(config, *_CAPS),
        packed=head if is_packed else None,
    )


def _number(config: Any, *names: str) -> float | None:
    """The first of the config's entries that is a number; whatever is missed shows in the readout check."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _sublayers(block: nn.Module, kind: str, family: Family) -> SubLayers | None:
    if not family.additive:
        return None
    found = named_in(block, family.attention if family.parallel else (family.middle_of(kind),))
    return SubLayers(found[0], bool(family.parallel)) if found else None


def _sample(parameter: Tensor) -> list[float]:
    """Evenly spaced values, 16 of each tensor that it consists of; none where it lies in another process."""
    found: list[float] = []
    for tensor in plain_tensors(parameter.detach()):
        values = tensor.flatten()
        found += [] if values.is_meta else values[:: max(1, len(values) // 16)][:16].float().cpu().tolist()
    return found


def named_in(block: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Those of the names that the block has, as modules; a name is a path within it."""
    found = []
    for name in names:
        module: Any = block
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            found.append(module)
    return found
