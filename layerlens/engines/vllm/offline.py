"""An engine of vLLM that answers the prompts of a trace, an ablation or a generation, all together."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from layerlens.decode.identity import attributes_of
from layerlens.decode.log import Decisions
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import end_token_ids
from layerlens.decode.registry import strategy_record
from layerlens.decode.strategies import Strategy, layers_of
from layerlens.engines.vllm.options import KEY, OWNER
from layerlens.engines.vllm.traces import unpacked
from layerlens.errors import LayerlensError, ModelError, OptionError, PromptError, first_sentence, spelled
from layerlens.models import Model
from layerlens.models.vllm import Vllm
from layerlens.records.manifest import digest
from layerlens.tracing.meter import Wanted

_NO_LIMIT = 2**50  # of the records, which are fetched as soon as a text has ended


class Asked(NamedTuple):
    """A batch of prompts, as token ids, that are asked together."""

    prompts: Sequence[Sequence[int]]
    strategy: Strategy
    seed: int


class Answer(NamedTuple):
    """What came back for one prompt."""

    token_ids: list[int]
    finish_reason: str
    decisions: Decisions
    layers: Mapping[str, Any] | None


class Offline:
    """A running engine, and what it was started for.

    Args:
        model: of this backend.
        strategies: those that requests will name.
        wanted: what is read of each layer; None where nothing is traced.
        lens: through which layers before the last are read, as an option names it; None: the logit lens.

    Attributes:
        lens: the same.
    """

    def __init__(
        self, model: Model, strategies: Sequence[Strategy], wanted: Wanted | None, lens: str | None = None
    ) -> None:
        self._model = model
        self._strategies = list(dict.fromkeys(strategies))
        self._wanted = wanted
        self.lens = lens
        self._count = 0
        self._asked: dict[str, tuple[GenerateOptions, str | None]] = {}
        self._has_failed = False
        options: dict[str, Any] = {"strategy": "last", "also": list(map(named, self._strategies))}
        options["record_bytes"] = _NO_LIMIT
        if wanted is not None:
            options["traces"] = {name: getattr(wanted, name) for name in ("kl", "js", "targets", "top")}
        if lens is not None:
            options["lens"] = lens
        self._llm = _started(model, options)

    def fits(self, strategies: Sequence[Strategy], wanted: Wanted | None, lens: str | None = None) -> bool:
        """Whether these strategies can be asked for, with such traces, through that lens."""
        if lens != self.lens:
            return False
        kept = {layer for one in self._strategies for layer in self._layers(one)} | {self._model.n_layers}
        needed = {layer for one in strategies for layer in self._layers(one)}
        return not self._has_failed and needed <= kept and (wanted is None or wanted == self._wanted)

    def _layers(self, strategy: Strategy) -> tuple[int, ...]:
        return layers_of(strategy, self._model.n_layers, self._model.tied)

    def close(self) -> None:
        """End the engine and its processes."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        with contextlib.suppress(Exception):  # of an engine that has failed
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    @property
    def runner(self) -> str:
        """Which of vLLM's model runners it has."""
        return "V2" if self._llm.llm_engine.vllm_config.use_v2_model_runner else "V1"

    def refuse_unfit(self, batches: Sequence[Asked], options: GenerateOptions) -> None:
        """PromptError or OptionError for what this engine would cut off or not take."""
        refuse_too_long((batch.prompts for batch in batches), options, self.longest)
        for batch in batches[:1]:
            with _told(self._model):
                self._params(batch.strategy, "", options, "", None)

    def answered(
        self, batches: Sequence[Asked], options: GenerateOptions, trace: str | None = None
    ) -> Iterator[tuple[int, list[Answer]]]:
        """The number of each batch, with the answers to its prompts, in the order in which batches are completed.

        Args:
            batches: of prompts.
            options: settled; with `max_new_tokens` 0 nothing is emitted.
            trace: which states are traced, if any.
        """
        self.refuse_unfit(batches, options)
        waiting, open_batches = list(enumerate(batches))[::-1], dict[int, dict[int, Answer]]()
        of_request: dict[str, tuple[int, int]] = {}
        try:
            while waiting or of_request:
                while waiting and len(of_request) < self.room:
                    number, batch = waiting.pop()
                    open_batches[number] = {}
                    for row, prompt in enumerate(batch.prompts):
                        id = self.add(prompt, batch.strategy, f"{batch.seed}/{row}", options, trace)
                        of_request[id] = number, row
                for id, answer in self.step().items():
                    number, row = of_request.pop(id)
                    open_batches[number][row] = answer
                    if len(open_batches[number]) == len(batches[number].prompts):
                        by_row = open_batches.pop(number)
                        yield number, [by_row[row] for row in sorted(by_row)]
        finally:
            # an interrupt ends vLLM's processes too, and an answer would be waited for in vain
            self._has_failed |= bool(of_request)

    @property
    def room(self) -> int:
        """How many requests the engine gets, so that it never waits for one."""
        most: int = self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        return 2 * most

    @property
    def longest(self) -> int:
        """How many tokens a prompt and its new tokens can have together."""
        most: int = self._llm.llm_engine.vllm_config.model_config.max_model_len
        return most

    def add(
        self,
        prompt: Sequence[int],
        strategy: Strategy,
        seed: str,
        options: GenerateOptions,
        trace: str | None = None,
    ) -> str:
        """Begin to answer a prompt; the id of the request.

        Args:
            prompt: token ids.
            strategy: one that the engine was started for.
            seed: of what is drawn.
            options: settled; with `max_new_tokens` 0 nothing is emitted.
            trace: which states are traced, if any.
        """
        self._count += 1
        id = f"layerlens-{self._count}"
        with _told(self._model):
            params = self._params(strategy, seed, options, id, trace)
            self._llm.llm_engine.add_request(id, {"prompt_token_ids": list(prompt)}, params)
        self._asked[id] = options, trace
        return id

    def step(self) -> dict[str, "Answer"]:
        """One step of the engine; the answers that are complete with it, by the ids of their requests."""
        is_done = False
        try:
            with _told(self._model):
                # what was forgotten ends too
                outs = [out for out in self._llm.llm_engine.step() if out.finished and out.request_id in self._asked]
            answers = self._answers(outs) if outs else {}
            is_done = True
        finally:
            self._has_failed |= not is_done
        return answers

    def forget(self, ids: Sequence[str]) -> None:
        """End requests that nobody waits for any more."""
        known = [id for id in ids if self._asked.pop(id, None) is not None]
        if known:
            self._llm.llm_engine.abort_request(known)
            self._llm.collective_rpc("layerlens_take", args=(known, {}))

    def _params(self, strategy: Strategy, draws: str, options: GenerateOptions, id: str, trace: str | None) -> Any:
        from vllm import SamplingParams

        seed = int(digest(draws)[:8], 16)
        given = named(strategy) | {"id": id, "seed": seed}
        if trace is not None:
            given["trace"] = trace
        drawn = {"temperature": options.temperature, "seed": seed} if options.samples else {"temperature": 0.0}
        drawn |= {"top_p": options.top_p or 1.0, "top_k": options.top_k or 0} if options.samples else {}
        ends = end_token_ids(self._model, options)
        emits = options.max_new_tokens > 0
        return SamplingParams(
            max_tokens=max(1, options.max_new_tokens),
            min_tokens=(options.min_new_tokens or 0) if emits else 0,
            repetition_penalty=options.repetition_penalty or 1.0,
            stop=options.stops if emits else None,
            stop_token_ids=ends if emits else None,
            ignore_eos=True,  # the ends are those of the options
            detokenize=bool(options.stops) and emits,
            skip_special_tokens=False,
            extra_args={KEY: given},
            **drawn,
        )

    def _answers(self, outs: Sequence[Any]) -> dict[str, "Answer"]:
        asked = {out.request_id: self._asked.pop(out.request_id) for out in outs}
        # the token that vLLM cannot do without follows nothing
        emitting = [out for out in outs if asked[out.request_id][0].max_new_tokens > 0]
        last_ids = {out.request_id: out.outputs[0].token_ids[-1] for out in emitting}
        found = self._llm.collective_rpc("layerlens_take", args=(list(asked), last_ids))[0]
        return {out.request_id: _answer(out, found.get(out.request_id), *asked[out.request_id]) for out in outs}


def refuse_stops(options: GenerateOptions) -> None:
    """OptionError where stop strings go with a least number of tokens, which vLLM cannot do."""
    if options.stops and options.min_new_tokens:
        what = (
            f"does not go with {spelled('min_new_tokens', options.min_new_tokens)} in vLLM, which does not stop before"
        )
        raise OptionError.about("stop_strings", options.stops, what, "leave one of them out, or give another backend")


def refuse_too_long(batches: Iterable[Sequence[Sequence[int]]], options: GenerateOptions, room: int) -> None:
    """PromptError where a prompt and its new tokens are longer than an engine's texts can be; vLLM would cut it off."""
    longest = max((len(prompt) for prompts in batches for prompt in prompts), default=0)
    new = max(1, options.max_new_tokens)
    if longest + new > room:
        raise PromptError(
            f"a prompt of {longest:,} tokens and {new:,} new one{'s' * (new > 1)} do not fit into the engine's "
            f"max_model_len of {room:,}",
            f"give a larger max_model_len in {spelled('engine_options')}, shorten the prompt, or lower "
            f"{spelled('max_new_tokens')}",
            option="engine_options",
            given=room,
        )


@contextlib.contextmanager
def _told(model: Model) -> Iterator[None]:
    """One sentence in place of what vLLM raises."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except LayerlensError:
        raise
    except (ValueError, VLLMValidationError) as error:
        raise OptionError(
            f"vLLM does not take this request ({first_sentence(error)})", "change the option that it names"
        ) from error
    except Exception as error:
        advice = "see what vLLM said above"
        if "does not use offset" in str(error):
            advice = (
                "vLLM cannot draw with a seed on a CPU while it reads a prompt in parts; give "
                "enable_chunked_prefill=false, and max_num_batched_tokens of max_model_len, in "
                f"{spelled('engine_options')}"
            )
        raise ModelError(
            f"vLLM failed on {model.source} ({first_sentence(error)})", advice, given=model.source
        ) from error


def named(strategy: Strategy) -> dict[str, Any]:
    """The strategy as an engine's options name it; OptionError for one that engines in other processes lack."""
    name = strategy_record(strategy)["name"]
    if type(strategy).__module__.split(".")[0] != __name__.split(".")[0]:
        what = "is of your own making, and vLLM's processes do not have it"
        raise OptionError.about("strategy", name, what, f"give {spelled('backend', 'transformers')}")
    values = {option: list(one) if isinstance(one, tuple) else one for option, one in attributes_of(strategy).items()}
    return {"strategy": name, **values}


def _started(model: Model, options: dict[str, Any]) -> Any:
    backend = model.backend
    assert isinstance(backend, Vllm)
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and KEY not in plugins.split(","):
        problem = f"the variable VLLM_PLUGINS is {plugins!r} and does not name {KEY}, so that vLLM leaves it out"
        raise OptionError(problem, f"add {KEY} to it, or unset it", given=plugins)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    defaults = {"max_model_len": -1, "generation_config": "vllm", "disable_log_stats": True}
    os.environ[OWNER] = str(os.getpid())
    try:
        return LLM(**{**defaults, **backend.arguments}, additional_config={KEY: options})
    except Exception as error:
        ours = _cause(error)
        if ours is not None:
            raise ours from error
        raise ModelError(
            f"vLLM could not start {model.source} ({first_sentence(error)})",
            f"see what vLLM said above, and what you gave as {spelled('engine_options')}",
            given=model.source,
        ) from error
    finally:
        del os.environ[OWNER]  # which a server that this process starts later must not find


def _cause(error: BaseException | None) -> LayerlensError | None:
    while error is not None:
        if isinstance(error, LayerlensError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _answer(out: Any, record: Mapping[str, Any] | None, options: GenerateOptions, trace: str | None) -> Answer:
    completion = out.outputs[0]
    token_ids = list(completion.token_ids)
    n_prompt = len(out.prompt_token_ids)
    reason = "stop" if completion.finish_reason == "stop" else "length"
    if record is None or "error" in record or record["place"][: len(token_ids)] != list(range(len(token_ids))):
        raise ModelError(
            f"vLLM's records of {out.request_id} are not complete",
            "report this with the versions that `layerlens doctor` shows",
            given=out.request_id,
        )
    finite = record["is_finite"][: len(token_ids)]
    if False in finite:
        token_ids, reason = token_ids[: finite.index(False)], "non_finite"
    if options.max_new_tokens == 0:
        token_ids = []
    n = len(token_ids)
    numbers = [record[name][:n] for name in ("last_token_id", "selected_layer", "valley_layer", "projections")]
    decided = torch.tensor([*numbers, [1] * n], dtype=torch.int32).reshape(5, n).t()
    values = torch.tensor(record["values"][:n], dtype=torch.float32).reshape(n, len(record["values"][0]))
    if trace is None:
        return Answer(token_ids, reason, Decisions(decided, values), None)
    layers = unpacked(record.get("layers", {}))
    first = n_prompt - 1 if trace == "generated" else 0
    last = n_prompt + max(0, n - 1)
    place = layers.get("position", np.zeros(0, dtype=int))
    layers = {name: column[place < last] for name, column in layers.items()}
    if list(place[place < last]) != list(range(first, last)):
        missing = sorted(set(range(first, last)) - set(place.tolist()))
        raise ModelError(
            f"vLLM did not trace positions {missing[:5]} of {out.request_id}",
            "report this with the versions that `layerlens doctor` shows",
            given=out.request_id,
        )
    return Answer(token_ids, reason, Decisions(decided, values), layers)
