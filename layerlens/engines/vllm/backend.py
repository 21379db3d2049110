"""vLLM in place of our own loop: `generate`, `ablate` and `trace` of a model that was loaded with backend "vllm"."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from layerlens.decode.batch import Decoded
from layerlens.decode.loop import Job
from layerlens.decode.options import GenerateOptions
from layerlens.decode.requests import Requests
from layerlens.decode.strategies import Strategy
from layerlens.engines.vllm import requests as requests_to
from layerlens.engines.vllm.offline import Answer, Asked, Offline, named, refuse_stops
from layerlens.errors import OptionError, spelled
from layerlens.lens import IDENTITY, Affine, Transport
from layerlens.lens.transport import Identity
from layerlens.models import Model
from layerlens.models.vllm import NAME, Vllm
from layerlens.tracing.engines import Batch, Engine, OnTokens, Recorded
from layerlens.tracing.meter import FLOATS, Wanted
from layerlens.tracing.passes import Rows

_CONFIG = "generation_config"


_running: list[Offline] = []
"""The engine of this process, whichever model it is of."""


def decoded(
    model: Model, jobs: Sequence[Job], transport: Transport, options: GenerateOptions
) -> Iterator[tuple[int, Decoded]]:
    """What is emitted for the prompts of each job, in the order in which jobs are completed."""
    _refuse(options, transport)
    if not jobs:
        return
    strategies = [job.strategy for job in jobs]
    engine = ready(model, strategies, None, transport)
    asked = [Asked([prompt.token_ids for prompt in job.prompts], job.strategy, job.seed) for job in jobs]
    for number, answers in engine.answered(asked, options):
        yield number, _as_decoded(answers)


def ready(
    model: Model, strategies: Sequence[Strategy], wanted: Wanted | None, transport: Transport = IDENTITY
) -> Offline:
    """The model's engine, started anew where the one that runs lacks a strategy's layers, the traces or the lens."""
    backend = model.backend
    assert isinstance(backend, Vllm)
    for strategy in strategies:
        named(strategy)
    lens = transport.spec if isinstance(transport, Affine) else None
    is_ours = bool(backend.running) and backend.running[0] in _running
    if not is_ours or not backend.running[0].fits(strategies, wanted, lens):
        while _running:  # a process has one engine at a time
            _running.pop().close()
        backend.running.clear()
        _running.append(Offline(model, strategies, wanted, lens))
        backend.running.append(_running[0])
    return _running[0]


def requests(model: Model, transport: Transport, strategies: Sequence[Strategy] = ()) -> Requests:
    """Requests to the model that come one by one; see `requests.Engine`."""
    _refuse(GenerateOptions(), transport)
    return requests_to.Engine(model, lambda known: ready(model, known, None, transport), strategies)


class Tracing(Engine):
    """vLLM's engine, which measures all layers of each step."""

    modes = ("generate", "replay")
    takes_lens = True

    def refuse_unable(self, strategy: Strategy) -> None:
        """It records while it runs, and reads what its workers have at hand."""
        options = self.options
        _refuse(options, self.transport)
        named(strategy)
        for name in ("sublayers", "confidence"):
            if getattr(options, name):
                what = f"does not work with {spelled('backend', NAME)}, which hands out what leaves a block alone"
                raise OptionError.about(name, True, what, "leave it out, or give another backend")
        if options.lens_precision != "float32":
            what = f"is for a model in this process, and not for {spelled('backend', NAME)}"
            raise OptionError.about("lens_precision", options.lens_precision, what, "leave it out")
        if options.mode == "replay" and options.max_new_tokens:
            what = f"is not needed with {spelled('backend', NAME)}, which records every state while it generates"
            raise OptionError.about("mode", options.mode, what, "leave it out")

    @property
    def told(self) -> dict[str, Any]:
        """Which of vLLM's model runners ran."""
        backend = self.model.backend
        assert isinstance(backend, Vllm)
        return {"runner": backend.running[0].runner} if backend.running else {}

    def prepare(self, batches: Sequence[Batch], strategy: Strategy) -> None:
        """Start the engine; an error where it does not start, or would not take a prompt as it is."""
        asked = [Asked(batch.prompts, strategy, batch.seed) for batch in batches]
        ready(self.model, [strategy], self._wanted, self.transport).refuse_unfit(asked, self.options)

    @property
    def _wanted(self) -> Wanted:
        return Wanted(**{one.name: getattr(self.options, one.name) for one in fields(Wanted)})

    def recorded(
        self, batches: Sequence[Batch], strategy: Strategy, on_tokens: OnTokens
    ) -> Iterator[tuple[int, Recorded]]:
        """In the order in which batches are completed. The seconds of a batch are those since the last one was."""
        if not batches:
            return  # a run that is complete is resumed without an engine
        options = self.options
        engine = ready(self.model, [strategy], self._wanted, self.transport)
        asked = [Asked(batch.prompts, strategy, batch.seed) for batch in batches]
        started = time.perf_counter()
        for number, answers in engine.answered(asked, options, options.positions):
            on_tokens(sum(len(one.token_ids) for one in answers))
            emitted = _as_decoded(answers) if options.max_new_tokens else None
            measured, rows = _measured(answers, self.model.n_layers)
            now = time.perf_counter()
            yield number, Recorded(emitted, measured, rows, now - started)
            started = now


def _refuse(options: GenerateOptions, transport: Transport) -> None:
    """OptionError for what vLLM's sampler or layerlens inside it cannot do."""
    if not isinstance(transport, Affine | Identity):
        what = "is of your own making, and vLLM's processes do not have it"
        given = transport.record()["kind"]
        raise OptionError.about("lens", given, what, f"give {spelled('backend', 'transformers')}")
    refuse_stops(options)
    if isinstance(options.generation_config, Mapping) and options.generation_config:
        raise OptionError(
            f"the generation config asks for {', '.join(options.generation_config)}, which {spelled('backend', NAME)} "
            "does not follow",
            f"give {spelled(_CONFIG, False)}, or another backend",
            option=_CONFIG,
            given=options.generation_config,
        )


def _as_decoded(answers: Sequence[Answer]) -> Decoded:
    return Decoded(
        [one.token_ids for one in answers], [one.finish_reason for one in answers], [one.decisions for one in answers]
    )


def _measured(answers: Sequence[Answer], n_layers: int) -> tuple[dict[str, Any], Rows]:
    """The columns of all answers one after the other; what vLLM does not tell is NaN."""
    layers = [one.layers for one in answers if one.layers is not None]
    names = [name for name in layers[0] if name != "position"]
    columns: dict[str, Any] = {name: np.concatenate([one[name] for one in layers]) for name in names}
    n_rows = len(columns["entropy"])
    columns |= {name: np.full((n_rows, n_layers), np.nan, dtype=np.float32) for name in FLOATS if name not in columns}
    batch_row = np.repeat(np.arange(len(layers)), [len(one["position"]) for one in layers])
    return columns, Rows(batch_row, np.concatenate([one["position"] for one in layers]).astype(np.int64))
