"""`layerlens bench`: what a decoding strategy costs, in arithmetic and on this machine."""

import json as json_format
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.errors import OptionError

if TYPE_CHECKING:
    import torch

    from layerlens.decode.log import Decisions
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.strategies import Strategy
    from layerlens.models import Model

bench = typer.Typer(
    help="Measure what decoding, tracing and statistics cost.", add_completion=False, rich_markup_mode=None
)

_PROMPT_TOKENS = 64  # of the shipped problems, where no prompt is given
_MIB = 2**20
_PAPER_QUANTITIES = ("MFLOPs per token", "percent of forward pass")

Prompts = Sequence[Sequence[int]]


@bench.callback()
def _group() -> None:
    pass


@bench.command("decode")
@options.grouped
def decode(
    *,
    model: options.Model,
    strategy: options.StrategyName = "valley",
    window: options.Window = None,
    strategy_options: options.StrategyOptions,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate for each prompt.")] = 64,
    prompt: Annotated[
        str | None, typer.Option(help="Text to begin with. [default: 64 tokens of the shipped problems]")
    ] = None,
    batch_size: options.BatchSize = 1,
    rounds: Annotated[int, typer.Option(help="Rounds, of which medians are shown.")] = 5,
    json: Annotated[Path | None, typer.Option(help="File to write the same to, as JSON.")] = None,
    loading: options.Loading,
) -> int:
    """Show what a strategy costs beside decoding from the last layer and transformers' own generate."""
    from layerlens.decode.generation_config import with_generation_config
    from layerlens.decode.options import GenerateOptions, whole

    settings = GenerateOptions(max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, batch_size=batch_size)
    whole("rounds", rounds, 1)
    chosen = strategy_options.strategy(strategy, window)
    refuse_unwritable(json)
    loaded = loading.load(model)
    chosen.fit(loaded.n_layers, loaded.tied, f"--strategy {strategy}")
    settings = with_generation_config(settings, loaded)
    report = measure(loaded, chosen, _prompts(loaded, prompt, settings), settings, rounds)
    _print_report(report, strategy)
    write(report, json)
    return 0


def measure(
    model: "Model", strategy: "Strategy", prompts: Prompts, options: "GenerateOptions", rounds: int
) -> dict[str, Any]:
    """What the strategy costs: counted, and measured beside `Last()` and transformers' `generate`, in turn.

    Args:
        model: from `load`.
        strategy: any.
        prompts: token ids, all of one length.
        options: with as many tokens at least as at most, so that every way emits the same number.
        rounds: measured after a round that is not; every second one goes in the opposite order.

    Returns:
        a report for JSON: `flops` per generated token; `projections_per_token`, `mean_depth` and `mean_read` as they
        were made; medians of `tokens_per_second`, medians of each round's `ratios`, `extra_memory_mib` on CUDA,
        `machine`.
    """
    from layerlens.analysis.overhead import layers_read
    from layerlens.decode.flops import decoding_flops
    from layerlens.decode.names import strategy_record

    ways = _ways(model, strategy, prompts, options)
    decisions = {name: way() for name, way in ways.items()}["strategy"]
    assert decisions is not None
    seconds: list[dict[str, float]] = []
    peaks: list[dict[str, int]] = []
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        timed = {name: _timed(ways[name], model.device) for name in order}
        seconds.append({name: timed[name][0] for name in ways})
        peaks.append({name: timed[name][1] for name in ways})
    n_tokens = len(prompts) * options.max_new_tokens
    window = len(strategy.layers(model.n_layers, model.tied))
    depth = mean_depth(decisions, model.n_layers)
    read = None
    if depth is not None:
        read = float(layers_read((model.n_layers - decisions.valley_layer).numpy(), window).mean())
    on_cuda = model.device.type == "cuda"
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
        "tokens_per_second": {name: n_tokens / statistics.median(run[name] for run in seconds) for name in ways},
        "ratios": {
            "last_over_generate": paired_ratio(seconds, "last", "generate"),
            "strategy_over_last": paired_ratio(seconds, "strategy", "last"),
        },
        "extra_memory_mib": max(run["strategy"] - run["last"] for run in peaks) / _MIB if on_cuda else None,
        "machine": machine(model.device),
    }


def refuse_unwritable(json: Path | None) -> None:
    """OptionError where no file can be written there; before anything is measured."""
    if json is not None and (json.is_dir() or not json.expanduser().absolute().parent.is_dir()):
        raise OptionError(f"--json {json} cannot be written there; give a file in a folder that exists")


def write(report: dict[str, Any], json: Path | None) -> None:
    """The report, where a file was asked for."""
    if json is None:
        return
    try:
        json.expanduser().write_text(json_format.dumps(report, indent=1, default=str) + "\n")
    except OSError as error:
        raise OptionError(
            f"--json {json} could not be written ({error.strerror}); what was measured is above, give another file"
        ) from error
    typer.echo(f"written to {json}")


def paired_ratio(seconds: Sequence[Mapping[str, float]], name: str, other: str) -> float:
    """Speed of one way over another's: the median of the ratios of each round. 1 is as fast, below is slower."""
    return statistics.median(run[other] / run[name] for run in seconds)


def mean_depth(decisions: "Decisions", n_layers: int) -> float | None:
    """Layers the walk went back on average; None where the strategy does not walk."""
    valleys = decisions.valley_layer
    return float((n_layers - valleys).float().mean()) if bool((valleys >= 0).all()) else None


def machine(device: "torch.device") -> dict[str, Any]:
    """What a number that was measured depends on."""
    import platform

    import torch
    import transformers

    return {
        "processor": _processor() or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """On Linux its name, which generations share, and the numbers that tell them apart; empty elsewhere."""
    cpus = Path("/proc/cpuinfo")
    first = cpus.read_text().split("\n\n")[0].splitlines() if cpus.exists() else []
    of = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    if "model name" not in of:
        return ""
    return f"{of['model name']}, family {of.get('cpu family')}, model {of.get('model')}"


def _ways(
    model: "Model", strategy: "Strategy", prompts: Prompts, options: "GenerateOptions"
) -> "dict[str, Callable[[], Decisions | None]]":
    """The same number of tokens, by transformers' `generate` and by our loop without and with the strategy."""
    import torch
    from transformers import GenerationConfig

    from layerlens.decode.batch import decode_batch
    from layerlens.decode.prompts import pad_token_id
    from layerlens.decode.reader import Reader
    from layerlens.decode.strategies import Last

    ids = torch.tensor(prompts, device=model.device)
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.max_new_tokens,
        do_sample=False,
        pad_token_id=pad_token_id(model),
    )

    def generate() -> None:
        hf: Any = model.hf
        hf.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)

    def loop(chosen: "Strategy") -> "Callable[[], Decisions]":
        return lambda: decode_batch(model, prompts, Reader(model, chosen), options, seed=0).decisions

    return {"generate": generate, "last": loop(Last()), "strategy": loop(strategy)}


def _timed(way: "Callable[[], Decisions | None]", device: "torch.device") -> tuple[float, int]:
    """Seconds, and on CUDA the most bytes that were allocated meanwhile."""
    import torch

    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    way()
    if on_cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, torch.cuda.max_memory_allocated(device) if on_cuda else 0


def _prompts(model: "Model", text: str | None, options: "GenerateOptions") -> list[list[int]]:
    """Token ids of every row of the batch, all of one length."""
    import layerlens as ll
    from layerlens.datasets import from_prompts
    from layerlens.decode.options import settle_chat_template
    from layerlens.decode.prompts import tokenize

    if text is not None:
        settled = settle_chat_template(options, bool(getattr(model.tokenizer, "chat_template", None)))
        [prompt] = tokenize(model, from_prompts([text]).prompts, settled)
        return [list(prompt.token_ids) for _ in range(options.batch_size)]
    room = _PROMPT_TOKENS
    if model.context_length is not None:
        room = min(room, model.context_length - options.max_new_tokens)
    if room < 1:
        raise OptionError(
            f"--max-new-tokens {options.max_new_tokens} leaves no room in the model's context of "
            f"{model.context_length:,}; lower it"
        )
    questions = "\n".join(str(prompt.content) for prompt in ll.dataset("sample"))
    ids: list[int] = model.tokenizer(questions, add_special_tokens=False, verbose=False).input_ids
    # rows of their own: equal ones would go through the same experts
    return [[ids[(row * room + place) % len(ids)] for place in range(room)] for row in range(options.batch_size)]


def _print_report(report: dict[str, Any], strategy: str) -> None:
    from rich.table import Table

    from layerlens.analysis.overhead import PAPER_CONDITIONS
    from layerlens.analysis.reported import reported, reported_value
    from layerlens.cli.grids import print_table

    typer.echo(
        f"\n{report['model']} ({report['dtype']}), {strategy} over K = {report['window']} layers: "
        f"{report['batch_size']} x {report['new_tokens']} tokens after {report['prompt_tokens']}, "
        f"medians of {report['rounds']} rounds"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("a generated token", no_wrap=True)
    for heading in ("here", "of forward", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["flops"]:
        condition = PAPER_CONDITIONS.get(row["name"], "")
        paper = [reported_value("5", condition=condition, quantity=quantity) for quantity in _PAPER_QUANTITIES]
        share = f"{row['percent_of_forward']:.1f} %" if row["name"] != "forward" else ""
        table.add_row(row["what"], f"{_number(row['flops'] / 1e6)} MFLOPs", share, _paper(paper))
    extra = report["projections_per_token"] - 1
    table.add_row("unembeddings added", f"{extra:.3f}", "", "")
    depth = report["mean_depth"]
    paper_depth = reported_value("S6.1", quantity="mean walk depth, layers")
    table.add_row("mean depth", "" if depth is None else f"{depth:.3f}", "", f"{paper_depth}")
    table.add_section()
    speeds, ratios = report["tokens_per_second"], report["ratios"]
    latency_percent = reported_value("5", quantity="latency increase percent, upper bound")
    latency = f"at least {1 / (1 + latency_percent / 100):.2f} x last"
    for name, what, against, paper_says in (
        ("generate", "generate", "", ""),
        ("last", "last", f"{ratios['last_over_generate']:.3f} x generate", ""),
        ("strategy", strategy, f"{ratios['strategy_over_last']:.3f} x last", latency),
    ):
        table.add_row(what, f"{_number(speeds[name])} tokens/s", against, paper_says)
    memory = report["extra_memory_mib"]
    table.add_row("memory above last's", "CUDA only" if memory is None else f"{memory:,.0f} MiB", "", "")
    print_table(table)
    paper_model = reported("5")["model"].iloc[0]
    typer.echo(
        "The forward pass is without its unembedding and without attention over the cache, which grows with the "
        "context; a multiply-add is 2 FLOPs.\n"
        f"Paper: table 5 of arXiv 2606.21906, {paper_model}. It takes 2,560 · 151,936 multiply-adds, at 1 FLOP each, "
        "for an unembedding, and K of them for the worst case."
    )


def _paper(row: Sequence[float]) -> str:
    mflops, percent = row
    if math.isnan(mflops):
        return ""
    return f"{mflops:,.0f} MFLOPs" + ("" if math.isnan(percent) else f" ({percent} %)")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
