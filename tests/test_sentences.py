"""The sentences that users meet most, in Python and on the command line. Every other test asserts an error's fields."""

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.analysis.ablation import ablation_table
from layerlens.decode.options import whole
from layerlens.errors import Notice
from layerlens.evaluation.ablation import conditions, probabilities
from layerlens.evaluation.arms import arms_of
from layerlens.evaluation.benchmarks import refuse_unknown
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.tables import composed
from tests.conftest import tiny
from tests.evaluation.made_up import write_ablation
from tests.made_up_run import write_run

TRACE = "trace --model MODEL --out OUT --dataset sample"
GENERATE = "generate --model MODEL --prompt hello"
ABLATE = "ablate --model MODEL --tasks sample --out OUT"
TRACED = "trace --model MODEL --out OUT --dataset sample --limit 2 --max-new-tokens 2"
FIGURES = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, agreement, onset, settling, parts, grid, explanation"
KNOWN = "last, fixed, valley, dola, sled (last-N, valley-N, valley+N, and the release's trough, trough-mN, trough-pN, "
KNOWN += "last-mN)"
TASKS = "sample, gpqa, hle, livecodebench_v6, livecodebench_release_v6, longbench_v2, longbench_v2_cot, omni_math, "
TASKS += "air_bench, writingbench, gsm8k, math500"
ARMS = "last,last-1,last-2,last-4,valley,valley-2,valley-1,valley+1,valley+2"


class Refusal(NamedTuple):
    """What is done in Python and on the command line, and what is said there; None where it cannot be done there.

    AT is a directory with a run of two tokens and two layers, one without a complete prompt, one that MODEL traced, and
    an ablation. MODEL has four layers; OUT does not exist.
    """

    do: Callable[[Path], object] | None
    in_python: str | None
    typed: str | None
    on_the_command_line: str | None


def traced(**options: object) -> Callable[[Path], object]:
    return lambda at: ll.trace(tiny("llama"), ["a"], out=at / "out", progress=False, **{"max_new_tokens": 2} | options)


def traced_prompt(at: Path, **options: object) -> object:
    model, prompts = ll.load(at / "model"), ll.read_prompts(at / "p.txt")
    return ll.trace(model, prompts, out=at / "traced", max_new_tokens=2, progress=False, **options)


SENTENCES = [
    # options of a generation
    Refusal(
        lambda at: ll.TraceOptions(max_new_tokens=-1),
        "max_new_tokens -1 is too small; give a whole number from 0",
        f"{TRACE} --max-new-tokens -1",
        "--max-new-tokens -1 is too small; give a whole number from 0",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(max_new_tokens=2.5),
        "max_new_tokens 2.5 is not a whole number; give one from 1",
        f"{GENERATE} --max-new-tokens 2.5",
        "--max-new-tokens 2.5 is not a whole number; give one, such as 3",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(seed=2**63),
        "seed 9223372036854775808 is too large; give a whole number below 2**63",
        f"{GENERATE} --seed 9223372036854775808",
        "--seed 9223372036854775808 is too large; give a whole number below 2**63",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(batch_size=0),
        "batch_size 0 is too small; give a whole number from 1",
        f"{TRACE} --batch-size 0",
        "--batch-size 0 is too small; give a whole number from 1",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(temperature=-1.0),
        "temperature -1.0 is out of range; give 0 for greedy, or 0.001 and more",
        f"{GENERATE} --temperature -1",
        "--temperature -1 is out of range; give 0 for greedy, or 0.001 and more",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(temperature=0.5, top_p=0.0),
        "top_p 0.0 is out of range; give a number above 0, 1 at most",
        f"{GENERATE} --temperature 0.5 --top-p 0",
        "--top-p 0 is out of range; give a number above 0, 1 at most",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(top_p=0.5),
        "top_p 0.5 has no effect on greedy decoding; give temperature too",
        f"{GENERATE} --top-p 0.5",
        "--top-p 0.5 has no effect on greedy decoding; give --temperature too",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(do_sample=True),
        "do_sample=True contradicts temperature 0.0; give a temperature above 0 to sample, and 0 not to",
        None,
        None,
    ),
    Refusal(
        lambda at: ll.GenerateOptions(repetition_penalty=0.0),
        "repetition_penalty 0.0 is out of range; give a number above 0",
        f"{GENERATE} --repetition-penalty 0",
        "--repetition-penalty 0 is out of range; give a number above 0",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(min_new_tokens=9, max_new_tokens=3),
        "min_new_tokens 9 is above max_new_tokens 3; lower it",
        f"{GENERATE} --min-new-tokens 9 --max-new-tokens 3",
        "--min-new-tokens 9 is above --max-new-tokens 3; lower it",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(stop_strings=[""]),
        "stop_strings [''] cannot be used; give texts that are not empty",
        f"{GENERATE} --stop-strings ''",
        "--stop-strings '' cannot be used; give texts that are not empty",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(system="be brief", chat_template=False),
        "system 'be brief' needs the chat template that chat_template=False turns off; drop one of them",
        f"{GENERATE} --system 'be brief' --no-chat-template",
        "--system 'be brief' needs the chat template that --no-chat-template turns off; drop one of them",
    ),
    Refusal(
        lambda at: ll.GenerateOptions(chat_template_args={"messages": 1}),
        "chat_template_args {'messages': 1} is decided by layerlens; leave it out",
        f"{GENERATE} --chat-template-arg messages=1",
        "--chat-template-arg messages=1 is decided by layerlens; leave it out",
    ),
    Refusal(
        None,
        None,
        f"{GENERATE} --chat-template-arg thinks",
        "--chat-template-arg thinks is not of the form KEY=VALUE; write it like enable_thinking=false",
    ),
    # options of a trace
    Refusal(
        lambda at: ll.TraceOptions(mode="live"),
        "mode 'live' is unknown; give generate or replay",
        f"{TRACE} --mode live",
        "--mode live is unknown; give generate or replay",
    ),
    Refusal(
        lambda at: ll.TraceOptions(kl=True, lens_precision="bfloat16"),
        "kl=True does not go with lens_precision 'bfloat16'; leave one of them out",
        f"{TRACE} --kl --lens-precision bfloat16",
        "--kl does not go with --lens-precision bfloat16; leave one of them out",
    ),
    Refusal(
        lambda at: ll.TraceOptions(temperature=0.7, max_new_tokens=0),
        "temperature 0.7 with max_new_tokens 0 has no effect; drop one of them",
        f"{TRACE} --temperature 0.7 --max-new-tokens 0",
        "--temperature 0.7 with --max-new-tokens 0 has no effect; drop one of them",
    ),
    Refusal(
        lambda at: ll.TraceOptions(mode="generate", max_new_tokens=0),
        "mode 'generate' with max_new_tokens 0 generates nothing; drop one of them",
        f"{TRACE} --mode generate --max-new-tokens 0",
        "--mode generate with --max-new-tokens 0 generates nothing; drop one of them",
    ),
    Refusal(
        lambda at: ll.TraceOptions(positions="generated", max_new_tokens=0),
        "positions 'generated' with max_new_tokens 0 keeps nothing; give positions 'all'",
        f"{TRACE} --positions generated --max-new-tokens 0",
        "--positions generated with --max-new-tokens 0 keeps nothing; give --positions all",
    ),
    Refusal(
        traced(window=9),
        "window 9 does not fit a model of 4 layers; give 1..4",
        f"{TRACED} --window 9",
        "--window 9 does not fit a model of 4 layers; give 1..4",
    ),
    Refusal(
        traced(strategy=ll.Valley(), max_new_tokens=0),
        "strategy 'valley' has no effect with max_new_tokens 0; drop one of them",
        f"{TRACED} --strategy valley --max-new-tokens 0",
        "--strategy valley has no effect with --max-new-tokens 0; drop one of them",
    ),
    Refusal(
        traced(system="be brief"),
        "system 'be brief' needs a chat template and this tokenizer has none; leave it out",
        f"{TRACED} --system 'be brief'",
        "--system 'be brief' needs a chat template and this tokenizer has none; leave it out",
    ),
    Refusal(
        traced(max_new_tokens=500),
        "prompt 0 has 1 tokens and 500 new ones, more than the model's context of 128; shorten it or lower "
        "max_new_tokens",
        "trace --model MODEL --out OUT --prompts AT/p.txt --max-new-tokens 500",
        "prompt 1 has 1 tokens and 500 new ones, more than the model's context of 128; shorten it or lower "
        "--max-new-tokens",
    ),
    # strategies
    Refusal(
        lambda at: ll.named_strategy("nix"),
        f"strategy 'nix' is unknown; give {KNOWN}",
        f"{TRACE} --strategy nix",
        f"--strategy nix is unknown; give {KNOWN}",
    ),
    Refusal(
        lambda at: ll.named_strategy("last", p=0.5),
        "p 0.5 has no effect on strategy 'last'; leave it out",
        f"{TRACE} --strategy last --p 0.5",
        "--p 0.5 has no effect on --strategy last; leave it out",
    ),
    Refusal(
        lambda at: ll.named_strategy("fixed"),
        "strategy 'fixed' needs offset; give it in Python (fixed layers have names: last-1, last-2, ...)",
        f"{TRACE} --strategy fixed",
        "--strategy fixed needs offset; give it in Python (fixed layers have names: last-1, last-2, ...)",
    ),
    Refusal(
        lambda at: ll.Valley(p=2),
        "p 2 is not a probability; give a number from 0 to 1",
        f"{TRACE} --strategy valley --p 2",
        "--p 2 is not a probability; give a number from 0 to 1",
    ),
    Refusal(
        lambda at: ll.Valley(criterion="nix"),
        "criterion 'nix' is unknown; give shannon, neg-sum-sq-logp, max-prob, margin",
        f"{GENERATE} --criterion nix",
        "--criterion nix is unknown; give shannon, neg-sum-sq-logp, max-prob, margin",
    ),
    Refusal(
        lambda at: ll.Valley(entropy_floor=0.5, criterion="margin"),
        "entropy_floor 0.5 is in nats and has no meaning for margin; leave it out",
        f"{GENERATE} --entropy-floor 0.5 --criterion margin",
        "--entropy-floor 0.5 is in nats and has no meaning for margin; leave it out",
    ),
    Refusal(
        traced(strategy=ll.Fixed(9)),
        "offset 9 does not fit a model of 4 layers; give offset 0 to offset 3",
        f"{TRACED} --strategy last-9",
        "--strategy last-9 does not fit a model of 4 layers; give --strategy last-0 to --strategy last-3",
    ),
    Refusal(
        traced(strategy=ll.Valley(window=3, shift=-3)),
        "shift -3 can never act in a window of 3 layers of a model of 4; give a shift from -2 to 2, or a larger window",
        f"{TRACED} --strategy valley-3 --window 3",
        "--strategy valley-3 can never act in a window of 3 layers of a model of 4; give a shift from -2 to 2, or a "
        "larger window",
    ),
    # an ablation
    Refusal(
        lambda at: conditions(["walley"]),
        "arms 'walley' is unknown; did you mean valley?",
        f"{ABLATE} --arms walley",
        "--arms walley is unknown; did you mean valley?",
    ),
    Refusal(
        lambda at: conditions(["dola"]),
        f"arms 'dola' has no probability p; give arms such as {ARMS}",
        f"{ABLATE} --arms dola",
        f"--arms dola has no probability p; give arms such as {ARMS}",
    ),
    Refusal(
        lambda at: conditions(["valley", "trough"]),
        "arms 'trough' is valley, which is given already; leave one of them out",
        f"{ABLATE} --arms valley,trough",
        "--arms trough is valley, which is given already; leave one of them out",
    ),
    Refusal(
        lambda at: arms_of(conditions(["last-1"], [1]), window=3),
        "window 3 has no effect on last, last-1; leave it out",
        f"{ABLATE} --arms last-1 --p 1 --window 3",
        "--window 3 has no effect on last, last-1; leave it out",
    ),
    Refusal(
        lambda at: probabilities([0.5, 1.5]),
        "p 1.5 is not a probability; give numbers from 0 to 1",
        f"{ABLATE} --p 0.5,1.5",
        "--p 0.5,1.5 contains '1.5'; give numbers from 0 to 1, separated by commas",
    ),
    Refusal(
        lambda at: whole("epochs", 0, 1),
        "epochs 0 is too small; give a whole number from 1",
        f"{ABLATE} --epochs 0",
        "--epochs 0 is too small; give a whole number from 1",
    ),
    Refusal(
        lambda at: refuse_unknown("essays"),
        f"tasks 'essays' is unknown; give one or more of {TASKS}",
        "ablate --model MODEL --tasks essays --out OUT",
        f"--tasks essays is unknown; give one or more of {TASKS}",
    ),
    Refusal(
        None,
        None,
        "ablate --model MODEL --out OUT",
        f"no --tasks given; give one or more of {TASKS}",
    ),
    Refusal(
        None,
        None,
        "ablate --tasks sample --out AT/ablation",
        "--tasks sample has no effect without a model; give a model, or leave it out",
    ),
    # datasets and prompts
    Refusal(
        lambda at: ll.dataset("essays"),
        "there is no dataset called 'essays'; choose one of sample, gsm8k, gpqa, math500, or give texts of your own as "
        "prompts",
        "trace --model m --out OUT --dataset essays",
        "there is no dataset called 'essays'; choose one of sample, gsm8k, gpqa, math500, or give texts of your own as "
        "--prompts",
    ),
    Refusal(
        lambda at: ll.dataset("gsm9k"),
        "there is no dataset called 'gsm9k'; did you mean gsm8k?",
        "trace --model m --out OUT --dataset gsm9k",
        "there is no dataset called 'gsm9k'; did you mean gsm8k?",
    ),
    Refusal(
        lambda at: ll.dataset("sample", limit=0),
        "limit 0 asks for no prompts; give a whole number from 1",
        f"{TRACE} --limit 0",
        "--limit 0 asks for no prompts; give a whole number from 1",
    ),
    Refusal(
        lambda at: ll.dataset("sample").shard(5, 4),
        "shard '5/4' is not a shard; give a number from 1 to the number of shards, such as 2/4",
        f"{TRACE} --shard 5/4",
        "--shard 5/4 is not a shard; give a number from 1 to the number of shards, such as 2/4",
    ),
    Refusal(
        None,
        None,
        "trace --model m --out OUT",
        "neither --dataset nor --prompts given; give one of them (`layerlens datasets` lists the datasets)",
    ),
    Refusal(
        lambda at: ll.read_prompts(at / "nix.txt"),
        "there is no file AT/nix.txt; check the path",
        "trace --model m --out OUT --prompts AT/nix.txt",
        "there is no file AT/nix.txt; check the path",
    ),
    Refusal(
        lambda at: ll.trace(tiny("llama"), [], out=at / "out"),
        "the list of prompts is empty; give at least one",
        f"{GENERATE.replace('hello', repr(''))}",
        "--prompt is empty; give a text",
    ),
    # models
    Refusal(
        lambda at: ll.load("m", dtype="int3"),
        "dtype 'int3' is unknown; give auto, float32, bfloat16 or float16",
        f"{GENERATE} --dtype int3",
        "--dtype int3 is unknown; give auto, float32, bfloat16 or float16",
    ),
    Refusal(
        lambda at: ll.load("m", device="cpu", device_map="auto"),
        "device 'cpu' and device_map 'auto' both say where to put the model; give one of them",
        f"{GENERATE} --device cpu --device-map auto",
        "--device cpu and --device-map auto both say where to put the model; give one of them",
    ),
    Refusal(
        lambda at: ll.load("m", offload_folder=at / "disk"),
        "offload_folder AT/disk belongs to device_map; add it, or leave offload_folder out",
        f"{GENERATE} --offload-folder AT/disk",
        "--offload-folder AT/disk belongs to --device-map; add it, or leave --offload-folder out",
    ),
    Refusal(
        lambda at: ll.load("m", backend="tensorflow"),
        "backend 'tensorflow' is unknown; give transformers, transformer-lens, nnsight, nnsight-remote, "
        "nnsight-simulated or vllm",
        f"{GENERATE} --backend tensorflow",
        "--backend tensorflow is unknown; give transformers, transformer-lens, nnsight, nnsight-remote, "
        "nnsight-simulated or vllm",
    ),
    Refusal(
        lambda at: ll.load(at / "nix.gguf"),
        "there is no file AT/nix.gguf; give the path of a .gguf file, a folder, or a hub id",
        "generate --prompt hello --model AT/nix.gguf",
        "there is no file AT/nix.gguf; give the path of a .gguf file, a folder, or a hub id",
    ),
    Refusal(
        lambda at: ll.load(3),
        "an object of type int is not a model; give a hub id, a path, or a model of transformers, TransformerLens (a "
        "TransformerBridge) or nnsight",
        None,
        None,
    ),
    # runs
    Refusal(
        lambda at: ll.open_run(at / "nowhere"),
        "there is no run at AT/nowhere: no such directory; give a directory that ll.trace wrote",
        "figure 2 --run AT/nowhere --out OUT",
        "there is no run at AT/nowhere: no such directory; give a directory that `layerlens trace` wrote",
    ),
    Refusal(
        lambda at: ll.trace(tiny("llama"), ["a"], out=at / "run", max_new_tokens=1),
        "out AT/run already holds a run; give a new directory, resume=True to continue the run, or overwrite=True to "
        "replace it",
        "trace --model m --out AT/run --dataset sample",
        "--out AT/run already holds a run; give a new directory, --resume to continue the run, or --overwrite to "
        "replace it",
    ),
    Refusal(
        lambda at: ll.trace(tiny("llama"), ["a"], out=at, max_new_tokens=1),
        "out AT is not empty and is not a run; give a new directory",
        "trace --model m --out AT --dataset sample",
        "--out AT is not empty and is not a run; give a new directory",
    ),
    Refusal(
        lambda at: ll.merge([at / "run"], out=at / "out"),
        "1 run given to merge; give two or more",
        "merge AT/run --out OUT",
        "1 run given to merge; give two or more",
    ),
    Refusal(
        lambda at: ll.open_run(at / "run").layers("kl_last_to_layer"),
        "AT/run holds no column kl_last_to_layer; trace the prompts again with kl=True",
        None,
        None,
    ),
    Refusal(
        lambda at: ll.open_run(at / "begun").phases(),
        "AT/begun holds no complete prompt; continue it with resume=True, or trace at least one prompt to its end",
        "figure 4 --run AT/begun --out OUT",
        "AT/begun holds no complete prompt; continue it with --resume, or trace at least one prompt to its end",
    ),
    Refusal(
        lambda at: ll.open_run(at),
        "AT is not a run: it has no manifest.json; give a directory that ll.trace wrote",
        "figure 2 --run AT --out OUT",
        "AT is not a run: it has no manifest.json; give a directory that `layerlens trace` wrote",
    ),
    Refusal(
        lambda at: ablation_table(at),
        "AT is not an evaluation: it has no manifest.json; give a directory that ll.evaluate wrote",
        "table 7 --evaluation AT",
        "AT is not an evaluation: it has no manifest.json; give a directory that `layerlens eval` wrote",
    ),
    Refusal(
        lambda at: traced_prompt(at, resume=True, seed=4),
        "AT/traced was begun with seed 0, not with seed 4; give what it was begun with to continue it, or another "
        "directory as out to begin anew",
        "trace --model MODEL --prompts AT/p.txt --max-new-tokens 2 --out AT/traced --resume --seed 4",
        "AT/traced was begun with --seed 0, not with --seed 4; give what it was begun with to continue it, or another "
        "directory as --out to begin anew",
    ),
    Refusal(
        lambda at: ll.open_run(at / "ablation"),
        "AT/ablation is an evaluation and not a run; give a run, such as one in AT/ablation/traces, or show it with "
        "ll.evaluate",
        "figure 2 --run AT/ablation --out OUT",
        "AT/ablation is an evaluation and not a run; give a run, such as one in AT/ablation/traces, or show it with "
        "`layerlens eval`",
    ),
    Refusal(
        None,
        None,
        "ablate --model MODEL --tasks sample --out AT/run",
        "AT/run is not an evaluation; give a new directory",
    ),
    # figures and tables
    Refusal(
        lambda at: ll.plot.draw(13, None, at),
        f"there is no figure 13; choose from {FIGURES}",
        "figure 13 --out OUT",
        f"there is no figure '13'; give {FIGURES} or all",
    ),
    Refusal(
        lambda at: ll.plot.draw(2, None, at),
        "figure 2 shows a run; give run, a directory that ll.trace wrote",
        "figure 2 --out OUT",
        "figure 2 shows a run; give --run, a directory that `layerlens trace` wrote",
    ),
    Refusal(
        lambda at: ll.plot.draw(3, None, at),
        "figure 3 shows scored answers; give evaluation, a directory that ll.ablate or ll.evaluate wrote",
        "figure 3 --out OUT",
        "figure 3 shows scored answers; give --evaluation, a directory that `layerlens ablate` or `layerlens eval` "
        "wrote",
    ),
    Refusal(
        lambda at: composed("5", None, []),
        "table 5 shows a run; give run, a directory that ll.trace wrote",
        "table 5",
        "table 5 shows a run; give --run, a directory that `layerlens trace` wrote",
    ),
]

MODEL_HELP = "a hub id, a folder, a .gguf file, or a built-in model: smollm2-135m-instruct or gemma3-270m"
COMMANDS = "trace, generate, figure, table, report, export, merge, compare, ablate, eval, lm-eval, models, "
COMMANDS += "datasets, serve, doctor, bench, fit-lens"
QUOTES = "leave it out, write its option before it, or put quotes around a text with spaces"

MISTYPED = {
    # something is lacking
    "trace": f"`layerlens trace` lacks --model ({MODEL_HELP}) and --out (run directory to write); add them, or see "
    "`layerlens trace --help`",
    "trace --model m": "`layerlens trace` lacks --out (run directory to write); add it, or see `layerlens trace "
    "--help`",
    "generate": f"`layerlens generate` lacks --model ({MODEL_HELP}) and --prompt (prompt to answer); add them, or see "
    "`layerlens generate --help`",
    "ablate --model m": "`layerlens ablate` lacks --out (directory to write, to continue, or to show); add it, or see "
    "`layerlens ablate --help`",
    "bench decode": f"`layerlens bench decode` lacks --model ({MODEL_HELP}); add it, or see `layerlens bench decode "
    "--help`",
    "figure": "`layerlens figure` lacks NUMBER (number of a figure of the paper (1 to 12), a name such as onset or "
    "grid, or all) and --out (directory for the PNG, the PDF, and the csv with the numbers drawn); add them, or see "
    "`layerlens figure --help`",
    "table --run r": "`layerlens table` lacks NUMBER (table of the paper: 1 to 10, 6.1 (of section 6.1), or "
    "all); add it, or see `layerlens table --help`",
    "report": "`layerlens report` lacks RUN (run directory); add it, or see `layerlens report --help`",
    "compare": "`layerlens compare` lacks RUN (run directory) and RUN (run directory of the same prompts); add them, "
    "or see `layerlens compare --help`",
    # an option has no value
    f"{TRACE} --limit": "--limit is followed by nothing; give it a value (use only the first N prompts)",
    "trace --model m --out --resume": "--out is followed by --resume; give it a value (run directory to write)",
    "trace --model m --out=": "--out is followed by an empty text; give it a value (run directory to write)",
    f"{TRACE} --window --limit=3": "--window is followed by --limit=3; give it a value (how many candidate layers a "
    "valley, or another strategy with a window, chooses from)",
    f"{ABLATE} --arms --p 1": "--arms is followed by --p; give it a value (strategies to compare, separated by "
    "commas: last, last-N, valley, valley-N or valley+N)",
    "bench decode --model m --json ''": "--json is followed by an empty text; give it a value (JSON file to write the "
    "measurements to)",
    "report r --out": "--out is followed by nothing; give it a value (the file to write)",
    "compare a b --out": "--out is followed by nothing; give it a value (directory for comparison.csv and outputs.csv)",
    # a value cannot be read
    f"{TRACE} --limit '1 is not 2'": "--limit '1 is not 2' is not a whole number; give one, such as 3",
    f"{TRACE} --temperature 0,7": "--temperature 0,7 is not a number; give one, such as 0.5",
    f"{TRACE} --temperature=": "--temperature '' is not a number; give one, such as 0.5",
    f"{TRACE} --positions some": "--positions some is unknown; give generated or all",
    f"{TRACE} --resume=yes": "--resume=yes gives a value to an option that takes none; write --resume",
    # there is no such option, command or place
    "trace --modle m": "`layerlens trace` has no option --modle; did you mean --mode or --model?",
    f"{TRACE} -n 3": "`layerlens trace` has no option -n; see `layerlens trace --help`",
    "report --run r": "`layerlens report` has no option --run; give it without one: `layerlens report RUN`",
    "--model m trace": f"`layerlens` has no option --model; write a command before its options: {COMMANDS}",
    "--versoin": "`layerlens` has no option --versoin; did you mean --version?",
    "trase": "`layerlens` has no command 'trase'; did you mean trace?",
    "measure --model m": f"`layerlens` has no command 'measure'; give {COMMANDS}",
    "bench": "`layerlens bench` needs a command after it; give decode, trace, analysis, speculative",
    "bench x": "`layerlens bench` has no command 'x'; give decode, trace, analysis, speculative",
    "compare a b c": f"`layerlens compare` has no place for 'c'; {QUOTES}",
    "generate --model m --prompt Why is '(it)?'": f"`layerlens generate` has no place for 'is (it)?'; {QUOTES}",
    "models --check --json --markdown": "--json and --markdown are two ways to print the same; give one of them",
    "table 11": "there is no table '11'; give 1, 2, 3, 4, 5, 6.1, 7, 8, 9, 10 or all",
    "table all": "table all needs a run or an evaluation; give --run or --evaluation",
}
"""What can only be done on the command line: what is typed, and what is said."""

SENTENCES += [Refusal(None, None, typed, said) for typed, said in MISTYPED.items()]


@pytest.fixture(scope="module")
def at(tmp_path_factory, tiny_folder) -> Path:
    folder = tmp_path_factory.mktemp("at")
    (folder / "p.txt").write_text("a\n")
    tokens = {"a": {"entropy": np.array([[2.0, 1.0], [2.0, 1.0]])}}
    (folder / "model").symlink_to(tiny_folder("llama"))
    traced_prompt(folder)
    write_ablation(folder / "ablation", {("last", 0.0): {"a": [(True, 5, "stop")]}})
    write_run(folder / "run", tokens)
    write_run(folder / "begun", tokens, finish=False)
    for part in (folder / "begun" / "prompts").iterdir():
        part.unlink()
    return folder


@pytest.mark.parametrize("refusal", [one for one in SENTENCES if one.do], ids=lambda one: one.in_python)
def test_in_python(at, refusal):
    assert refusal.do is not None
    with pytest.raises(ll.LayerlensError) as caught:
        refusal.do(at)
    assert str(caught.value).replace(str(at), "AT") == refusal.in_python


@pytest.mark.parametrize("refusal", [one for one in SENTENCES if one.typed], ids=lambda one: one.typed)
def test_on_the_command_line(at, cli, tiny_folder, refusal):
    places = {"OUT": str(at / "out"), "MODEL": tiny_folder("llama")}
    words = [places.get(word, word.replace("AT", str(at))) for word in shlex.split(refusal.typed)]
    code, out, err = cli(*words)
    *notes, said = err.replace(str(at), "AT").splitlines()
    assert (code, out, said) == (2, "", f"layerlens: {refusal.on_the_command_line}")
    incomplete = "layerlens: note: AT/begun is not complete: 0 of 1 prompts"
    assert notes == ([incomplete] if "AT/begun" in refusal.typed else [])
    assert not (at / "out").exists()


def test_a_notice_that_a_text_ends_where_logits_are_no_numbers(cli, tmp_path):
    hf, tokenizer = tiny_model("llama", tie_word_embeddings=False), tiny_tokenizer()
    with torch.no_grad():
        hf.model.embed_tokens.weight[tokenizer("y").input_ids[0]] = math.nan
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(Notice) as in_python:
        ll.generate(ll.load(tmp_path), "xyz", strategy=ll.Last(), max_new_tokens=1)
    with pytest.warns(Notice) as on_the_command_line:
        cli("generate", "--model", tmp_path, "--prompt", "xyz", "--strategy", "last", "--max-new-tokens", 1)
    for (said,), dtype in ((in_python, "dtype"), (on_the_command_line, "--dtype")):
        assert str(said.message) == (
            f"{tmp_path} gave NaN or infinite logits for prompt 0, and the text ends there; check its weights, or load "
            f"it with another {dtype} than float32"
        )


def test_there_are_enough_of_them():
    assert len(SENTENCES) >= 50
