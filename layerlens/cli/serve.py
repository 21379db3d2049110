"""`layerlens serve`: vLLM's server, which decodes from another layer."""

import os
from dataclasses import asdict
from typing import Annotated

import typer

from layerlens.cli import options
from layerlens.errors import OptionError


@options.grouped
def serve(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS OF VLLM]", help="What else vLLM's server takes.")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="A model as vLLM takes it: a hub id or a folder.")],
    strategy: options.StrategyName = "valley",
    window: options.Window = None,
    strategy_options: options.StrategyOptions,
    also: Annotated[
        list[str] | None,
        typer.Option(help="A further strategy that requests may choose, such as sled; can be given several times."),
    ] = None,
    traces: Annotated[
        bool,
        typer.Option(
            "--traces",
            help="Keep all layers, so that requests can ask for a trace of what each of them does; "
            "--targets, --top, --kl and --js do so too.",
        ),
    ] = False,
    readings: options.Readings,
    record_bytes: Annotated[
        int | None,
        typer.Option(help="The most memory for records that nobody has fetched yet. [default: 268,435,456]"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
) -> None:
    """Start vLLM's OpenAI-compatible server, and let it decode from another layer.

    Requests can choose another strategy, and fetch a record of each token. The server can be reached from this machine
    only, unless --host says otherwise. Options of vLLM follow after --, such as `layerlens serve --model M --window 10
    -- --host 0.0.0.0 --port 8000 --tensor-parallel-size 8`.
    """
    from layerlens.decode.registry import refuse_unknown
    from layerlens.models import locate

    for name in (strategy, *(also or ())):
        refuse_unknown(name)
    options.refuse_no_lens(readings.lens)
    locate.refuse_unloadable(model, revision, window)
    if model in locate.BUILT_IN:
        what = "is built into layerlens, and vLLM does not know it"
        raise OptionError.about("model", model, what, "give a hub id or a folder")
    # and what needs torch
    from layerlens.engines.vllm.server import command, environment
    from layerlens.models.vllm_versions import refuse_without_vllm

    given = {option: value for option, value in asdict(strategy_options).items() if value is not None}
    asked = {name: value for name, value in readings.numbers().items() if value}
    own = {"window": window, "also": also or None, "record_bytes": record_bytes, "lens": readings.lens}
    given |= {"traces": asked or traces} if asked or traces else {}
    given |= {"strategy": strategy} | {name: value for name, value in own.items() if value is not None}
    chosen = strategy_options.strategy(strategy, window)
    options.Loading().refuse_unfit(model, chosen)
    refuse_without_vllm()
    further = [*(arguments or ()), *([] if revision is None else ["--revision", revision])]
    words = command(model, given, further)
    try:
        os.execve(words[0], words, environment(os.environ))
    except OSError as error:
        raise OptionError(f"vLLM's server cannot be started ({error})", "start it by hand", option="model") from error
