"""What a generated token costs, counted from a model's modules."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layerlens.errors import ModelError, OptionError
from layerlens.models.model import head_of
from layerlens.records.cost import DecodingFlops

_ACTIVE_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)


def decoding_flops(
    hf: PreTrainedModel, window: int, mean_depth: float | None = None, mean_read: float | None = None
) -> DecodingFlops:
    """What one generated token costs, counted from the model's modules; the model may be on the meta device.

    Args:
        hf: a causal language model.
        window: K, the number of candidate layers, the last one included.
        mean_depth: how many layers a walk goes back on average, 0..K − 1, where it was measured.
        mean_read: how many layers a lazy walk reads beside the last one on average; see
            `analysis.overhead.layers_read`.

    Raises:
        OptionError: the window is below 1, or the depth does not fit it.
        ModelError: the model has routed experts, and its config does not say how many of them a token uses, or their
            weights are packed in blocks.
    """
    if window < 1:
        raise OptionError.about("window", window, "is too small", "give a whole number from 1")
    if mean_depth is not None and not 0 <= mean_depth <= window - 1:
        what = f"does not fit a window of {window}"
        raise OptionError.about("mean_depth", mean_depth, what, f"give 0..{window - 1}")
    decoder: Any = hf.get_decoder()
    has_blocks = decoder is not None and any(isinstance(module, nn.ModuleList) for module in decoder.modules())
    decoder = decoder if has_blocks and decoder is not hf else hf.base_model
    head: Any = head_of(hf)
    # OPT's projection back to the width of the embeddings goes before every unembedding
    tail = getattr(decoder, "project_out", None)
    n_tail = tail.weight.numel() if isinstance(tail, nn.Linear) else 0
    active = _active_experts(hf.config.get_text_config())
    lists = {name: module for name, module in decoder.named_modules() if _is_list_of_experts(name, module)}
    forward = sum(_of_a_list(experts, active, hf) for experts in lists.values())
    for name, module in decoder.named_modules():
        if module is not head and not name.startswith(tuple(f"{experts}." for experts in lists)):
            forward += _of_its_own(module, active, hf)
    n_head = _of_its_own(head, active, hf) or head.weight.numel()
    return DecodingFlops(forward - n_tail, n_head + n_tail, window, mean_depth, mean_read)


def _is_list_of_experts(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and name.split(".")[-1] == "experts"


def _of_a_list(experts: nn.Module, active: int | None, hf: PreTrainedModel) -> int:
    """Multiply-adds for one token of experts that are modules of their own."""
    linears = [module for module in experts.modules() if isinstance(module, nn.Linear)]
    n_experts = len(list(experts.children()))
    return sum(linear.in_features * linear.out_features for linear in linears) * _known(active, hf) // n_experts


def _of_its_own(module: nn.Module, active: int | None, hf: PreTrainedModel) -> int:
    """Multiply-adds for one token of a module without its children."""
    if isinstance(module, nn.Embedding) or hasattr(module, "num_embeddings"):  # the latter: one in packed blocks
        return 0
    if isinstance(module, Conv1D | nn.Conv1d):
        return int(module.weight.numel())
    n_in, n_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(n_in, int) and isinstance(n_out, int) and not any(module.children()):
        return n_in * n_out  # linear, in whatever blocks its weight is packed
    own = dict(module.named_parameters(recurse=False))
    stacks = [parameter for parameter in own.values() if parameter.ndim == 3]  # [experts, rows, columns]
    if any(parameter.dtype == torch.uint8 for parameter in own.values()):
        problem = f"{hf.config.model_type} has experts in packed blocks, whose multiply-adds are not counted"
        raise ModelError(problem, "load it with unpacked weights", given=hf.config.model_type)
    if stacks:
        return sum(stack.numel() * _known(active, hf) // len(stack) for stack in stacks)
    weight = own.get("weight")
    return weight.numel() if weight is not None and weight.ndim == 2 else 0  # a router


def _active_experts(config: Any) -> int | None:
    """How many routed experts a token goes through; None where the config does not say."""
    values = (getattr(config, name, None) for name in _ACTIVE_EXPERTS)
    return next((value for value in values if isinstance(value, int)), None)


def _known(active: int | None, hf: PreTrainedModel) -> int:
    if active is None:
        problem = (
            f"{hf.config.model_type} has experts, and none of {', '.join(_ACTIVE_EXPERTS)} in its config says how many "
            "of them a token goes through"
        )
        raise ModelError(problem, "add one", given=hf.config.model_type)
    return active
