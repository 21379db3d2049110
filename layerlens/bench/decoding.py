"""What a decoding strategy costs: counted in operations, and measured on this machine."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from layerlens.analysis.overhead import layers_read
from layerlens.bench.machine import machine
from layerlens.bench.memory import MIB
from layerlens.bench.timing import Way, in_turns, paired_ratio, timed
from layerlens.datasets import dataset, from_prompts
from layerlens.decode.batch import decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.flops import decoding_flops
from layerlens.decode.log import Decisions
from layerlens.decode.options import GenerateOptions, settle_chat_template
from layerlens.decode.prompts import pad_token_id, tokenize
from layerlens.decode.registry import strategy_record
from layerlens.decode.strategies import Last, Strategy
from layerlens.errors import OptionError
from layerlens.models import Model

PROMPT_TOKENS = 64
"""How many tokens of the shipped problems a prompt has where no text is given."""

Prompts = Sequence[Sequence[int]]


def measure_decoding(
    model: Model, strategy: Strategy, prompts: Prompts, options: GenerateOptions, rounds: int
) -> dict[str, Any]:
    """What the strategy costs: counted, and measured in turn with `Last()` and transformers' `generate`.

    Args:
        model: from `load`.
        strategy: any strategy.
        prompts: token ids, all of one length.
        options: with min_new_tokens equal to max_new_tokens, so that every way emits the same number of tokens.
        rounds: how many rounds are measured, after one that is not; every second round goes in the opposite order.

    Returns:
        a report for JSON: `flops` per generated token; `projections_per_token`, `mean_depth` and `mean_read` as they
        were made; medians of `tokens_per_second`, medians of each round's `ratios`, `extra_memory_mib` on CUDA,
        `machine`.
    """
    decode = decoding_way(model, strategy, prompts, options)
    ways: dict[str, Way] = {
        "generate": generate_way(model, prompts, options),
        "last": decoding_way(model, Last(), prompts, options),
        "strategy": decode,
    }
    ways["generate"]()
    ways["last"]()
    decisions = decode()
    by_round = list(in_turns(ways, rounds, lambda way: timed(way, model.device)))
    seconds = [{name: one.seconds for name, one in timings.items()} for timings in by_round]
    n_tokens = len(prompts) * options.max_new_tokens
    window = len(strategy.layers(model.n_layers, model.tied))
    depth = mean_depth(decisions, model.n_layers)
    read = None
    if depth is not None:
        read = float(layers_read((model.n_layers - decisions.valley_layer).numpy(), window).mean())
    extra = max(timings["strategy"].n_bytes - timings["last"].n_bytes for timings in by_round)
    return {
        "model": model.source,
        "family": model.family,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "strategy": strategy_record(strategy),
        "window": window,
        "batch_size": len(prompts),
        "prompt_tokens": len(prompts[0]),
        "new_tokens": options.max_new_tokens,
        "rounds": rounds,
        "flops": [
            {**row._asdict(), "flops": row.flops}
            for row in decoding_flops(model.hf, max(1, window), depth, read).rows()
        ],
        "projections_per_token": float(decisions.projections.float().mean()),
        "mean_depth": depth,
        "mean_read": read,
        "tokens_per_second": {name: n_tokens / statistics.median(one[name] for one in seconds) for name in ways},
        "ratios": {
            "last_over_generate": paired_ratio(seconds, "last", "generate"),
            "strategy_over_last": paired_ratio(seconds, "strategy", "last"),
        },
        "extra_memory_mib": extra / MIB if model.device.type == "cuda" else None,
        "machine": machine(model.device),
    }


def generate_way(model: Model, prompts: Prompts, options: GenerateOptions) -> Callable[[], None]:
    """transformers' own greedy `generate` of as many tokens as the options allow, from prompts of one length."""
    ids = torch.tensor(prompts, device=model.device)
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.max_new_tokens,
        do_sample=False,
        pad_token_id=pad_token_id(model),
    )

    def generate() -> None:
        hf: Any = model.hf
        out = hf.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert out.shape[1] == ids.shape[1] + options.max_new_tokens

    return generate


def decoding_way(
    model: Model, strategy: Strategy, prompts: Prompts, options: GenerateOptions
) -> Callable[[], Decisions]:
    """Our loop with the strategy; it returns what was decided."""
    return lambda: decode_batch(model, prompts, Chooser(model, strategy), options, seed=0).all_decisions


def mean_depth(decisions: Decisions, n_layers: int) -> float | None:
    """How many layers the walk went back on average; None where the strategy does not walk."""
    valleys = decisions.valley_layer
    return float((n_layers - valleys).float().mean()) if bool((valleys >= 0).all()) else None


def prompts_of(model: Model, text: str | None, options: GenerateOptions) -> list[list[int]]:
    """Token ids of every row of the batch, all of one length: of the text, or of the shipped problems if it is None.

    Raises:
        OptionError: the model's context has no room for a prompt and the tokens to generate.
    """
    if text is not None:
        settled = settle_chat_template(options, bool(getattr(model.tokenizer, "chat_template", None)))
        [prompt] = tokenize(model, from_prompts([text]).prompts, settled)
        return [list(prompt.token_ids) for _ in range(options.batch_size)]
    room = PROMPT_TOKENS
    if model.context_length is not None:
        room = min(room, model.context_length - options.max_new_tokens)
    if room < 1:
        what = f"leaves no room in the model's context of {model.context_length:,}"
        raise OptionError.about("max_new_tokens", options.max_new_tokens, what, "lower it")
    questions = "\n".join(str(prompt.content) for prompt in dataset("sample"))
    ids: list[int] = model.tokenizer(questions, add_special_tokens=False, verbose=False).input_ids
    # different rows: equal ones would go through the same experts
    return [[ids[(row * room + place) % len(ids)] for place in range(room)] for row in range(options.batch_size)]
