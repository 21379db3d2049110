"""`generate`: text by a decoding loop of our own, in which a step never waits for the host."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import pandas as pd

from layerlens.datasets import Dataset, Prompt, from_prompts
from layerlens.decode.batch import Decoded, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.dropin import criterion_name
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.log import DecodingLog
from layerlens.decode.options import GenerateOptions, made, settle_chat_template
from layerlens.decode.padding import refuse_ignored_padding
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.registry import strategy_of
from layerlens.decode.speculative.drafter import Drafter, drafter_of
from layerlens.decode.speculative.loop import decode_drafted
from layerlens.decode.speculative.policy import SkipPolicy
from layerlens.decode.strategies import Strategy, layers_of
from layerlens.decode.texts import decoded
from layerlens.errors import Notice, spelled
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import Transport
from layerlens.models import Model
from layerlens.models.nnsight import refuse_edits
from layerlens.models.use import uses_model
from layerlens.records.manifest import digest

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Generation:
    """What was generated for one prompt; `str` of it is the text.

    Attributes:
        prompt: the text the model was given, chat template included.
        text: the generated text without special tokens, and without ids that the tokenizer does not know.
        token_ids: the generated tokens, end token included.
        finish_reason: "stop" (an end token or a stop string), "length", or "non_finite": the logits of the next token
            were NaN or infinite, so that the text ends before it.
        steps: one row per generated token, as `DecodingLog.steps`.
    """

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: str
    steps: pd.DataFrame = field(repr=False)

    def __str__(self) -> str:
        return self.text


@overload
def generate(
    model: Model,
    prompts: str,
    *,
    strategy: Strategy | str | None = ...,
    lens: str | Transport | None = ...,
    draft: Drafter | SkipPolicy | str | None = ...,
    **options: Any,
) -> Generation: ...
@overload
def generate(
    model: Model,
    prompts: Dataset | Iterable[str | Messages | Prompt],
    *,
    strategy: Strategy | str | None = ...,
    lens: str | Transport | None = ...,
    draft: Drafter | SkipPolicy | str | None = ...,
    **options: Any,
) -> list[Generation]: ...
@uses_model(may_decode_elsewhere=True)
def generate(
    model: Model,
    prompts: str | Dataset | Iterable[str | Messages | Prompt],
    *,
    strategy: Strategy | str | None = None,
    lens: str | Transport | None = None,
    draft: Drafter | SkipPolicy | str | None = None,
    **options: Any,
) -> Generation | list[Generation]:
    """The model's answer to each prompt, in the order of the prompts, with logits that a strategy chooses.

    Args:
        model: from `load`.
        prompts: a text; or a dataset, or a list of texts or of lists of chat messages.
        strategy: such as `Valley(window=10)`, or its name, as the command line takes it; None is `Last()`.
        lens: through which layers are read: "linear:FILE", "tuned:FILE", "jacobian:FILE", a transport, or None for the
            logit lens.
        draft: makes drafts that the whole model checks, so that the text is the one without drafts: a policy such as
            `ConfLayers()`, or its name; or a `Drafter`, which keeps what its search has found. None: no drafts.
        **options: fields of `GenerateOptions` (max_new_tokens, temperature, top_p, stop_strings, batch_size, ...).

    Returns:
        one `Generation` for a text, else a list of them. Where there are several batches, prompts of similar length go
        together. A `Notice` names the prompts for which the model gave NaN or infinite logits.

    Raises:
        OptionError, PromptError, ModelError: before anything is generated.
    """
    refuse_edits(model)
    strategy = strategy_of(strategy)
    layers_of(strategy, model.n_layers, model.tied)
    transport = open_lens(lens, model)
    drafter = drafter_of(draft, model)
    settled = settle_chat_template(
        made(GenerateOptions, options, ("strategy", "lens", "draft")),
        bool(getattr(model.tokenizer, "chat_template", None)),
    )
    settled = with_generation_config(settled, model)
    dataset = (
        prompts if isinstance(prompts, Dataset) else from_prompts([prompts] if isinstance(prompts, str) else prompts)
    )
    tokenized = tokenize(model, dataset.prompts, settled)
    batches = by_length(tokenized, settled.batch_size)
    ragged = any(len({len(tokenized[index].token_ids) for index in batch}) > 1 for batch in batches)
    if model.backend.is_here and (ragged or (drafter is not None and max(map(len, batches)) > 1)):
        refuse_ignored_padding(model)
    jobs = [
        Job([tokenized[index] for index in batch], strategy, batch_seed(settled.seed, number))
        for number, batch in enumerate(batches)
    ]
    by_index: dict[int, Generation] = {}
    for number, generations in answered(model, jobs, transport, settled, drafter):
        by_index.update(zip(batches[number], generations, strict=True))
    in_order = [by_index[index] for index in range(len(tokenized))]
    _tell_broken(model, tokenized, in_order)
    return in_order[0] if isinstance(prompts, str) else in_order


def _tell_broken(model: Model, prompts: Sequence[TokenizedPrompt], generations: Sequence[Generation]) -> None:
    """A `Notice` that names the prompts whose logits were NaN or infinite."""
    pairs = zip(prompts, generations, strict=True)
    broken = [prompt.prompt_id for prompt, generation in pairs if generation.finish_reason == "non_finite"]
    if broken:
        problem, advice = non_finite(model, broken)
        warnings.warn(f"{problem}, and the text ends there; {advice}", Notice, stacklevel=3)


def non_finite(model: Model, prompt_ids: Sequence[str]) -> tuple[str, str]:
    """The problem that the model gave NaN or infinite logits for some prompts, and what to do."""
    several = len(prompt_ids) > 1
    ids = ", ".join(prompt_ids[:5]) + (" ..." if len(prompt_ids) > 5 else "")
    dtype = str(model.hf.dtype).removeprefix("torch.")
    return (
        f"{model.source} gave NaN or infinite logits for prompt{'s' if several else ''} {ids}",
        f"check its weights, or load it with another {spelled('dtype')} than {dtype}",
    )


def by_length(prompts: Sequence[TokenizedPrompt], batch_size: int) -> list[list[int]]:
    """Indices of the prompts of each batch: prompts of similar length go together; a single batch keeps their order."""
    if len(prompts) <= batch_size:
        return [list(range(len(prompts)))]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].token_ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_seed(seed: int, batch: int) -> int:
    """The seed itself for the first batch, and another for each other batch, so that a resumed run draws the same."""
    return int(digest(f"{seed}/{batch}")[:8], 16) if batch else seed


class Job(NamedTuple):
    """A batch of prompts to answer."""

    prompts: Sequence[TokenizedPrompt]
    strategy: Strategy
    seed: int


def answered(
    model: Model,
    jobs: Sequence[Job],
    transport: Transport,
    options: GenerateOptions,
    drafter: Drafter | None = None,
) -> Iterator[tuple[int, list[Generation]]]:
    """The number of each job, with the answers to its prompts, as they are made.

    Args:
        model: in use.
        jobs: what to answer.
        transport: that of the lens.
        options: settled, with what the model's generation config says.
        drafter: makes the drafts, if there are any.
    """
    for number, emitted in _decoded(model, jobs, transport, options, drafter):
        prompts, strategy, _ = jobs[number]
        yield number, generations(model, prompts, strategy, emitted)


def generations(
    model: Model, prompts: Sequence[TokenizedPrompt], strategy: Strategy, emitted: Decoded
) -> list[Generation]:
    """What was emitted for each prompt, with its text and its steps."""
    log = DecodingLog(criterion_name(strategy))
    firsts = [len(prompt.token_ids) - 1 for prompt in prompts]
    log.add_call(emitted.outputs, firsts, emitted.decisions)
    steps = dict(tuple(log.steps.groupby("row", sort=False)))
    rows = enumerate(zip(prompts, emitted.outputs, emitted.finish_reasons, strict=True))
    return [
        Generation(
            prompt.text,
            decoded(model.tokenizer, output, skip_special_tokens=True),
            output,
            reason,
            steps.get(row, log.steps.iloc[:0]).reset_index(drop=True),
        )
        for row, (prompt, output, reason) in rows
    ]


def _decoded(
    model: Model,
    jobs: Sequence[Job],
    transport: Transport,
    options: GenerateOptions,
    drafter: Drafter | None,
) -> Iterator[tuple[int, Decoded]]:
    """By our own loop one after the other; by an engine elsewhere in the order in which it ends them."""
    if model.backend.home is not None:
        yield from model.backend.elsewhere.decoded(model, jobs, transport, options)
        return
    for number, (prompts, strategy, seed) in enumerate(jobs):
        if drafter is not None and drafter.pays:
            ids = [list(prompt.token_ids) for prompt in prompts]
            yield number, decode_drafted(model, ids, strategy, options, seed, drafter, transport=transport)
            continue
        chooser = Chooser(model, strategy, seed, transport)
        yield number, decode_batch(model, [list(prompt.token_ids) for prompt in prompts], chooser, options, seed)
