"""What a generated token costs: the forward pass, one unembedding, and those that a walk back adds."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layerlens.errors import ModelError, OptionError

_ACTIVE_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)


class PaperRow(NamedTuple):
    """A row of table 5 of arXiv 2606.21906, as printed there."""

    mflops: float
    percent_of_forward: float | None


PAPER_MODEL = "Qwen3.5-35B-A3B"
PAPER_TABLE_5 = {
    "forward": PaperRow(5212, None),
    "unembedding": PaperRow(389, 7.46),
    "worst": PaperRow(3890, 74.64),
    "depth": PaperRow(45, 0.87),
}
"""Of arXiv 2606.21906, for `PAPER_MODEL`, by the names of `DecodingFlops.rows`. Its 389 is 2,560 · 151,936: it counts a
multiply-add as one, and takes another width and vocabulary than the checkpoint's config has (2,048 and 248,320). Its
worst case is K unembeddings, not the K − 1 that come on top. Its 45 is the mean depth of the walk, 0.116, times 389."""
PAPER_MEAN_DEPTH = 0.116
PAPER_LATENCY_PERCENT = 2.0
"""Most that a token's latency grows, end to end in vLLM. Same table."""


class FlopsRow(NamedTuple):
    """One line of what a token costs."""

    name: str
    """A short name; `PAPER_TABLE_5` has the same."""
    what: str
    """In words."""
    multiply_adds: float
    """Per generated token of one row of the batch."""
    percent_of_forward: float
    """Of the forward pass without unembedding."""

    @property
    def flops(self) -> float:
        """Floating-point operations: a multiply-add is two."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class DecodingFlops:
    """What one generated token costs, in multiply-adds; FLOPs are twice as many.

    Counted are products with parameters: linear layers, convolutions, routers, and of routed experts the active ones.
    Looking up an embedding costs nothing, norms and activations are left out. So is what attention does with the
    cache (and linear attention with its state): that has no parameters, and over a cache it grows with the context.

    Attributes:
        forward: of the forward pass without unembedding.
        unembedding: of one state through the unembedding.
        window: K, the candidate layers, the last one included.
        mean_depth: layers a walk goes back from the last one, on average over tokens; None where not known.
    """

    forward: int
    unembedding: int
    window: int
    mean_depth: float | None = None

    @property
    def worst(self) -> int:
        """Of the K − 1 unembeddings beside the model's own: the whole window is read out."""
        return (self.window - 1) * self.unembedding

    @property
    def lazy(self) -> float | None:
        """Of reading one layer after the other: a walk of some depth has read one layer more, to learn that it is not
        lower, except at the window's end. From the mean depth alone this is 1 + depth, at most K − 1."""
        if self.mean_depth is None:
            return None
        return min(1 + self.mean_depth, self.window - 1) * self.unembedding

    @property
    def depth(self) -> float | None:
        """The paper's count: the depth of the walk without the layer that ended it."""
        return None if self.mean_depth is None else self.mean_depth * self.unembedding

    def rows(self) -> list[FlopsRow]:
        """Everything as lines of a table; those that need the mean depth only where it is known."""
        lines = [
            ("forward", "forward pass", self.forward),
            ("unembedding", "one unembedding", self.unembedding),
            ("worst", f"whole window, K - 1 = {self.window - 1}", self.worst),
            ("lazy", "lazily, 1 + depth", self.lazy),
            ("depth", "depth alone", self.depth),
        ]
        return [
            FlopsRow(name, what, count, 100 * count / self.forward) for name, what, count in lines if count is not None
        ]


def decoding_flops(hf: PreTrainedModel, window: int, mean_depth: float | None = None) -> DecodingFlops:
    """What one generated token costs, counted from the model's modules; it may lie on the meta device.

    Args:
        hf: a causal language model.
        window: K, the candidate layers, the last one included.
        mean_depth: layers a walk goes back on average, 0..K − 1, where it was measured.

    Raises:
        OptionError: the window is below 1 or the depth does not fit it.
        ModelError: the model has routed experts, and its config does not say how many of them a token goes through.
    """
    if window < 1:
        raise OptionError(f"--window {window} is too small; give a whole number from 1")
    if mean_depth is not None and not 0 <= mean_depth <= window - 1:
        raise OptionError(f"mean_depth {mean_depth} does not fit a window of {window}; give 0..{window - 1}")
    decoder: Any = hf.get_decoder()
    decoder = hf.base_model if decoder is None or decoder is hf else decoder
    head: Any = hf.get_output_embeddings()
    # OPT's projection back to the width of the embeddings goes before every unembedding
    tail = getattr(decoder, "project_out", None)
    n_tail = tail.weight.numel() if isinstance(tail, nn.Linear) else 0
    active = _active_experts(hf.config.get_text_config())
    lists = {name: module for name, module in decoder.named_modules() if _is_list_of_experts(name, module)}
    forward = sum(_of_a_list(experts, active, hf) for experts in lists.values())
    for name, module in decoder.named_modules():
        if module is not head and not name.startswith(tuple(f"{experts}." for experts in lists)):
            forward += _of_its_own(module, active, hf)
    return DecodingFlops(forward - n_tail, head.weight.numel() + n_tail, window, mean_depth)


def _is_list_of_experts(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and name.split(".")[-1] == "experts"


def _of_a_list(experts: nn.Module, active: int | None, hf: PreTrainedModel) -> int:
    """For one token, of experts that are modules of their own."""
    linears = [module for module in experts.modules() if isinstance(module, nn.Linear)]
    n_experts = len(list(experts.children()))
    return sum(linear.weight.numel() for linear in linears) * _known(active, hf) // n_experts


def _of_its_own(module: nn.Module, active: int | None, hf: PreTrainedModel) -> int:
    """For one token, of a module without its children."""
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, nn.Linear | Conv1D | nn.Conv1d):
        return int(module.weight.numel())
    own = dict(module.named_parameters(recurse=False))
    stacks = [parameter for parameter in own.values() if parameter.ndim == 3]  # [experts, rows, columns]
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
        raise ModelError(
            f"{hf.config.model_type} has experts, and none of {', '.join(_ACTIVE_EXPERTS)} in its config says how many "
            "of them a token goes through; add one"
        )
    return active
