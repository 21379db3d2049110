"""How the cost of a trace grows: with tokens, layers, vocabulary, batch and window, one at a time.

    python benchmarks/scaling.py OUT_DIR [--rounds R] [--threads T]

The models are random llamas on the CPU. Each point is the median of R rounds, in which all points are measured in turn.
Measured are the seconds of a trace and of its floor (a forward pass and the products with the unembedding as layerlens
makes them), and the memory that the trace adds. For the window, decoding is measured: 32 tokens from the valley, and 32
from the last layer. Writes scaling.csv, scaling.png and scaling.pdf. Run it alone on the machine.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
import torch
from arguments import count, out_folder, run_main

import layerlens as ll
from layerlens.bench.memory import MIB
from layerlens.bench.timing import timed_with_memory
from layerlens.bench.tracing import products
from layerlens.decode.batch import decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.options import GenerateOptions
from layerlens.models import tiny_model, tiny_tokenizer
from layerlens.models.unembed import product
from layerlens.plots import style
from layerlens.tracing.meter import Meter
from layerlens.tracing.passes import replay

BASE = {"tokens": 512, "layers": 8, "vocabulary": 32_768, "batch": 1, "window": 5}
POINTS = {
    "tokens": (128, 256, 512, 1024, 2048, 4096),
    "layers": (2, 4, 8, 16, 32),
    "vocabulary": (4_096, 16_384, 65_536, 262_144),
    "batch": (1, 2, 4, 8),
    "window": (1, 2, 4, 8),
}
LABELS = {
    "tokens": "tokens of a text",
    "vocabulary": "vocabulary entries",
    "batch": "texts at a time",
    "window": "window, decoding",
}
WIDTH = 256


def main() -> None:
    """Measure all points in turn, round by round; write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=out_folder)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--threads", type=count, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    points = [(axis, BASE | {axis: value}) for axis, values in POINTS.items() for value in values]
    found: list[list[dict[str, float]]] = [[] for _ in points]
    for _ in range(options.rounds):
        for place, (axis, sizes) in enumerate(points):
            found[place].append(decoded(sizes) if axis == "window" else traced(sizes))
            print(axis, sizes[axis], found[place][-1], flush=True)
    rows = [
        {"axis": axis, "value": sizes[axis]}
        | {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for (axis, sizes), measured in zip(points, found, strict=True)
    ]
    table = pd.DataFrame(rows)
    table.to_csv(options.out_dir / "scaling.csv", index=False, float_format="%.6g")
    draw(table, options.out_dir / "scaling")


def model_of(sizes: dict[str, int]) -> Any:
    """A random llama of that many layers and vocabulary entries."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape |= {"head_dim": WIDTH // 4, "max_position_embeddings": 8192}
    hf = tiny_model("llama", num_hidden_layers=sizes["layers"], vocab_size=sizes["vocabulary"], **shape)
    return ll.load(hf, tokenizer=tiny_tokenizer())


def ids_of(sizes: dict[str, int]) -> list[list[int]]:
    """Random token ids."""
    random = np.random.default_rng(0)
    return random.integers(0, sizes["vocabulary"], (sizes["batch"], sizes["tokens"])).tolist()


def traced(sizes: dict[str, int]) -> dict[str, float]:
    """A replay of a batch of texts, measured but not written, and its floor."""
    model, ids = model_of(sizes), ids_of(sizes)
    given = torch.tensor(ids)
    states = torch.randn(given.numel(), WIDTH)

    def trace() -> None:
        meter = Meter(model)
        replay(model, ids, [0] * len(ids), meter)
        meter.collect()

    def floor() -> None:
        with torch.no_grad():
            model.decoder(input_ids=given, use_cache=False)
            products(states, model.unembed.weight, model.n_layers, product)

    trace()
    floor()
    took, added = timed_with_memory(trace, model.device)
    least, plain = timed_with_memory(floor, model.device)
    n_tokens = given.numel()
    return {
        "seconds": took,
        "floor_seconds": least,
        "milliseconds_per_token": 1e3 * took / n_tokens,
        "over_floor": took / least,
        "added_mib": max(0.0, added - plain) / MIB,
    }


def decoded(sizes: dict[str, int]) -> dict[str, float]:
    """32 tokens decoded from the valley, and 32 from the last layer."""
    model = model_of(sizes)
    prompts = ids_of(sizes | {"tokens": 32})
    options = GenerateOptions(max_new_tokens=32, min_new_tokens=32)

    def way(strategy: Any) -> Any:
        return lambda: decode_batch(model, prompts, Chooser(model, strategy), options, seed=0)

    ways = [way(ll.Valley(window=sizes["window"])), way(ll.Last())]
    for one in ways:
        one()
    took, last = (timed_with_memory(one, model.device).seconds for one in ways)
    return {
        "seconds": took,
        "floor_seconds": last,
        "milliseconds_per_token": 1e3 * took / 32,
        "over_floor": took / last,
        "added_mib": float("nan"),
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw milliseconds for each token, and the floor, against each size."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    with style.look():
        figure, panels = plt.subplots(2, 3, figsize=(7.0, 4.2), layout="constrained")
        panels = panels.flatten()
        panels[-1].axis("off")
        for axes, axis in zip(panels, POINTS, strict=False):
            part = table[table["axis"] == axis]
            names = ("valley", "last layer") if axis == "window" else ("trace", "floor")
            axes.plot(
                part["value"],
                part["milliseconds_per_token"],
                "o-",
                markersize=4,
                color=style.UNPERTURBED,
                label=names[0],
            )
            least = part["milliseconds_per_token"] / part["over_floor"]
            axes.plot(part["value"], least, "s--", markersize=4, color=style.GREY, label=names[1])
            axes.set_xscale("log", base=2)
            axes.set_xticks(part["value"], [f"{value:,}" for value in part["value"]], rotation=40)
            axes.minorticks_off()
            if axis in ("layers", "vocabulary"):  # in proportion to which it grows: a straight line
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            else:
                axes.set_ylim(0, 1.15 * part["milliseconds_per_token"].max())
            axes.set_xlabel(LABELS.get(axis, axis))
            axes.set_ylabel("milliseconds a token")
            axes.legend()
        for end in ("png", "pdf"):
            figure.savefig(path.with_suffix(f".{end}"))
        plt.close(figure)


if __name__ == "__main__":
    run_main(main)
