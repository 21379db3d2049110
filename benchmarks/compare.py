"""One trace, made by layerlens with each backend, and by hand with each library, as its users would make it.

    python benchmarks/compare.py [--tokens N] [--rounds R] [--threads T] [--ways A,B] [--model M] [--out FILE]

Every way computes norm ratio, input/output cosine, entropy and top token of every layer and position of one text. Each
way runs in a process of its own, R times, in turn with the others. The process first makes one plain forward pass, and
the same trace of a short text. The floor is one forward pass of the whole model, and the products rows x d_model x
vocabulary alone, made by torch (MKL) and by layerlens (oneDNN). Prints the medians of seconds and of the memory in
addition to the plain pass, and ratios to layerlens and to the floor with torch's products. Writes them with a
description of the machine. Run it alone on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results" / "compare.json"
FLOOR = ("forward pass", "products by torch", "products by oneDNN")
OURS = ("layerlens", "layerlens in bfloat16", "layerlens on transformer-lens", "layerlens on nnsight")
BY_HAND = (
    "transformers with hooks",
    "transformers' hidden states",
    "transformer-lens by hand",
    "nnsight by hand",
)
Numbers = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments.model, arguments.tokens, arguments.threads)))
        return
    rounds = []
    for number in range(arguments.rounds):
        order = arguments.ways if number % 2 == 0 else arguments.ways[::-1]
        rounds.append({way: _in_its_own_process(way, arguments) for way in order})
    agreement({way: one for way, one in rounds[0].items() if one["means"]})
    report = {
        "model": arguments.model,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "ways": {way: _summary([one[way] for one in rounds], rounds) for way in arguments.ways},
        "machine": rounds[0][arguments.ways[0]]["machine"],
    }
    print_table(report)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report))
    draw(report, arguments.out.with_suffix(".png"))


def measured(way: str, model: str, n_tokens: int, threads: int) -> Numbers:
    """Seconds, added bytes at the peak, and a digest of the numbers of one way, measured in this process."""
    import torch

    torch.set_num_threads(threads)
    import layerlens as ll
    from layerlens.bench.machine import machine
    from layerlens.bench.memory import give_back_heap

    loaded = ll.load(model, dtype="float32", device="cpu")
    ids = _text(loaded, n_tokens)
    with torch.no_grad():
        loaded.decoder(input_ids=ids[:, :16], use_cache=False)
        give_back_heap()
        with Peak() as plain:
            loaded.decoder(input_ids=ids, use_cache=False)
        trace = WAYS[way](loaded)  # what the way keeps counts too, such as another copy of the unembedding
        trace(ids[:, :16])
        give_back_heap()
        with Peak() as peak:
            started, cpu_started = time.perf_counter(), time.process_time()
            numbers = trace(ids)
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    added = peak.n_bytes - plain.n_bytes
    means = {name: float(values.double().mean()) for name, values in numbers.items()}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "added_bytes": added,
        "means": means,
        "machine": machine(loaded.device),
    }


def agreement(found: dict[str, Numbers]) -> None:
    """Stop if two ways made different traces."""
    first = next(iter(found.values()))["means"]
    for way, one in found.items():
        tolerance = 5e-3 if "bfloat16" in way else 1e-3
        for name, mean in one["means"].items():
            if abs(mean - first[name]) > tolerance * max(1.0, abs(first[name])):
                raise SystemExit(f"{way} gives a mean {name} of {mean}, where another way gives {first[name]}")


def print_table(report: Numbers) -> None:
    """Print the medians, one line for each way."""
    print(f"{report['model']}, {report['tokens']} tokens, {report['threads']} threads, {report['rounds']} rounds\n")
    print(f"{'way':<32}{'seconds':>9}{'x floor':>9}{'x layerlens':>13}{'added MiB':>11}{'x layerlens':>13}")
    for way, one in report["ways"].items():
        print(
            f"{way:<32}{one['seconds']:>9.2f}{one['floor_ratio']:>9.2f}{one['seconds_ratio']:>13.2f}"
            f"{one['added_bytes'] / 2**20:>11.0f}{one['added_ratio']:>13.2f}"
        )


def markdown(report: Numbers) -> str:
    """The table of the documentation."""
    lines = [
        "| way | seconds | of the floor | added memory, MiB | x layerlens, seconds | memory |",
        "|---|---|---|---|---|---|",
    ]
    for way, one in report["ways"].items():
        least, most = one["least_and_most_seconds"]
        measures = way not in FLOOR
        lines.append(
            f"| {way} | {one['seconds']:.2f} [{least:.2f}, {most:.2f}] | {one['floor_ratio']:.2f} | "
            f"{one['added_bytes'] / 2**20:,.0f} | "
            + (f"{one['seconds_ratio']:.2f} | {one['added_ratio']:.2f} |" if measures else " | |")
        )
    return "\n".join(lines)


def draw(report: Numbers, path: Path) -> None:
    """Draw the seconds, with the floor, and the added memory of each way that makes a trace."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    from layerlens.plots import style

    ways = {way: one for way, one in report["ways"].items() if way not in FLOOR}
    colours = [style.UNPERTURBED if way in OURS else style.BAR for way in ways]
    with style.look():
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 2.6), sharey=True, layout="constrained")
        for axes, name, scale in ((left, "seconds", 1), (right, "added_bytes", 2**-20)):
            values = [max(one[name] * scale, 0) for one in ways.values()]
            axes.barh(list(ways), values, color=colours, zorder=1)
            for place, value in enumerate(values):
                label = f"{value:,.1f}" if scale == 1 else f"{value:,.0f}"
                axes.annotate(
                    label,
                    (value, place),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )
        left.invert_yaxis()
        floor = sum(report["ways"][way]["seconds"] for way in FLOOR[:2] if way in report["ways"])
        left.axvline(floor, color=style.GREY, linestyle="--", zorder=1.5)
        left.annotate(
            "floor", (floor, 1), (0, 2), xycoords=left.get_xaxis_transform(), textcoords="offset points", ha="center"
        ).set(color=style.GREY, fontsize=6.5)
        left.set_xlabel(f"seconds, {report['tokens']} tokens")
        right.set_xlabel("memory on top of a forward pass, MiB")
        figure.savefig(path)
        plt.close(figure)


def _forward(loaded: Any) -> Callable[[Any], Numbers]:
    def run(ids: Any) -> Numbers:
        loaded.hf(input_ids=ids, use_cache=False)
        return {}

    return run


def _products(by: str) -> Callable[[Any], Callable[[Any], Numbers]]:
    """All products with the unembedding, a tile at a time, without using the results."""

    def prepare(loaded: Any) -> Callable[[Any], Numbers]:
        import torch

        from layerlens.models.unembed import product

        weight, tile = loaded.unembed.weight, torch.empty(512 * 1024)

        def run(ids: Any) -> Numbers:
            states = torch.randn(loaded.n_layers * ids.shape[1], loaded.d_model)
            for rows in states.split(512):
                for words in weight.split(1024):
                    if by == "torch":
                        out = tile[: len(rows) * len(words)].view(len(rows), len(words))
                        torch.mm(rows, words.t(), out=out)
                    else:
                        product(rows, words)
            return {}

        return run

    return prepare


def _layerlens(backend: str | None, **options: Any) -> Callable[[Any], Callable[[Any], Numbers]]:
    def prepare(loaded: Any) -> Callable[[Any], Numbers]:
        import numpy as np
        import torch

        import layerlens as ll

        model = loaded
        if backend is not None:
            model = ll.load(loaded.hf, tokenizer=loaded.tokenizer, backend=backend)

        def trace(ids: Any) -> Numbers:
            text = model.tokenizer.decode(ids[0])
            with tempfile.TemporaryDirectory() as folder:
                run = ll.trace(
                    model,
                    [text],
                    out=Path(folder) / "run",
                    max_new_tokens=0,
                    chat_template=False,
                    progress=False,
                    **options,
                )
                names = {"norm_ratio": "norm_ratio", "io_cosine": "io_cosine", "entropy": "entropy"}
                names["top"] = "top_token_id"
                return {name: torch.from_numpy(np.array(run.layers(column))) for name, column in names.items()}

        return trace

    return prepare


def _transformers_by_hand(loaded: Any) -> Callable[[Any], Numbers]:
    """Hooks that read whole rows of logits, a layer at a time."""
    import torch

    hf = loaded.hf

    def trace(ids: Any) -> Numbers:
        found: dict[str, list[Any]] = {"norm_ratio": [], "io_cosine": [], "entropy": [], "top": []}

        def keep(_module: Any, args: Any, output: Any) -> None:
            before, after = args[0][0], output[0]
            _keep_numbers(found, before, after, hf.lm_head(hf.model.norm(after)))

        handles = [block.register_forward_hook(keep) for block in hf.model.layers]
        hf.model(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return {name: torch.stack(values, 1) for name, values in found.items()}

    return trace


def _hidden_states(loaded: Any) -> Callable[[Any], Numbers]:
    """The hidden states that transformers returns, read out a layer at a time; the last one is after the final norm."""
    import torch

    hf = loaded.hf

    def trace(ids: Any) -> Numbers:
        found: dict[str, list[Any]] = {"norm_ratio": [], "io_cosine": [], "entropy": [], "top": []}
        last: list[Any] = []
        handle = hf.model.layers[-1].register_forward_hook(lambda _module, _args, output: last.append(output))
        states = [*hf.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[:-1], *last]
        handle.remove()
        for before, after in pairwise(states):
            _keep_numbers(found, before[0], after[0], hf.lm_head(hf.model.norm(after[0])))
        return {name: torch.stack(values, 1) for name, values in found.items()}

    return trace


def _transformer_lens_by_hand(loaded: Any) -> Callable[[Any], Numbers]:
    """A cache of the residual stream, and TransformerLens' own logit lens over it."""
    import torch
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.tools.analysis import logit_lens

    hf = loaded.hf
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)

    def trace(ids: Any) -> Numbers:
        wanted = lambda name: name.endswith(("hook_resid_pre", "hook_resid_post"))  # noqa: E731
        _, cache = bridge.run_with_cache(ids, names_filter=wanted)
        n_layers = bridge.cfg.n_layers
        lens = logit_lens(bridge, cache=cache, layers=range(1, n_layers + 1), positions=None, top_k=1)
        before, after = (
            torch.stack([cache[f"blocks.{i}.hook_resid_{place}"][0] for i in range(n_layers)], 1)
            for place in ("pre", "post")
        )
        return {
            "norm_ratio": (after - before).norm(dim=2) / before.norm(dim=2),
            "io_cosine": torch.cosine_similarity(before, after, dim=2),
            "entropy": lens.readout.entropy[:, 0].t(),
            "top": lens.readout.top_ids[:, 0, :, 0].t(),
        }

    return trace


def _nnsight_by_hand(loaded: Any) -> Callable[[Any], Numbers]:
    """States saved in a trace, and a loop over them."""
    import nnsight
    import torch
    from nnsight.modeling.transformers import TransformersModel

    hf = loaded.hf
    lm = TransformersModel(hf, tokenizer=loaded.tokenizer, task="text-generation")

    def trace(ids: Any) -> Numbers:
        found: dict[str, list[Any]] = {"norm_ratio": [], "io_cosine": [], "entropy": [], "top": []}
        with lm.trace({"input_ids": ids}):
            states = nnsight.save([])
            states.append(lm.model.layers[0].input)
            for layer in lm.model.layers:
                states.append(layer.output)
        for before, after in pairwise(states):
            _keep_numbers(found, before[0], after[0], hf.lm_head(hf.model.norm(after[0])))
        return {name: torch.stack(values, 1) for name, values in found.items()}

    return trace


def _keep_numbers(found: dict[str, list[Any]], before: Any, after: Any, logits: Any) -> None:
    import torch

    log_probs = logits.log_softmax(-1)
    found["norm_ratio"].append((after - before).norm(dim=1) / before.norm(dim=1))
    found["io_cosine"].append(torch.cosine_similarity(before, after, dim=1))
    found["entropy"].append(-(log_probs.exp() * log_probs).sum(1))
    found["top"].append(logits.argmax(1))


WAYS: dict[str, Callable[[Any], Callable[[Any], Numbers]]] = {
    FLOOR[0]: _forward,
    FLOOR[1]: _products("torch"),
    FLOOR[2]: _products("oneDNN"),
    OURS[0]: _layerlens(None),
    OURS[1]: _layerlens(None, lens_precision="bfloat16"),
    OURS[2]: _layerlens("transformer-lens"),
    OURS[3]: _layerlens("nnsight"),
    BY_HAND[0]: _transformers_by_hand,
    BY_HAND[1]: _hidden_states,
    BY_HAND[2]: _transformer_lens_by_hand,
    BY_HAND[3]: _nnsight_by_hand,
}


def _text(model: Any, n_tokens: int) -> Any:
    """Token ids [1, n_tokens] of a text that is encoded as this many tokens again."""
    import layerlens as ll
    from layerlens.errors import OptionError

    room = model.context_length
    if room is not None and n_tokens > room:
        raise OptionError(f"--tokens {n_tokens} is more than the model's context of {room:,}; lower it")
    problems = " ".join(str(prompt.content) for prompt in ll.dataset("sample").prompts)
    ids = model.tokenizer(problems * (1 + n_tokens // 2000), return_tensors="pt").input_ids[:, :n_tokens]
    again = model.tokenizer(model.tokenizer.decode(ids[0]), return_tensors="pt").input_ids
    assert again.shape == (1, n_tokens), again.shape
    return ids


def _in_its_own_process(way: str, arguments: argparse.Namespace) -> Numbers:
    options = ["--model", arguments.model, "--tokens", str(arguments.tokens), "--threads", str(arguments.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(
        [sys.executable, __file__, "--one", way, *options], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode == 2:
        print(done.stderr.splitlines()[-1], file=sys.stderr)
        sys.exit(2)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    found: Numbers = json.loads(done.stdout.splitlines()[-1])
    print(f"{way:<32}{found['seconds']:>9.2f} s{found['added_bytes'] / 2**20:>9.0f} MiB", file=sys.stderr, flush=True)
    return found


def _summary(found: list[Numbers], rounds: list[dict[str, Numbers]]) -> Numbers:
    base = [one.get(OURS[0]) for one in rounds]
    summary = {name: statistics.median(one[name] for one in found) for name in ("seconds", "added_bytes")}
    for name, short in (("seconds", "seconds_ratio"), ("added_bytes", "added_ratio")):
        ratios = [one[name] / ours[name] for one, ours in zip(found, base, strict=True) if ours]
        summary[short] = statistics.median(ratios) if ratios else float("nan")
    floors = [sum(one[way]["seconds"] for way in FLOOR[:2]) for one in rounds if all(way in one for way in FLOOR[:2])]
    ratios = [one["seconds"] / floor for one, floor in zip(found, floors, strict=False)]
    summary["floor_ratio"] = statistics.median(ratios) if ratios else float("nan")
    summary["least_and_most_seconds"] = [pick(one["seconds"] for one in found) for pick in (min, max)]
    return summary


class Peak:
    """The most private memory that the process has while this is open, sampled every few milliseconds.

    Pages of files do not count: the kernel drops those of libraries and reads them again at any time.
    """

    n_bytes = 0

    def __enter__(self) -> "Peak":
        self._is_open = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._thread.join()

    def _watch(self) -> None:
        while self._is_open:
            resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
            self.n_bytes = max(self.n_bytes, (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE"))
            time.sleep(0.004)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=count, default=512)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="[default: one a core]")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help="some of them, by comma")
    parser.add_argument("--out", type=out_file, default=RESULTS)
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [way for way in arguments.ways if way not in WAYS]
    if unknown:
        parser.error(f"--ways {unknown[0]!r} is unknown; give some of: {', '.join(WAYS)}")
    return arguments


if __name__ == "__main__":
    run_main(main)
