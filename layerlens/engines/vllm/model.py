"""A model of vLLM whose states of some layers come out beside the last one."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)

from layerlens.compat import left_in_ranks
from layerlens.engines.vllm.head import Reads
from layerlens.engines.vllm.lenses import lens_of
from layerlens.engines.vllm.rows import watching
from layerlens.engines.vllm.serving import Serving, begin, is_on
from layerlens.engines.vllm.shards import Shards
from layerlens.engines.vllm.taps import tap
from layerlens.errors import ModelError
from layerlens.lens import Affine, Transport

_logger = logging.getLogger("vllm.layerlens")
_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm")
_LIKE = 0.05  # of the greatest component; in bfloat16 the norm of a rounded sum differs by a hundredth


@cache
def watched(stock: type[nn.Module]) -> type[nn.Module]:
    """The class whose models keep states of layers in an engine with layerlens. In others it makes vLLM's models."""

    class Watched(stock):  # type: ignore[misc, valid-type]
        def __new__(cls, *, vllm_config: Any, prefix: str = "", **options: Any) -> Any:
            # a model of images and text makes its language model by the same registry, with a prefix
            if prefix or not is_on(vllm_config):
                return stock(vllm_config=vllm_config, prefix=prefix, **options)
            return super().__new__(cls)

        def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
            self._layerlens = Kept(self, vllm_config)

        def forward(self, *given: Any, **named: Any) -> Tensor:
            token_ids = given[0] if given else named.get("input_ids")
            return self._layerlens.beside(super().forward(*given, **named), super().compute_logits, token_ids)

        def compute_logits(self, hidden_states: Tensor, *given: Any, **named: Any) -> Tensor:
            stock_logits = super().compute_logits
            return self._layerlens.logits(hidden_states, lambda normed: stock_logits(normed, *given, **named))

    Watched.__name__, Watched.__qualname__, Watched.__module__ = stock.__name__, stock.__qualname__, stock.__module__
    return Watched


class Kept:
    """The states of a model that come out beside the last one.

    Args:
        model: of vLLM; it is told which states to hand out.
        vllm_config: of the engine, which says which.
    """

    def __init__(self, model: Any, vllm_config: Any) -> None:
        serving = begin(vllm_config)
        self._serving = serving
        self._n_vocab = int(_language_model(model).logits_processor.org_vocab_size)
        self._d_model = int(vllm_config.model_config.get_hidden_size())
        owner, blocks, norm_name = _parts(model, serving.n_layers)
        self._norm: Any = getattr(owner, norm_name)
        self._name = type(model).__name__
        self._processor = _language_model(model).logits_processor
        self._shards: Shards | None = None
        self._is_checked = self._has_shards = False
        self._lens_on_host = lens_of(serving.options, vllm_config)
        self._lens: Transport | None = None
        if hasattr(model, "set_aux_hidden_state_layers"):
            _ask(model, serving.model_layers)
        else:
            self._norm = copy.copy(self._norm)  # reads candidates, and carries nothing
            tap(blocks, owner, norm_name, serving.model_layers, self._d_model)
        _announce(model, serving, vllm_config)

    def beside(self, out: Any, logits_of: Callable[[Tensor], Tensor], token_ids: Tensor | None) -> Tensor:
        """What the model's forward pass gave, as one tensor: the states that strategies read, then the last one after
        the norm. States that are traced are measured here, because the sampler gets only one of each request."""
        serving = self._serving
        if isinstance(out, tuple):
            last, kept = out
        else:
            last, *kept = out.split(self._d_model, dim=-1)
        if not self._is_checked:
            self._check(kept[-1], last)
        if serving.options.traces is not None:
            serving.trace(kept, last, self._reads(logits_of, last), token_ids)
            kept = [kept[layer] for layer in serving.layers]
        return torch.cat([*kept, last], dim=-1)

    def logits(self, wide: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The logits for the sampler, from rows of what `beside` gave."""
        kept = wide.unflatten(1, (len(self._serving.layers) + 1, self._d_model))
        return self._serving.logits(kept, self._reads(logits_of, kept[:, -1]))

    def _reads(self, logits_of: Callable[[Tensor], Tensor], normed: Tensor) -> Reads:
        if not self._has_shards and get_tensor_model_parallel_world_size() > 1:
            self._shards = self._split(logits_of, normed[:2].contiguous())
        self._has_shards = True
        if self._lens is None:
            found = self._lens_on_host
            self._lens = found.moved(normed.device, normed.dtype) if isinstance(found, Affine) else found
        return Reads(self._normed, logits_of, self._n_vocab, self._shards, self._lens)

    def _split(self, logits_of: Callable[[Tensor], Tensor], normed: Tensor) -> Shards | None:
        """The ranks' parts of the vocabulary; None, with a warning, where they do not make up the model's own logits.

        Args:
            logits_of: the model's own logits.
            normed: states to compare with.
        """

        def own(states: Tensor) -> Tensor:
            with left_in_ranks(self._processor):
                return logits_of(states)

        def gather(values: Tensor) -> Tensor:
            every: Tensor = tensor_model_parallel_all_gather(values.contiguous().unsqueeze(0), dim=0)
            return every

        shards = Shards(own, gather, self._n_vocab, get_tensor_model_parallel_rank(), own(normed).shape[1])
        parts, whole = shards.whole(shards.logits_of(normed)), logits_of(normed).float()
        if parts.shape == whole.shape and torch.equal(parts.isnan() | (parts == whole), torch.ones_like(parts).bool()):
            return shards
        _logger.warning(
            "%s: the logits of all candidates are exchanged between ranks, because the parts that ranks "
            "have do not make up the model's own.",
            self._name,
        )
        return None

    def _normed(self, states: Tensor) -> Tensor:
        out = self._norm(states)
        normed: Tensor = out[0] if isinstance(out, tuple) else out
        return normed

    def _check(self, raw: Tensor, last: Tensor) -> None:
        """ModelError unless the final norm of the last layer's state is what the model reads out.

        It is looked at in the first pass, with which vLLM measures its memory.
        """
        normed = self._normed(raw.contiguous().clone())
        finite = normed.isfinite().all(1) & last.isfinite().all(1)
        if not finite.any():
            return
        self._is_checked = True
        normed, last = normed[finite].float(), last[finite].float()
        if (normed - last).abs().max() > _LIKE * last.abs().max():
            raise ModelError(
                f"{self._name} reads out something else than the final norm of its last layer's state",
                "decode this model with `layerlens generate`",
            )


def _ask(model: Any, layers: Sequence[int]) -> None:
    """Have the model hand out the states of these layers; ModelError where it cannot."""
    if layers[0] == 0 and hasattr(model, "check_version"):
        raise ModelError(
            f"vLLM's {type(model).__name__} does not hand out the embeddings, which the strategies or the traces of "
            "this engine read",
            "leave out traces and sled, and give dola candidates from layer 1 on",
        )
    model.set_aux_hidden_state_layers(tuple(layers))


def _announce(model: Any, serving: Serving, vllm_config: Any) -> None:
    """Let Model Runner V2 tell which requests are in a step."""
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

    def state_class() -> type:
        own = vars(model).pop("get_model_state_cls")
        try:
            return watching(resolve_model_state_cls(vllm_config, model), serving)
        finally:
            model.get_model_state_cls = own

    model.get_model_state_cls = state_class


def _parts(model: Any, n_layers: int) -> tuple[nn.Module, nn.ModuleList, str]:
    """The module that calls all blocks and then the final norm, the blocks, and the name of the norm."""
    for module in _language_model(model).modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                for name in _NORMS:
                    if getattr(module, name, None) is not None:
                        return module, child, name
    raise ModelError(
        f"vLLM's {type(model).__name__} has no list of {n_layers} blocks with a final norm beside it",
        "decode this model with `layerlens generate`, or from the last layer",
    )


def _language_model(model: Any) -> Any:
    return model.get_language_model() if hasattr(model, "get_language_model") else model
