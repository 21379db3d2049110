"""The two ways to send a batch through the model while its blocks are watched: generating, and one full pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from layerlens.decode.dropin import decoding
from layerlens.decode.endings import ending_criteria
from layerlens.decode.log import DecodingLog
from layerlens.decode.prompts import end_token_ids, pad, pad_token_id
from layerlens.decode.strategies import Strategy
from layerlens.errors import ModelError
from layerlens.models import Model
from layerlens.models.hooks import watch_blocks
from layerlens.tracing.meter import Meter
from layerlens.tracing.options import TraceOptions

OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class Rows:
    """Which state each measured row is: row of the batch, and position in its sequence; int64 [rows] each."""

    batch_row: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: TraceOptions,
    strategy: Strategy,
    seed: int,
    meter: Meter | None = None,
    on_tokens: OnTokens | None = None,
) -> tuple[list[list[int]], Rows, DecodingLog]:
    """What transformers' own `generate` emits for each prompt when `strategy` chooses the logits.

    Returns:
        the tokens of each prompt, end token included; the rows `meter` was shown; and what was decided.
    """
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, pad_token_id(model), left=True))
    ends = end_token_ids(model, options)
    endings = ending_criteria(ends, options.stops, model.tokenizer)
    selection = _GrowingSelection([len(prompt) for prompt in prompts], endings, options, meter, on_tokens)
    selection.before_prefill(mask)
    with torch.random.fork_rng(enabled=options.samples), _own_generation_config(model, options, ends):
        if options.samples:
            torch.manual_seed(seed)
        with _watched(model, meter), decoding(model, strategy, seed=seed) as log:
            hf: Any = model.hf
            hf.generate(
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=[selection],
                tokenizer=model.tokenizer if options.stops else None,
            )
    steps = log.steps
    outputs = [steps.loc[steps["row"] == row, "next_token_id"].tolist() for row in range(len(prompts))]
    return outputs, selection.rows(), log


def replay(model: Model, sequences: Sequence[Sequence[int]], firsts: Sequence[int], meter: Meter) -> Rows:
    """One full pass over the sequences; measures the positions of each from its entry of `firsts` on."""
    # right padding: positions then count from 0 in every row, and no causal state can see the padding
    ids, mask = pad(sequences, pad_token_id(model), left=False)
    kept = torch.zeros_like(mask, dtype=torch.bool)
    for row, (sequence, first) in enumerate(zip(sequences, firsts, strict=True)):
        kept[row, first : len(sequence)] = True
    flat = kept.flatten().nonzero().squeeze(1)
    meter.select = _flat_selection(flat, ids.numel())
    with torch.no_grad(), watch_blocks(model.blocks, model.sublayers, meter.on_block):
        model.decoder(
            input_ids=ids.to(model.device),
            attention_mask=None if mask.all() else mask.to(model.device),
            use_cache=False,
        )
    batch_row, position = kept.nonzero(as_tuple=True)
    return Rows(batch_row.numpy(), position.numpy())


class _GrowingSelection(StoppingCriteria):
    """Follows a generation token by token, so that rows that have ended are measured no longer. Stops nothing."""

    def __init__(
        self,
        lengths: list[int],
        endings: StoppingCriteriaList,
        options: TraceOptions,
        meter: Meter | None,
        on_tokens: OnTokens | None,
    ) -> None:
        self._next_position = np.array(lengths)
        self._alive = np.ones(len(lengths), dtype=bool)
        self._endings = endings
        self._all_positions = options.positions == "all"
        self._meter = meter
        self._on_tokens = on_tokens
        self._selected = Rows(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        self._seen: list[Rows] = []

    def before_prefill(self, mask: Tensor) -> None:
        """Select among the prompt's states."""
        if self._all_positions:
            flat = mask.flatten().nonzero().squeeze(1)
            position = (mask.cumsum(1) - 1)[mask.bool()]
            self._select(_flat_selection(flat, mask.numel()), Rows(*_numpy(mask.nonzero()[:, 0], position)))
        else:
            self._select_last(mask.device)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._seen.append(self._selected)
        if self._on_tokens is not None:
            self._on_tokens(int(self._alive.sum()))
        self._alive &= ~self._endings(input_ids, scores).cpu().numpy()
        self._next_position += 1
        self._select_last(input_ids.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def rows(self) -> Rows:
        """The rows that passed through the blocks, in their order."""
        return Rows(
            np.concatenate([rows.batch_row for rows in self._seen]),
            np.concatenate([rows.position for rows in self._seen]),
        )

    def _select_last(self, device: torch.device) -> None:
        alive = self._alive.nonzero()[0]
        index = torch.from_numpy(alive).to(device)
        self._select(
            lambda stream: stream[:, -1].index_select(0, index.to(stream.device)),
            Rows(alive, self._next_position[alive] - 1),
        )

    def _select(self, select: Callable[[Tensor], Tensor], rows: Rows) -> None:
        self._selected = rows
        if self._meter is not None:
            self._meter.select = select


def _numpy(*tensors: Tensor) -> list[np.ndarray[Any, np.dtype[Any]]]:
    return [tensor.cpu().numpy() for tensor in tensors]


def _flat_selection(flat: Tensor, n_states: int) -> Callable[[Tensor], Tensor]:
    everything = len(flat) == n_states

    def select(stream: Tensor) -> Tensor:
        if stream.shape[0] * stream.shape[1] != n_states:
            raise ModelError(
                f"this model hands {stream.shape[0] * stream.shape[1]} of {n_states} prompt states to a block while "
                "generating; trace all positions with --mode replay"
            )
        states = stream.flatten(0, 1)
        return states.clone() if everything else states.index_select(0, flat.to(stream.device))

    return select


@contextmanager
def _watched(model: Model, meter: Meter | None) -> Iterator[None]:
    if meter is None:
        yield
        return
    with watch_blocks(model.blocks, model.sublayers, meter.on_block):
        yield


@contextmanager
def _own_generation_config(model: Model, options: TraceOptions, ends: list[int]) -> Iterator[None]:
    """The options' settings and no others: a checkpoint's own defaults (penalties, top-k) would decode differently."""
    theirs = model.hf.generation_config
    sampling = {
        "temperature": float(options.temperature),
        "top_p": float(options.top_p),
        "top_k": options.top_k,
        "remove_invalid_values": True,
    }
    model.hf.generation_config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        do_sample=options.samples,
        eos_token_id=ends or None,
        pad_token_id=pad_token_id(model),
        repetition_penalty=options.repetition_penalty if options.repetition_penalty != 1.0 else None,
        stop_strings=options.stops or None,
        **(sampling if options.samples else {}),
    )
    try:
        yield
    finally:
        model.hf.generation_config = theirs
