"""What varies where the same texts are traced in another way: batch size, threads, instruction set, type, backend.

    python benchmarks/spread.py [--model smollm2-135m-instruct] [--prompts 20] [--vllm PYTHON] [--out FILE]

Each way runs in a process of its own and is compared with the first: one text at a time, float32, one thread, all
instructions of the processor. The texts are given, so all ways record the same tokens; then each way continues them
greedily from the valley. --vllm names the Python of an environment with vLLM.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results" / "spread.json"
NEW_TOKENS = 32
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}
ONE = {"batch_size": 1, "threads": 1, "dtype": "float32", "backend": "transformers"}
WAYS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "one text at a time": (ONE, {}),
    "the same again": (ONE, {}),
    "batches of 4": (ONE | {"batch_size": 4}, {}),
    "batches of 16": (ONE | {"batch_size": 16}, {}),
    "two threads": (ONE | {"threads": 2}, {}),
    "AVX2": (ONE, AVX2),
    "AVX-512 without bfloat16": (ONE, AVX512),
    "transformer-lens": (ONE | {"backend": "transformer-lens"}, {}),
    "nnsight": (ONE | {"backend": "nnsight"}, {}),
    "vLLM": (ONE | {"backend": "vllm"}, {}),
    "bfloat16": (ONE | {"dtype": "bfloat16"}, {}),
    "bfloat16, batches of 16": (ONE | {"dtype": "bfloat16", "batch_size": 16}, {}),
}


def main() -> None:
    """Run every way, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=count, default=20)
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument("--out", type=out_file, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        traced(json.loads(options.child))
        return

    import torch

    import layerlens as ll
    from layerlens.bench.machine import machine

    with tempfile.TemporaryDirectory() as folder:
        model = ll.load(options.model, dtype="float32", device="cpu")
        model.hf.save_pretrained(f"{folder}/model")
        model.tokenizer.save_pretrained(f"{folder}/model")
        texts = [str(prompt.content) for prompt in ll.dataset("sample").prompts]
        texts = [texts[number % len(texts)][: 400 - 7 * number] for number in range(options.prompts)]
        found, report = {}, {}
        for name, (asked, held) in WAYS.items():
            if name == "vLLM" and not options.vllm:
                continue
            out = Path(folder) / f"{len(found)}.npz"
            asked = asked | {"folder": f"{folder}/model", "texts": texts, "out": str(out)}
            python = options.vllm if name == "vLLM" else sys.executable
            environment = os.environ | held | {"OMP_NUM_THREADS": str(asked["threads"])}
            subprocess.run([python, __file__, "--child", json.dumps(asked)], env=environment, check=True)
            found[name] = dict(np.load(out))
            if len(found) > 1:
                report[name] = compared(*(found[one] for one in (next(iter(found)), name)))
                print(f"{name:26}" + "  ".join(f"{key} {value:.3g}" for key, value in report[name].items()), flush=True)
        n_rows = len(next(iter(found.values()))["entropy"])
    said = {"model": options.model, "texts": len(texts), "tokens": n_rows, "new_tokens": NEW_TOKENS, "ways": report}
    options.out.write_text(json.dumps(said | {"machine": machine(torch.device("cpu"))}, indent=1) + "\n")


def traced(asked: dict[str, Any]) -> None:
    """Trace the texts in one way, continue them, and write what is compared."""
    import torch

    import layerlens as ll
    from layerlens.errors import Notice

    warnings.simplefilter("ignore", Notice)
    torch.set_num_threads(asked["threads"])
    device = {} if asked["backend"] == "vllm" else {"device": "cpu"}
    model = ll.load(asked["folder"], dtype=asked["dtype"], backend=asked["backend"], **device)
    few = {"batch_size": asked["batch_size"], "chat_template": False, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        given = ll.trace(model, asked["texts"], out=f"{folder}/given", max_new_tokens=0, **few)
        rows = given.positions.sort_values(["prompt_id", "position"]).index
        kept = {"entropy": given.layers("entropy")[rows], "top": given.layers("top_token_id")[rows]}
        if "nnsight" not in asked["backend"]:  # which emits the last layer's tokens
            few |= {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "strategy": ll.Valley(window=10)}
            made = ll.trace(model, asked["texts"], out=f"{folder}/made", **few)
            generated = made.positions[made.positions["is_generated"]].sort_values(["prompt_id", "position"])
            kept["made"] = generated["token_id"].to_numpy().reshape(len(asked["texts"]), -1)
        np.savez(asked["out"], **kept)


def compared(first: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Differences of entropies in nats, and shares of what differs."""
    miss = np.abs(first["entropy"].astype(float) - other["entropy"])
    said = {
        "mean": float(miss.mean()),
        "p99": float(np.quantile(miss, 0.99)),
        "most": float(miss.max()),
        "share_of_first_choices": float((first["top"] != other["top"]).mean()),
        "share_of_valleys": float((valleys(first["entropy"]) != valleys(other["entropy"])).mean()),
    }
    if "made" in other:
        said["share_of_continuations"] = float((first["made"] != other["made"]).any(1).mean())
    return said


def valleys(entropy: Any, window: int = 10) -> Any:
    """The layer where the walk back from the last ends: while the entropy falls, within the window."""
    falls = entropy[:, -2 : -window - 1 : -1] < entropy[:, :-window:-1]
    return entropy.shape[1] - np.logical_and.accumulate(falls, axis=1).sum(axis=1)


if __name__ == "__main__":
    run_main(main)
