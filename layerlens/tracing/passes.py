"""The two ways to send a batch through the model while its blocks are watched: generating, and one full pass."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from layerlens.compat import can_grow_a_cache
from layerlens.decode.batch import Decoded, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.prompts import pad, pad_token_id
from layerlens.decode.speculative.drafter import Drafter
from layerlens.decode.speculative.loop import Watch, decode_drafted
from layerlens.decode.strategies import Strategy
from layerlens.errors import ModelError, spelled
from layerlens.lens import IDENTITY, Transport
from layerlens.models import Model
from layerlens.models.hooks import OnBlock, outputs_of, watch_blocks
from layerlens.tracing.meter import NOTHING, Meter
from layerlens.tracing.options import TraceOptions

OnTokens = Callable[[int], None]

_NOWHERE = 2**31  # in place of a position: no text is so long
_LONGEST_PASS = 4096  # tokens of a piece of a text
_ATTENTION = {"full", "sliding"}


@dataclass(frozen=True)
class Rows:
    """The state that each measured row is: row of the batch, and position in the sequence; int64 [rows] each."""

    batch_row: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]

    @classmethod
    def from_on(cls, firsts: Sequence[int], sequences: Sequence[Sequence[int]]) -> "Rows":
        """For each sequence, the positions from its entry of `firsts` on."""
        spans = [range(first, len(sequence)) for first, sequence in zip(firsts, sequences, strict=True)]
        return cls(
            np.repeat(np.arange(len(spans)), [len(span) for span in spans]),
            np.concatenate([np.arange(span.start, span.stop) for span in spans]),
        )


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: TraceOptions,
    strategy: Strategy,
    seed: int,
    meter: Meter,
    on_tokens: OnTokens | None = None,
    transport: Transport = IDENTITY,
    drafter: Drafter | None = None,
) -> tuple[Decoded, Rows]:
    """What is emitted for each prompt when `strategy` chooses the logits, and the rows that `meter` saw.

    Rows of positions after the end of a text can be among them: a step does not wait to learn that a row has ended. Of
    drafts, the meter sees the whole model's states, and those of rejected tokens too.
    """
    if drafter is not None:
        drafted = _DraftedSelection(prompts, options, meter)
        with _watched(model, meter, drafted.on_block):
            decoded = decode_drafted(
                model,
                prompts,
                strategy,
                options,
                seed,
                drafter,
                transport=transport,
                on_tokens=on_tokens,
                watch=drafted,
            )
        return decoded, drafted.rows()
    chooser = Chooser(model, strategy, seed, transport)
    selection = _GrowingSelection(prompts, options, meter)
    with _watched(model, meter, meter.on_block):
        decoded = decode_batch(
            model,
            prompts,
            chooser,
            options,
            seed,
            on_tokens=on_tokens,
            before_pass=selection.before_pass,
            after_pass=selection.after_pass if options.targets else None,
        )
    return decoded, selection.rows()


def replay(
    model: Model,
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    meter: Meter,
    next_ids: Sequence[int] | None = None,
) -> Rows:
    """One full pass over the sequences; measures the positions of each from its entry of `firsts` on.

    The meter is told which tokens followed, if `next_ids` gives the token after the last one of each sequence.

    In models with attention only, long texts are read in pieces, with keys and values kept between the pieces, so that
    the memory of a pass does not grow with the text.
    """
    # padding on the right: positions then count from 0 in every row, and no causal state can see the padding
    ids, mask = pad(sequences, pad_token_id(model), left=False)
    kept = torch.zeros_like(mask, dtype=torch.bool)
    for row, (sequence, first) in enumerate(zip(sequences, firsts, strict=True)):
        kept[row, first : len(sequence)] = True
    following = ids
    if next_ids is not None:
        after = [[*sequence[1:], last] for sequence, last in zip(sequences, next_ids, strict=True)]
        following, _ = pad(after, NOTHING, left=False)
    pieces = list(zip(*(tensor.split(_LONGEST_PASS, dim=1) for tensor in (ids, kept, following)), strict=True))
    cache = DynamicCache(config=model.hf.config) if len(pieces) > 1 and _goes_on(model) else None
    if cache is None:
        pieces = [(ids, kept, following)]
    begin, seen = 0, []
    with torch.no_grad(), _watched(model, meter, meter.on_block):
        for piece, kept_here, following_here in pieces:
            if next_ids is not None:
                meter.tell(following_here[kept_here])
            end = begin + piece.shape[1]
            meter.select = _flat_selection(kept_here.flatten().nonzero().squeeze(1), piece.numel())
            model.decoder(
                input_ids=piece.to(model.device),
                attention_mask=None if mask.all() else mask[:, :end].to(model.device),
                use_cache=cache is not None,
                **({} if cache is None else {"past_key_values": cache}),
            )
            batch_row, position = kept_here.nonzero(as_tuple=True)
            seen.append(Rows(batch_row.numpy(), position.numpy() + begin))
            begin = end
    return _joined(seen)


@contextmanager
def _watched(model: Model, meter: Meter, on_block: OnBlock) -> Iterator[None]:
    """While open, the meter sees what it measures; what drafts return it forgets at their next block."""
    with outputs_of(meter.watched_parts, meter.on_part), watch_blocks(model.blocks, model.sublayers, on_block):
        yield


def _goes_on(model: Model) -> bool:
    """Whether a pass can continue where another one ended. Recurrences of transformers start anew in long passes."""
    hf: Any = model.hf
    takes = "past_key_values" in inspect.signature(type(model.decoder).forward).parameters
    # the config of a translator's decoder counts the encoder's layers
    counts = hf.config.get_text_config(decoder=True).num_hidden_layers == model.n_layers
    is_attention = set(model.layer_kinds) <= _ATTENTION
    return takes and counts and is_attention and can_grow_a_cache(hf)


class _GrowingSelection:
    """Follows a generation pass by pass: selects the prompts' states, or the last state of each, then each new one."""

    def __init__(self, prompts: Sequence[Sequence[int]], options: TraceOptions, meter: Meter) -> None:
        self._lengths = np.array([len(prompt) for prompt in prompts])
        self._prompts = prompts
        self._all_positions = options.positions == "all"
        self._meter = meter
        self._seen: list[Rows] = []

    def before_pass(self, batch_rows: Sequence[int]) -> None:
        """Prepare the selection among the states of a pass that holds these rows."""
        if self._all_positions and not self._seen:
            places = np.arange(self._lengths.max()) - (self._lengths.max() - self._lengths)[:, np.newaxis]
            row, column = (places >= 0).nonzero()
            self._meter.select = _flat_selection(torch.from_numpy((places >= 0).ravel().nonzero()[0]), places.size)
            self._seen.append(Rows(row, places[row, column]))
        else:
            self._meter.select = _last
            rows = np.array(batch_rows)
            self._seen.append(Rows(rows, self._lengths[rows] - 1 + len(self._seen)))

    def after_pass(self, token_ids: Tensor) -> None:
        """Tell the meter which tokens followed the states of the pass; its rows emitted these tokens."""
        if self._all_positions and len(self._seen) == 1:
            following = torch.tensor([token for prompt in self._prompts for token in [*prompt[1:], NOTHING]])
            following = following.to(token_ids.device)
            following[torch.from_numpy(self._lengths.cumsum() - 1).to(token_ids.device)] = token_ids
            token_ids = following
        self._meter.tell(token_ids)

    def rows(self) -> Rows:
        """The rows that passed through the blocks, in their order."""
        return _joined(self._seen)


class _DraftedSelection(_GrowingSelection, Watch):
    """Follows the whole model's passes where drafts are verified: every state of a pass is measured, and those of
    rejected tokens get a position that no text has."""

    def __init__(self, prompts: Sequence[Sequence[int]], options: TraceOptions, meter: Meter) -> None:
        super().__init__(prompts, options, meter)
        self._tells = options.targets
        self._is_passing = False
        self._pass: tuple[Sequence[int], int | None] = ((), None)
        self._n_read = self._lengths.copy()

    def on_block(self, index: int, h_in: Tensor, part: Tensor | None, h_out: Tensor) -> None:
        """For `watch_blocks`: hands on what passes of the whole model do."""
        if self._is_passing:
            self._meter.on_block(index, h_in, part, h_out)

    @contextmanager
    def passing(self, rows: Sequence[int], n_tokens: int | None) -> Iterator[None]:
        """As `Watch.passing`."""
        self._pass = (rows, n_tokens)
        if n_tokens is None:
            self.before_pass(rows)
        else:
            self._meter.select = _everything
        self._is_passing = True
        try:
            yield
        finally:
            self._is_passing = False

    def kept(self, read: Sequence[Sequence[int]], emitted: Sequence[Sequence[int]]) -> None:
        """As `Watch.kept`."""
        rows, n_tokens = self._pass
        if n_tokens is None:
            if self._tells:
                self.after_pass(torch.tensor([tokens[0] if tokens else NOTHING for tokens in emitted]))
            return
        positions = np.full((len(rows), n_tokens), _NOWHERE)
        following = torch.full((len(rows), n_tokens), NOTHING)
        for place, (row, own, tokens) in enumerate(zip(rows, read, emitted, strict=True)):
            positions[place, own] = self._n_read[row] + np.arange(len(own))
            following[place, own[: len(tokens)]] = torch.tensor(tokens, dtype=torch.long)
            self._n_read[row] += len(own)
        self._seen.append(Rows(np.repeat(rows, n_tokens), positions.ravel()))
        if self._tells:
            self._meter.tell(following.flatten())


def _everything(stream: Tensor) -> Tensor:
    return stream.flatten(0, 1).clone()


def _joined(seen: Sequence[Rows]) -> Rows:
    return Rows(np.concatenate([rows.batch_row for rows in seen]), np.concatenate([rows.position for rows in seen]))


def _last(stream: Tensor) -> Tensor:
    return stream[:, -1].clone()


def _flat_selection(flat: Tensor, n_states: int) -> Callable[[Tensor], Tensor]:
    everything = len(flat) == n_states
    on_device = {flat.device: flat}  # a copy from the host would wait, at every block, for all earlier work

    def select(stream: Tensor) -> Tensor:
        if stream.shape[0] * stream.shape[1] != n_states:
            handed = stream.shape[0] * stream.shape[1]
            problem = f"this model hands {handed} of {n_states} prompt states to a block while generating"
            advice = f"trace all positions with {spelled('mode', 'replay')}"
            raise ModelError(problem, advice, option="mode", given="generate")
        states = stream.flatten(0, 1)
        if everything:
            return states.clone()
        if stream.device not in on_device:
            on_device[stream.device] = flat.to(stream.device)
        return states.index_select(0, on_device[stream.device])

    return select
