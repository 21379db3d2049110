"""Traces of the answers of an evaluation: what each layer did to each token of each answer, in a run for each arm."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from inspect_ai.log import EvalSample
from inspect_ai.model import ChatMessage

from layerlens.datasets import Dataset, Prompt
from layerlens.decode.batch import Decoded
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.log import Decisions
from layerlens.decode.loop import batch_seed
from layerlens.decode.options import made
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


@uses_model()
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
        out = trace_folder(folder, task, arm)
        config = said["tasks"][task]["config"]
        strategy = asked_strategy(said["arms"][arm])
        settled = made(
            TraceOptions,
            {
                **wrapping,
                "max_new_tokens": int(config["max_tokens"]),
                "batch_size": batch_size,
                "mode": "replay",
                "positions": "generated",
                "window": strategy.window_in(model.n_layers),
                **options,
            },
        ).settled(model.n_layers, bool(getattr(model.tokenizer, "chat_template", None)))
        settled = with_generation_config(settled, model)
        answers = [one for one in _answers(model, folder, task, arm, settled) if one.ids]
        if not answers:
            continue
        batches = [answers[start : start + batch_size] for start in range(0, len(answers), batch_size)]
        prompts = [[one.prompt for one in batch] for batch in batches]
        dataset = Dataset(task, None, None, None, said["tasks"][task]["items_sha256"], _prompts(answers))
        template = model.tokenizer.chat_template
        trace = trace_manifest(
            described(model),
            model.hardware(),
            dataset,
            prompts,
            settled,
            strategy,
            None if template is None else str(template),
            transport.record(),
        )
        engine = _Given(model, settled, transport)
        engine.answers = {batch_seed(settled.seed, place): batch for place, batch in enumerate(batches)}
        record(
            engine,
            model.tokenizer,
            prompts,
            range(len(batches)),
            trace,
            settled,
            strategy,
            out,
            resume=out.exists(),
            progress=progress,
        )


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
    found: dict[str, EvalSample] = {}
    for log in logs_in(folder / "logs"):
        if (log.eval.metadata or {}).get("benchmark") == task and (log.eval.metadata or {}).get("arm") == arm:
            found |= {_id(one): one for one in log.samples or [] if one.error is None and one.output.choices}
    for item in read_manifest(folder)["evaluation"]["tasks"][task]["items"]:
        for name, sample in ((one, found[one]) for one in found if one.partition("#")[0] == item):
            yield _answered(model, sample, name, options)


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
    content = prompt_of(asked, model.tokenizer).content
    (prompt,) = tokenize(model, [Prompt(name, content, target or None)], options, fits_context=False)
    told = (sample.output.metadata or {}).get("tokens")
    usage = sample.output.usage
    if not told or usage is None or usage.input_tokens != len(prompt.token_ids):
        problem = f"the answer to {name} was not given by {model.source} as it is loaded now"
        raise RunError(problem, "trace with the model and the options that answered", given=name)
    reason = "stop" if sample.output.stop_reason == "stop" else "length"
    return Answered(prompt, list(told[0]["ids"]), list(told[0]["layers"]), reason)
