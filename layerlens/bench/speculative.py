"""Whether drafts pay on this machine: every policy against plain decoding, prompt by prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig

from layerlens.analysis import uncertainty
from layerlens.analysis.drafts import RankCorrelation, rank_correlation
from layerlens.bench.machine import machine
from layerlens.bench.memory import MIB
from layerlens.bench.timing import timed_with_memory
from layerlens.decode.batch import Decoded, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.forward import Forward
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import pad_token_id
from layerlens.decode.registry import strategy_record
from layerlens.decode.speculative.drafter import Drafter
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.loop import decode_drafted
from layerlens.decode.speculative.policy import SkipPolicy
from layerlens.decode.speculative.registry import policy_record
from layerlens.decode.speculative.skipping import indispensable
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.decode.strategies import Last, Strategy
from layerlens.errors import OptionError, first_sentence
from layerlens.formulas import changes
from layerlens.models import Model
from layerlens.models.hooks import watch_blocks

Prompts = Sequence[Sequence[int]]

PLAIN, GENERATE, EARLY_EXIT = "plain", "generate", "assistant_early_exit"
"""The ways that make no drafts of ours: our loop, transformers' loop, and its drafts by the first layers."""
_MOST_TOKENS = 64  # of each answer, on which blocks are left out one at a time


@dataclass
class _Way:
    """What was measured of one way, prompt by prompt."""

    seconds: list[float] = field(default_factory=list)
    n_bytes: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    is_over: list[bool] = field(default_factory=list)
    """Whether the search had ended before the prompt."""
    differences: list[dict[str, Any]] = field(default_factory=list)


def measure_speculative(
    model: Model,
    policies: Mapping[str, SkipPolicy],
    prompts: Prompts,
    options: GenerateOptions,
    strategy: Strategy | None = None,
    *,
    early_exit: int | None = None,
    on_prompt: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Drafter]]:
    """Every prompt answered in every way, in turns, and what each policy's search found on the way.

    Args:
        model: from `load`.
        policies: by name. None of them gives up, so that what is measured is drafting.
        prompts: token ids, each answered alone.
        options: greedy, with what the generation config says.
        strategy: of the whole model; None is `Last()`.
        early_exit: how many layers transformers' own drafts have; None leaves that out.
        on_prompt: called after each prompt.

    Returns:
        a report for JSON (see docs/speculative.md), and the drafters.

    Raises:
        OptionError: options that sample, or fewer than two prompts.
    """
    if options.samples:
        what = "samples, and samples cannot be compared token by token"
        raise OptionError.about("temperature", options.temperature, what, "leave it out")
    if len(prompts) < 2:
        raise OptionError.about("limit", len(prompts), "leaves too few prompts", "give 2 or more")
    chooses = strategy or Last()
    drafters = {name: Drafter(model, replace(policy, patience=None)) for name, policy in policies.items()}
    names = [PLAIN, *policies, *([GENERATE, EARLY_EXIT] if early_exit is not None else [])]
    ways = {name: _Way() for name in names}

    def decoded(name: str, prompt: Sequence[int]) -> list[int]:
        if name in (GENERATE, EARLY_EXIT):
            return _generated(model, prompt, options, early_exit if name == EARLY_EXIT else None)
        done: Decoded
        if name == PLAIN:
            done = decode_batch(model, [prompt], Chooser(model, chooses), options, 0)
        else:
            done = decode_drafted(model, [prompt], chooses, options, 0, drafters[name])
        return done.outputs[0]

    outputs: dict[str, list[int]] = {}

    def answer(name: str, prompt: Sequence[int]) -> None:
        outputs[name] = decoded(name, prompt)

    for name in [name for name in names if name not in (*policies, EARLY_EXIT)]:  # what happens only once
        answer(name, prompts[0])
    unable: dict[str, str] = {}
    for prompt in prompts if EARLY_EXIT in names else []:
        try:
            answer(EARLY_EXIT, prompt)
        except Exception as error:  # whatever transformers' own drafts do with a model that they do not know
            unable[EARLY_EXIT] = first_sentence(error)
            names.remove(EARLY_EXIT)
            del ways[EARLY_EXIT]
            break
    for number, prompt in enumerate(prompts):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            way = ways[name]
            way.is_over.append(name in drafters and drafters[name].search.is_over)
            timing = timed_with_memory(partial(answer, name, prompt), model.device)
            way.seconds.append(timing.seconds)
            way.n_bytes.append(timing.n_bytes)
            way.tokens.append(len(outputs[name]))
        for name in policies:
            ways[name].differences += _difference(model, number, prompt, outputs[PLAIN], outputs[name], chooses)
        if on_prompt is not None:
            on_prompt()
    report = {
        "model": model.source,
        "family": model.family,
        "n_layers": model.n_layers,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "strategy": strategy_record(chooses, model.n_layers),
        "prompts": len(prompts),
        "max_new_tokens": options.max_new_tokens,
        "early_exit": early_exit,
        "policies": {name: policy_record(policy) for name, policy in policies.items()},
        "left_out": unable,
        "table": [_row(name, ways, drafters.get(name)) for name in names],
        "by_prompt": {name: {"seconds": way.seconds, "tokens": way.tokens} for name, way in ways.items()},
        "differences": [{"way": name} | one for name, way in ways.items() for one in way.differences],
        "sets": {name: drafter.sets.to_dict("records") for name, drafter in drafters.items()},
        "machine": machine(model.device),
    }
    return report, drafters


def _generated(model: Model, prompt: Sequence[int], options: GenerateOptions, early_exit: int | None) -> list[int]:
    ids = torch.tensor([list(prompt)], device=model.device)
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
        pad_token_id=pad_token_id(model),
        eos_token_id=model.hf.generation_config.eos_token_id if model.hf.generation_config is not None else None,
        assistant_early_exit=early_exit,
    )
    hf: Any = model.hf
    about = hf.config.get_text_config(decoder=True)
    n_layers = about.num_hidden_layers
    try:
        out = hf.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        about.num_hidden_layers = n_layers  # its drafts change it, and leave it so where they fail
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


@torch.no_grad()
def _difference(
    model: Model, number: int, prompt: Sequence[int], plain: list[int], drafted: list[int], strategy: Strategy
) -> list[dict[str, Any]]:
    """Where a text differs from that of plain decoding, and by how much the two tokens' logits do there."""
    if plain == drafted:
        return []
    place = next((at for at, pair in enumerate(zip(plain, drafted, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return [{"prompt": number, "place": min(len(plain), len(drafted)), "margin": None}]
    ids = torch.tensor([[*prompt, *plain[:place]]], device=model.device)
    with Chooser(model, strategy.for_one_row()).choosing():
        logits = model.hf(input_ids=ids, use_cache=False).logits[0, -1].float()
    return [{"prompt": number, "place": place, "margin": float(logits[plain[place]] - logits[drafted[place]])}]


def _row(name: str, ways: Mapping[str, _Way], drafter: Drafter | None) -> dict[str, Any]:
    """One line of the table: speed-ups over plain decoding with intervals over prompts, and what drafting did."""
    way, plain = ways[name], ways[PLAIN if name not in (GENERATE, EARLY_EXIT) else GENERATE]
    own, other = np.array(way.seconds), np.array(plain.seconds)
    row: dict[str, Any] = {
        "way": name,
        "tokens_per_second": sum(way.tokens) / own.sum(),
        **_speed_up("speed_up", other, own),
        **_mean("mean_speed_up", other / own),
        "added_mib": max(way.n_bytes) / MIB,
        "different": len(way.differences),
    }
    if drafter is None:
        return row
    over = np.array(way.is_over)
    after = _speed_up("speed_up_after_search", other[over], own[over])
    after |= _mean("mean_speed_up_after_search", (other / own)[over])
    rounds, search = drafter.rounds, drafter.search
    drafted = rounds[rounds["set"] >= 0]
    behind = np.flatnonzero(np.cumsum(other) < np.cumsum(own))
    ahead = int(behind[-1]) + 2 if len(behind) else 1  # the prompt from which the time saved is never lost again
    total = max(len(drafted), 1)
    return row | {
        **after,
        "prompts_after_search": int(over.sum()),
        "search_share": rounds["search_seconds"].sum() / own.sum(),
        "rounds": len(drafted),
        "drafted": drafted["drafted"].sum() / total,
        "accepted": drafted["accepted"].sum() / total,
        "accepted_without_siblings": (drafted["accepted"] - drafted["siblings"]).sum() / total,
        "acceptance": drafted["accepted"].sum() / max(drafted["drafted"].sum(), 1),
        "skipped_share": search.skips.share(drafter.model.n_layers),
        "skipped": str(search.skips),
        "proposals": search.n_proposals,
        "is_over": search.is_over,
        "break_even": ahead if len(drafted) and ahead <= len(own) else None,
    }


def _speed_up(name: str, other: np.ndarray[Any, Any], own: np.ndarray[Any, Any]) -> dict[str, float]:
    """The ratio of total times, with its interval over prompts."""
    if len(own) == 0:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    ends = uncertainty.mean_interval(other, own, uncertainty.resample(len(own)))
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, ends), strict=True))


def _mean(name: str, values: np.ndarray[Any, Any]) -> dict[str, float]:
    return _speed_up(name, values, np.ones(len(values)))


@torch.no_grad()
def measure_blocks(
    model: Model,
    prompts: Prompts,
    outputs: Prompts,
    on_prompt: Callable[[], None] | None = None,
) -> tuple[pd.DataFrame, dict[str, RankCorrelation]]:
    """What leaving out each block alone costs, beside what the block does to the stream. KnapSpec (arXiv 2602.20217)
    takes the cosine of states for a measure of acceptance.

    Args:
        model: from `load`.
        prompts: token ids.
        outputs: what the whole model answered greedily; of each at most 64 tokens count.
        on_prompt: called after each prompt.

    Returns:
        one row per block that can be left out: block, acceptance (share of tokens for which the model without the block
        agrees with the whole model, with its interval over prompts), one_minus_cosine, norm_ratio; and the rank
        correlation of acceptance with each of the last two.
    """
    able = [block for block in range(model.n_layers) if block not in indispensable(model)]
    agreements, sizes, told = [], [], []
    for prompt, output in zip(prompts, outputs, strict=True):
        emitted = list(output)[:_MOST_TOKENS]
        text = [*prompt, *emitted[:-1]]
        n = len(emitted)
        measured: list[torch.Tensor] = []
        ids = torch.tensor([text], device=model.device)
        forward = Forward(model, ids, torch.ones_like(ids), n, static=False, rewinds=True, n_spare=n)
        with watch_blocks(model.blocks, [None] * model.n_layers, partial(_keep_changes, measured, n)):
            forward.prompts()
        lab = Lab(model, forward, [text], [emitted])
        agreements.append([lab.agreement(SkipSet.of_blocks([block]), n) * n for block in able])
        sizes.append(n)
        told.append([measured[block].numpy() * n for block in able])
        if on_prompt is not None:
            on_prompt()
    weights = uncertainty.resample(len(sizes))
    counts = np.array(sizes, dtype=float)[:, np.newaxis]
    accepted, changed = np.array(agreements), np.array(told)
    mean, low, high = uncertainty.mean_interval(accepted, np.broadcast_to(counts, accepted.shape), weights)
    ratio, cosine = (changed[:, :, column].sum(0) / counts.sum() for column in range(2))
    table = pd.DataFrame(
        {
            "block": able,
            "acceptance": mean,
            "acceptance_low": low,
            "acceptance_high": high,
            "one_minus_cosine": 1 - cosine,
            "norm_ratio": ratio,
        }
    )
    of_prompts = {
        "one_minus_cosine": counts - changed[:, :, 1],
        "norm_ratio": changed[:, :, 0],
    }
    return table, {name: rank_correlation(accepted, sums, counts, weights) for name, sums in of_prompts.items()}


def _keep_changes(
    kept: list[torch.Tensor], n: int, _: int, h_in: torch.Tensor, part: object, h_out: torch.Tensor
) -> None:
    """Mean norm ratio and I/O cosine of the last n states of a text."""
    kept.append(changes(h_in[0, -n:], None, h_out[0, -n:], parallel=False)[:2].double().mean(1).cpu())


def greedy_outputs(
    model: Model, prompts: Prompts, options: GenerateOptions, on_prompt: Callable[[], None] | None = None
) -> list[list[int]]:
    """What the whole model answers to each prompt, from its last layer."""
    outputs = []
    for prompt in prompts:
        outputs += decode_batch(model, [prompt], Chooser(model, Last()), options, 0).outputs
        if on_prompt is not None:
            on_prompt()
    return outputs
