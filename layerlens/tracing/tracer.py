"""From a model and prompts to a run directory."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from layerlens.datasets import Dataset, Prompt, from_prompts
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.options import made
from layerlens.decode.padding import refuse_ignored_padding
from layerlens.decode.prompts import tokenize
from layerlens.decode.registry import strategy_of, strategy_record
from layerlens.decode.speculative.drafter import Drafter, drafter_of
from layerlens.decode.speculative.policy import SkipPolicy
from layerlens.decode.speculative.registry import policy_name, policy_record
from layerlens.decode.strategies import Strategy, layers_of
from layerlens.errors import OptionError, spelled
from layerlens.lens import IDENTITY, Transport
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import refuse_lacking
from layerlens.models import Model
from layerlens.models.use import uses_model
from layerlens.run import Run
from layerlens.tracing.engines import Engine, InTurn, engine_of
from layerlens.tracing.manifest import described, trace_manifest
from layerlens.tracing.options import TraceOptions
from layerlens.tracing.recording import record

Array = np.ndarray[Any, np.dtype[Any]]


@uses_model(may_be_remote=True)
def trace(
    model: Model,
    prompts: Dataset | Iterable[str | Sequence[dict[str, str]] | Prompt],
    *,
    out: str | os.PathLike[str],
    strategy: Strategy | str | None = None,
    lens: str | Transport | None = None,
    draft: Drafter | SkipPolicy | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Send every prompt through the model, record what each layer does to each token, and return the run.

    Args:
        model: from `load`.
        prompts: a dataset, or texts, or lists of chat messages.
        out: the run directory to write.
        strategy: what chooses the logits that tokens are sampled from, such as `Valley(window=10)`, or its name, as the
            command line takes it ("valley", "last-1"); a `window` is then its window too. None is `Last()`.
        lens: through which layers are read, by the trace and by the strategy: "linear:FILE", "tuned:FILE",
            "jacobian:FILE", a transport, or None for the logit lens.
        draft: makes drafts that the whole model checks, as in `generate`. The records are of the whole model's states,
            each once. None: no drafts.
        resume: continue the run at `out`. It must have been begun with the same model, prompts and options, and with
            the same hooks and modules, as far as these can be compared (docs/records.md).
        overwrite: replace the run at `out`, once everything that can be refused is checked; nothing but a run is ever
            removed.
        progress: show a progress bar on standard error.
        **options: fields of `TraceOptions` (max_new_tokens, mode, positions, window, batch_size, ...).

    Raises:
        OptionError, PromptError: before anything is written.
        RunError: `out` holds another run, or cannot be written. Complete parts are kept.
    """
    dataset = prompts if isinstance(prompts, Dataset) else from_prompts(prompts)
    strategy = strategy_of(strategy, window=options.get("window"))
    layers = layers_of(strategy, model.n_layers, model.tied)
    if options.get("window") is None:
        options["window"] = strategy.window_in(model.n_layers)
    kind = engine_of(model)
    if options.get("mode") is None and "generate" not in kind.modes:
        options["mode"] = "replay"
    own = ("out", "strategy", "lens", "draft", "resume", "overwrite", "progress")
    settled = made(TraceOptions, options, own).settled(
        model.n_layers, bool(getattr(model.tokenizer, "chat_template", None))
    )
    settled = with_generation_config(settled, model)
    transport = _lens_for(lens, model, takes_lens=kind.takes_lens)
    refuse_lacking(transport, layers, strategy_record(strategy)["name"])
    engine = kind(model, settled, transport)
    engine.refuse_unable(strategy)
    drafter = drafter_of(draft, model)
    if drafter is not None:
        _draft(engine, drafter, settled)
    if settled.top > model.n_vocab:
        what = f"is more than the {model.n_vocab:,} vocabulary entries of {model.source}"
        raise OptionError.about("top", settled.top, what, "lower it")
    if settled.max_new_tokens == 0 and not strategy.is_untouched:
        name, what = strategy_record(strategy)["name"], f"has no effect with {spelled('max_new_tokens', 0)}"
        raise OptionError.about("strategy", name, what, "drop one of them")
    tokenized = tokenize(model, dataset.prompts, settled)
    batches = [tokenized[start : start + settled.batch_size] for start in range(0, len(tokenized), settled.batch_size)]
    if (
        model.backend.is_here
        and settled.max_new_tokens
        and any(
            len({len(prompt.token_ids) for prompt in batch}) > 1 or (drafter is not None and len(batch) > 1)
            for batch in batches
        )
    ):
        refuse_ignored_padding(model)
    template = model.tokenizer.chat_template
    manifest = trace_manifest(
        described(model),
        model.hardware(),
        dataset,
        batches,
        settled,
        strategy,
        None if template is None else str(template),
        transport.record(),
        None if drafter is None else policy_record(drafter.policy),
    )
    places = [dataset.place_of(index) for index in range(len(batches))]
    return record(
        engine,
        model.tokenizer,
        batches,
        places,
        manifest,
        settled,
        strategy,
        out,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def _draft(engine: Engine, drafter: Drafter, options: TraceOptions) -> None:
    """Let the engine's tokens come by drafts; OptionError where they cannot."""
    name = policy_name(drafter.policy)
    if options.max_new_tokens == 0:
        what = f"has no effect with {spelled('max_new_tokens', 0)}"
        raise OptionError.about("draft", name, what, "drop one of them")
    if not isinstance(engine, InTurn):
        what = f"does not work with {spelled('backend', engine.model.backend.name)}"
        raise OptionError.about("draft", name, what, "leave it out, or give another backend")
    engine.drafter = drafter


def _lens_for(lens: str | Transport | None, model: Model, *, takes_lens: bool) -> Transport:
    """The transport through which a trace reads all layers; OptionError where it cannot."""
    if lens is None or lens == "logit":
        return IDENTITY
    if not takes_lens:
        what = f"does not work with {spelled('backend', model.backend.name)}"
        raise OptionError.about("lens", lens, what, "leave it out, or give another backend")
    transport = open_lens(lens, model)
    refuse_lacking(transport, range(1, model.n_layers + 1), "a trace")
    return transport
