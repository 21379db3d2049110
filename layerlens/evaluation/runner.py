"""An ablation: every item of a plan is answered by our own loop, scored, and kept."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import track

from layerlens.analysis.ablation import ablation_table
from layerlens.datasets import Dataset
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.identity import code_of
from layerlens.decode.loop import Generation, Job, answered, batch_seed, non_finite
from layerlens.decode.modules import model_record
from layerlens.decode.options import GenerateOptions, made, settle_chat_template
from layerlens.decode.padding import refuse_ignored_padding
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.registry import strategy_record
from layerlens.errors import ModelError
from layerlens.evaluation.plan import ARMS, Condition, P, Plan, planned, repeat_seed
from layerlens.evaluation.scoring import WAYS
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import Transport, refuse_lacking
from layerlens.models import Model
from layerlens.models.use import uses_model
from layerlens.records import Manifest, new_manifest
from layerlens.records.answers import AnswersWriter
from layerlens.records.manifest import digest

Done = tuple[int, list[Generation]]
"""The number of a job, and the answers to its prompts."""


@uses_model(may_decode_elsewhere=True)
def ablate(
    model: Model,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    arms: Sequence[str] = ARMS,
    p: Sequence[float] = P,
    window: int | None = None,
    repeats: int = 1,
    lens: str | Transport | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Answer the same items with every arm at every p, score and store the answers, and return `ablation_table(out)`.

    The last layer is always an arm. At p = 0 every arm is the last layer, which is run once. All conditions draw from
    the same seeds, so that they differ only by their layers.

    Args:
        model: from `load`.
        dataset: one whose card declares a way of scoring; every prompt has a reference.
        out: the directory to write.
        arms: names of strategies that have a p: last-N, valley, valley-N, valley+N, their aliases, registered ones.
        p: probabilities of an arm's layer, drawn for each token.
        window: number of candidate layers of the arms that take a window. None: their own; for a valley that is 10, or
            all layers of a smaller model.
        repeats: how often to answer, with other seeds, where something is drawn: p between 0 and 1, or sampling.
        lens: through which layers are read: "linear:FILE", "tuned:FILE", "jacobian:FILE", a transport, or None for the
            logit lens.
        resume: continue the ablation at `out`; it must have been begun with the same model, items and options.
        overwrite: replace the ablation at `out`, once everything that can be refused is checked; nothing but an
            ablation is ever removed.
        progress: show a progress bar on standard error.
        **options: fields of `GenerateOptions` (max_new_tokens, temperature, batch_size, seed, ...).

    Raises:
        OptionError, PromptError: before anything is written.
        ModelError: the model gives NaN or infinite logits for an item.
        RunError: `out` holds something else, or cannot be written. Complete parts are kept.
    """
    given = made(GenerateOptions, options)
    plan = _settled(planned(dataset, arms=arms, p=p, window=window, repeats=repeats, options=given), model)
    transport = open_lens(lens, model)
    for strategy in plan.strategies.values():
        layers = strategy.layers(model.n_layers, model.tied)
        refuse_lacking(transport, layers, strategy_record(strategy)["name"])
    tokenized = _tokenized(plan, model)
    manifest = _manifest(plan, model, transport, tokenized)
    with AnswersWriter(out, manifest, resume=resume, overwrite=overwrite) as writer:
        started = last = time.perf_counter()
        pending = _pending(plan, writer)
        jobs = [_job(plan, tokenized, condition, part) for condition, part in pending]
        done = answered(model, jobs, transport, plan.options)
        for number, generations in _shown(done, len(jobs), progress=progress):
            condition, part = pending[number]
            now = time.perf_counter()
            answers = _answers(model, plan, part, jobs[number], generations)
            writer.write(
                condition.name, part, answers | {"seconds": [(now - last) / len(generations)] * len(generations)}
            )
            last = time.perf_counter()
        for condition in plan.conditions:
            writer.join(condition.name)
        seconds = round(time.perf_counter() - started, 3)
        writer.finish({"conditions": len(plan.conditions), "answers": plan.n_answers, "session_seconds": seconds})
    return ablation_table(out)


def _settled(plan: Plan, model: Model) -> Plan:
    """The plan with the options that this model fills; OptionError where an arm does not fit it."""
    for strategy in plan.strategies.values():
        strategy.fit(model.n_layers, model.tied)
    settled = settle_chat_template(plan.options, bool(getattr(model.tokenizer, "chat_template", None)))
    return replace(plan, options=with_generation_config(settled, model))


def _tokenized(plan: Plan, model: Model) -> list[TokenizedPrompt]:
    """The tokenized items; an error where the model cannot read them, one by one or together."""
    tokenized = tokenize(model, plan.dataset.prompts, plan.options)
    ragged = len({len(prompt.token_ids) for prompt in tokenized}) > 1
    if model.backend.is_here and plan.options.batch_size > 1 and ragged:
        refuse_ignored_padding(model)
    return tokenized


def _manifest(plan: Plan, model: Model, transport: Transport, tokenized: Sequence[TokenizedPrompt]) -> Manifest:
    """What a manifest says of how the answers are made."""
    codes = [code_of(type(strategy)) for strategy in plan.strategies.values()]
    asked = [f"{prompt.text}\0{prompt.reference}" for prompt in tokenized]
    return new_manifest(
        seed=plan.options.seed,
        model=model_record(model),
        dataset=plan.dataset.record() | {"items_sha256": digest("\0".join(asked))},
        options={name: value for name, value in asdict(plan.options).items() if name != "seed"},
        hardware=model.hardware(),
        strategy_code=codes if any(codes) else None,
        lens=transport.record(),
        ablation=plan.record(model.n_layers),
    )


def _pending(plan: Plan, writer: AnswersWriter) -> list[tuple[Condition, int]]:
    """The parts of conditions that are not yet written: batch after batch, repeat after repeat."""
    n_batches = len(plan.batches)
    return [
        (condition, part)
        for condition in plan.conditions
        for part in writer.pending(condition.name, n_batches * condition.repeats(plan.repeats, plan.options))
    ]


def _shown(done: Iterable[Done], total: int, *, progress: bool) -> Iterable[Done]:
    """The same, with a progress bar on a terminal."""
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    return track(done, "answering", total, console=console, transient=True, disable=hidden)


def _job(plan: Plan, tokenized: Sequence[TokenizedPrompt], condition: Condition, part: int) -> Job:
    """A part of a condition: one batch of items, for one of the repeats."""
    repeat, index = divmod(part, len(plan.batches))
    size = plan.options.batch_size
    prompts = tokenized[index * size : (index + 1) * size]
    return Job(prompts, condition.strategy, batch_seed(repeat_seed(plan.options.seed, repeat), index))


def _answers(model: Model, plan: Plan, part: int, job: Job, generations: Sequence[Generation]) -> dict[str, Any]:
    """The columns of `ANSWERS` for a part of a condition, without the seconds."""
    repeat, batch = part // len(plan.batches), job.prompts
    broken = [
        prompt.prompt_id for prompt, one in zip(batch, generations, strict=True) if one.finish_reason == "non_finite"
    ]
    if broken:  # an unfinished answer is neither right nor wrong
        problem, advice = non_finite(model, broken)
        raise ModelError(problem, f"{advice}, or leave them out of the dataset", given=broken)
    outputs, references = [one.text for one in generations], [str(prompt.reference) for prompt in batch]
    return {
        "prompt_id": [prompt.prompt_id for prompt in batch],
        "repeat": [repeat] * len(batch),
        "reference": references,
        "output": outputs,
        "is_correct": [WAYS[plan.scoring](*pair) for pair in zip(outputs, references, strict=True)],
        "n_generated_tokens": [len(one.token_ids) for one in generations],
        "finish_reason": [one.finish_reason for one in generations],
    }
