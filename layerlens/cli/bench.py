"""`layerlens bench`: what a decoding strategy, a trace and the statistics of a run cost on this machine."""

import json as json_format
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from layerlens.cli import options
from layerlens.cli.printable import echo
from layerlens.cli.trace import Precision
from layerlens.errors import OptionError, spelled
from layerlens.paths import expanded

bench = typer.Typer(
    help="Measure what decoding, tracing and statistics cost.", add_completion=False, rich_markup_mode=None
)

_MOST_ROUNDS = _MOST_ROWS = 10_000
_PAPER_QUANTITIES = ("MFLOPs per token", "percent of forward pass")

Json = Annotated[Path | None, typer.Option(help="JSON file to write the measurements to.")]


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
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to generate for each prompt.")] = 64,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt to generate from. [default: 64 tokens of the shipped problems]")
    ] = None,
    batch_size: options.BatchSize = 1,
    rounds: Annotated[int, typer.Option(help="How many rounds to measure; their medians are shown.")] = 5,
    json: Json = None,
    loading: options.Loading,
) -> int:
    """Compare the cost of a strategy with decoding from the last layer and with transformers' own generate."""
    from layerlens.decode.options import GenerateOptions, whole
    from layerlens.decode.registry import refuse_unknown

    settings = GenerateOptions(max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, batch_size=batch_size)
    whole("rounds", rounds, 1, _MOST_ROUNDS)
    whole("batch_size", batch_size, 1, _MOST_ROWS)
    _refuse_unwritable(json)
    refuse_unknown(strategy)
    loading.refuse_unloadable(model, window)
    # and what needs torch
    chosen = strategy_options.strategy(strategy, window)
    loading.refuse_unfit(model, chosen)

    from layerlens.bench.decoding import measure_decoding, prompts_of
    from layerlens.decode.generation_config import with_generation_config

    loaded = loading.load(model)
    chosen.fit(loaded.n_layers, loaded.tied)
    settings = with_generation_config(settings, loaded)
    report = measure_decoding(loaded, chosen, prompts_of(loaded, prompt, settings), settings, rounds)
    _print_decoding(report, strategy)
    _write(report, json)
    return 0


@bench.command("trace")
@options.grouped
def trace(
    *,
    model: options.Model,
    tokens: Annotated[int, typer.Option(help="How many tokens of the shipped problems to trace.")] = 512,
    rounds: Annotated[int, typer.Option(help="How many rounds to measure; their medians are shown.")] = 3,
    lens_precision: Annotated[
        Precision, typer.Option(help="Precision of readouts, as in `layerlens trace`.")
    ] = Precision.float32,
    readings: options.Readings,
    json: Json = None,
    loading: options.Loading,
) -> int:
    """Compare the cost of a trace with the least it can cost: a forward pass and the products with the unembedding.

    Memory is what is needed beyond the loaded model. On CUDA it is what was allocated. On Linux it is how much the
    process grew.
    """
    from layerlens.decode.options import whole
    from layerlens.tracing.options import TraceOptions

    TraceOptions(lens_precision=lens_precision.value, **readings.numbers())
    whole("tokens", tokens, 1)
    whole("rounds", rounds, 1, _MOST_ROUNDS)
    _refuse_unwritable(json)
    loading.refuse_unloadable(model)
    # and what needs torch
    options.refuse_no_lens(readings.lens)

    from layerlens.bench.tracing import measure_trace

    report = measure_trace(loading.load(model), tokens, rounds, lens_precision.value, **asdict(readings))
    _print_trace(report)
    _write(report, json)
    return 0


@bench.command("analysis")
def analysis(
    run: Annotated[Path, typer.Option(help="Run directory.")],
    json: Json = None,
) -> int:
    """Show how long the statistics of a run take, and how much memory the process uses."""
    _refuse_unwritable(json)

    from layerlens.bench.run_statistics import measure_analysis

    report, left_out = measure_analysis(run)
    for name, reason in left_out.items():
        echo(f"{name} is left out: {reason}", err=True)
    echo(f"{run}: {report['tokens']:,} tokens, {report['layers']} layers")
    for name, value in report["seconds"].items():
        echo(f"  {name:<22} {value:>8.2f} s")
    echo(f"  peak of the process    {report['peak_mib']:>8,.0f} MiB")
    _write(report, json)
    return 0


@bench.command("speculative")
@options.grouped
def speculative(
    *,
    model: options.Model,
    policies: Annotated[
        str, typer.Option(metavar="NAMES", help="Skip policies, separated by commas.")
    ] = "conflayers,swift,clasp,knapspec,every-other",
    run: Annotated[Path | None, typer.Option(help="Run directory for the policy traced.")] = None,
    skip_set: Annotated[Path | None, typer.Option(help="File of a skip set for the policy fixed.")] = None,
    draft_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="An option of all policies that have it, such as length=10; can be given several times.",
        ),
    ] = None,
    strategy: options.StrategyName = "last",
    window: options.Window = None,
    strategy_options: options.StrategyOptions,
    early_exit: Annotated[
        int | None,
        typer.Option(help="How many layers transformers' own drafts have; 0 leaves them out. [default: half of all]"),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Name of the dataset of prompts; see `layerlens datasets`.")] = "sample",
    data_file: options.DataFile = None,
    limit: Annotated[int, typer.Option(help="How many prompts to answer in each way, at least 2.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Generate at most this many tokens for each prompt.")] = 200,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Also measure drafts that leave out one block alone, block by block.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, tables as csv, and figures; made if missing.")
    ] = None,
    loading: options.Loading,
) -> int:
    """Learn whether drafting pays on a model: every policy against plain decoding, prompt by prompt, in turns.

    Speed-ups count the search, and are given again for the prompts after it has ended. Policies that the model cannot
    follow are left out with the reason.
    """
    from layerlens.cli.speculative import answered, asked_policies, refuse_occupied
    from layerlens.decode.options import GenerateOptions, whole
    from layerlens.decode.registry import refuse_unknown

    settings = GenerateOptions(max_new_tokens=max_new_tokens)
    whole("limit", limit, 2)
    if early_exit is not None:
        whole("early_exit", early_exit, 0)
    refuse_unknown(strategy)
    given = options.variables_of(draft_option or [], "draft_option", "length=10", texts=True)
    asked = asked_policies(policies, run, skip_set, given)
    if out is not None:
        refuse_occupied(out)
    import layerlens as ll

    prompts = ll.dataset(dataset, limit=limit, data_file=data_file)
    loading.refuse_unloadable(model, window)
    # and what needs torch
    chosen = strategy_options.strategy(strategy, window)
    loading.refuse_unfit(model, chosen)
    loaded = loading.load(model)
    chosen.fit(loaded.n_layers, loaded.tied)
    answered(loaded, asked, prompts, settings, chosen, early_exit, blocks=blocks, out=out)
    return 0


def _refuse_unwritable(json: Path | None) -> None:
    """OptionError where no such file can be written. This is checked before anything is measured."""
    if json is not None:
        from layerlens.records.places import refuse_inside, refuse_no_folder, refuse_other_suffix

        refuse_other_suffix(json, (".json",), "json")
        refuse_inside(json, option="json")
        refuse_no_folder(expanded(json), "json")


def _write(report: dict[str, Any], json: Path | None) -> None:
    """The report, where a file was asked for."""
    if json is None:
        return
    try:
        expanded(json).write_text(json_format.dumps(report, indent=1, default=str) + "\n")
    except OSError as error:
        what = f"could not be written ({error.strerror})"
        raise OptionError.about("json", json, what, "the measurements are printed above: give another file") from error
    echo(f"written to {json}")


def _print_decoding(report: dict[str, Any], strategy: str) -> None:
    from rich.table import Table

    from layerlens.analysis.overhead import PAPER_CONDITIONS
    from layerlens.analysis.reported import reported, reported_value
    from layerlens.cli.grids import print_table

    echo(
        f"\n{report['model']} ({report['dtype']}), {strategy} over K = {report['window']} layers: "
        f"{report['batch_size']} x {report['new_tokens']} tokens after {report['prompt_tokens']}, "
        f"medians of {report['rounds']} rounds"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("per generated token", no_wrap=True)
    for heading in ("here", "share of forward", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["flops"]:
        condition = PAPER_CONDITIONS.get(row["name"], "")
        paper = [reported_value("5", condition=condition, quantity=quantity) for quantity in _PAPER_QUANTITIES]
        share = f"{row['percent_of_forward']:.1f} %" if row["name"] != "forward" else ""
        table.add_row(row["what"], f"{_number(row['flops'] / 1e6)} MFLOPs", share, _paper(paper))
    extra = report["projections_per_token"] - 1
    table.add_row("extra unembeddings", f"{extra:.3f}", "", "")
    depth = report["mean_depth"]
    paper_depth = reported_value("S6.1", quantity="mean walk depth, layers")
    table.add_row("mean walk depth", "" if depth is None else f"{depth:.3f}", "", f"{paper_depth}")
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
    table.add_row("memory beyond last", "CUDA only" if memory is None else f"{memory:,.0f} MiB", "", "")
    print_table(table)
    paper_model = reported("5")["model"].iloc[0]
    echo(
        "The forward pass is counted without its unembedding and without attention over the cache, which grows with "
        "the context. A multiply-add counts as 2 FLOPs.\n"
        f"Paper: table 5 of arXiv 2606.21906, {paper_model}. The paper counts an unembedding as 2,560 · 151,936 "
        "multiply-adds of 1 FLOP each, and the worst case as K unembeddings."
    )


def _paper(row: Sequence[float]) -> str:
    mflops, percent = row
    if math.isnan(mflops):
        return ""
    return f"{mflops:,.0f} MFLOPs" + ("" if math.isnan(percent) else f" ({percent} %)")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print_trace(report: dict[str, Any]) -> None:
    echo(
        f"{report['model']} ({report['dtype']}): {report['tokens']:,} tokens, {report['layers']} layers, "
        f"{report['vocabulary']:,} vocabulary entries, readouts in {report['lens_precision']}, "
        f"medians of {report['rounds']} rounds"
    )
    names = {
        "forward": "forward pass, logits of every token",
        "products, torch": "products with the unembedding, torch.mm",
        "products, ours": "the same products, made by layerlens",
        "trace": "trace, files written",
    }
    asked = report.get("asked", {})
    if asked:
        names["trace with more"] = f"trace with {' '.join(spelled(name, value) for name, value in asked.items())}"
    for name, words in names.items():
        added = report["added_mib"][name]
        memory = "" if added != added else f"{added:>9,.0f} MiB"
        echo(f"  {words:<40} {report['seconds'][name]:>8.2f} s{memory}")
    over = report["over_floor"]
    echo(f"trace = {over['torch']:.2f} x (forward + torch's products) = {over['ours']:.2f} x (forward + ours)")
    if asked:
        median, least, greatest = report["over_plain"]
        echo(f"trace with more = {median:.3f} [{least:.3f}, {greatest:.3f}] x trace, median and range of the rounds")
