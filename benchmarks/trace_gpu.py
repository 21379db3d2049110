"""What a replay trace costs on a GPU, on random weights of Qwen3.5-35B-A3B's text geometry, 70 GB in bfloat16.

    python benchmarks/trace_gpu.py [--tiny] [--tokens N] [--rounds R] [--shapes] [--out FILE]

First the numbers are checked. The fused readout (Triton) and the tiled one are compared with float64, and the fused one
is run twice. Whole traces are made by each readout, and one with readouts that run at the same time as the next block.
Then these are timed in turn: the products rows x d_model x vocabulary alone, both readouts of the same states, a plain
forward pass, and a trace by each readout, which runs after its block or at the same time as the next one. Prints
medians, the share of the products' speed that a readout reaches, and the memory that a trace adds. --shapes times the
kernel with other tiles too. --tiny, the default where there is no GPU, does the same with a small model and Triton's
interpreter, whose speeds mean nothing; it writes no file unless asked to.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import count, out_file, run_main
from decode_gpu import QWEN3_5_35B_A3B, TINY, build, fused

import layerlens as ll
from layerlens.bench.machine import machine
from layerlens.bench.timing import in_turns, seconds_of, timed
from layerlens.bench.tracing import products, torch_product
from layerlens.lens import read
from layerlens.models import Model, Unembed, tiny_tokenizer
from layerlens.tracing.meter import Measured, Meter
from layerlens.tracing.passes import replay

GIB = 2**30
RESULTS = Path(__file__).parent / "results" / "trace_gpu.json"
LEAST_SHARE = 0.6  # share of the products' speed that readouts must reach
MOST_ADDED_BYTES = GIB
TOLERANCE = 2e-3  # nats, of entropies in bfloat16 products against float64 ones of the same states and weights


def main() -> int:
    """Check, measure, print, write; the exit status is 1 where a check failed or a bar was missed."""
    arguments = _parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = arguments.tiny or device.type == "cpu"
    n_tokens = arguments.tokens or (40 if tiny else 4096)
    model = ll.load(build(TINY if tiny else QWEN3_5_35B_A3B, device), tokenizer=tiny_tokenizer())
    print(model, flush=True)
    checks = {
        "readouts are those of float64": check_readouts(model),
        "fused twice is the same": check_twice(model),
        "a trace by either readout is the same": check_traces(model),
        "readouts beside the next block are the same": check_beside(model, n_tokens),
    }
    for name, (passed, detail) in checks.items():
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {detail}", flush=True)
    found = measure(model, n_tokens, arguments.rounds or (1 if tiny else 5))
    n_flops = 2 * n_tokens * model.d_model * model.unembed.n_vocab * model.n_layers
    report = {
        "geometry": "tiny" if tiny else "Qwen3.5-35B-A3B",
        "tokens": n_tokens,
        "checks": {name: {"passed": passed, "detail": detail} for name, (passed, detail) in checks.items()},
        "seconds": found["seconds"],
        "products_tflops": n_flops / found["seconds"]["products"] / 1e12,
        "share_of_products": {
            name: found["seconds"]["products"] / found["seconds"][f"{name} readouts"] for name in ("tiled", "fused")
        },
        "added_bytes": found["added_bytes"],
        "machine": machine(device),
    }
    print(json.dumps({name: report[name] for name in ("seconds", "share_of_products", "added_bytes")}, indent=1))
    if arguments.shapes:
        report["shapes"] = measure_shapes(model, (10, 40) if tiny else (10, 40, 320, n_tokens))
    out = arguments.out or (None if tiny else RESULTS)
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    if not all(passed for passed, _ in checks.values()):
        return 1
    best = max(report["share_of_products"].values())
    return int(not tiny and (best < LEAST_SHARE or min(found["added_bytes"].values()) > MOST_ADDED_BYTES))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small model; default where there is no GPU")
    parser.add_argument("--tokens", type=count, help="of the text [4096]")
    parser.add_argument("--rounds", type=count, help="[5]")
    parser.add_argument("--shapes", action="store_true", help="time the kernel with other tiles too")
    parser.add_argument("--out", type=out_file, help=f"file to write [{RESULTS.relative_to(RESULTS.parents[2])}]")
    return parser.parse_args()


# -------------------------------------------------------------------------------------------------------------- checks

Outcome = tuple[bool, str]


def states_of(model: Model, n_rows: int) -> torch.Tensor:
    """Random states, as long as a model's."""
    generator = torch.Generator(model.device).manual_seed(0)
    states = torch.randn(n_rows, model.d_model, generator=generator, device=model.device)
    return states.to(model.hf.dtype)


@torch.no_grad()
def check_readouts(model: Model) -> Outcome:
    """Check entropy, first choice and log-probs of odd numbers of rows, by the head, with and without a soft-cap."""
    worst = 0.0
    for n_rows, softcap in ((1, None), (37, None), (130, 20.0)):
        plain = model.unembed
        unembed = Unembed(plain.tail, plain.weight, plain.bias, plain.scale, softcap)
        states = states_of(model, n_rows)
        chosen = torch.arange(n_rows, device=model.device).unsqueeze(1)
        logits = unembed.finished(unembed.normed(states).double() @ unembed.weight.double().t(), slice(None))
        log_probs = logits.log_softmax(1)
        entropy = -(log_probs.exp() * log_probs).sum(1)
        for on in (False, True):
            reading = read(states, replace(unembed, fused=on), chosen)
            assert reading.log_probs is not None
            top = log_probs.gather(1, reading.top_token_id.unsqueeze(1))[:, 0]
            misses = (
                reading.entropy - entropy,
                (reading.log_probs - log_probs.gather(1, chosen))[:, 0],
                log_probs.amax(1) - top,
            )
            worst = max(worst, *(float(miss.abs().max()) for miss in misses))
    return worst < TOLERANCE, f"within {worst:.1e}"


def check_twice(model: Model) -> Outcome:
    """Bit for bit."""
    states = states_of(model, 300)
    one, two = (read(states, fused(model, True).unembed) for _ in range(2))
    equal = [torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True)]
    return all(equal), f"{sum(equal)} of {len(equal)} equal"


def check_traces(model: Model) -> Outcome:
    """All measures of a text of 33 tokens."""
    found = [traced(fused(model, on), random_ids(model, 33)) for on in (False, True)]
    compared = ("norm_ratio", "io_cosine", "entropy")
    worst = max(float(abs(found[0][name] - found[1][name]).max()) for name in compared)
    same = float((found[0]["top_token_id"] == found[1]["top_token_id"]).mean())
    return worst < TOLERANCE and same > 0.99, f"within {worst:.1e}, {same:.1%} of first choices equal"


def check_beside(model: Model, n_tokens: int) -> Outcome:
    """Whether both are equal bit for bit, five times, for two texts one after the other through one meter."""
    texts = [random_ids(model, n_tokens), random_ids(model, 1 + n_tokens // 3)]
    found = []
    for on in (False, True, True, True, True, True):
        meter = Meter(replace(model, overlaps=on))
        for ids in texts:
            replay(model, [ids], [0], meter)
        found.append(meter.collect())
    same = [all(np.array_equal(one[name], found[0][name], equal_nan=True) for name in one) for one in found[1:]]
    return all(same), f"{sum(same)} of {len(same)} equal"


def random_ids(model: Model, n_tokens: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.unembed.n_vocab, (n_tokens,), generator=generator).tolist()


def traced(model: Model, ids: list[int]) -> Measured:
    """The measurements of a replay."""
    meter = Meter(model)
    replay(model, [ids], [0], meter)
    return meter.collect()


# -------------------------------------------------------------------------------------------------------------- timing


def measure(model: Model, n_tokens: int, n_rounds: int) -> dict[str, Any]:
    """Medians of seconds of each way, and the bytes that each trace adds to a plain pass."""
    ids = random_ids(model, n_tokens)
    given = torch.tensor([ids], device=model.device)
    states = states_of(model, n_tokens)
    normed = model.unembed.normed(states)

    def forward() -> None:
        model.decoder(input_ids=given, use_cache=False)

    def readouts(on: bool) -> Callable[[], None]:
        head = fused(model, on).unembed

        def run() -> None:
            for _ in range(model.n_layers):
                read(states, head)

        return run

    def trace(on: bool, beside: bool) -> Callable[[], None]:
        switched = replace(fused(model, on), overlaps=beside)
        return lambda: traced(switched, ids)

    ways: dict[str, Callable[[], None]] = {
        "products": lambda: products(normed, model.unembed.weight, model.n_layers, torch_product, (1024, 16384)),
        "tiled readouts": readouts(False),
        "fused readouts": readouts(True),
        "forward pass": forward,
        "tiled trace": trace(False, False),
        "fused trace": trace(True, False),
        "tiled trace, beside": trace(False, True),
        "fused trace, beside": trace(True, True),
    }
    with torch.no_grad():
        for way in ways.values() if model.device.type == "cuda" else ():  # the warm-up
            way()
        found = list(in_turns(ways, n_rounds, lambda way: timed(way, model.device)))
    peaks = {name: timing.n_bytes for name, timing in found[-1].items()}
    return {
        "seconds": {name: statistics.median(one[name].seconds for one in found) for name in ways},
        "added_bytes": {name: peak - peaks["forward pass"] for name, peak in peaks.items() if "trace" in name},
    }


def measure_shapes(model: Model, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of one reading of so many states with each way to cut the work, fastest first; None where it fails."""
    from layerlens.lens.kernels import Shape, read_fused, shape_for

    found = []
    for n_rows in sizes:
        states = states_of(model, n_rows)
        present = shape_for(n_rows, model.device)
        few = [
            Shape(16, words, width, 4, stages) for words in (64, 128, 256) for width in (64, 128) for stages in (3, 5)
        ]
        many = [Shape(rows, words, 64, warps, 3) for rows in (64, 128) for words in (128, 256) for warps in (4, 8)]
        tried = dict.fromkeys([present, *(few if n_rows <= 16 else many)]) if model.device.type == "cuda" else [present]
        timed = []
        for shape in tried:
            reading = partial(read_fused, states, model.unembed, shape=shape)
            try:
                reading()
                seconds = statistics.median(seconds_of(reading, model.device) for _ in range(5))
            except Exception as error:  # such as too little room for the tile
                seconds = None
                print(f"{n_rows} rows, {shape}: {type(error).__name__}", flush=True)
            timed.append({"rows": n_rows, "shape": list(shape), "present": shape == present, "seconds": seconds})
        timed.sort(key=lambda one: (one["seconds"] is None, one["seconds"]))
        for one in timed[:3]:
            print(one, flush=True)
        found += timed
    return found


if __name__ == "__main__":
    run_main(main)
