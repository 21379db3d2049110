"""`layerlens doctor`: what is installed, and whether a model fits into the available memory."""

from typing import TYPE_CHECKING, Annotated

import typer

from layerlens.cli import options
from layerlens.cli.printable import echo
from layerlens.errors import OptionError, spelled

if TYPE_CHECKING:
    from layerlens.support.estimate import Estimate


@options.grouped
def doctor(
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Estimate the memory for this model: a hub id, a folder, a .gguf file or a built-in name."),
    ] = None,
    loading: options.Loading,
    batch_size: options.BatchSize = 1,
    tokens: Annotated[int, typer.Option(help="Tokens of each text, including those that are generated.")] = 2048,
) -> int:
    """Show versions and hardware. With --model, estimate how much memory a trace of that model needs.

    The estimate reads no weights. Its exit status is 1 if the model does not fit.
    """
    if model is None:
        _refuse_without_model(loading, batch_size, tokens)
        _print_versions()
        return 0
    from layerlens.decode.options import whole
    from layerlens.models.locate import located

    whole("batch_size", batch_size, 1)
    whole("tokens", tokens, 1)
    loading.refuse_unknown()
    located(model)
    # and what needs torch

    from layerlens.support.estimate import estimate

    estimated = estimate(model, loading.place(), batch_size=batch_size, n_tokens=tokens, **loading.sizing())
    _print_estimate(estimated)
    return 1 if estimated.fits is False else 0


def _refuse_without_model(loading: options.Loading, batch_size: int, tokens: int) -> None:
    if (loading, batch_size, tokens) != (options.Loading(), 1, 2048):
        problem = f"`layerlens doctor` uses these options only with {spelled('model')}"
        raise OptionError(problem, "add it, or give no options", option="model")


def _print_versions() -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    echo(f"python         {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("layerlens", "torch", "transformers", "gguf", "pandas", "pyarrow", "matplotlib"):
        try:
            echo(f"{name:<14} {version(name)}")
        except PackageNotFoundError:
            echo(f"{name:<14} not installed")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    echo(f"gpu            {gpu}\nthreads        {torch.get_num_threads()}")


def _print_estimate(estimated: "Estimate") -> None:
    from layerlens.models.memory import gib

    texts = f"{estimated.batch_size} x {estimated.n_tokens:,} tokens"
    cache = "not known" if estimated.cache_bytes is None else gib(estimated.cache_bytes)
    rows = [
        ("weights", gib(estimated.weights.n_bytes), estimated.weights.kind),
        ("cache", cache, f"keys and values, or states, of {texts}"),
        ("tracer", gib(estimated.tracer_bytes), "tiles of logits, and states that wait to be measured"),
        ("together", gib(estimated.n_bytes), "without what the passes themselves need"),
        *((name, gib(n_bytes), "free") for name, n_bytes in estimated.room.items()),
    ]
    echo(f"{estimated.weights.source} ({estimated.shape})")
    for name, size, words in rows:
        echo(f"{name:<10} {size:>12}  {words}")
    disk = ", with the remaining weights on disk" if estimated.may_use_disk else ""
    echo({True: f"fits{disk}", False: "does not fit", None: "whether it fits is not known here"}[estimated.fits])
