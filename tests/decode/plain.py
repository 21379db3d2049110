"""Confident Decoding as a plain loop: hooks, whole logits of every candidate, Eq. 7 read literally. Uses none of the
package's code."""

from typing import Any

import torch

from tests import reference


def walk(values: list[float], window: int) -> int:
    """Layer 1..L of Eq. 7: from L back while strictly lower, at most window − 1 steps. `values` of layers 1..L."""
    layer = len(values)
    for _ in range(window - 1):
        if layer > 1 and values[layer - 2] < values[layer - 1]:
            layer -= 1
        else:
            break
    return layer


def entropy(logits: torch.Tensor, criterion: str) -> list[float]:
    """Of each row, in the logits' type."""
    if criterion == "shannon":
        log_probs = torch.log_softmax(logits, -1)
        return (-(log_probs.exp() * log_probs).sum(-1)).tolist()
    # the release takes the logarithm of a softmax: a probability that underflows makes the sum infinite and ends walks
    return (-torch.softmax(logits, -1).log().square().sum(-1)).tolist()


@torch.no_grad()
def decode(
    hf: Any,
    prompts: list[list[int]],
    n_tokens: int,
    window: int,
    criterion: str = "shannon",
    *,
    double: bool = True,
    transport: Any = lambda states, layer: states,
) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy tokens and chosen layers of each prompt, `n_tokens` steps, left-padded with the model's own cache; states
    of layers below L are mapped in float64 by `transport` before they are read."""
    blocks, tail = reference.structure(hf)
    readout = reference.own_readout(hf, tail) if double else _float_readout(hf, tail)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    states: dict[int, torch.Tensor] = {}
    handles = [
        block.register_forward_hook(
            lambda _, __, output, index=index: states.__setitem__(
                index, (output[0] if isinstance(output, tuple) else output)[:, -1]
            )
        )
        for index, block in enumerate(blocks)
    ]
    tokens: list[list[int]] = [[] for _ in prompts]
    layers: list[list[int]] = [[] for _ in prompts]
    cache, new = None, ids
    try:
        for _ in range(n_tokens):
            memory = "cache_params" if hf.config.model_type == "mamba2" else "past_key_values"
            inputs = hf.prepare_inputs_for_generation(
                new, **{memory: cache}, attention_mask=mask, use_cache=True, is_first_iteration=cache is None
            )
            if hf.config.model_type not in ("opt", "mamba2"):
                inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -new.shape[1] :]
            cache = hf(**inputs)[memory]
            candidates = range(len(blocks) - window, len(blocks))
            *early, last = candidates
            mapped = [transport(states[index].double(), index + 1).to(states[index].dtype) for index in early]
            whole = readout(torch.cat([*mapped, states[last]])).split(len(prompts))
            logits = {index + 1: rows for index, rows in zip(candidates, whole, strict=True)}
            values = {layer: entropy(rows, criterion) for layer, rows in logits.items()}
            chosen = []
            for row in range(len(prompts)):
                curve = [values[layer][row] if layer in values else float("inf") for layer in range(1, len(blocks) + 1)]
                layer = walk(curve, window)
                layers[row].append(layer)
                chosen.append(int(logits[layer][row].argmax()))
                tokens[row].append(chosen[-1])
            new = torch.tensor(chosen).unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
    finally:
        for handle in handles:
            handle.remove()
    return tokens, layers


def _float_readout(hf: Any, tail: list[Any]) -> Any:
    """The path of a model whose head is linear, in its own precision."""

    def readout(states: torch.Tensor) -> torch.Tensor:
        for module in tail:
            states = module(states)
        return hf.get_output_embeddings()(states)

    return readout
