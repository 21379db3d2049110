"""The two ways to send a batch through the model while its blocks are watched: generating, and one full pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from layerlens.errors import ModelError, OptionError
from layerlens.models import Model
from layerlens.models.hooks import watch_blocks
from layerlens.tracing.meter import Meter
from layerlens.tracing.options import TraceOptions
from layerlens.tracing.prompts import pad

# of the largest logit; linear attention computes a prompt in chunks, so rounding differs with its length
_PADDING_TOLERANCE = {torch.float32: 5e-3, torch.float64: 5e-3, torch.float16: 3e-2}

OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class Rows:
    """Which state each measured row is: row of the batch, and position in its sequence; int64 [rows] each."""

    batch_row: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]


def end_token_ids(model: Model) -> list[int]:
    """The ids that end a generation, from the model's generation config or else its tokenizer."""
    generation = getattr(model.hf, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = model.tokenizer.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def pad_token_id(model: Model) -> int:
    """An id to pad with; padding is masked, so any known id does."""
    ends = end_token_ids(model)
    candidates = (model.tokenizer.pad_token_id, ends[0] if ends else None)
    return next((int(token_id) for token_id in candidates if token_id is not None), 0)


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: TraceOptions,
    seed: int,
    meter: Meter | None = None,
    on_tokens: OnTokens | None = None,
) -> tuple[list[list[int]], Rows]:
    """What transformers' own `generate` emits for each prompt, end token included, and the rows `meter` was shown."""
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, pad_token_id(model), left=True))
    ends = end_token_ids(model)
    selection = _GrowingSelection([len(prompt) for prompt in prompts], ends, options, meter, on_tokens)
    selection.before_prefill(mask)
    with torch.random.fork_rng(enabled=options.temperature > 0), _own_generation_config(model, options, ends):
        if options.temperature > 0:
            torch.manual_seed(seed)
        with _watched(model, meter):
            hf: Any = model.hf
            sequences = hf.generate(input_ids=ids, attention_mask=mask, stopping_criteria=[selection])
    outputs = sequences[:, ids.shape[1] :].tolist()
    return [_until_end(output, ends) for output in outputs], selection.rows()


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
        ends: list[int],
        options: TraceOptions,
        meter: Meter | None,
        on_tokens: OnTokens | None,
    ) -> None:
        self._next_position = np.array(lengths)
        self._alive = np.ones(len(lengths), dtype=bool)
        self._ends = ends
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
        self._alive &= ~np.isin(input_ids[:, -1].cpu().numpy(), self._ends)
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


def _until_end(output: list[int], ends: list[int]) -> list[int]:
    stop = next((index + 1 for index, token_id in enumerate(output) if token_id in ends), len(output))
    return output[:stop]


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
    sampling = {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0, "remove_invalid_values": True}
    model.hf.generation_config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=options.temperature > 0,
        eos_token_id=ends or None,
        pad_token_id=pad_token_id(model),
        **(sampling if options.temperature > 0 else {}),
    )
    try:
        yield
    finally:
        model.hf.generation_config = theirs


@torch.no_grad()
def refuse_ignored_padding(model: Model) -> None:
    """OptionError where a prompt, padded on the left beside a longer one, generates from other logits than alone."""
    known = min(model.n_known_tokens, model.n_vocab)
    long = torch.linspace(min(3, known - 1), known - 1, 9).long().tolist()
    alone = _first_logits(model, [long[2:6]])
    padded = _first_logits(model, [long[2:6], long])[: len(alone)]  # alone, it may have come to its end sooner
    # after a near tie was decided otherwise the texts differ, and their logits with them
    agreed = (alone.argmax(1) == padded.argmax(1)).cumprod(0).sum()
    alone, padded = alone[: agreed + 1], padded[: agreed + 1]
    scale = alone.abs().max()
    if not (alone - padded).abs().max() <= _PADDING_TOLERANCE.get(model.hf.dtype, 0.1) * scale:
        raise OptionError(
            f"--batch-size above 1 does not work for {model.source} ({model.family}): padding changes what it "
            "generates; give --batch-size 1"
        )


def _first_logits(model: Model, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The logits of the first prompt at the steps that emit its next tokens, four at most: [steps, vocab]."""
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, pad_token_id(model), left=True))
    hf: Any = model.hf
    out = hf.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=pad_token_id(model),
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    return torch.stack([logits[0].float() for logits in out.logits])
