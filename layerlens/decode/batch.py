"""One batch of prompts in the decoding loop. Everything that a step reads or writes is on the device, so that a step
never waits for the host. The host looks at the records of a block of steps once the block is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from layerlens.compat import decoding_fast
from layerlens.decode.chooser import Chooser
from layerlens.decode.endings import ending_criteria, has_ended
from layerlens.decode.forward import Forward
from layerlens.decode.generation_config import row_processors
from layerlens.decode.log import Decisions
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import end_token_ids, pad, pad_token_id, refuse_unreadable
from layerlens.decode.rows import seen_tokens
from layerlens.decode.sampling import Sampler
from layerlens.models import Model
from layerlens.models.placement import is_spread

# Steps between two looks of the host. Where the host is the device, it looks at every step: that costs no wait.
_STEPS_PER_BLOCK = {"cpu": 1}
_STEPS_PER_BLOCK_ELSEWHERE = 32
_EAGER_STEPS = 2  # real steps, for what happens only once and cannot be captured in a graph


def decode_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    chooser: Chooser,
    options: GenerateOptions,
    seed: int,
    *,
    static: bool | None = None,
    on_tokens: Callable[[int], None] | None = None,
    before_pass: Callable[[Sequence[int]], None] | None = None,
    after_pass: Callable[[Tensor], None] | None = None,
) -> "Decoded":
    """What is emitted for each prompt.

    Args:
        model: the model that decodes.
        prompts: token ids.
        chooser: applies the strategy; used for this batch alone.
        options: of the generation.
        seed: of the sampler.
        static: whether keys and values are kept in a cache of fixed size. None: only on a single accelerator, because
            on a CPU a growing cache is faster (measured: 10 %).
        on_tokens: called with the number of tokens after each block.
        before_pass: called before each forward pass with the numbers of the prompts that the rows belong to; prompts
            that have ended can be among them. Passes are then not captured as a graph.
        after_pass: called after each pass with the token of each of these rows, int64 [rows]; given together with
            `before_pass`.
    """
    if static is None:
        static = model.device.type != "cpu" and not is_spread(model.hf)
    batch = _Batch(model, prompts, chooser, options, seed, static, before_pass, after_pass)
    with torch.no_grad(), chooser.choosing():
        return batch.run(on_tokens or (lambda _: None))


@dataclass(frozen=True)
class Decoded:
    """What was emitted for each prompt of a batch.

    Attributes:
        outputs: the tokens, end token included.
        finish_reasons: "stop" (an end token or a stop string), "length", or "non_finite" (the logits of the next token
            were NaN or infinite, and nothing was emitted from there on).
        decisions: for each prompt, one decision for each of its tokens.
    """

    outputs: list[list[int]]
    finish_reasons: list[str]
    decisions: list[Decisions]

    @property
    def all_decisions(self) -> Decisions:
        """The decisions of all prompts, one after the other."""
        return Decisions.joined(self.decisions)


class _Batch:
    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        chooser: Chooser,
        options: GenerateOptions,
        seed: int,
        static: bool,
        before_pass: Callable[[Sequence[int]], None] | None,
        after_pass: Callable[[Tensor], None] | None,
    ) -> None:
        self._chooser = chooser
        self._n_steps = options.max_new_tokens
        self._optimized = partial(decoding_fast, model.hf)
        self._prompts = prompts
        self._pad = pad_token_id(model)
        device = model.device
        ids, mask = (tensor.to(device) for tensor in pad(prompts, self._pad, left=True))
        n_rows = len(ids)
        self._forward = Forward(model, ids, mask, self._n_steps, static=static)
        ends = end_token_ids(model, options)
        self._end_ids = torch.tensor(ends, dtype=torch.long, device=device)
        self._endings = ending_criteria(ends, options.stops, model.tokenizer)
        # a stop string spans no more tokens than it has bytes
        self._tail = max((len(stop.encode()) for stop in options.stops), default=1)
        processors = row_processors(model, prompts, options, ends)
        penalised = processors is None and options.repetition_penalty not in (None, 1.0)
        seen = seen_tokens(ids, mask, model.n_vocab) if penalised else None
        self._sampler = Sampler(options, self._end_ids, seen, n_rows, seed, processors, prompts, model.source)

        # what a step changes, in place
        self._token = torch.zeros(n_rows, 1, dtype=torch.long, device=device)
        self._alive = torch.ones(n_rows, dtype=torch.bool, device=device)
        self._step = torch.zeros((), dtype=torch.long, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._recorded: list[Tensor] = []

        # known to the host
        self._block = _STEPS_PER_BLOCK.get(device.type, _STEPS_PER_BLOCK_ELSEWHERE)
        self._n_known = model.n_known_tokens
        self._may_emit_unknown = model.n_vocab > self._n_known
        if self._may_emit_unknown:
            self._block = 1  # each token is looked at before the model is to read it
        self._rows = list(range(n_rows))  # the rows of the batch, as numbers of prompts
        self._outputs: list[list[int]] = [[] for _ in prompts]
        self._ended = [False] * n_rows
        self._reasons = ["length"] * n_rows
        self._decisions: list[list[Decisions]] = [[] for _ in prompts]
        self._before_pass, self._after_pass = before_pass, after_pass
        # a sliding cache counts on the host how full it is, and a replayed graph would not
        on_host = before_pass is not None or "sliding" in model.layer_kinds or is_spread(model.hf)
        on_host = on_host or processors is not None  # which look at the texts so far
        self._may_capture = self._forward.is_static and device.type == "cuda" and not on_host
        self._graph: torch.cuda.CUDAGraph | None = None
        self._n_eager = 0
        chooser.may_branch = device.type == "cpu"
        chooser.is_alive = self._alive

    def run(self, on_tokens: Callable[[int], None]) -> Decoded:
        """Decode until every row has ended."""
        self._pass_begins()
        self._emit(self._forward.prompts())
        on_tokens(self._collect(1))
        done = 1
        with self._optimized():
            while done < self._n_steps and not all(self._ended):
                if self._may_emit_unknown:
                    refuse_unreadable(
                        (self._outputs[row][-1] for row in self._rows if not self._ended[row]), self._n_known
                    )
                self._leave_out_ended_rows()
                size = min(self._block, self._n_steps - done)
                for _ in range(size):
                    self._advance()
                done += size
                on_tokens(self._collect(size))
        return Decoded(self._outputs, self._reasons, [Decisions.joined(parts) for parts in self._decisions])

    def _advance(self) -> None:
        """One step, from a captured graph where there is one."""
        if self._may_capture and self._graph is None and self._n_eager >= _EAGER_STEPS:
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._pass_begins()
            self._emit(self._forward.step(self._token)[:, 0])
            self._n_eager += 1

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in (self._sampler.generator, self._chooser.generator):
            graph.register_generator_state(generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self._emit(self._forward.step(self._token)[:, 0])
        return graph

    def _pass_begins(self) -> None:
        if self._before_pass is not None:
            self._before_pass(self._rows)

    def _emit(self, logits: Tensor) -> None:
        """Sample, record, test for the end."""
        token_ids = self._sampler(logits, self._step)
        token_ids = torch.where(self._alive, token_ids, self._pad)
        if self._after_pass is not None:
            self._after_pass(token_ids)
        decisions = self._chooser.decisions
        assert decisions is not None
        for buffer, value in zip(
            self._buffers(decisions), (token_ids, decisions.numbers, decisions.values), strict=True
        ):
            buffer.index_copy_(0, self._slot, value.unsqueeze(0).to(buffer.device))
        self._alive.logical_and_(~torch.isin(token_ids, self._end_ids))
        self._token.copy_(token_ids.unsqueeze(1))
        self._step.add_(1)
        self._slot.add_(1)

    def _buffers(self, decisions: Decisions) -> list[Tensor]:
        if not self._recorded:
            n_rows, here = len(decisions.numbers), self._token.device  # the head can lie elsewhere
            self._recorded = [
                self._token.new_zeros(self._block, n_rows),
                decisions.numbers.new_zeros(self._block, *decisions.numbers.shape, device=here),
                decisions.values.new_zeros(self._block, *decisions.values.shape, device=here),
            ]
        return self._recorded

    def _collect(self, n_steps: int) -> int:
        """Bring the records of a block of steps to the host; the number of tokens in it."""
        tokens, numbers, values = (buffer[:n_steps].cpu() for buffer in self._recorded)  # themselves, on a CPU
        self._slot.zero_()
        n_tokens = 0
        for column, row in enumerate(self._rows):
            decisions = Decisions(numbers[:, column], values[:, column])
            n_before = len(self._outputs[row])
            for token_id, finite in zip(tokens[:, column].tolist(), decisions.is_finite.tolist(), strict=True):
                if self._ended[row]:
                    break
                if not finite:
                    self._ended[row], self._reasons[row] = True, "non_finite"
                    break
                self._outputs[row].append(token_id)
                if has_ended(self._endings, self._last_tokens(row)):
                    self._ended[row], self._reasons[row] = True, "stop"
            n_new = len(self._outputs[row]) - n_before
            kept = Decisions(decisions.numbers[:n_new].clone(), decisions.values[:n_new].clone())
            self._decisions[row].append(kept)
            n_tokens += n_new
        return n_tokens

    def _last_tokens(self, row: int) -> list[int]:
        emitted = self._outputs[row][-self._tail :]
        missing = self._tail - len(emitted)
        return [*self._prompts[row][-missing:], *emitted] if missing else emitted

    def _leave_out_ended_rows(self) -> None:
        """Drop ended rows: on a CPU at once; where a smaller batch needs another graph, once half have ended."""
        kept = [column for column, row in enumerate(self._rows) if not self._ended[row]]
        if len(kept) == len(self._rows) or (self._may_capture and len(kept) > len(self._rows) // 2):
            return
        index = torch.tensor(kept, device=self._token.device)
        if not self._forward.keep_rows(index):
            return
        self._rows = [self._rows[column] for column in kept]
        alive = torch.tensor(self._rows, device=index.device)
        self._token = self._token[index]
        self._alive = torch.ones_like(index, dtype=torch.bool)
        self._sampler.keep_rows(index, alive)
        self._chooser.keep_rows(alive, len(self._prompts))
        self._chooser.is_alive = self._alive
        self._recorded, self._graph, self._n_eager = [], None, _EAGER_STEPS - 1
