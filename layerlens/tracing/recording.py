"""Records what an engine measures of tokenised prompts in a run directory."""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from layerlens import lens
from layerlens.decode.batch import Decoded
from layerlens.decode.loop import batch_seed
from layerlens.decode.prompts import TokenizedPrompt
from layerlens.decode.strategies import Strategy
from layerlens.decode.texts import decoded as text_of
from layerlens.records import Manifest, RunWriter, token_columns
from layerlens.run import Run, open_run
from layerlens.tracing.engines import Batch, Engine, Recorded
from layerlens.tracing.meter import Measured
from layerlens.tracing.options import TraceOptions
from layerlens.tracing.passes import Rows
from layerlens.tracing.progress import Progress
from layerlens.tracing.token_texts import ids_in, token_texts

Array = np.ndarray[Any, np.dtype[Any]]

_WORDS = ("top_token_id", "top_k_token_ids")
"""Endings of the names of columns that hold token ids of each layer."""


def record(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Sequence[TokenizedPrompt]],
    places: Sequence[int],
    manifest: Manifest,
    options: TraceOptions,
    strategy: Strategy,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Send every batch through the engine, write the results, and return the run.

    Args:
        engine: runs the passes.
        tokenizer: writes the texts.
        batches: the prompts, grouped as they go through the model together.
        places: for each batch, its place in the whole dataset, which determines its seed.
        manifest: from `trace_manifest`.
        options: settled.
        strategy: what chooses the logits.
        out: the run directory to write.
        resume: continue the run at `out`.
        overwrite: replace the run at `out`.
        progress: show a progress bar on standard error.

    Raises:
        RunError: `out` holds another run, or cannot be written. Complete parts are kept.
    """
    started = time.perf_counter()
    every = [
        Batch([list(one.token_ids) for one in batch], batch_seed(options.seed, place))
        for batch, place in zip(batches, places, strict=True)
    ]
    if not resume:  # which replaces nothing, and may have nothing left to do
        engine.prepare(every, strategy)
    with RunWriter(out, manifest, resume=resume, overwrite=overwrite) as writer:
        pending = set(writer.pending())
        with Progress(shown=progress) as bar:
            n_done = sum(len(batch) for index, batch in enumerate(batches) if index not in pending)
            bar.begin("tracing", sum(len(batch) for batch in batches), "prompts", n_done)
            order = sorted(pending)
            asked = [every[index] for index in order]
            for number, recorded in engine.recorded(asked, strategy, bar.advance_tokens):
                index = order[number]
                writer.write(index, *_columns(tokenizer, batches[index], options, recorded))
                bar.advance(len(batches[index]))
        run = open_run(out)
        totals = _totals(run, time.perf_counter() - started, resumed=len(pending) < len(batches)) | engine.told
        occurring = ids_in(
            run.positions["token_id"],
            run.positions["next_token_id"],
            *(run.layers(column.name) for column in token_columns(manifest) if column.name.endswith(_WORDS)),
        )
        writer.finish(totals, token_texts(tokenizer, occurring))
    return open_run(out)


def _columns(
    tokenizer: PreTrainedTokenizerBase, batch: Sequence[TokenizedPrompt], options: TraceOptions, recorded: Recorded
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The token columns and the prompt columns of one batch."""
    decoded, measured, rows, seconds = recorded
    outputs = [[] for _ in batch] if decoded is None else decoded.outputs
    tokens, finite = _token_columns(batch, decoded, rows, measured, options)
    return tokens, {
        "prompt_id": [prompt.prompt_id for prompt in batch],
        "prompt": [prompt.text for prompt in batch],
        "reference": [prompt.reference for prompt in batch],
        "output": [text_of(tokenizer, output, skip_special_tokens=True) for output in outputs],
        "n_prompt_tokens": [len(prompt.token_ids) for prompt in batch],
        "n_generated_tokens": [len(output) for output in outputs],
        "finish_reason": _finish_reasons(decoded, finite),
        "seconds": [seconds / len(batch)] * len(batch),
    }


def _token_columns(
    batch: Sequence[TokenizedPrompt], decoded: Decoded | None, rows: Rows, measured: Measured, options: TraceOptions
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
    columns: dict[str, Any] = {name: values[order] for name, values in measured.items()}
    entropy = torch.from_numpy(columns["entropy"])
    step = position - (n_prompt[batch_row] - 1)  # the layer whose token the state emitted
    is_generated = (step >= 0) & (step < np.array([len(output) for output in outputs])[batch_row])
    selected = np.full(len(position), entropy.shape[1])
    if decoded is not None:
        chosen = [decisions.selected_layer.tolist() for decisions in decoded.decisions]
        selected[is_generated] = _lookup(chosen, batch_row[is_generated], step[is_generated])
    assert options.window is not None
    columns |= {
        "prompt_id": [batch[row].prompt_id for row in batch_row],
        "position": position,
        "token_id": _lookup(sequences, batch_row, position),
        "next_token_id": np.ma.masked_equal(
            _lookup([[*sequence[1:], -1] for sequence in sequences], batch_row, position), -1
        ),
        "is_generated": is_generated,
        "valley_layer": lens.valley_layers(entropy, options.window).numpy(),
        "selected_layer": selected,
        "perturbed": lens.perturbed(entropy).numpy(),
    }
    told = np.stack([columns[name] for name in ("norm_ratio", "io_cosine", "entropy")])
    broken = set(batch_row[~np.isfinite(told).all(axis=(0, 2))].tolist())
    return columns, [row not in broken for row in range(len(batch))]


def _lookup(sequences: Sequence[Sequence[int]], batch_row: Array, position: Array) -> Array:
    return np.array([sequences[row][place] for row, place in zip(batch_row, position, strict=True)], dtype=np.int64)


def _finish_reasons(decoded: Decoded | None, finite: Sequence[bool]) -> list[str]:
    reasons = ["given"] * len(finite) if decoded is None else decoded.finish_reasons
    return [reason if ok else "non_finite" for reason, ok in zip(reasons, finite, strict=True)]


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
