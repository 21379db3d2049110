"""Which layer should speak, and how often: arms of strategies at several p on the same items, scored."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.progress import track

from layerlens.analysis.ablation import ablation_table
from layerlens.datasets import Dataset, Prompt
from layerlens.datasets.source import Scoring
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.identity import code_of
from layerlens.decode.loop import batch_seed, generate, non_finite
from layerlens.decode.modules import model_record
from layerlens.decode.names import named_strategy, strategy_record, takes_option
from layerlens.decode.options import GenerateOptions, made, settle_chat_template, whole
from layerlens.decode.padding import refuse_ignored_padding
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.strategies import Last, Strategy, is_number
from layerlens.errors import ModelError, OptionError
from layerlens.evaluation import scoring
from layerlens.models import Model
from layerlens.models.use import uses_model
from layerlens.records import Manifest, new_manifest
from layerlens.records.answers import AnswersWriter, condition_name
from layerlens.records.manifest import digest

ARMS = ("last", "last-1", "last-2", "last-4", "valley", "valley-2", "valley-1", "valley+1", "valley+2")
"""The arms of Figure 3 of arXiv 2606.21906."""
P = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The probabilities of Figure 3."""


@uses_model()
def ablate(
    model: Model,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    arms: Sequence[str] = ARMS,
    p: Sequence[float] = P,
    window: int | None = None,
    repeats: int = 1,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Answer the same items with every arm at every p, score and keep the answers, and return `ablation_table(out)`.

    The last layer is always an arm; at p = 0 every arm is the last layer, which is run once. All conditions draw from
    the same seeds, so that they differ by their layers alone.

    Args:
        model: from `load`.
        dataset: one whose card declares a way of scoring; every prompt has a reference.
        out: the directory to write.
        arms: names of strategies that have a p: last-N, valley, valley-N, valley+N, their aliases, registered ones.
        p: probabilities of an arm's layer, drawn for each token.
        window: candidate layers of the arms that take a window; None: their own, for a valley 10 or all layers of a
            smaller model.
        repeats: how often to answer, with other seeds, where something is drawn: p between 0 and 1, or sampling.
        resume: continue the ablation at `out`; it must have been begun with the same model, items and options.
        progress: show a progress bar on standard error.
        **options: fields of `GenerateOptions` (max_new_tokens, temperature, batch_size, seed, ...).

    Raises:
        OptionError, PromptError: before anything is written.
        ModelError: the model gives NaN or infinite logits for an item.
        RunError: `out` holds something else, or cannot be written. What is complete is kept.
    """
    plan = _planned(model, dataset, arms, p, window, repeats, made(GenerateOptions, options))
    with AnswersWriter(out, plan.manifest(model), resume=resume) as writer:
        started = time.perf_counter()
        for condition, part in _shown(plan.pending(writer), progress=progress):
            writer.write(condition.name, part, _answers(model, plan, condition, part))
        for condition in plan.conditions:
            writer.join(condition.name)
        seconds = round(time.perf_counter() - started, 3)
        writer.finish({"conditions": len(plan.conditions), "answers": plan.n_answers, "session_seconds": seconds})
    return ablation_table(out)


def arm_strategies(arms: Sequence[str], window: int | None = None) -> dict[str, Strategy]:
    """The strategies of arms, "last" the first, by the names that figures use: trough-m1 is valley-1.

    Raises:
        OptionError: an arm is unknown, has no p, or is given twice; or no arm takes the window.
    """
    if isinstance(arms, str) or not arms:
        given = arms if isinstance(arms, str) else ""
        raise OptionError(f"--arms {given!r} is no list of names; give some, such as {','.join(ARMS[:5])}")
    found: dict[str, Strategy] = {}
    for arm in arms:
        strategy = _strategy_of(arm, window)
        name = strategy.label or arm
        if name in found:
            same = "" if arm == name else f" is {name}, which"
            raise OptionError(f"--arms {arm}{same} is given already; leave one of them out")
        found[name] = strategy
    if window is not None and not any(takes_option(arm, "window") for arm in arms):
        raise OptionError(f"--window {window} has no effect on the arms {', '.join(found)}; leave it out")
    found.pop("last", None)
    return {"last": Last(), **found}


def probabilities(p: Sequence[float]) -> list[float]:
    """The probabilities in order, 0 among them; OptionError where one is none."""
    if isinstance(p, str) or not isinstance(p, Sequence) or not p:
        raise OptionError(f"p {p!r} is no list of probabilities; give numbers from 0 to 1")
    for value in p:
        if not is_number(value) or not 0 <= value <= 1:
            raise OptionError(f"--p {value} is no probability; give numbers from 0 to 1")
    return sorted({0.0, *map(float, p)})


class Condition(NamedTuple):
    """An arm at a p."""

    name: str
    """What its answers are filed under."""
    p: float
    strategy: Strategy

    def repeats(self, repeats: int, options: GenerateOptions) -> int:
        """How often it is answered: once where nothing is drawn."""
        return repeats if options.samples or 0 < self.p < 1 else 1


@dataclass(frozen=True)
class _Plan:
    """What an ablation is to do, once it is known that it can be done."""

    dataset: Dataset
    tokenized: Sequence[TokenizedPrompt]
    scoring: Scoring
    strategies: dict[str, Strategy]
    """By arm, "last" the first."""
    p: list[float]
    repeats: int
    options: GenerateOptions

    @property
    def batches(self) -> list[tuple[Prompt, ...]]:
        """The items that go through the model together."""
        prompts, size = self.dataset.prompts, self.options.batch_size
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]

    @property
    def conditions(self) -> list[Condition]:
        """The last layer, and every other arm at every p above 0."""
        acting = {arm: strategy for arm, strategy in self.strategies.items() if arm != "last"}
        return [Condition(condition_name("last", 0.0), 0.0, self.strategies["last"])] + [
            Condition(condition_name(arm, p), p, replace(strategy, p=p))  # type: ignore[type-var]
            for arm, strategy in acting.items()
            for p in self.p
            if p
        ]

    @property
    def n_answers(self) -> int:
        """How many there will be."""
        return len(self.dataset) * sum(condition.repeats(self.repeats, self.options) for condition in self.conditions)

    def pending(self, writer: AnswersWriter) -> list[tuple[Condition, int]]:
        """The parts of conditions that have not been written: batch after batch, repeat after repeat."""
        n_batches = len(self.batches)
        return [
            (condition, part)
            for condition in self.conditions
            for part in writer.pending(condition.name, n_batches * condition.repeats(self.repeats, self.options))
        ]

    def manifest(self, model: Model) -> Manifest:
        """What makes the answers."""
        codes = [code_of(type(strategy)) for strategy in self.strategies.values()]
        asked = [f"{prompt.text}\0{prompt.reference}" for prompt in self.tokenized]
        return new_manifest(
            seed=self.options.seed,
            model=model_record(model),
            dataset=self.dataset.record() | {"items_sha256": digest("\0".join(asked))},
            options={name: value for name, value in asdict(self.options).items() if name != "seed"},
            hardware=model.hardware(),
            strategy_code=codes if any(codes) else None,
            ablation={
                "scoring": self.scoring,
                "arms": list(self.strategies),
                "p": self.p,
                "repeats": self.repeats,
                "strategies": [strategy_record(one, model.n_layers) for one in self.strategies.values()],
                "batches": [[prompt.prompt_id for prompt in batch] for batch in self.batches],
            },
        )


def _planned(
    model: Model,
    dataset: Dataset,
    arms: Sequence[str],
    p: Sequence[float],
    window: int | None,
    repeats: int,
    options: GenerateOptions,
) -> _Plan:
    """The plan; OptionError or PromptError where it cannot be carried out."""
    strategies, grid = arm_strategies(arms, window), probabilities(p)
    whole("repeats", repeats, 1)
    for arm, strategy in strategies.items():
        strategy.fit(model.n_layers, model.tied, f"--arms {arm}")
    settled = settle_chat_template(options, bool(getattr(model.tokenizer, "chat_template", None)))
    settled = with_generation_config(settled, model)
    way = scoring.way_of_scoring(dataset.name)
    scoring.check_references(dataset, way)
    tokenized = tokenize(model, dataset.prompts, settled)
    if settled.batch_size > 1 and len({len(prompt.token_ids) for prompt in tokenized}) > 1:
        refuse_ignored_padding(model)
    return _Plan(dataset, tokenized, way, strategies, grid, repeats, settled)


def _shown(pending: Sequence[tuple[Condition, int]], *, progress: bool) -> Iterable[tuple[Condition, int]]:
    """The same, with a progress bar on a terminal."""
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    return track(pending, "answering", console=console, transient=True, disable=hidden)


def _strategy_of(arm: str, window: int | None) -> Strategy:
    """The strategy of an arm, with the window where it takes one."""
    advice = f"give arms such as {','.join(ARMS)}"
    try:
        given = {"window": window} if window is not None and takes_option(arm, "window") else {}
        strategy = named_strategy(arm, **given)
    except OptionError as error:
        reason = str(error).partition(";")[0].replace("--strategy", "--arms")
        raise OptionError(f"{reason}; {advice}") from error
    if strategy.label != "last" and not (hasattr(strategy, "p") and is_dataclass(strategy)):
        raise OptionError(f"--arms {arm} has no probability p; {advice}")
    return strategy


def _answers(model: Model, plan: _Plan, condition: Condition, part: int) -> dict[str, Any]:
    """The columns of `ANSWERS` for a part of a condition: one batch of items, answered for one of the repeats."""
    repeat, index = divmod(part, len(plan.batches))
    batch = plan.batches[index]
    started = time.perf_counter()
    seed = batch_seed(repeat_seed(plan.options.seed, repeat), index)
    settings = {name: value for name, value in asdict(plan.options).items() if name not in ("seed", "do_sample")}
    found = generate(model, batch, strategy=condition.strategy, seed=seed, **settings)
    broken = [prompt.prompt_id for prompt, one in zip(batch, found, strict=True) if one.finish_reason == "non_finite"]
    if broken:  # which is neither right nor wrong
        raise ModelError(f"{non_finite(model, broken)}, or leave them out of the dataset")
    seconds = (time.perf_counter() - started) / len(batch)
    outputs, references = [one.text for one in found], [str(prompt.reference) for prompt in batch]
    return {
        "prompt_id": [prompt.prompt_id for prompt in batch],
        "repeat": [repeat] * len(batch),
        "reference": references,
        "output": outputs,
        "is_correct": [scoring.WAYS[plan.scoring](*pair) for pair in zip(outputs, references, strict=True)],
        "n_generated_tokens": [len(one.token_ids) for one in found],
        "finish_reason": [one.finish_reason for one in found],
        "seconds": [seconds] * len(batch),
    }


def repeat_seed(seed: int, repeat: int) -> int:
    """The seed itself for the first repeat, and one of its own for every other."""
    return int(digest(f"{seed}/repeat {repeat}")[:8], 16) if repeat else seed
