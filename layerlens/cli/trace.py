"""`layerlens trace`: from a model and prompts to a run directory and a summary."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.errors import OptionError

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


def trace(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
    dataset: Annotated[str | None, typer.Option(help="Name of a dataset; see `layerlens datasets`.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts: .txt, one a line, or .jsonl.")] = None,
    data_file: Annotated[
        Path | None,
        typer.Option(help="Local copy of the dataset: .json, .jsonl, .csv, .parquet."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N prompts.")] = None,
    no_chat_template: Annotated[bool, typer.Option("--no-chat-template", help="Give prompts as they are.")] = False,
    system: Annotated[str | None, typer.Option(help="System message before each prompt.")] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(help="Tokens to generate for each prompt; 0 traces the given text."),
    ] = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_new_tokens: options.MinNewTokens = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop_strings: options.StopStrings = None,
    seed: Annotated[int, typer.Option(help="Of sampling, of --p, and of shuffled options.")] = 0,
    strategy: options.StrategyName = "last",
    p: options.Probability = None,
    criterion: options.CriterionName = None,
    scan: options.Scan = None,
    entropy_floor: options.EntropyFloor = None,
    batch_size: options.BatchSize = 1,
    mode: Annotated[
        Mode | None,
        typer.Option(help="Record while generating (default), or in one pass afterwards."),
    ] = None,
    positions: Annotated[
        Positions | None,
        typer.Option(
            help="States that emitted a token, or every one. [default: generated; all for given text]",
        ),
    ] = None,
    window: options.Window = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run at --out.")] = False,
) -> int:
    """Record what every layer does to every token, while the model answers prompts."""
    # refused before the model is loaded: what is wrong with the options or the prompts shows in a second
    from layerlens.tracing.options import TraceOptions

    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "mode": mode.value if mode else None,
        "positions": positions.value if positions else None,
        "window": window,
        "batch_size": batch_size,
        "chat_template": False if no_chat_template else None,
        "system": system,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_new_tokens": min_new_tokens,
        "repetition_penalty": repetition_penalty,
        "stop_strings": stop_strings or None,
        "seed": seed,
    }
    TraceOptions(**settings)
    chosen = options.chosen_strategy(
        strategy, window, window_has_other_use=True, p=p, criterion=criterion, scan=scan, entropy_floor=entropy_floor
    )
    asked = _prompts(dataset, prompts, data_file, limit, seed)
    _refuse_other_run(out, resume)

    import layerlens as ll

    try:
        loaded = ll.load(
            model,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        run = ll.trace(loaded, asked, out=out, strategy=chosen, resume=resume, **settings)
    except KeyboardInterrupt:
        return _interrupted(out, len(asked))
    _print_summary(run)
    return 0


def _prompts(
    dataset: str | None, prompts: Path | None, data_file: Path | None, limit: int | None, seed: int
) -> "Dataset":
    import layerlens as ll

    if (dataset is None) == (prompts is None):
        given = "both --dataset and --prompts" if dataset else "neither --dataset nor --prompts"
        raise OptionError(f"{given} given; give one of them (`layerlens datasets` lists the datasets)")
    if prompts is not None:
        if data_file is not None:
            raise OptionError(f"--data-file {data_file} belongs to --dataset; drop it, or name the dataset")
        return ll.read_prompts(prompts, limit=limit)
    assert dataset is not None
    return ll.dataset(dataset, limit=limit, data_file=data_file, seed=seed)


def _refuse_other_run(out: Path, resume: bool) -> None:
    from layerlens.records.store import refuse_unless_free

    refuse_unless_free(out, resume=resume)


def _interrupted(out: Path, n_prompts: int) -> int:
    import layerlens as ll

    done = len(ll.open_run(out).prompts) if (out.expanduser() / "manifest.json").exists() else 0
    typer.echo(
        f"layerlens: interrupted; {done} of {n_prompts} prompts are complete in {out}, continue with --resume", err=True
    )
    return 130


def _print_summary(run: "Run") -> None:
    from layerlens.cli.summary import print_summary

    print_summary(run)
    typer.echo(f"run      {run.path}")
    typer.echo(f"figures  layerlens figure all --run {run.path} --out figures")
