"""What drafts with blocks left out must not do, and what they can gain, in three parts.

    python benchmarks/speculative.py lossless [--model M] [--prompts P] [--new-tokens N] [--rows R] [--out FILE]
    python benchmarks/speculative.py planted [--prompts P] [--new-tokens N] [--out FILE]
    python benchmarks/speculative.py given-up [--model M] [--prompts P] [--new-tokens N] [--out FILE]

`lossless` answers the shipped problems greedily with every policy, as chains and as trees, one by one (--rows 1) or in
batches, and counts texts that differ from those without drafts. For a text that does, it gives the difference of
the two logits where it begins to differ. `planted` makes a model in which most blocks do nothing, and measures what
each searching policy leaves out and how much faster it decodes, search included. `given-up` measures what a
policy costs after it has given up. Writes the results with a description of the machine. Run the last two alone on the
machine.
"""

import argparse
import json
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from arguments import count, out_file, run_main

RESULTS = Path(__file__).parent / "results"
PLANTED_LAYERS, USEFUL = 24, (0, 11, 23)
PLANTED_SHARE = 0.7  # of the blocks that can be left out, for the policies that are told a share; 21 of 22 are idle


def main() -> None:
    """Measure, print, write."""
    arguments = _parse()
    import torch

    torch.set_num_threads(arguments.threads)
    from layerlens.bench.machine import machine

    report = {"lossless": lossless, "planted": planted, "given-up": given_up}[arguments.part](arguments)
    report["machine"] = machine(torch.device("cpu"))
    name = f"speculative_{arguments.part.replace('-', '_')}"
    out = arguments.out or RESULTS / f"{name}.json"
    out.write_text(json.dumps(report, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("lossless", "planted", "given-up"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=count, default=20)
    parser.add_argument("--new-tokens", type=count, default=200)
    parser.add_argument("--rows", type=count, default=20, help="prompts that go through the model together")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--out", type=out_file)
    return parser.parse_args()


def policies() -> dict[str, Any]:
    """Every policy that needs nothing else, with options by which it drafts, and none that gives up."""
    import layerlens as ll

    return {
        "conflayers": ll.ConfLayers(patience=None),
        "conflayers, vocabulary": ll.ConfLayers(readout="vocabulary", patience=None),
        "swift": ll.Swift(patience=None),
        "clasp": ll.Clasp(patience=None),
        "knapspec": ll.KnapSpec(patience=None),
        "every-other": ll.EveryOther(patience=None),
    }


def token_ids(model: Any, n: int) -> list[list[int]]:
    """The first of the shipped problems, as the model is asked them."""
    from layerlens.datasets import dataset
    from layerlens.decode.options import GenerateOptions, settle_chat_template
    from layerlens.decode.prompts import tokenize

    settled = settle_chat_template(GenerateOptions(), bool(model.tokenizer.chat_template))
    return [list(prompt.token_ids) for prompt in tokenize(model, dataset("sample", limit=n).prompts, settled)]


def lossless(arguments: argparse.Namespace) -> dict[str, Any]:
    """Texts with and without drafts."""
    import torch

    import layerlens as ll
    from layerlens.decode.batch import decode_batch
    from layerlens.decode.chooser import Chooser
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.speculative.drafter import Drafter
    from layerlens.decode.speculative.loop import decode_drafted

    model = ll.load(arguments.model, dtype="float32", device="cpu")
    prompts = token_ids(model, arguments.prompts)
    batches = [prompts[start : start + arguments.rows] for start in range(0, len(prompts), arguments.rows)]
    options = GenerateOptions(max_new_tokens=arguments.new_tokens, generation_config=False, eos_token_id=-1)
    plain = [
        text for batch in batches for text in decode_batch(model, batch, Chooser(model, ll.Last()), options, 0).outputs
    ]
    rows = []
    for name, policy in policies().items():
        for tree in (False, True):
            drafter, texts, began = Drafter(model, replace(policy, tree=tree)), [], time.perf_counter()
            for batch in batches:
                texts += decode_drafted(model, batch, ll.Last(), options, 0, drafter).outputs
            seconds = time.perf_counter() - began
            margins = []
            for prompt, one, other in zip(prompts, plain, texts, strict=True):
                place = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
                if place is not None:
                    with torch.no_grad():
                        logits = model.hf(input_ids=torch.tensor([[*prompt, *one[:place]]])).logits[0, -1]
                    margins.append(abs(float(logits[one[place]] - logits[other[place]])))
            drafted = drafter.rounds
            drafted = drafted[drafted["set"] >= 0]
            row = {
                "policy": name,
                "tree": tree,
                "texts": len(texts),
                "tokens": sum(map(len, texts)),
                "different": sum(one != other for one, other in zip(plain, texts, strict=True)),
                "margins": margins,
                "rounds": len(drafted),
                "acceptance": float(drafted["accepted"].sum() / max(drafted["drafted"].sum(), 1)),
                "seconds": seconds,
            }
            rows.append(row)
            print(row, flush=True)
    return {"model": model.source, "rows": arguments.rows, "new_tokens": arguments.new_tokens, "policies": rows}


def planted_model() -> Any:
    """A model of 24 blocks of which 21 do next to nothing, and whose other blocks do a lot."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import layerlens as ll
    from layerlens.models import tiny_tokenizer

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=PLANTED_LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for number, block in enumerate(hf.model.layers):
            if number not in USEFUL:
                block.self_attn.o_proj.weight *= 1e-3
                block.mlp.down_proj.weight *= 1e-3
        hf.lm_head.weight *= 16  # so that a draft is sure of most tokens
    return ll.load(hf, tokenizer=tokenizer)


def planted(arguments: argparse.Namespace) -> dict[str, Any]:
    """What each policy finds in the planted model, and how much faster it decodes."""
    import layerlens as ll
    from layerlens.bench.speculative import measure_speculative
    from layerlens.decode.options import GenerateOptions

    model = planted_model()
    generator = Random(0)
    prompts = [[generator.randrange(3, model.n_known_tokens) for _ in range(24)] for _ in range(arguments.prompts)]
    options = GenerateOptions(max_new_tokens=arguments.new_tokens, eos_token_id=-1, generation_config=False)
    told = {name: replace(policies()[name], skip_ratio=PLANTED_SHARE) for name in ("swift", "clasp")}
    idle = [number for number in range(PLANTED_LAYERS) if number not in USEFUL]
    searching = {name: policy for name, policy in policies().items() if name != "every-other"}
    asked = searching | told | {"fixed": ll.FixedSkip(idle)}
    report, drafters = measure_speculative(model, asked, prompts, options)
    for row in report["table"]:
        if row["way"] in drafters:
            skips = drafters[row["way"]].skips
            row["planted_left_out"] = sum((number in skips.attention) + (number in skips.mlp) for number in idle)
            row["planted"] = 2 * len(idle)
            row["useful_left_out"] = len(skips) - row["planted_left_out"]
        print({key: value for key, value in row.items() if key != "skipped"}, flush=True)
    return report


def given_up(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plain decoding, and the loop of drafts after it has given up, in turns."""
    import layerlens as ll
    from layerlens.decode.batch import decode_batch
    from layerlens.decode.chooser import Chooser
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.speculative.drafter import Drafter
    from layerlens.decode.speculative.loop import decode_drafted

    model = ll.load(arguments.model, dtype="float32", device="cpu")
    prompts = token_ids(model, arguments.prompts)
    options = GenerateOptions(max_new_tokens=arguments.new_tokens, generation_config=False, eos_token_id=-1)
    drafter = Drafter(model, ll.EveryOther(patience=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode_drafted(model, [prompts[0]], ll.Last(), options, 0, drafter)
    assert not drafter.pays, "a draft without half of the blocks is rejected"
    ways = {
        "plain": lambda prompt: decode_batch(model, [prompt], Chooser(model, ll.Last()), options, 0).outputs,
        "given up": lambda prompt: decode_drafted(model, [prompt], ll.Last(), options, 0, drafter).outputs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number, prompt in enumerate(prompts):
        texts = {}
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            began = time.perf_counter()
            texts[name] = ways[name](prompt)
            seconds[name].append(time.perf_counter() - began)
        assert texts["plain"] == texts["given up"]
    ratios = [one / other for one, other in zip(seconds["given up"], seconds["plain"], strict=True)]
    report = {
        "model": model.source,
        "prompts": len(prompts),
        "new_tokens": arguments.new_tokens,
        "seconds": seconds,
        "ratio_of_totals": sum(seconds["given up"]) / sum(seconds["plain"]),
        "median_ratio": statistics.median(ratios),
    }
    print({key: value for key, value in report.items() if key != "seconds"})
    return report


if __name__ == "__main__":
    run_main(main)
