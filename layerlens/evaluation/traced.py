"""Traces of the answers of an evaluation: what each layer did to each token of each answer, in a run for each arm."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from inspect_ai.log import EvalSample, read_eval_log
from inspect_ai.model import ChatMessage

from layerlens.datasets import Dataset, Prompt
from layerlens.decode.batch import Decoded
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.log import Decisions
from layerlens.decode.loop import batch_seed
from layerlens.decode.options import GenerateOptions, made
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.registry import asked_strategy
from layerlens.decode.strategies import Choice, Strategy
from layerlens.errors import RunError
from layerlens.evaluation.inspect.messages import prompt_of
from layerlens.evaluation.logs import logs_in
from layerlens.lens import IDENTITY, Transport
from layerlens.models import Model
from layerlens.models.use import uses_model
from layerlens.records.evaluation import read_manifest, trace_folder
from layerlens.tracing.engines import InProcess, OnTokens, Prompts
from layerlens.tracing.manifest import described, trace_manifest
from layerlens.tracing.options import TraceOptions
from layerlens.tracing.recording import record


class Answered(NamedTuple):
    """An answer that was given, and what the model read for it."""

    prompt: TokenizedPrompt
    ids: list[int]
    layers: list[int]
    """The layer that each token came from, 1..L."""
    finish_reason: str


def trace_answers(
    model: Model,
    folder: Path,
    *,
    transport: Transport = IDENTITY,
    batch_size: int = 4,
    progress: bool = True,
    **options: Any,
) -> None:
    """Trace every answer of the evaluation at `folder`, with the tokens that were emitted, in one pass for each.

    The runs are `trace_folder(folder, task, arm)`; the id of a prompt is that of its item, with "#2" for its second
    epoch. Complete runs are left as they are, and others are continued.

    Args:
        model: the one that answered.
        folder: of the evaluation.
        transport: through which layers are read.
        batch_size: answers that pass together.
        progress: show a progress bar on standard error.
        **options: what is read beside entropies: `targets`, `top`, `kl`, `js`, `sublayers`, `window`.

    Raises:
        RunError: an answer was given by something else than this model, or a run cannot be written.
    """
    manifest = read_manifest(folder)
    said = manifest["evaluation"]
    wrapping = {name: value for name, value in manifest["generation"].items() if name != "generation_config"}
    for task, arm in said["asked"]:
        most = int(said["tasks"][task]["config"]["max_tokens"])
        strategy = asked_strategy(said["arms"][arm])
        settled = trace_options(model, strategy, most, batch_size=batch_size, **wrapping, **options)
        answers = list(_answers(model, folder, task, arm, settled))
        write(model, answers, trace_folder(folder, task, arm), task, strategy, settled, transport, progress=progress)


def trace_options(model: Model, strategy: Strategy, max_new_tokens: int, **options: Any) -> TraceOptions:
    """The settled options of a trace of answers; OptionError where one of them cannot be."""
    given = {
        "max_new_tokens": max_new_tokens,
        "mode": "replay",
        "positions": "generated",
        "window": strategy.window_in(model.n_layers),
        **options,
    }
    has_template = bool(getattr(model.tokenizer, "chat_template", None))
    return with_generation_config(made(TraceOptions, given).settled(model.n_layers, has_template), model)


@uses_model()
def write(
    model: Model,
    answers: Sequence[Answered],
    out: Path,
    name: str,
    strategy: Strategy,
    options: TraceOptions,
    transport: Transport = IDENTITY,
    *,
    progress: bool = False,
) -> None:
    """Write the run of answers that were given, or go on with it; answers without a token are left out.

    Args:
        model: the one that answered.
        answers: with their prompts.
        out: the run directory.
        name: of the task, which the manifest names as the dataset.
        strategy: under which they were given.
        options: from `trace_options`.
        transport: through which layers are read.
        progress: show a progress bar on standard error.

    Raises:
        RunError: `out` holds another run, or cannot be written.
    """
    answers = [one for one in answers if one.ids]
    if not answers:
        return
    size = options.batch_size
    batches = [answers[start : start + size] for start in range(0, len(answers), size)]
    prompts = [[one.prompt for one in batch] for batch in batches]
    template = model.tokenizer.chat_template
    manifest = trace_manifest(
        described(model),
        model.hardware(),
        Dataset(name, None, None, None, None, _prompts(answers)),
        prompts,
        options,
        strategy,
        None if template is None else str(template),
        transport.record(),
    )
    engine = _Given(model, options, transport)
    engine.answers = {batch_seed(options.seed, place): batch for place, batch in enumerate(batches)}
    places, resume = range(len(batches)), out.exists()
    record(engine, model.tokenizer, prompts, places, manifest, options, strategy, out, resume=resume, progress=progress)


def trace_log(
    model: Model, log: str, out: Path, wrapping: GenerateOptions, transport: Transport = IDENTITY
) -> list[Path]:
    """Trace the answers of a log of inspect, and return the runs: one for each strategy under which it has answers.

    Args:
        model: the one that answered.
        log: where the log is.
        out: the directory of the runs. Each is called as the task, with a number where that is taken.
        wrapping: options that the model was given for all requests.
        transport: through which layers are read.

    Raises:
        RunError: an answer was given by something else than this model, or a run cannot be written.
    """
    task = read_eval_log(log)
    by_strategy: dict[str, list[EvalSample]] = {}
    for sample in task.samples or []:
        told = (sample.output.metadata or {}).get("strategy")
        if sample.error is None and told is not None:
            by_strategy.setdefault(json.dumps(told, sort_keys=True), []).append(sample)
    given = {name: value for name, value in asdict(wrapping).items() if name in _WRAPPING}
    runs = []
    for told, samples in by_strategy.items():
        asked = json.loads(told)
        strategy = asked_strategy({"strategy": asked.pop("name"), **asked})
        most = max(len(sample.output.metadata["tokens"][0]["ids"]) for sample in samples if sample.output.metadata)
        settled = trace_options(model, strategy, max(1, most), batch_size=4, **given)
        answers = [_answered(model, sample, _id(sample), settled) for sample in samples]
        runs.append(_free(out, re.sub(r"[^\w.-]", "_", task.eval.task)))
        write(model, answers, runs[-1], task.eval.task, strategy, settled, transport)
    return runs


_WRAPPING = ("chat_template", "chat_template_args", "add_special_tokens")


def _free(out: Path, name: str) -> Path:
    """A directory of that name that is not there yet."""
    number, place = 1, out / name
    while place.exists():
        number += 1
        place = out / f"{name}-{number}"
    return place


class _Given(InProcess):
    """Measures answers that are known.

    Attributes:
        answers: of each batch, by its seed.
    """

    answers: Mapping[int, Sequence[Answered]]

    def generated(self, prompts: Prompts, strategy: Strategy, seed: int, on_tokens: OnTokens) -> Decoded:
        """What was emitted."""
        given = self.answers[seed]
        on_tokens(sum(len(one.ids) for one in given))
        return Decoded(
            [one.ids for one in given], [one.finish_reason for one in given], [_decisions(one) for one in given]
        )


def _decisions(answer: Answered) -> Decisions:
    ids = torch.tensor(answer.ids)
    choice = Choice(torch.empty(len(ids), 0), torch.tensor(answer.layers), ids)
    return Decisions.of(choice, torch.ones_like(ids))


def _prompts(answers: Sequence[Answered]) -> tuple[Prompt, ...]:
    return tuple(Prompt(one.prompt.prompt_id, one.prompt.text, one.prompt.reference) for one in answers)


def _answers(model: Model, folder: Path, task: str, arm: str, options: TraceOptions) -> Iterator[Answered]:
    """The answers of an arm in the order of the items, each once."""
    found: dict[str, dict[int, EvalSample]] = {}
    for log in logs_in(folder.absolute() / "logs"):
        if (log.eval.metadata or {}).get("benchmark") == task and (log.eval.metadata or {}).get("arm") == arm:
            for sample in log.samples or []:
                # without usage it is no answer: the prompt was too long, or could not be read
                if sample.error is None and sample.output.choices and sample.output.usage is not None:
                    found.setdefault(str(sample.id), {}).setdefault(sample.epoch, sample)  # as the table has it
    for item in read_manifest(folder)["evaluation"]["tasks"][task]["items"]:
        for _, sample in sorted(found.get(item, {}).items()):
            yield _answered(model, sample, _id(sample), options)


def _id(sample: EvalSample) -> str:
    return str(sample.id) if sample.epoch == 1 else f"{sample.id}#{sample.epoch}"


def _answered(model: Model, sample: EvalSample, name: str, options: TraceOptions) -> Answered:
    """An answer with the prompt as the model read it; RunError where this model would read another one."""
    asked: list[ChatMessage] = []
    for message in sample.messages:
        if message.role == "assistant":
            break
        asked.append(message)
    target = sample.target if isinstance(sample.target, str) else " ".join(sample.target)
    content = prompt_of(asked, model.tokenizer, options.chat_template).content
    (prompt,) = tokenize(model, [Prompt(name, content, target or None)], options, fits_context=False)
    told = (sample.output.metadata or {}).get("tokens")
    usage = sample.output.usage
    if not told or usage is None or usage.input_tokens != len(prompt.token_ids):
        problem = f"the answer to {name} was not given by {model.source} as it is loaded now"
        raise RunError(problem, "trace with the model and the options that answered", given=name)
    reason = "stop" if sample.output.stop_reason == "stop" else "length"
    return Answered(prompt, list(told[0]["ids"]), list(told[0]["layers"]), reason)
