"""What the trace of a given text costs, compared with its floor: a forward pass and the products with the
unembedding."""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerlens.bench.machine import machine
from layerlens.bench.memory import MIB
from layerlens.bench.timing import Way, in_turns, timed_with_memory
from layerlens.datasets import dataset
from layerlens.errors import OptionError
from layerlens.models import Model
from layerlens.models.unembed import product
from layerlens.tracing.tracer import trace

TILE = (512, 1024)
"""States and tokens that are multiplied at once on a CPU; on a GPU as many states and 16 times as many tokens."""


_MORE = "trace with more"


def measure_trace(model: Model, n_tokens: int, rounds: int, precision: str = "float32", **more: Any) -> dict[str, Any]:
    """Medians of the seconds of each way, of their ratio to the floor in each round, and of the memory they add.

    Args:
        model: from `load`.
        n_tokens: tokens of the text, which is taken from the shipped problems.
        rounds: how many rounds are measured, after one that is not; every second round goes in the opposite order.
        precision: the precision of the trace's readouts.
        **more: further options of a second trace: a `lens`, targets, top, js, kl, sublayers.

    Returns:
        a report for JSON: `seconds` by way, `over_floor` with torch's own products and with ours, `over_plain` of the
        second trace to the plain one where there is one, `added_mib`, `machine`.

    Raises:
        OptionError: the model cannot read a text of so many tokens.
    """
    room = model.context_length
    if room is not None and n_tokens > room:
        raise OptionError.about("tokens", n_tokens, f"is more than the model's context of {room:,}", "lower it")
    more = {name: value for name, value in more.items() if value}
    ways = _ways(model, n_tokens, precision, more)
    for way in ways.values():
        way()
    by_round = list(in_turns(ways, rounds, lambda way: timed_with_memory(way, model.device)))
    seconds = {name: [timings[name].seconds for timings in by_round] for name in ways}
    floors = {
        by: [sum(pair) for pair in zip(seconds["forward"], seconds[f"products, {by}"], strict=True)]
        for by in ("torch", "ours")
    }
    return {
        "model": model.source,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "lens_precision": precision,
        "tokens": n_tokens,
        "layers": model.n_layers,
        "vocabulary": model.unembed.n_vocab,
        "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "over_floor": {
            by: statistics.median(took / floor for took, floor in zip(seconds["trace"], floor_of, strict=True))
            for by, floor_of in floors.items()
        },
        **({"asked": more, "over_plain": _over_plain(seconds)} if more else {}),
        "added_mib": {name: statistics.median(timings[name].n_bytes / MIB for timings in by_round) for name in ways},
        "machine": machine(model.device),
    }


def products(
    states: Tensor,
    weight: Tensor,
    n_layers: int,
    multiply: Callable[[Tensor, Tensor], Tensor],
    tile: tuple[int, int] | None = None,
) -> None:
    """Compute every product of the states of all layers with the unembedding, a tile at a time, and use none of them.

    Args:
        states: [states, d_model]; they stand in for the states of each layer.
        weight: that of the unembedding, [tokens, d_model].
        n_layers: how often they are multiplied.
        multiply: (rows, tokens) -> rows x tokens; makes the products.
        tile: rows and tokens of one product; None: `TILE`.
    """
    n_rows, n_words = tile or (TILE if weight.device.type == "cpu" else (TILE[0], 16 * TILE[1]))
    for _ in range(n_layers):
        for rows in states.split(n_rows):
            for words in weight.split(n_words):
                multiply(rows, words.to(rows.dtype))


def torch_product(rows: Tensor, words: Tensor) -> Tensor:
    """rows x tokens, from [rows, d_model] and [tokens, d_model], by torch."""
    return torch.mm(rows, words.t())


def _over_plain(seconds: dict[str, list[float]]) -> list[float]:
    """The ratio of the second trace to the plain one: median, least and greatest over rounds."""
    ratios = [took / plain for took, plain in zip(seconds[_MORE], seconds["trace"], strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _ways(model: Model, n_tokens: int, precision: str, more: dict[str, Any]) -> dict[str, Way]:
    problems = "\n".join(str(prompt.content) for prompt in dataset("sample"))
    ids = model.tokenizer(problems, add_special_tokens=False, verbose=False).input_ids
    n_special = len(model.tokenizer("").input_ids)  # a begin token, where the tokenizer puts one
    ids = (ids * (1 + n_tokens // len(ids)))[: max(1, n_tokens - n_special)]
    text = str(model.tokenizer.decode(ids))
    given = torch.tensor([model.tokenizer(text, verbose=False).input_ids], device=model.device)
    weight = model.unembed.weight
    states = torch.randn(n_tokens, weight.shape[1], dtype=torch.float32, device=weight.device)
    states = states if weight.device.type == "cpu" else states.to(weight.dtype)

    def forward() -> None:
        with torch.no_grad():
            model.hf(input_ids=given, use_cache=False)

    def traced(**asked: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trace(
                model,
                [text],
                out=Path(folder) / "run",
                max_new_tokens=0,
                chat_template=False,
                progress=False,
                lens_precision=precision,
                **asked,
            )

    return {
        "forward": forward,
        "products, torch": lambda: products(states, weight, model.n_layers, torch_product),
        "products, ours": lambda: products(states, weight, model.n_layers, product),
        "trace": traced,
        **({_MORE: lambda: traced(**more)} if more else {}),
    }
