"""`layerlens trace`: from a model and prompts to a run directory and a summary."""

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerlens.cli import options
from layerlens.cli.printable import echo
from layerlens.errors import OptionError, spelled
from layerlens.paths import expanded

if TYPE_CHECKING:
    from layerlens.datasets import Dataset
    from layerlens.run import Run


class Mode(str, Enum):
    """When to record."""

    generate = "generate"
    replay = "replay"


class Positions(str, Enum):
    """Which states to keep."""

    generated = "generated"
    all = "all"


class Precision(str, Enum):
    """Precision of the products with the unembedding."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@options.grouped
def trace(
    *,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
    dataset: Annotated[str | None, typer.Option(help="Name of a dataset; see `layerlens datasets`.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts: .txt with one prompt per line, or .jsonl.")
    ] = None,
    data_file: options.DataFile = None,
    limit: options.Limit = None,
    shard: options.ShardOf = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Generate at most this many tokens for each prompt; 0 traces only the given text.")
    ] = 256,
    decoding: options.Decoding,
    strategy: options.StrategyName = "last",
    strategy_options: options.StrategyOptions,
    drafting: options.Drafting,
    batch_size: options.BatchSize = 1,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Record while generating (generate), or in one pass afterwards (replay). "
            "[default: generate; replay for given text]"
        ),
    ] = None,
    positions: Annotated[
        Positions | None,
        typer.Option(
            help="Record only the states that emitted a token (generated), or all states. "
            "[default: generated; all for given text]"
        ),
    ] = None,
    window: options.Window = None,
    readings: options.Readings,
    lens_precision: Annotated[
        Precision,
        typer.Option(help="Precision of readouts; bfloat16 is faster on some processors, but rounds entropies."),
    ] = Precision.float32,
    loading: options.Loading,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run at --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run at --out as soon as the new one can begin.")
    ] = False,
) -> int:
    """Record what every layer does to every token, while the model answers prompts."""
    # refused before torch is imported: what is wrong with the options, the prompts or the paths shows in a second
    from layerlens.decode.registry import refuse_unknown
    from layerlens.records.store import refuse_unless_free
    from layerlens.tracing.options import TraceOptions

    settings = decoding.settings(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        mode=mode.value if mode else None,
        positions=positions.value if positions else None,
        window=window,
        lens_precision=lens_precision.value,
        **readings.numbers(),
    )
    TraceOptions(**settings)
    refuse_unknown(strategy)
    drafting.refuse_unknown()
    asked = _prompts(dataset, prompts, data_file, limit, decoding.seed)
    asked = asked if shard is None else asked.shard(*options.shard_of(shard))
    refuse_unless_free(out, resume=resume, overwrite=overwrite)
    loading.refuse_unloadable(model, window)
    # and what needs torch
    chosen = strategy_options.strategy(strategy, window, window_has_other_use=True)
    loading.refuse_unfit(model, chosen)
    options.refuse_no_lens(readings.lens)
    policy = drafting.policy()

    import layerlens as ll

    try:
        loaded = loading.load(model)
        chosen.fit(loaded.n_layers, loaded.tied)
        drafter = None if policy is None else ll.Drafter(loaded, policy)
        run = ll.trace(
            loaded,
            asked,
            out=out,
            strategy=chosen,
            lens=readings.lens,
            draft=drafter,
            resume=resume,
            overwrite=overwrite,
            **settings,
        )
    except KeyboardInterrupt:
        return _interrupted(out, len(asked))
    _print_summary(run)
    drafting.end(drafter)
    return 0


def _prompts(
    dataset: str | None, prompts: Path | None, data_file: Path | None, limit: int | None, seed: int
) -> "Dataset":
    import layerlens as ll

    if (dataset is None) == (prompts is None):
        names = (spelled("dataset"), spelled("prompts"))
        problem = f"{'both' if dataset else 'neither'} {(' and ' if dataset else ' nor ').join(names)} given"
        advice = "give one of them (`layerlens datasets` lists the datasets)"
        raise OptionError(problem, advice, option="dataset", given=dataset)
    if prompts is not None:
        if data_file is not None:
            what = f"belongs to {spelled('dataset')}"
            raise OptionError.about("data_file", data_file, what, "drop it, or name the dataset")
        return ll.read_prompts(prompts, limit=limit)
    assert dataset is not None
    return ll.dataset(dataset, limit=limit, data_file=data_file, seed=seed)


def _interrupted(out: Path, n_prompts: int) -> int:
    import layerlens as ll

    done = len(ll.open_run(out).prompts) if (expanded(out) / "manifest.json").exists() else 0
    echo(
        f"layerlens: interrupted; {done} of {n_prompts} prompts are complete in {out}; continue with --resume", err=True
    )
    return 130


def _print_summary(run: "Run") -> None:
    from layerlens.cli.summary import print_summary

    print_summary(run)
    echo(f"run      {run.path}")
    path = shlex.quote(str(run.path))
    echo(f"figures  layerlens figure all --run {path} --out figures")
    echo(f"report   layerlens report {path}")
