"""What a replay trace costs beside its floor: one forward pass plus the matrix products rows x d_model x vocabulary.

    python benchmarks/trace_cost.py [--model M] [--tokens N] [--rounds R] [--repeats K] [--out FILE]

Each of forward, products and trace runs in a process of its own, round after round in turn; the products for several
tile sizes, of which the fastest is the floor. Prints JSON: medians of seconds, peak memory above what the loaded model
holds, and their ratios. The peak of a process is its high-water mark, set back once the model is loaded and warm.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TILES = ((256, 2048), (512, 1024), (1024, 1024), (1024, 512))
MIB = 2**20


def main() -> None:
    """Measure, print, and write where asked."""
    arguments = _parse()
    if arguments.measure:
        print(json.dumps(_measure(arguments)))
        return
    kinds = ["forward", *(f"products:{rows}x{words}" for rows, words in TILES), "trace"]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            found[kind].append(_in_a_process(kind, arguments))
            print(f"{kind:<22} {found[kind][-1]['seconds']:7.2f} s", file=sys.stderr)
    report = json.dumps(_report(found, arguments), indent=1)
    print(report)
    if arguments.out:
        Path(arguments.out).write_text(report + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    same = ["--model", arguments.model, "--tokens", str(arguments.tokens), "--repeats", str(arguments.repeats)]
    done = subprocess.run([sys.executable, __file__, "--measure", kind, *same], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    import layerlens as ll

    model = ll.load(arguments.model, dtype="float32")
    text = "\n".join(prompt.content for prompt in ll.dataset("sample")) * (1 + arguments.tokens // 2000)
    ids = model.tokenizer(text, add_special_tokens=False).input_ids[: arguments.tokens]
    text = model.tokenizer.decode(ids)
    work = _work(arguments.measure, model, torch.tensor([ids]), text)
    with torch.no_grad():
        work()
        before = _forget_peak()
        seconds = [_time(work) for _ in range(arguments.repeats)]
    return {"seconds": statistics.median(seconds), "peak_mib": (_status("VmHWM") - before) / MIB}


def _work(kind: str, model, ids, text: str) -> Callable[[], object]:
    import torch

    import layerlens as ll

    if kind == "forward":
        return lambda: model.hf(input_ids=ids, use_cache=False)
    if kind == "trace":
        return lambda: ll.trace(
            model, [text], out=tempfile.mkdtemp(), max_new_tokens=0, chat_template=False, progress=False
        )
    rows, words = map(int, kind.split(":")[1].split("x"))
    states = torch.randn(model.n_layers * ids.shape[1], model.d_model)
    weight, tile = model.unembed.weight, torch.empty(rows * words)

    def products() -> None:
        for part in states.split(rows):
            for columns in weight.split(words):
                out = tile[: len(part) * len(columns)].view(len(part), len(columns))
                torch.mm(part, columns.t(), out=out)

    return products


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _forget_peak() -> int:
    """Set the high-water mark back to what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def _report(found: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> dict[str, object]:
    medians = {
        kind: {name: round(statistics.median(run[name] for run in runs), 3) for name in ("seconds", "peak_mib")}
        for kind, runs in found.items()
    }
    products = {kind: run for kind, run in medians.items() if kind.startswith("products")}
    best = min(products, key=lambda kind: products[kind]["seconds"])
    floor = medians["forward"]["seconds"] + products[best]["seconds"]
    import torch

    return {
        "model": arguments.model,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "medians": medians,
        "best_tile": best.split(":")[1],
        "floor_seconds": round(floor, 3),
        "trace_over_floor": round(medians["trace"]["seconds"] / floor, 3),
        "trace_peak_above_forward_mib": round(medians["trace"]["peak_mib"] - medians["forward"]["peak_mib"], 1),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
