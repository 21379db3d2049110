"""From a model and prompts to a run directory."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from layerlens import lens
from layerlens.datasets import Dataset, Prompt, from_prompts
from layerlens.decode.batch import Decoded
from layerlens.decode.flops import decoding_flops
from layerlens.decode.generation_config import with_generation_config
from layerlens.decode.identity import code_of
from layerlens.decode.loop import batch_seed
from layerlens.decode.modules import model_record
from layerlens.decode.names import strategy_record
from layerlens.decode.options import made
from layerlens.decode.padding import refuse_ignored_padding
from layerlens.decode.prompts import TokenizedPrompt, tokenize
from layerlens.decode.strategies import Last, Strategy, layers_of
from layerlens.decode.texts import decoded as text_of
from layerlens.errors import ModelError, OptionError
from layerlens.models import Model
from layerlens.models.use import uses_model
from layerlens.records import Manifest, RunWriter, new_manifest
from layerlens.records.manifest import digest
from layerlens.run import Run, open_run
from layerlens.tracing.meter import FLOATS, Meter, ReadOut
from layerlens.tracing.options import TraceOptions
from layerlens.tracing.passes import Rows, generate, replay
from layerlens.tracing.progress import Progress
from layerlens.tracing.remote import generate_remotely, refuse_unable
from layerlens.tracing.words import ids_in, words

Array = np.ndarray[Any, np.dtype[Any]]


@uses_model(may_be_remote=True)
def trace(
    model: Model,
    prompts: Dataset | Iterable[str | Sequence[dict[str, str]] | Prompt],
    *,
    out: str | os.PathLike[str],
    strategy: Strategy | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Send every prompt through the model, record what each layer does to each token, and return the run.

    Args:
        model: from `load`.
        prompts: a dataset, or texts, or lists of chat messages.
        out: the run directory to write.
        strategy: what chooses the logits that tokens are sampled from, such as `Valley(window=10)`; None is `Last()`.
        resume: continue the run at `out`; it must have been begun with the same model, prompts and options, and
            with the same hooks and modules, as far as these can be told (docs/records.md).
        progress: show a progress bar on standard error.
        **options: fields of `TraceOptions` (max_new_tokens, mode, positions, window, batch_size, ...).

    Raises:
        OptionError, PromptError: before anything is written.
        RunError: `out` holds another run, or cannot be written. What is complete is kept.
    """
    dataset = prompts if isinstance(prompts, Dataset) else from_prompts(prompts)
    strategy = Last() if strategy is None else strategy
    layers_of(strategy, model.n_layers, model.tied)
    if options.get("window") is None:
        options["window"] = strategy.window_in(model.n_layers)
    if options.get("mode") is None and "generate" not in model.backend.modes:
        options["mode"] = "replay"
    settled = made(TraceOptions, options).settled(model.n_layers, bool(getattr(model.tokenizer, "chat_template", None)))
    settled = with_generation_config(settled, model)
    refuse_unable(model, settled, strategy)
    if settled.max_new_tokens == 0 and not strategy.is_untouched:
        raise OptionError(
            f"--strategy {strategy_record(strategy)['name']} has no effect with --max-new-tokens 0; drop one of them"
        )
    tokenized = tokenize(model, dataset.prompts, settled)
    batches = [tokenized[start : start + settled.batch_size] for start in range(0, len(tokenized), settled.batch_size)]
    if (
        model.backend.is_here
        and settled.max_new_tokens
        and any(len({len(prompt.token_ids) for prompt in batch}) > 1 for batch in batches)
    ):
        refuse_ignored_padding(model)
    read_out = None if settled.lens_precision == "float32" else lens.CoarseHead(model.unembed).read
    started = time.perf_counter()
    with RunWriter(out, _manifest(model, dataset, settled, strategy, batches), resume=resume) as writer:
        pending = set(writer.pending())
        with Progress(sum(len(batch) for batch in batches), shown=progress) as bar:
            bar.advance_prompts(sum(len(batch) for index, batch in enumerate(batches) if index not in pending))
            for index in sorted(pending):
                seed = batch_seed(settled.seed, dataset.place_of(index))
                tokens, rows = _trace_batch(model, batches[index], settled, strategy, seed, bar, read_out)
                writer.write(index, tokens, rows)
                bar.advance_prompts(len(batches[index]))
        run = open_run(out)
        totals = _totals(run, time.perf_counter() - started, resumed=len(pending) < len(batches))
        occurring = ids_in(run.positions["token_id"], run.positions["next_token_id"], run.layers("top_token_id"))
        writer.finish(totals, words(model.tokenizer, occurring))
    return open_run(out)


def _trace_batch(
    model: Model,
    batch: Sequence[TokenizedPrompt],
    options: TraceOptions,
    strategy: Strategy,
    seed: int,
    bar: Progress,
    read_out: ReadOut | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The token columns and the prompt columns of one batch."""
    started = time.perf_counter()
    prompts = [list(prompt.token_ids) for prompt in batch]
    meter = Meter(model, kl=options.kl, read_out=read_out)
    decoded = None
    if options.mode == "generate":
        decoded, rows = generate(model, prompts, options, strategy, seed, meter, bar.advance_tokens)
    elif options.max_new_tokens and not model.backend.is_here:
        decoded = generate_remotely(model, prompts, options, bar.advance_tokens)
    elif options.max_new_tokens:
        decoded, _ = generate(model, prompts, options, strategy, seed, None, bar.advance_tokens)
    outputs = [[] for _ in batch] if decoded is None else decoded.outputs
    if options.mode == "replay":
        # the state of the last emitted token emitted nothing, and generating never computes it
        sequences = [prompt + output[:-1] for prompt, output in zip(prompts, outputs, strict=True)]
        firsts = [0 if options.positions == "all" else len(prompt) - 1 for prompt in prompts]
        rows = replay(model, sequences, firsts, meter)
        if decoded is None:
            bar.advance_tokens(len(rows.position))
    tokens, finite = _token_columns(batch, decoded, rows, meter, options)
    seconds = time.perf_counter() - started
    return tokens, {
        "prompt_id": [prompt.prompt_id for prompt in batch],
        "prompt": [prompt.text for prompt in batch],
        "reference": [prompt.reference for prompt in batch],
        "output": [text_of(model.tokenizer, output, skip_special_tokens=True) for output in outputs],
        "n_prompt_tokens": [len(prompt) for prompt in prompts],
        "n_generated_tokens": [len(output) for output in outputs],
        "finish_reason": _finish_reasons(decoded, finite),
        "seconds": [seconds / len(batch)] * len(batch),
    }


def _token_columns(
    batch: Sequence[TokenizedPrompt], decoded: Decoded | None, rows: Rows, meter: Meter, options: TraceOptions
) -> tuple[dict[str, Any], list[bool]]:
    """The declared columns of tokens, prompt by prompt in order of position, and whether each prompt was finite."""
    outputs: list[list[int]] = [[] for _ in batch] if decoded is None else decoded.outputs
    sequences = [[*prompt.token_ids, *output] for prompt, output in zip(batch, outputs, strict=True)]
    n_prompt = np.array([len(prompt.token_ids) for prompt in batch])
    # up to the state that emitted the last token, or the prompt's last one
    n_states = np.array([len(sequence) - bool(output) for sequence, output in zip(sequences, outputs, strict=True)])
    order = np.lexsort((rows.position, rows.batch_row))
    order = order[rows.position[order] < n_states[rows.batch_row[order]]]
    batch_row, position = rows.batch_row[order], rows.position[order]
    floats, tops = meter.collect()
    floats, tops = floats[:, order], tops[order]
    columns: dict[str, Any] = dict(zip(meter.names, floats, strict=True))
    entropy = torch.from_numpy(columns["entropy"])
    step = position - (n_prompt[batch_row] - 1)  # the one whose token the state emitted
    is_generated = (step >= 0) & (step < np.array([len(output) for output in outputs])[batch_row])
    selected = np.full(len(position), entropy.shape[1])
    if decoded is not None:
        selected[is_generated] = decoded.decisions.selected_layer.numpy()[step[is_generated], batch_row[is_generated]]
    assert options.window is not None
    columns |= {
        "prompt_id": [batch[row].prompt_id for row in batch_row],
        "position": position,
        "token_id": _lookup(sequences, batch_row, position),
        "next_token_id": np.ma.masked_equal(
            _lookup([[*sequence[1:], -1] for sequence in sequences], batch_row, position), -1
        ),
        "is_generated": is_generated,
        "top_token_id": tops,
        "valley_layer": lens.valley_layers(entropy, options.window).numpy(),
        "selected_layer": selected,
        "perturbed": lens.perturbed(entropy).numpy(),
    }
    measured = floats[[FLOATS.index(name) for name in ("norm_ratio", "io_cosine", "entropy")]]
    broken = set(batch_row[~np.isfinite(measured).all(axis=(0, 2))].tolist())
    return columns, [row not in broken for row in range(len(batch))]


def _lookup(sequences: Sequence[Sequence[int]], batch_row: Array, position: Array) -> Array:
    return np.array([sequences[row][place] for row, place in zip(batch_row, position, strict=True)], dtype=np.int64)


def _finish_reasons(decoded: Decoded | None, finite: Sequence[bool]) -> list[str]:
    reasons = ["given"] * len(finite) if decoded is None else decoded.finish_reasons
    return [reason if ok else "non_finite" for reason, ok in zip(reasons, finite, strict=True)]


def _manifest(
    model: Model,
    dataset: Dataset,
    options: TraceOptions,
    strategy: Strategy,
    batches: Sequence[Sequence[TokenizedPrompt]],
) -> Manifest:
    template = str(model.tokenizer.chat_template) if options.chat_template else None
    return new_manifest(
        seed=options.seed,
        model={
            **model_record(model),
            "layer_kinds": list(model.layer_kinds),
            "mlp_kinds": list(model.mlp_kinds),
            "multiply_adds": _multiply_adds(model),
        },
        dataset={
            **dataset.record(),
            "prompts_sha256": digest("\0".join(prompt.text for batch in batches for prompt in batch)),
        },
        strategy=strategy_record(strategy, model.n_layers),
        strategy_code=code_of(type(strategy)),
        mode=options.mode,
        options={name: value for name, value in asdict(options).items() if name not in ("mode", "seed")},
        window=options.window,
        batches=[[prompt.prompt_id for prompt in batch] for batch in batches],
        padding="left" if options.mode == "generate" else "right",
        chat_template_sha256=digest(template) if template is not None else None,
        hardware=model.hardware(),
    )


def _multiply_adds(model: Model) -> dict[str, int] | None:
    """Of a generated token's forward pass and of one unembedding; None where the config leaves them open."""
    try:
        flops = decoding_flops(model.hf, window=1)
    except ModelError:
        return None
    return {"forward": flops.forward, "unembedding": flops.unembedding}


def _totals(run: Run, seconds: float, *, resumed: bool) -> dict[str, Any]:
    return {
        "prompts": len(run.prompts),
        "positions": len(run.positions),
        "generated_tokens": int(run.prompts["n_generated_tokens"].sum()),
        "non_finite_prompts": int((run.prompts["finish_reason"] == "non_finite").sum()),
        "seconds": round(float(run.prompts["seconds"].sum()), 3),
        "session_seconds": round(seconds, 3),
        "resumed": resumed,
    }
