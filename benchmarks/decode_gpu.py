"""What the valley strategy costs on a GPU, on random weights of Qwen3.5-35B-A3B's text geometry, 70 GB in bfloat16.

    python benchmarks/decode_gpu.py [--tiny] [--budget-seconds S] [--rounds R] [--out FILE]

First the numbers are checked: without the strategy the logits are the model's own, all ways to scan agree with a plain
loop, and a captured graph emits what the same steps emit without a graph. Then the scan alone is timed, together with
one unembedding of the last layer. After a warm-up, `Last()` and `Valley(window=10)` decode the same prompts in turn.
The valley is decoded with torch's products, with the fused readout (Triton), and with the fused readout one stage at a
time ("lazy").

Each ratio is the median over rounds of the ratio within a round, so that drift of the machine affects both sides. There
are ratios of whole calls, which include the prompt and the capture of the graph, and of the second half of the tokens
("steady"), which on a GPU is made of replays only. The bars apply to both ratios of the best way. Once the budget is
spent, no other case is started, and the results so far are written. --tiny, the default where there is no GPU, does the
same with a small model, whose speeds mean nothing; it writes no file unless asked to.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from arguments import count, out_file, run_main

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernel is defined
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import layerlens as ll
from layerlens.bench.decoding import generate_way, mean_depth
from layerlens.bench.machine import machine
from layerlens.bench.timing import in_turns, paired_ratio, seconds_of
from layerlens.decode.batch import Decoded, _Batch, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.criteria import shannon
from layerlens.decode.flops import decoding_flops
from layerlens.decode.options import GenerateOptions
from layerlens.decode.readouts import Readouts
from layerlens.decode.scan import walk_back
from layerlens.decode.strategies import Strategy
from layerlens.models import Model, Unembed, tiny_tokenizer
from layerlens.models.hooks import replacing_logits

MIB = 2**20
RESULTS = Path(__file__).parent / "results" / "decode_gpu.json"
# the text part of the checkpoint's config
QWEN3_5_35B_A3B = {
    "vocab_size": 248_320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
    "max_position_embeddings": 4096,
}
TINY = QWEN3_5_35B_A3B | {
    "vocab_size": 1027,
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 3,
}
WINDOW = 10
ROUNDS = {1: 9, 8: 7, 32: 7, 128: 5}  # by batch size
MOST_SLOWER = {1: 0.02, 8: 0.02, 32: 0.02, 128: 0.05}
MOST_OF_AN_UNEMBEDDING = {1: 1.5, 8: 1.5, 32: 1.5}  # that the scan takes beside the last layer's own
MOST_EXTRA_MIB = 1024
# What rounding may move: entropies in nats, logits. In bfloat16 another order of adding can tip an entry of the state.
NEAR_TIE = {torch.float32: 1e-4, torch.bfloat16: 2e-3}
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def main() -> int:
    """Check, measure, print, write; the exit status is 1 where a check failed or a bar was missed."""
    started = time.perf_counter()
    arguments = _parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = arguments.tiny or device.type == "cpu"
    out = arguments.out or (None if tiny else RESULTS)
    hf = build(TINY if tiny else QWEN3_5_35B_A3B, device)
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    print(f"{model}\nready after {time.perf_counter() - started:.0f} s", flush=True)
    report: dict[str, Any] = {
        "geometry": "tiny" if tiny else "Qwen3.5-35B-A3B",
        "parameters": sum(parameter.numel() for parameter in hf.parameters()),
        "dtype": str(hf.dtype).removeprefix("torch."),
        "window": WINDOW,
        "flops": [row._asdict() | {"flops": row.flops} for row in decoding_flops(hf, WINDOW).rows()],
        "checks": {},
        "scans": [],
        "cases": [],
        "machine": machine(device),
    }
    deadline = started + arguments.budget_seconds

    def write() -> None:
        report["seconds"] = round(time.perf_counter() - started, 1)
        if out is not None:
            out.write_text(json.dumps(report, indent=1) + "\n")

    for name, check in checks(model, tiny).items():
        report["checks"][name] = _outcome(name, check)
    n_prompt, n_new = (8, 4) if tiny else (64, 64)
    for batch_size in (1, 3) if tiny else ROUNDS:
        if time.perf_counter() < deadline:
            report["scans"].append(scan_cost(model, batch_size, has_bar=not tiny))
            print(json.dumps(report["scans"][-1]), flush=True)
    for batch_size in (1, 3) if tiny else ROUNDS:
        if time.perf_counter() > deadline:
            print(f"no time left for batch size {batch_size}", flush=True)
            continue
        n_rounds = arguments.rounds or (2 if tiny else ROUNDS[batch_size])
        report["cases"].append(measure(model, batch_size, n_prompt, n_new, n_rounds, deadline, has_bar=not tiny))
        print(_lines(report["cases"][-1]), flush=True)
        write()
    # last, because what cannot be captured can leave the device in a bad state
    for name, check in late_checks(model).items():
        if time.perf_counter() < deadline:
            report["checks"][name] = _outcome(name, check)
    write()
    print_table(report)
    missed = [case for case in (*report["scans"], *report["cases"]) if case["passed"] is False]
    return int(bool(missed) or not all(check["passed"] for check in report["checks"].values()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small model; default where there is no GPU")
    parser.add_argument("--budget-seconds", type=float, default=450, help="after these no other case is started")
    parser.add_argument("--rounds", type=count, help="for every batch size")
    parser.add_argument("--out", type=out_file, help=f"file to write [{RESULTS.relative_to(RESULTS.parents[2])}]")
    return parser.parse_args()


def build(geometry: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """A random model, made where it is to run; in bfloat16 on a GPU, in float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        hf: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_5_moe_text", **geometry), dtype=dtype)
        # logits as far apart as a trained model's, so that entropies differ from layer to layer and row to row
        hf.lm_head.weight.normal_(0, 4.5 / geometry["hidden_size"] ** 0.5)
        hf.model.norm.weight.normal_(0, 0.15)
    assert all(parameter.device.type == device.type for parameter in hf.parameters())
    return hf.eval()


# -------------------------------------------------------------------------------------------------------------- checks

Outcome = tuple[bool, str]


def checks(model: Model, tiny: bool) -> dict[str, Callable[[], Outcome]]:
    """Checks that must pass before anything is timed."""
    prompts = random_prompts(model, 4, 8 if tiny else 64)
    found: dict[str, Callable[[], Outcome]] = {
        "p = 0 and window = 1 give the model's own logits": lambda: check_own_logits(model, prompts),
        "batched = lazy = plain loop": lambda: check_scans(model, random_prompts(model, 16, 8 if tiny else 64)),
    }
    if model.device.type == "cuda":
        for name, (is_fused, strategy) in valleys().items():
            found[f"captured graph = eager loop, {name}"] = lambda is_fused=is_fused, strategy=strategy: check_graph(
                model, prompts, strategy, is_fused=is_fused
            )
        found["captured graph = eager loop, without strategy"] = lambda: check_graph(model, prompts, ll.Last())
    else:
        found["fixed cache = growing cache"] = lambda: check_caches(model, prompts)
    return found


def late_checks(model: Model) -> dict[str, Callable[[], Outcome]]:
    """Whether the other strategies can be captured."""
    if model.device.type != "cuda":
        return {}
    prompts = random_prompts(model, 4, 64)
    sampled = {"temperature": 1.0, "top_p": 0.9}
    found: dict[str, Callable[[], Outcome]] = {
        "captured graph = eager loop, p = 0.5, sampled": lambda: check_graph(
            model, prompts, ll.Valley(WINDOW, p=0.5), **sampled
        )
    }
    for strategy in (ll.Fixed(1), ll.SLED(), ll.DoLa(), ll.Valley(WINDOW, shift=-1)):
        found[f"captured graph = eager loop, {strategy}"] = lambda strategy=strategy: check_graph(
            model, prompts, strategy
        )
    return found


def fused(model: Model, on: bool) -> Model:
    """The model with its readout by the kernel, or by torch's products."""
    return replace(model, unembed=replace(model.unembed, fused=on))


def valleys() -> dict[str, tuple[bool, Strategy]]:
    """The ways to decode from the valley: for each, whether the readout is fused, and the strategy."""
    found: dict[str, tuple[bool, Strategy]] = {"valley": (False, ll.Valley(WINDOW))}
    if find_spec("triton"):
        found["fused"] = (True, ll.Valley(WINDOW))
        found["fused, lazy"] = (True, ll.Valley(WINDOW, scan="lazy"))
    return found


@torch.no_grad()
def check_own_logits(model: Model, prompts: list[list[int]]) -> Outcome:
    """Whether the logits are the model's own, bit for bit."""
    hf: Any = model.hf
    ids = torch.tensor(prompts, device=model.device)
    own = hf(input_ids=ids, use_cache=False).logits[:, -1]
    equal = []
    for strategy in (ll.Valley(WINDOW, p=0.0), ll.Valley(window=1), ll.Last()):
        with Chooser(model, strategy).choosing():
            equal.append(torch.equal(hf(input_ids=ids, use_cache=False).logits[:, -1], own))
    return all(equal), f"{sum(equal)} of {len(equal)} equal"


@torch.no_grad()
def check_scans(model: Model, prompts: list[list[int]]) -> Outcome:
    """Whether every row stops where a plain loop stops, which reads state by state, in float32, by torch."""
    near, rounding = NEAR_TIE[model.hf.dtype], ROUNDING[model.hf.dtype]
    states = states_of(model, prompts)
    steps, logits, values = plain_loop(model, states)
    # rows where the loop compared two values that rounding may order either way
    compared = [values[row][: steps[row] + 2] for row in range(len(prompts))]
    clear = [all(abs(a - b) > near for a, b in pairwise(row)) for row in compared]
    wrong, worst = [], 0.0
    scans = [("batched", True, False), ("lazy", True, False), ("auto", False, False)]
    if find_spec("triton"):
        scans += [("batched", True, True), ("lazy", True, True), ("auto", False, True), ("lazy", False, True)]
    for scan, may_branch, is_fused in scans:
        name = f"{scan}{'' if may_branch else ', captured'}{', fused' * is_fused}"
        uniform = torch.zeros(len(prompts), device=model.device)
        head = fused(model, is_fused).unembed
        readouts = Readouts(head, states, model.n_layers, uniform, may_branch=may_branch)
        walk = walk_back(readouts, WINDOW, shannon, scan)
        for row in range(len(prompts)):
            if clear[row]:
                worst = max(worst, float((walk.valley_logits[row] - logits[row]).abs().max()))
                if int(walk.steps[row]) != steps[row]:
                    wrong.append(f"{name} scan, row {row}: {int(walk.steps[row])} steps instead of {steps[row]}")
    detail = f"{sum(clear)} rows, depths {sorted(set(steps))}, logits within {worst:.1e}"
    return not wrong and worst < rounding and sum(clear) > 0, "; ".join([detail, *wrong])


def states_of(model: Model, prompts: list[list[int]]) -> dict[int, torch.Tensor]:
    """The states of the window's layers at the last position of every prompt."""
    found: dict[int, torch.Tensor] = {}
    layers = range(model.n_layers - WINDOW + 1, model.n_layers + 1)
    hf: Any = model.hf
    with replacing_logits(model.hf, model.head, model.blocks, layers, lambda states, _: found.update(states)):
        hf(input_ids=torch.tensor(prompts, device=model.device), use_cache=False)
    return found


def plain_loop(
    model: Model, states: dict[int, torch.Tensor]
) -> tuple[list[int], list[torch.Tensor], list[list[float]]]:
    """For each row: steps, the logits where it stopped, and the entropies of the window from L backwards."""
    hf: Any = model.hf
    weight = hf.lm_head.weight.float()
    steps, chosen, entropies = [], [], []
    for row in range(len(states[model.n_layers])):
        window = []
        for layer in range(model.n_layers, model.n_layers - WINDOW, -1):
            logits = torch.nn.functional.linear(hf.model.norm(states[layer][row : row + 1]).float(), weight)[0]
            log_probs = logits.log_softmax(0)
            window.append((float(-(log_probs.exp() * log_probs).sum()), logits))
        walked = 0
        while walked + 1 < WINDOW and window[walked + 1][0] < window[walked][0]:
            walked += 1
        steps.append(walked)
        chosen.append(window[walked][1])
        entropies.append([entropy for entropy, _ in window])
    return steps, chosen, entropies


def check_graph(
    model: Model, prompts: list[list[int]], strategy: Strategy, *, is_fused: bool = False, **sampling: float
) -> Outcome:
    """Whether all tokens and decisions are the same, and whether a graph was captured at all."""
    options = GenerateOptions(max_new_tokens=40, min_new_tokens=40, **sampling)
    model = fused(model, is_fused)
    with mock.patch.object(_Batch, "_captured", autospec=True, side_effect=_Batch._captured) as captured:
        graphed = decode_batch(model, prompts, Chooser(model, strategy), options, seed=1)
        n_graphs = captured.call_count
        with mock.patch("layerlens.decode.batch._EAGER_STEPS", 10**9):
            eager = decode_batch(model, prompts, Chooser(model, strategy), options, seed=1)
        is_eager = captured.call_count == n_graphs
    same, detail = _same(graphed, eager)
    return same and n_graphs > 0 and is_eager, f"{n_graphs} graph, {detail}"


def check_caches(model: Model, prompts: list[list[int]]) -> Outcome:
    """Whether a cache of fixed size, which a graph needs, changes nothing; a CPU can show this too."""
    options = GenerateOptions(max_new_tokens=12, min_new_tokens=12)
    fixed, growing = (
        decode_batch(model, prompts, Chooser(model, ll.Valley(WINDOW)), options, seed=1, static=static)
        for static in (True, False)
    )
    return _same(fixed, growing)


def _same(one: Decoded, other: Decoded) -> Outcome:
    pairs = list(zip(one.outputs, other.outputs, strict=True))
    equal = sum(a == b for row, also in pairs for a, b in zip(row, also, strict=True))
    total = sum(len(row) for row, _ in pairs)
    decided = torch.equal(one.all_decisions.numbers, other.all_decisions.numbers)
    return equal == total and decided, f"{equal} of {total} tokens equal, decisions {'equal' if decided else 'differ'}"


def _outcome(name: str, check: Callable[[], Outcome]) -> dict[str, Any]:
    try:
        passed, detail = check()
    except Exception as error:
        passed, detail = False, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    print(f"{'ok  ' if passed else 'FAIL'} {name}: {detail}", flush=True)
    return {"passed": passed, "detail": detail}


# -------------------------------------------------------------------------------------------------------------- timing


@torch.no_grad()
def scan_cost(model: Model, batch_size: int, *, has_bar: bool) -> dict[str, Any]:
    """Seconds of one unembedding of the last layer, and of the choice among the window by each way; on a GPU for
    replays of a graph. The scan's own work is the time beyond that one unembedding, which the scan replaces."""
    generator = torch.Generator(model.device).manual_seed(batch_size)
    states = {
        layer: torch.randn(batch_size, model.d_model, generator=generator, device=model.device).to(model.hf.dtype)
        for layer in range(model.n_layers - WINDOW + 1, model.n_layers + 1)
    }
    uniform = torch.zeros(batch_size, device=model.device)

    def walk(head: Unembed, strategy: Strategy) -> None:
        strategy.choose(Readouts(head, states, model.n_layers, uniform, may_branch=False))

    ways = valleys()
    seconds = {"unembedding": _replayed(lambda: model.unembed.logits(states[model.n_layers]), model.device)}
    for name, (is_fused, strategy) in ways.items():
        head = fused(model, is_fused).unembed
        seconds[name] = _replayed(lambda head=head, strategy=strategy: walk(head, strategy), model.device)
    own = {name: seconds[name] / seconds["unembedding"] - 1 for name in ways}
    bar = MOST_OF_AN_UNEMBEDDING.get(batch_size) if has_bar else None
    passed = None if bar is None else min(own.values()) <= bar
    return {"batch_size": batch_size, "seconds": seconds, "own_work_of_an_unembedding": own, "passed": passed}


def _replayed(work: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of one call."""
    is_cuda = device.type == "cuda"
    for _ in range(3 if is_cuda else 1):
        work()
    if is_cuda:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    found = []
    for _ in range(30 if is_cuda else 1):
        if is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def measure(
    model: Model, batch_size: int, n_prompt: int, n_new: int, n_rounds: int, deadline: float, *, has_bar: bool
) -> dict[str, Any]:
    """Time `Last()` and the ways to the valley in turn on the same prompts; fewer if the deadline comes first."""
    prompts = random_prompts(model, batch_size, n_prompt)
    ways: dict[str, tuple[bool, Strategy]] = {"last": (False, ll.Last())} | valleys()

    def once(name: str, n_tokens: int, *, fresh: bool = False) -> dict[str, Any]:
        is_fused, strategy = ways[name]
        return run(fused(model, is_fused), prompts, strategy, n_tokens, fresh=fresh)

    for name in ways:  # kernels and handles that come into being once
        once(name, 4 if model.device.type == "cuda" else 1)
    memory = {name: once(name, n_new, fresh=True) for name in ways}
    rounds: list[dict[str, dict[str, Any]]] = []
    for one in in_turns({name: partial(once, name, n_new) for name in ways}, n_rounds, lambda way: way()):
        rounds.append(one)
        if time.perf_counter() > deadline:
            break
    seconds = [{name: run["seconds"] for name, run in one.items()} for one in rounds]
    steady = [{name: run["seconds_per_steady_token"] for name, run in one.items()} for one in rounds]
    is_cuda = model.device.type == "cuda"
    found = {name: _beside_last(name, rounds, seconds, steady, memory, model) for name in ways if name != "last"}
    best = max(found.values(), key=lambda way: min(way["ratio"], way["steady_ratio"]))
    passed = None
    if has_bar:
        fast = min(best["ratio"], best["steady_ratio"]) >= 1 - MOST_SLOWER[batch_size]
        passed = fast and best["extra_memory_mib"] < MOST_EXTRA_MIB
    return {
        "batch_size": batch_size,
        "prompt_tokens": n_prompt,
        "new_tokens": n_new,
        "rounds": len(rounds),
        "tokens_per_second": {
            name: batch_size * n_new / statistics.median(one[name] for one in seconds) for name in ways
        },
        "steady_tokens_per_second": {name: 1 / statistics.median(one[name] for one in steady) for name in ways},
        "generate_tokens_per_second": generate(model, prompts, n_new) if time.perf_counter() < deadline else None,
        "peak_memory_mib": memory["valley"]["allocated"] / MIB if is_cuda else None,
        "ways": found,
        "passed": passed,
    }


def _beside_last(
    name: str,
    rounds: list[dict[str, dict[str, Any]]],
    seconds: list[dict[str, float]],
    steady: list[dict[str, float]],
    memory: dict[str, dict[str, Any]],
    model: Model,
) -> dict[str, Any]:
    ratios = [one["last"] / one[name] for one in seconds]
    decisions = rounds[-1][name]["decoded"].all_decisions
    is_cuda = model.device.type == "cuda"
    extra = {kind: (memory[name][kind] - memory["last"][kind]) / MIB for kind in ("allocated", "reserved")}
    return {
        "ratio": paired_ratio(seconds, name, "last"),
        "ratio_least_and_most": [min(ratios), max(ratios)],
        "steady_ratio": paired_ratio(steady, name, "last"),
        "extra_memory_mib": extra["allocated"] if is_cuda else None,
        "extra_reserved_mib": extra["reserved"] if is_cuda else None,
        "projections_per_token": float(decisions.projections.float().mean()),
        "mean_depth": mean_depth(decisions, model.n_layers),
    }


def run(
    model: Model, prompts: list[list[int]], strategy: Strategy, n_new: int, *, fresh: bool = False
) -> dict[str, Any]:
    """One call of the loop: seconds, seconds per token of its second half, peak memory, and what was decoded.

    With `fresh`, the allocator first frees its reserve, so that reserved memory is only that of this call.
    """
    device = model.device
    is_cuda = device.type == "cuda"
    if fresh:
        gc.collect()
    if is_cuda:
        if fresh:
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    options = GenerateOptions(max_new_tokens=n_new, min_new_tokens=n_new, batch_size=len(prompts))
    blocks: list[tuple[float, int]] = []
    started = time.perf_counter()
    decoded = decode_batch(
        model,
        prompts,
        Chooser(model, strategy),
        options,
        seed=0,
        on_tokens=lambda n: blocks.append((time.perf_counter(), n)),
    )
    seconds = time.perf_counter() - started
    # from the first block on that ends in the second half: on a GPU nothing but replays of the graph
    done = [sum(n for _, n in blocks[: index + 1]) for index in range(len(blocks))]
    half = next(index for index, n in enumerate(done) if 2 * n >= done[-1])
    since = half if half + 1 < len(blocks) else 0
    return {
        "seconds": seconds,
        "seconds_per_steady_token": (blocks[-1][0] - blocks[since][0]) / max(1, done[-1] - done[since]),
        "allocated": torch.cuda.max_memory_allocated(device) if is_cuda else 0,
        "reserved": torch.cuda.max_memory_reserved(device) if is_cuda else 0,
        "decoded": decoded,
    }


def generate(model: Model, prompts: list[list[int]], n_new: int) -> float:
    """Tokens per second of transformers' own `generate`, measured once, after a short call, for comparison."""
    for n_tokens in (2, n_new):
        options = GenerateOptions(max_new_tokens=n_tokens, min_new_tokens=n_tokens)
        seconds = seconds_of(generate_way(model, prompts, options), model.device)
    return len(prompts) * n_new / seconds


def random_prompts(model: Model, n_rows: int, n_tokens: int) -> list[list[int]]:
    """Token ids, without the special ones of the tokenizer."""
    generator = torch.Generator().manual_seed(n_rows)
    rows: list[list[int]] = torch.randint(3, model.n_vocab, (n_rows, n_tokens), generator=generator).tolist()
    return rows


# --------------------------------------------------------------------------------------------------------------- table


def print_table(report: dict[str, Any]) -> None:
    """Print one line for each batch size."""
    hardware = report["machine"]
    print(
        f"\n{report['geometry']}, {report['parameters'] / 1e9:,.1f} billion parameters, {report['dtype']}, "
        f"window {WINDOW}; {hardware['gpu'] or hardware['processor']}, torch {hardware['torch']}, "
        f"transformers {hardware['transformers']}; {report['seconds']:.0f} s"
    )
    print("the scan's own work, of one unembedding (bar: 1.5 up to 32 rows)\n")
    for one in report["scans"]:
        own = ", ".join(f"{name} {share:.2f}" for name, share in one["own_work_of_an_unembedding"].items())
        print(f"  batch {one['batch_size']:>3}, {1e6 * one['seconds']['unembedding']:,.0f} us: {own}{_verdict(one)}")
    print("\ntokens/s of whole calls; steady: of their second half; memory: allocated (reserved), above Last's\n")
    print(f"{'batch':>5} {'way':<12} {'tokens/s':>9} {'of last':>7} {'steady':>7} {'memory':>16} {'made':>6}")
    for case in report["cases"]:
        print(_lines(case))
    failed = [name for name, check in report["checks"].items() if not check["passed"]]
    print(f"\nchecks: {len(report['checks']) - len(failed)} passed, {len(failed)} failed{': ' * bool(failed)}", end="")
    print("; ".join(failed))


def _lines(case: dict[str, Any]) -> str:
    speeds, generated = case["tokens_per_second"], case["generate_tokens_per_second"]
    lines = [f"{case['batch_size']:>5} {'last':<12} {speeds['last']:>9,.1f}"]
    if generated is not None:
        lines.append(f"{'':>5} {'generate':<12} {generated:>9,.1f} {generated / speeds['last']:>7.3f}")
    for name, way in case["ways"].items():
        extra = way["extra_memory_mib"]
        memory = "" if extra is None else f"{extra:,.0f} ({way['extra_reserved_mib']:,.0f}) MiB"
        lines.append(
            f"{'':>5} {name:<12} {speeds[name]:>9,.1f} {way['ratio']:>7.3f} {way['steady_ratio']:>7.3f} {memory:>16} "
            f"{way['projections_per_token']:>6.2f}"
        )
    lines[0] += _verdict(case)
    return "\n".join(lines)


def _verdict(found: dict[str, Any]) -> str:
    return {None: "", True: "  pass", False: "  MISS"}[found["passed"]]


if __name__ == "__main__":
    run_main(main)
