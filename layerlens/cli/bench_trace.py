"""`layerlens bench trace` beside its floor, and `layerlens bench analysis`: what a run's statistics cost."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.cli.bench import machine, refuse_unwritable, write
from layerlens.cli.trace import Precision
from layerlens.errors import OptionError

if TYPE_CHECKING:
    import torch

    from layerlens.models import Model

_MIB = 2**20
_TILE = (512, 1024)
Json = Annotated[Path | None, typer.Option(help="File to write the same to, as JSON.")]
STATISTICS = (
    "by_layer",
    "phases",
    "partition",
    "valleys",
    "valley_statistics",
    "by_entropy_band",
    "by_relative_position",
    "walk_depths",
    "agreement",
    "earliest_agreement",
    "kind_jumps",
    "substitutions",
    "substitution_pairs",
    "class_shares",
)


@options.grouped
def trace(
    *,
    model: options.Model,
    tokens: Annotated[int, typer.Option(help="Of the text, from the shipped problems.")] = 512,
    rounds: Annotated[int, typer.Option(help="Rounds, of which medians are shown.")] = 3,
    lens_precision: Annotated[Precision, typer.Option(help="Of readouts, as of trace.")] = Precision.float32,
    json: Json = None,
    loading: options.Loading,
) -> int:
    """Show what the trace of a given text costs beside its floor: a forward pass and the products with the unembedding.

    Memory is what comes on top of the loaded model: on CUDA as it was allocated, on Linux as the process grew.
    """
    from layerlens.decode.options import whole

    whole("tokens", tokens, 1)
    whole("rounds", rounds, 1)
    refuse_unwritable(json)
    report = measure_trace(loading.load(model), tokens, rounds, lens_precision.value)
    _print_trace(report)
    write(report, json)
    return 0


def measure_trace(model: "Model", n_tokens: int, rounds: int, precision: str = "float32") -> dict[str, Any]:
    """Medians of seconds of each way and of their ratio to the floor, round by round, and the memory they add.

    Args:
        model: from `load`.
        n_tokens: of the text.
        rounds: measured after a round that is not; every second one goes in the opposite order.
        precision: of the trace's readouts.

    Returns:
        a report for JSON: `seconds` by way, `over_floor` with torch's own products and with ours, `added_mib`,
        `machine`.

    Raises:
        OptionError: the model reads no text of so many tokens.
    """
    room = model.context_length
    if room is not None and n_tokens > room:
        raise OptionError(f"--tokens {n_tokens} is more than the model's context of {room:,}; lower it")
    ways = _ways(model, n_tokens, precision)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    added: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            took, peak = _timed(ways[name], model.device)
            seconds[name].append(took)
            added[name].append(peak)
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
        "added_mib": {name: statistics.median(values) for name, values in added.items()},
        "machine": machine(model.device),
    }


def _ways(model: "Model", n_tokens: int, precision: str) -> dict[str, Callable[[], object]]:
    import tempfile

    import torch

    import layerlens as ll
    from layerlens.models.unembed import product

    problems = "\n".join(str(prompt.content) for prompt in ll.dataset("sample"))
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

    def products(multiply: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]") -> Callable[[], None]:
        def run() -> None:
            for _ in range(model.n_layers):
                for rows in states.split(_TILE[0]):
                    for words in weight.split(_TILE[1] if weight.device.type == "cpu" else 16 * _TILE[1]):
                        multiply(rows, words.to(rows.dtype))

        return run

    def traced() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ll.trace(
                model,
                [text],
                out=Path(folder) / "run",
                max_new_tokens=0,
                chat_template=False,
                progress=False,
                lens_precision=precision,
            )

    return {
        "forward": forward,
        "products, torch": products(lambda rows, words: torch.mm(rows, words.t())),
        "products, ours": products(product),
        "trace": traced,
    }


def _timed(way: Callable[[], object], device: "torch.device") -> tuple[float, float]:
    """Seconds, and MiB at the peak above what was held before; NaN where that cannot be told."""
    import torch

    is_cuda = device.type == "cuda"
    before = _forget_peak(device)
    if is_cuda:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    way()
    if is_cuda:
        torch.cuda.synchronize(device)
    took = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else _status("VmHWM")
    return took, (peak - before) / _MIB


def _forget_peak(device: "torch.device") -> float:
    """Let the peak be counted from now on; what is held now, in bytes."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _status("VmRSS")


def give_back_heap() -> None:
    """Let the C library return what was freed, which would count as held, and be used again uncounted."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name)))


def _print_trace(report: dict[str, Any]) -> None:
    typer.echo(
        f"{report['model']} ({report['dtype']}): {report['tokens']:,} tokens, {report['layers']} layers, "
        f"{report['vocabulary']:,} words, readouts in {report['lens_precision']}, medians of {report['rounds']} rounds"
    )
    names = {
        "forward": "forward pass, logits of every token",
        "products, torch": "products with the unembedding, torch.mm",
        "products, ours": "the same as layerlens makes them",
        "trace": "trace, files written",
    }
    for name, words in names.items():
        added = report["added_mib"][name]
        memory = "" if added != added else f"{added:>9,.0f} MiB"
        typer.echo(f"  {words:<40} {report['seconds'][name]:>8.2f} s{memory}")
    over = report["over_floor"]
    typer.echo(f"trace = {over['torch']:.2f} x (forward + torch's products) = {over['ours']:.2f} x (forward + ours)")


def analysis(
    run: Annotated[Path, typer.Option(help="Run directory.")],
    json: Json = None,
) -> int:
    """Show how long the statistics of a run take, and the memory of the process."""
    import layerlens as ll

    refuse_unwritable(json)
    started = time.perf_counter()
    opened = ll.open_run(run)
    seconds = {"open": time.perf_counter() - started}
    for name in STATISTICS:
        at = time.perf_counter()
        try:
            getattr(opened, name)()
        except ll.LayerlensError as error:  # a run of given text has no decoding, one kind of layers no jumps
            typer.echo(f"{name} left out: {error}", err=True)
            continue
        seconds[name] = time.perf_counter() - at
    seconds["all"] = time.perf_counter() - started
    n_tokens = int(opened.by_layer()["n_tokens"].iloc[0])
    report = {
        "run": str(run),
        "tokens": n_tokens,
        "layers": opened.n_layers,
        "seconds": seconds,
        "peak_mib": _status("VmHWM") / _MIB,  # before torch is asked what machine this is
    }
    import torch

    report["machine"] = machine(torch.device("cpu"))
    typer.echo(f"{run}: {n_tokens:,} tokens, {opened.n_layers} layers")
    for name, value in seconds.items():
        typer.echo(f"  {name:<22} {value:>8.2f} s")
    typer.echo(f"  peak of the process    {report['peak_mib']:>8,.0f} MiB")
    write(report, json)
    return 0


def with_runs(bench: typer.Typer) -> typer.Typer:
    """The group with these two commands."""
    bench.command("trace")(trace)
    bench.command("analysis")(analysis)
    return bench
