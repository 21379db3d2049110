"""What a trace should say, computed with hooks and full float64 logits. Uses none of the package's code."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

ATTENTION = ("self_attn", "linear_attn", "attn", "attention")
MLP = ("mlp", "feed_forward", "fc2")
POST_NORMED = {"gemma2", "gemma3_text", "gemma4_text", "olmo2", "olmo3"}
PARALLEL = {"gptj", "cohere2", "gpt_neox"}  # GPT-NeoX unless its config says otherwise
MIXER_ALONE = {"mamba2", "nemotron_h"}  # a block is attention, or a state-space mixer, or an MLP: it has no two parts


@dataclass
class Seen:
    """What one full pass showed: float64 streams [batch, seq, d] of each block, and the model's own logits."""

    h_in: list[Any] = field(default_factory=list)
    h_out: list[Any] = field(default_factory=list)
    attention: list[Any] = field(default_factory=list)
    mamba: list[Any] = field(default_factory=list)
    mlp: list[Any] = field(default_factory=list)
    logits: Any = None

    def keep_block(self, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        """The streams around a block, as its forward hook sees them."""
        self.h_in.append((args[0] if args else kwargs["hidden_states"]).double())
        self.h_out.append(_first(output).double())


def watch(hf: torch.nn.Module, blocks: torch.nn.ModuleList, ids: torch.Tensor, **kwargs: Any) -> Seen:
    """One pass over `ids` with every block, attention and MLP observed."""
    seen, handles = Seen(), []
    for block in blocks:
        handles.append(block.register_forward_hook(seen.keep_block, with_kwargs=True))
        for names, kept in ((ATTENTION, seen.attention), (("mamba",), seen.mamba), (MLP, seen.mlp)):
            module = next((getattr(block, name) for name in names if hasattr(block, name)), None)
            if module is not None:
                keep = lambda _, __, out, kept=kept: kept.append(_first(out))  # noqa: E731
                handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            seen.logits = hf(input_ids=ids, use_cache=False, **kwargs).logits.double()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def parts(family: str, config: Any, block: Any, seen: Seen, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention and MLP add to the stream in block `index`, from the outputs of its sub-layers, float64."""
    attention, mlp = seen.attention[index], seen.mlp[index].reshape(seen.h_in[index].shape)
    with torch.no_grad():
        if family in POST_NORMED:
            attention = block.post_attention_layernorm(attention)
            mlp = block.post_feedforward_layernorm(mlp)
        if family == "glm4":
            attention, mlp = block.post_self_attn_layernorm(attention), block.post_mlp_layernorm(mlp)
        if family == "falcon_h1":  # state-space mixer and attention side by side
            attention = attention * config.attention_out_multiplier + seen.mamba[index] * config.ssm_out_multiplier
        if family == "granite":
            attention, mlp = attention * config.residual_multiplier, mlp * config.residual_multiplier
        if family == "gemma4_text":  # the per-layer embedding and the scalar on the output count to the MLP part
            mlp = seen.h_out[index] - seen.h_in[index] - attention.double()
    return attention.double(), mlp.double()


def numbers(
    family: str,
    hf: Any,
    blocks: Any,
    seen: Seen,
    row: int,
    positions: range,
    readout: Any,
    transport: Any = lambda states, layer: states,
) -> dict[str, np.ndarray]:
    """The per-layer columns of a trace for positions of one row, from whole float64 logits: [positions, L] each, and
    "log_probs" [positions, L, V]. `transport` maps float64 states of a layer 0..L - 1 before they are read."""
    names = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy", "top_token_id", "kl_last_to_layer")
    names += ("js_from_last", "half_entropy", "half_top_token_id")
    all_log_probs: list[Any] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    last = torch.log_softmax(readout(seen.h_out[-1][row, list(positions)]), -1)
    parallel = family in PARALLEL and getattr(hf.config, "use_parallel_residual", True)
    for index, block in enumerate(blocks):
        before, after = (streams[index][row, list(positions)] for streams in (seen.h_in, seen.h_out))
        absent = (torch.full_like(before, torch.nan),) * 2
        both = absent if family in MIXER_ALONE else parts(family, hf.config, block, seen, index)
        attention, mlp = both if family in MIXER_ALONE else (part[row, list(positions)] for part in both)
        size = before.norm(dim=-1)
        middle = size if parallel else (before + attention).norm(dim=-1)
        logits = readout(after if index + 1 == len(blocks) else transport(after, index + 1))
        probs = torch.softmax(logits, -1)
        columns["norm_ratio"].append((after - before).norm(dim=-1) / size)
        columns["io_cosine"].append(torch.nn.functional.cosine_similarity(before, after, dim=-1))
        columns["attn_ratio"].append(attention.norm(dim=-1) / size)
        columns["mlp_ratio"].append(mlp.norm(dim=-1) / middle)
        columns["entropy"].append(torch.special.entr(probs).sum(-1))
        columns["top_token_id"].append(logits.argmax(-1))
        columns["kl_last_to_layer"].append((last.exp() * (last - torch.log_softmax(logits, -1))).sum(-1))
        entropy_of = lambda probs: torch.special.entr(probs).sum(-1)  # noqa: E731
        mixed = entropy_of((probs + last.exp()) / 2)
        columns["js_from_last"].append(mixed - (entropy_of(probs) + entropy_of(last.exp())) / 2)
        half = readout(transport(before + attention, index))
        is_no_state = parallel or family in MIXER_ALONE
        nothing = torch.full_like(size, torch.nan)
        columns["half_entropy"].append(nothing if is_no_state else entropy_of(torch.softmax(half, -1)))
        columns["half_top_token_id"].append(nothing.nan_to_num(-1) if is_no_state else half.argmax(-1))
        all_log_probs.append(torch.log_softmax(logits, -1))
    stacked = {name: torch.stack(values, -1).numpy() for name, values in columns.items()}
    return stacked | {"log_probs": torch.stack(all_log_probs, 1).numpy()}


def own_readout(hf: Any, tail: list[Any]) -> Any:
    """The model's path from a state to logits, written out: final norm, projection, head, scale, soft-cap; float64."""
    config, head = hf.config, hf.get_output_embeddings()

    def readout(states: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = states.to(head.weight.dtype)
            for module in tail:
                hidden = module(hidden)
            logits = hidden.double() @ head.weight.double().T
            if head.bias is not None:
                logits = logits + head.bias.double()
        if config.model_type == "granite":
            logits = logits / config.logits_scaling
        if config.model_type == "falcon_h1":
            logits = logits * config.lm_head_multiplier
        if config.model_type == "cohere2":
            logits = logits * config.logit_scale
        if config.model_type in ("gemma2", "gemma4_text"):
            logits = config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
        return logits

    return readout


BASES = {"gpt2": "transformer", "gptj": "transformer", "gpt_neox": "gpt_neox", "mamba2": "backbone"}
NORMS = {
    **{"gpt_neox": "final_layer_norm", "falcon_h1": "final_layernorm"},
    **{"mamba2": "norm_f", "nemotron_h": "norm_f"},
}


def structure(hf: Any) -> tuple[Any, list[Any]]:
    """Blocks and what follows them, by the names that each family's transformers code uses."""
    family = hf.config.model_type
    decoder = getattr(hf, BASES.get(family, "model"))
    if family == "opt":
        decoder = decoder.decoder
        tail = [module for module in (decoder.final_layer_norm, decoder.project_out) if module is not None]
        return decoder.layers, tail
    if family in ("gpt2", "gptj"):
        return decoder.h, [decoder.ln_f]
    return decoder.layers, [getattr(decoder, NORMS.get(family, "norm"))]


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
