"""Measure how often the criteria choose different layers, and what an entropy floor changes: two tables, csv and text.

python analyses/criteria.py OUT_DIR [--model M] [--limit N] [--max-new-tokens N] [--window K] [--floors F ...]

The answers are generated with the last layer, then replayed once. All criteria and floors walk over the same logits of
the same states, those that emitted a token. So only the walk differs between them.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

import layerlens as ll
from layerlens.analysis.shares import share_interval
from layerlens.analysis.uncertainty import mean_interval, resample
from layerlens.decode.criteria import CRITERIA
from layerlens.decode.options import GenerateOptions, settle_chat_template
from layerlens.decode.prompts import tokenize
from layerlens.decode.scan import Walk, walk_back
from layerlens.models import Unembed
from layerlens.models.hooks import watch_blocks

STATES_AT_ONCE = 16  # states at a time: times window, times vocabulary, this is the number of float32 logits in memory

parser = argparse.ArgumentParser(description="Compare criteria, and entropy floors, on the same states.")
parser.add_argument("out_dir", type=Path, help="where criteria.csv, entropy_floor.csv and criteria.md go")
parser.add_argument("--model", default="smollm2-135m-instruct", help="hub id, folder, .gguf file, or the default")
parser.add_argument("--limit", type=int, default=20, help="use the first N sample problems")
parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens to generate for each")
parser.add_argument("--window", type=int, help="candidate layers; 10, or all where there are fewer, by default")
parser.add_argument("--floors", type=float, nargs="+", default=[0.0, 0.01, 0.1], help="nats; each compared with 0")


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate, replay, walk, and write the tables; prints where they are."""
    options = parser.parse_args(arguments)
    try:
        options.out_dir.mkdir(parents=True, exist_ok=True)
        print(*measure(options), sep="\n")
    except (ll.LayerlensError, OSError) as error:
        parser.error(str(error))


def measure(options: argparse.Namespace) -> list[Path]:
    """The paths of what was measured."""
    for floor in options.floors:
        ll.Valley(entropy_floor=floor)  # refuses values out of range
    model = ll.load(options.model)
    candidates = ll.Valley(window=options.window).layers(model.n_layers)
    by_criterion, by_floor = [], []
    for number, (states, emitted) in enumerate(answers(model, candidates, options.limit, options.max_new_tokens)):
        for some, tokens in zip(states.split(STATES_AT_ONCE), emitted.split(STATES_AT_ONCE), strict=True):
            logits = model.unembed.logits(some.flatten(0, 1)).unflatten(0, some.shape[:2])
            by_criterion += [table.assign(prompt=number) for table in compare_criteria(model, logits, tokens)]
            by_floor += [table.assign(prompt=number) for table in compare_floors(model, logits, options.floors)]
    criteria, floors = with_intervals(by_criterion, "criterion"), with_intervals(by_floor, "floor")
    texts = [about(model, options, len(candidates), criteria), markdown(criteria), markdown(floors)]
    names = ("criteria.csv", "entropy_floor.csv", "criteria.md")
    paths = [options.out_dir / name for name in names]
    for path, table in zip(paths, (criteria, floors), strict=False):
        table.to_csv(path, index=False, float_format="%.6g")
    paths[2].write_text("\n".join(texts), encoding="utf-8")
    return paths


def answers(
    model: ll.Model, candidates: Sequence[int], limit: int, max_new_tokens: int
) -> Iterator[tuple[Float[Tensor, "states window d_model"], Int[Tensor, " states"]]]:
    """For each sample problem, the states of the candidates that emitted tokens in greedy decoding, and the tokens."""
    prompts = ll.dataset("sample", limit=limit)
    options = GenerateOptions(max_new_tokens=max_new_tokens)
    settled = settle_chat_template(options, bool(model.tokenizer.chat_template))
    generations = ll.generate(model, prompts, strategy=ll.Last(), max_new_tokens=max_new_tokens)
    for prompt, generation in zip(tokenize(model, prompts.prompts, settled), generations, strict=True):
        ids = [*prompt.token_ids, *generation.token_ids]
        yield replay(model, ids[:-1], len(prompt.token_ids) - 1, candidates), torch.tensor(generation.token_ids)


@torch.no_grad()
def replay(
    model: ll.Model, ids: Sequence[int], first: int, candidates: Sequence[int]
) -> Float[Tensor, "states window d_model"]:
    """The candidates' states from a position on, in one full pass."""
    kept: dict[int, Tensor] = {}

    def keep(index: int, _h_in: Tensor, _part: Tensor | None, h_out: Tensor) -> None:
        if index + 1 in candidates:
            kept[index + 1] = h_out[0, first:].to(model.unembed.weight.device, copy=True)

    with watch_blocks(model.blocks, model.sublayers, keep):
        model.decoder(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return torch.stack([kept[layer] for layer in candidates], dim=1)


class Known(Unembed):
    """A head for states that are already logits: every walk sees the same numbers, and none is computed twice."""

    def logits(self, states: Tensor, *, norm: bool = True, often: bool = False) -> Tensor:
        """The same."""
        return states


def walk(
    model: ll.Model,
    logits: Float[Tensor, "states window vocab"],
    criterion: str = "shannon",
    scan: str = "batched",
    floor: float = 0.0,
) -> tuple[Walk, Int[Tensor, " states"]]:
    """Where layerlens' walk ends, and how many readouts of each state it needed."""
    window = logits.shape[1]
    layers = range(model.n_layers - window + 1, model.n_layers + 1)
    unembed = Known(model.unembed.tail, model.unembed.weight)
    states = dict(zip(layers, logits.unbind(1), strict=True))
    readouts = ll.Readouts(unembed, states, model.n_layers, logits.new_zeros(len(logits)))
    return walk_back(readouts, window, CRITERIA[criterion], scan, floor), readouts.projections


@torch.no_grad()
def compare_criteria(
    model: ll.Model, logits: Float[Tensor, "states window vocab"], emitted: Int[Tensor, " states"]
) -> Iterator[pd.DataFrame]:
    """For each criterion, one row per state."""
    shannon, _ = walk(model, logits)
    for criterion in CRITERIA:
        found, _ = walk(model, logits, criterion)
        token, last_token = found.valley_logits.argmax(1), found.last_logits.argmax(1)
        yield rows(
            criterion=criterion,
            valley=found.steps > 0,
            depth=found.steps,
            other_layer=found.steps != shannon.steps,
            other_token=token != shannon.valley_logits.argmax(1),
            not_last_token=token != last_token,
            replayed=last_token == emitted.to(token.device),
        )


@torch.no_grad()
def compare_floors(
    model: ll.Model, logits: Float[Tensor, "states window vocab"], floors: Sequence[float]
) -> Iterator[pd.DataFrame]:
    """For each entropy floor, one row per state."""
    exact, _ = walk(model, logits)
    for floor in floors:
        found, batched = walk(model, logits, floor=floor)
        _, lazy = walk(model, logits, scan="lazy", floor=floor)
        yield rows(
            floor=floor,
            skipped=found.values[:, -1] < floor,
            other_layer=found.steps != exact.steps,
            other_token=found.valley_logits.argmax(1) != exact.valley_logits.argmax(1),
            batched=batched,
            lazy=lazy,
        )


def rows(**columns: Any) -> pd.DataFrame:
    """A table of tensors and constants."""
    return pd.DataFrame({name: v.cpu().numpy() if isinstance(v, Tensor) else v for name, v in columns.items()})


def with_intervals(tables: Sequence[pd.DataFrame], by: str) -> pd.DataFrame:
    """One row for each criterion or floor: the mean of every measure, its 95 % interval over prompts, and counts."""
    every = pd.concat(tables, ignore_index=True)
    measures = [name for name in every.columns if name not in (by, "prompt")]
    lines = []
    for name, chosen in every.groupby(by, sort=False):
        prompts = chosen.groupby("prompt")
        sums, counts = prompts[measures].sum().to_numpy(np.float64), prompts.size().to_numpy(np.float64)
        ends = {}
        for column, measure in enumerate(measures):
            certain = name in EXACT and measure in EXACTLY_0
            estimate = mean_interval if measure in IN_UNITS or certain else share_interval
            found = estimate(sums[:, column], counts, resample(len(prompts)))
            ends |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), map(float, found), strict=True))
        lines.append({by: name, **ends, "n_tokens": len(chosen), "n_prompts": len(prompts)})
    return pd.DataFrame(lines)


TITLES = {
    "criterion": "criterion",
    "floor": "floor, nats",
    "valley": "a valley: layer < L",
    "depth": "mean depth, layers",
    "other_layer": {"criterion": "layer ≠ shannon's", "floor": "layer ≠ floor 0's"},
    "other_token": {"criterion": "token ≠ shannon's", "floor": "token ≠ floor 0's"},
    "not_last_token": "token ≠ last layer's",
    "skipped": "skips the scan",
    "batched": "unembeddings per token, batched",
    "lazy": "the same, lazy",
    "n_tokens": "tokens",
    "n_prompts": "prompts",
}
IN_UNITS = ("depth", "batched", "lazy")
EXACT, EXACTLY_0 = ("shannon", 0.0), ("other_layer", "other_token", "skipped")  # by definition, for any prompts


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, shares in percent, intervals in brackets."""
    by = str(table.columns[0])
    shown = [name for name in table.columns if name in TITLES]
    titles = [title if isinstance(title, str) else title[by] for title in map(TITLES.__getitem__, shown)]
    lines = [titles, ["---"] * len(shown)]
    lines += [[cell(line, name) for name in shown] for line in table.to_dict("records")]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(line: dict[Any, Any], name: str) -> str:
    """A name or count as it is; a mean with its interval, where it has one."""
    if f"{name}_low" not in line:
        return f"{line[name]:,}" if name.startswith("n_") else f"{line[name]}"
    factor, places, unit = (1, 3, "") if name in IN_UNITS else (100, 2, " %")
    mean, low, high = (f"{factor * line[name + end]:.{places}f}" for end in ("", "_low", "_high"))
    return f"{mean}{unit}" if low == "nan" else f"{mean}{unit} [{low}, {high}]"


def about(model: ll.Model, options: argparse.Namespace, window: int, criteria: pd.DataFrame) -> str:
    """What was measured, in words."""
    n_tokens, n_prompts, replayed = criteria[["n_tokens", "n_prompts", "replayed"]].iloc[0]
    dtype = str(model.hf.dtype).removeprefix("torch.")
    return (
        f"{options.model}, {model.n_layers} layers, {dtype}: the first {n_prompts:.0f} sample problems, at most "
        f"{options.max_new_tokens} tokens each, generated greedily with the last layer; window {window}.\n"
        "Everything is teacher-forced: each text was replayed once, and all criteria and floors walk over the same "
        f"logits of the same {n_tokens:,.0f} states, those that emitted a token.\n"
        f"A token is the arg-max of the chosen layer's logits; at {replayed:.2%} of the states the replay's last layer "
        "gives the token that was emitted.\n"
        "In brackets: 95 % intervals over prompts; a share that few prompts have is taken as one answer from each.\n"
    )


if __name__ == "__main__":
    main()
