"""What runs the passes of a trace: this process, nnsight in it, or nnsight's server. Each engine does the same
things."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch

from layerlens.decode.batch import Decoded, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.log import Decisions
from layerlens.decode.prompts import end_token_ids, pad, pad_token_id
from layerlens.decode.speculative.drafter import Drafter
from layerlens.decode.speculative.loop import decode_drafted
from layerlens.decode.strategies import Choice, Strategy
from layerlens.errors import OptionError, spelled
from layerlens.lens import IDENTITY, CoarseHead, Transport, refuse_without_bfloat16
from layerlens.models import Model
from layerlens.models.nnsight import Nnsight, refuse_edits
from layerlens.records.schema import ON_REQUEST
from layerlens.tracing.meter import FLOATS, NOTHING, Measured, Meter, Wanted
from layerlens.tracing.options import TraceOptions
from layerlens.tracing.passes import Rows, generate, replay

Prompts = Sequence[Sequence[int]]
OnTokens = Callable[[int], None]


class Batch(NamedTuple):
    """Prompts of a part of a run, as token ids, and the seed of what is drawn for them."""

    prompts: Prompts
    seed: int


class Recorded(NamedTuple):
    """What was emitted and measured for a batch; nothing is emitted for given texts."""

    decoded: Decoded | None
    measured: Measured
    rows: Rows
    seconds: float


class Engine(ABC):
    """What a trace needs of an engine, which runs the passes.

    Attributes:
        modes: the modes in which it can record: "generate" (while tokens are emitted), "replay" (in one pass
            afterwards).
        takes_lens: whether it can read through a lens other than the logit lens.
        model, options, transport: what is traced, how, and through which lens.
    """

    modes: tuple[str, ...] = ("replay",)
    takes_lens = False

    def __init__(self, model: Model, options: TraceOptions, transport: Transport = IDENTITY) -> None:
        self.model = model
        self.options = options
        self.transport = transport

    @property
    def told(self) -> dict[str, Any]:
        """What the totals of a run say of the engine, once it has run."""
        return {}

    @abstractmethod
    def refuse_unable(self, strategy: Strategy) -> None:
        """OptionError for options, or a strategy, that this engine cannot follow."""

    def prepare(self, batches: Sequence[Batch], strategy: Strategy) -> None:  # noqa: B027
        """Do what can fail, before anything is written or replaced; most engines have nothing to do."""

    @abstractmethod
    def recorded(
        self, batches: Sequence[Batch], strategy: Strategy, on_tokens: OnTokens
    ) -> Iterator[tuple[int, Recorded]]:
        """The number of each batch, with what was emitted and measured for it, as the batches are completed.

        Args:
            batches: of prompts.
            strategy: of the trace.
            on_tokens: called with the number of tokens as they come.
        """


class InTurn(Engine):
    """One batch after the other. Tokens come from our decoding loop.

    Attributes:
        drafter: makes drafts for it; None: there are none.
    """

    drafter: Drafter | None = None

    def recorded(
        self, batches: Sequence[Batch], strategy: Strategy, on_tokens: OnTokens
    ) -> Iterator[tuple[int, Recorded]]:
        """In the order of the batches."""
        for number, batch in enumerate(batches):
            started = time.perf_counter()
            decoded, measured, rows = self._recorded(batch, strategy, on_tokens)
            yield number, Recorded(decoded, measured, rows, time.perf_counter() - started)

    def _recorded(self, batch: Batch, strategy: Strategy, on_tokens: OnTokens) -> tuple[Decoded | None, Measured, Rows]:
        options, (prompts, seed) = self.options, batch
        if options.mode == "generate":
            return self.generated_and_measured(prompts, strategy, seed, on_tokens)
        decoded = self.generated(prompts, strategy, seed, on_tokens) if options.max_new_tokens else None
        outputs = [[] for _ in prompts] if decoded is None else decoded.outputs
        # the state of the last emitted token emits nothing, and generating never computes it
        sequences = [[*prompt, *output[:-1]] for prompt, output in zip(prompts, outputs, strict=True)]
        firsts = [0 if options.positions == "all" else len(prompt) - 1 for prompt in prompts]
        next_ids = [output[-1] if output else NOTHING for output in outputs]
        measured, rows = self.measured(sequences, firsts, next_ids)
        if decoded is None:
            on_tokens(len(rows.position))
        return decoded, measured, rows

    @abstractmethod
    def measured(self, sequences: Prompts, firsts: Sequence[int], next_ids: Sequence[int]) -> tuple[Measured, Rows]:
        """One full pass over the sequences, each measured at its positions from its entry of `firsts` on.

        Args:
            sequences: token ids.
            firsts: for each sequence the first position to measure.
            next_ids: the token that followed each sequence; −1 where none did.
        """

    @abstractmethod
    def generated_and_measured(
        self, prompts: Prompts, strategy: Strategy, seed: int, on_tokens: OnTokens
    ) -> tuple[Decoded, Measured, Rows]:
        """As `generated`, and measured while tokens are emitted; OptionError where `modes` lacks "generate".

        Rows of positions after the end of a text can be among them: a step does not wait to learn that a row has ended.
        """

    def generated(self, prompts: Prompts, strategy: Strategy, seed: int, on_tokens: OnTokens) -> Decoded:
        """What is emitted for each prompt of a batch, when the strategy chooses the logits; nothing is measured."""
        if (drafter := self._drafter_now) is not None:
            return decode_drafted(
                self.model,
                prompts,
                strategy,
                self.options,
                seed,
                drafter,
                transport=self.transport,
                on_tokens=on_tokens,
            )
        chooser = Chooser(self.model, strategy, seed, self.transport)
        return decode_batch(self.model, prompts, chooser, self.options, seed, on_tokens=on_tokens)

    @property
    def _drafter_now(self) -> Drafter | None:
        """The drafter, unless it has given up."""
        return self.drafter if self.drafter is not None and self.drafter.pays else None


class InProcess(InTurn):
    """transformers, or TransformerLens's components in a model of transformers: blocks are watched as it runs here."""

    modes = ("generate", "replay")
    takes_lens = True

    def __init__(self, model: Model, options: TraceOptions, transport: Transport = IDENTITY) -> None:
        super().__init__(model, options, transport)
        coarse = options.lens_precision != "float32"
        if coarse:
            refuse_without_bfloat16(model.unembed.device)
        self._coarse = CoarseHead(model.unembed) if coarse else None

    def refuse_unable(self, strategy: Strategy) -> None:
        """This engine can follow all options."""

    def measured(self, sequences: Prompts, firsts: Sequence[int], next_ids: Sequence[int]) -> tuple[Measured, Rows]:
        """By a meter on every block."""
        meter = self._meter()
        rows = replay(self.model, sequences, firsts, meter, next_ids if self.options.targets else None)
        return meter.collect(), rows

    def generated_and_measured(
        self, prompts: Prompts, strategy: Strategy, seed: int, on_tokens: OnTokens
    ) -> tuple[Decoded, Measured, Rows]:
        """By the decoding loop, with a meter on every block."""
        meter = self._meter()
        decoded, rows = generate(
            self.model,
            prompts,
            self.options,
            strategy,
            seed,
            meter,
            on_tokens,
            self.transport,
            self._drafter_now,
        )
        return decoded, meter.collect(), rows

    def _meter(self) -> Meter:
        wanted = Wanted(**{one.name: getattr(self.options, one.name) for one in fields(Wanted)})
        return Meter(self.model, wanted, self.transport, self._coarse)


class WithNnsight(InTurn):
    """nnsight with the weights here: nnsight runs full passes, and our own loop decodes."""

    modes = ("replay",)

    def __init__(self, model: Model, options: TraceOptions, transport: Transport = IDENTITY) -> None:
        assert isinstance(model.backend, Nnsight)
        super().__init__(model, options, transport)
        self._connection = model.backend

    def refuse_unable(self, strategy: Strategy) -> None:
        """It records in one pass, from which entropies come back, but no states."""
        options, name = self.options, self._connection.name
        if options.mode not in self.modes:
            raise self._in_one_pass(options.mode)
        for option, off in [("lens_precision", "float32"), *((name, 0) for name in ON_REQUEST)]:
            if (given := getattr(options, option)) != off:
                raise OptionError.about(
                    option,
                    given,
                    f"does not work with {spelled('backend', name)}",
                    "leave it out, or give another backend",
                )
        if options.max_new_tokens:
            refuse_edits(self.model)

    def measured(self, sequences: Prompts, firsts: Sequence[int], next_ids: Sequence[int]) -> tuple[Measured, Rows]:
        """By the formulas, where nnsight has the states."""
        ids, mask = pad(sequences, pad_token_id(self.model), left=False)
        kept = Rows.from_on(firsts, sequences)
        flat = torch.from_numpy(kept.batch_row * ids.shape[1] + kept.position)
        floats, tops = self._connection.measured(self.model, ids, mask, flat)
        return {**dict(zip(FLOATS, floats, strict=True)), "top_token_id": tops}, kept

    def generated_and_measured(
        self, prompts: Prompts, strategy: Strategy, seed: int, on_tokens: OnTokens
    ) -> tuple[Decoded, Measured, Rows]:
        """Not possible, because nnsight's passes are over whole texts."""
        raise self._in_one_pass("generate")

    def _in_one_pass(self, mode: str | None) -> OptionError:
        return OptionError.about(
            "mode",
            mode,
            f"does not work with {spelled('backend', self._connection.name)}, which records in one pass",
            f"give {' or '.join(spelled('mode', one) for one in self.modes)}",
        )


class OnNnsightServer(WithNnsight):
    """nnsight's server, which has the weights and runs full passes and greedy generation."""

    def refuse_unable(self, strategy: Strategy) -> None:
        """It generates greedily from the last layer."""
        super().refuse_unable(strategy)
        if self.options.max_new_tokens and not (strategy.is_untouched and _is_plain(self.options)):
            raise OptionError.about(
                "backend",
                self._connection.name,
                "generates greedily from the last layer alone",
                "leave out strategy, temperature, repetition penalty, stop strings and a generation config that "
                f"changes logits, or trace given text with {spelled('max_new_tokens', 0)}",
            )

    def generated(self, prompts: Prompts, strategy: Strategy, seed: int, on_tokens: OnTokens) -> Decoded:
        """By transformers' greedy generation on the server, one prompt after the other."""
        model, options, ends = self.model, self.options, end_token_ids(self.model, self.options)
        outputs = []
        for prompt in prompts:
            least = options.min_new_tokens or 0
            outputs.append(self._connection.generated(model, prompt, options.max_new_tokens, least, ends))
            on_tokens(len(outputs[-1]))
        decisions = []
        for output in outputs:
            token_ids = torch.tensor(output)
            last = torch.full_like(token_ids, model.n_layers)
            choice = Choice(logits=torch.empty(len(output), 0), selected_layer=last, last_token_id=token_ids)
            decisions.append(Decisions.of(choice, torch.ones_like(token_ids)))
        reasons = ["stop" if output[-1] in ends else "length" for output in outputs]
        return Decoded(outputs, reasons, decisions)


_KINDS: dict[str, type[InProcess] | type[WithNnsight]] = {
    "transformers": InProcess,
    "transformer-lens": InProcess,
    "nnsight": WithNnsight,
    "nnsight-remote": OnNnsightServer,
    "nnsight-simulated": OnNnsightServer,
}


def engine_of(model: Model) -> type[Engine]:
    """The engine that runs the passes of this model."""
    if model.backend.home is not None:
        kind: type[Engine] = model.backend.elsewhere.Tracing
        return kind
    return _KINDS[model.backend.name]


def _is_plain(options: TraceOptions) -> bool:
    penalised = options.repetition_penalty not in (None, 1.0)
    return not options.samples and not penalised and not options.stops and not options.generation_config
