"""Models of layerlens for inspect: requests are decoded together, each with its own strategy and options."""

import asyncio
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anyio
import sniffio
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
    set_model_info,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from layerlens.compat import inspect_item, inspect_refusal
from layerlens.datasets import Prompt
from layerlens.decode.continuous import Continuous
from layerlens.decode.identity import attributes_of
from layerlens.decode.loop import batch_seed
from layerlens.decode.modules import model_record
from layerlens.decode.options import GenerateOptions, whole
from layerlens.decode.prompts import overflows
from layerlens.decode.registry import asked_strategy, is_strategy_name, strategy_record, takes_option
from layerlens.decode.requests import Answer, Requests
from layerlens.decode.strategies import Strategy
from layerlens.decode.texts import decoded
from layerlens.errors import LayerlensError, OptionError, PromptError, did_you_mean
from layerlens.evaluation.inspect.measures import measures_of, tokens_of
from layerlens.evaluation.inspect.messages import prompt_of
from layerlens.evaluation.inspect.thinking import parted
from layerlens.lens.opening import open_lens
from layerlens.models import Model, load
from layerlens.paths import expanded
from layerlens.records.manifest import digest
from layerlens.records.places import refuse_unwritable

_BATCH_SIZE = 16
_MOST_NEW_TOKENS = 2048
_KEY = "layerlens"
_LOADING = (
    *("backend", "engine_options", "dtype", "device", "revision", "trust_remote_code", "allow_pickle", "quantize"),
    "keep_quantized",
)
_WRAPPING = (
    *("min_new_tokens", "repetition_penalty", "generation_config", "chat_template", "chat_template_args"),
    "add_special_tokens",
)
"""Options of `GenerateOptions` that inspect has no name for."""
_OURS = ("model_path", "strategy", "lens", "batch_size", "trace", "loaded", "asked", *_WRAPPING)
_UNABLE = ("frequency_penalty", "presence_penalty", "logit_bias", "best_of", "response_schema", "prompt_logprobs")
"""Options of inspect that change what is generated, and that are not followed."""


class _TooLong(PromptError):
    """A prompt leaves no room in the model's context."""


class Provider(ModelAPI):
    """A model that decodes by a strategy.

    Arguments of the model (`-M NAME=VALUE`): `strategy` (default: last) and its options, such as `window`; `lens`;
    `batch_size`, how many requests are decoded at once (default: 16); `trace`, a directory for traces of the answers;
    `min_new_tokens`, `repetition_penalty`, `generation_config`, `chat_template`, `chat_template_args` and
    `add_special_tokens`, as `GenerateOptions` has them; `model_path`, a folder in place of the name; and what `load`
    takes: `backend` (transformers or vllm), `engine_options`, `dtype`, `device`, `revision`, `trust_remote_code`,
    `allow_pickle`, `quantize`, `keep_quantized`. In Python, `loaded` is a model from `load`, and `asked` are strategies
    that requests will name, for which an engine of vLLM is started.

    Within a task, the seed of an answer follows from the request's seed, the item and the epoch, and not from the
    strategy: items and epochs draw independently, and arms draw alike. The output's metadata has it.

    A request has a strategy of its own by `extra_body={"layerlens": {"strategy": "valley", "window": 10}}`. Options
    without a strategy change the model's.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        try:
            self._begin(model_name, model_args)
        except LayerlensError as error:
            raise inspect_refusal()(f"layerlens: {error}") from error

    def _begin(self, model_name: str, arguments: dict[str, Any]) -> None:
        own = {name: arguments.pop(name) for name in _OURS if name in arguments}
        loading = {name: arguments.pop(name) for name in _LOADING if name in arguments}
        self._batch_size = own.get("batch_size", _BATCH_SIZE)
        whole("batch_size", self._batch_size, 1)
        self._wrapping = GenerateOptions(**{name: own[name] for name in _WRAPPING if name in own})
        self.strategy = _strategy_of({"strategy": own.get("strategy", "last"), **arguments})
        loaded = own.get("loaded")
        self.model = loaded if isinstance(loaded, Model) else load(str(own.get("model_path", model_name)), **loading)
        self.strategy.fit(self.model.n_layers, self.model.tied)
        transport = open_lens(own.get("lens"), self.model)
        self._transport = transport
        self._trace = _folder(own.get("trace"))
        if self._trace is not None:
            from layerlens.evaluation.inspect.traces import TRACING

            TRACING.add(self)
        # else inspect would make the provider a second time, with the weights, to ask for the context
        set_model_info(f"{_KEY}/{model_name}", ModelInfo(context_length=self.model.context_length))
        self._requests = self._begun([self.strategy, *own.get("asked", ())])
        # a part of the key under which inspect keeps answers, which has no other part of the model's arguments
        said = [model_record(self.model), strategy_record(self.strategy), transport.record(), asdict(self._wrapping)]
        self.base_url = f"{_KEY}:{digest(json.dumps(said, default=str, sort_keys=True))[:16]}"

    def _begun(self, strategies: Sequence[Strategy]) -> Requests:
        """What answers requests: our own loop, or an engine elsewhere that is started for these strategies."""
        if self.model.backend.home is None:
            return Continuous(self.model, self._batch_size, self._transport)
        requests: Requests = self.model.backend.elsewhere.requests(self.model, self._transport, strategies)
        return requests

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The answers to a conversation, `config.num_choices` of them."""
        _refuse_unable(tools, config)
        started = time.perf_counter()
        try:
            strategy = self._strategy_of(config)
            prompt = prompt_of(input, self.model.tokenizer, self._wrapping.chat_template)
            n_choices = 1 if config.num_choices is None else config.num_choices
            whole("num_choices", n_choices, 1)
            asked = [self._asked(prompt, strategy, config, number) for number in range(n_choices)]
        except PromptError as error:  # an answer without a text, so that the run goes on
            return self._unanswered(error)
        except LayerlensError as error:
            raise inspect_refusal()(f"layerlens: {error}") from error
        try:
            futures = [self._requests.submit(prompt, strategy, options, n_first) for options, n_first in asked]
            answers = [await _awaited(future) for future in futures]
        except PromptError as error:
            return self._unanswered(error)
        except LayerlensError as error:
            raise inspect_refusal()(f"layerlens: {error}") from error
        room = asked[0][0].max_new_tokens < _most(config)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(answer, config, is_cut_short=room) for answer in answers],
            usage=_usage(answers),
            time=time.perf_counter() - started,
            metadata={
                "strategy": strategy_record(strategy, self.model.n_layers),
                "seeds": [options.seed for options, _ in asked],
                "measures": [measures_of(answer.generation, self.model.n_layers) for answer in answers],
                "tokens": [tokens_of(answer.generation) for answer in answers],
            },
        )

    def _unanswered(self, error: PromptError) -> ModelOutput:
        """No text, and why: the prompt leaves no room for one, or cannot be read."""
        is_long = isinstance(error, _TooLong) or error.option == "engine_options"
        reason: StopReason = "model_length" if is_long else "unknown"
        return ModelOutput.from_content(self.model_name, "", reason, str(error))

    def max_tokens(self) -> int | None:
        """How many new tokens a request gets that names no number; fewer where its context ends before."""
        return _MOST_NEW_TOKENS

    def max_connections(self) -> int:
        """Twice as many as are decoded at once, so that a row that ends is followed by the next request."""
        return 2 * int(self._batch_size)

    def connection_key(self) -> str:
        """Requests to the same model share its connections."""
        return f"{_KEY}/{self.model_name}"

    def close(self) -> None:
        """End the thread that decodes."""
        self._requests.close()

    async def trace_answers(self, log: EvalLog) -> None:
        """Trace what this model answered to a task, one run for each strategy: DIR/TASK, or DIR/TASK-2 and so on where
        that holds something else."""
        out = self._trace
        if out is not None and log.eval.model_args.get("trace") == str(out) and log.location:
            from layerlens.evaluation.traced import trace_log

            await anyio.to_thread.run_sync(
                lambda: trace_log(self.model, log.location, out, self._wrapping, self._transport)
            )

    def _strategy_of(self, config: GenerateConfig) -> Strategy:
        """The request's own strategy, or the model's."""
        own = (config.extra_body or {}).get(_KEY)
        if own is None:
            return self.strategy
        if not isinstance(own, Mapping):
            problem = f"{_KEY} of extra_body is {own!r}, and not an object of options"
            raise OptionError(problem, 'give {"strategy": "valley"}', given=own)
        for name in own.keys() & {*_OURS, *_LOADING} - {"strategy"}:
            what = "belongs to the model, and not to a request"
            raise OptionError.about(name, own[name], what, f"give it as -M {name}=...")
        strategy = asked_strategy(own, self.strategy)
        strategy.fit(self.model.n_layers, self.model.tied)
        return strategy

    def _asked(
        self, prompt: Prompt, strategy: Strategy, config: GenerateConfig, number: int
    ) -> tuple[GenerateOptions, int | None]:
        """The options of one of the choices, and how many of the most probable tokens are told."""
        temperature = config.temperature or 0.0
        seed = config.seed
        if seed is None:  # so that the epochs of a task differ where something is drawn; told in the metadata
            draws = temperature > 0 or 0 < attributes_of(strategy).get("p", 1) < 1
            seed = int.from_bytes(os.urandom(4), "big") if draws else 0
        elif (item := inspect_item()) is not None:  # so that what one item draws says nothing about another's draws
            seed = int(digest(f"{seed}/{item}")[:8], 16)
        most = _most(config)
        options = replace(
            self._wrapping,
            max_new_tokens=most,
            temperature=temperature,
            top_p=config.top_p if temperature else None,
            top_k=config.top_k if temperature else None,
            stop_strings=config.stop_seqs or None,
            seed=batch_seed(seed, number),
        )
        n_first = (config.top_logprobs or 0) if config.logprobs else None
        if n_first is not None and not 0 <= n_first <= self.model.n_vocab:
            advice = f"give 0..{self.model.n_vocab}, the size of the vocabulary"
            raise OptionError(f"top_logprobs {n_first} is out of range", advice, given=n_first)
        self._refuse_endless(prompt)
        length = self._requests.length_of(prompt, options)
        room = most if self.model.context_length is None else self.model.context_length - length
        if room < 1:
            raise _TooLong(
                f"the prompt has {length:,} tokens, and the model's context of {self.model.context_length:,} has no "
                "room for another one",
                "shorten it",
                given=length,
            )
        return replace(options, max_new_tokens=min(most, room)), n_first

    def _refuse_endless(self, prompt: Prompt) -> None:
        """An error for a text that no context can hold, before it is tokenized."""
        content, context = prompt.content, self.model.context_length
        text = content if isinstance(content, str) else "".join(message["content"] for message in content)
        if context is not None and overflows(text, self.model.tokenizer, context):
            problem = (
                f"the prompt has {len(text):,} characters, more than the model's context of {context:,} tokens holds"
            )
            raise _TooLong(problem, "shorten it", given=len(text))

    def _choice(self, answer: Answer, config: GenerateConfig, *, is_cut_short: bool) -> ChatCompletionChoice:
        generation = answer.generation
        reasons: dict[str, StopReason] = {
            "stop": "stop",
            "length": "model_length" if is_cut_short else "max_tokens",
            "non_finite": "unknown",
        }
        thinking, text = parted(answer.prompt.text, _until(generation.text, config.stop_seqs or ()))
        content: str | list[Content] = text
        if thinking is not None:  # so that it is shown apart, and not scored
            content = [ContentReasoning(reasoning=thinking), ContentText(text=text)]
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=content, model=self.model_name, source="generate"),
            stop_reason=reasons[generation.finish_reason],
            logprobs=None if answer.log_probs is None else Logprobs(content=list(map(self._logprob, answer.log_probs))),
        )

    def _logprob(self, told: Sequence[tuple[int, float]]) -> Logprob:
        (token, value), *first = [(decoded(self.model.tokenizer, [token_id]), value) for token_id, value in told]
        # a token that a strategy rules out is minus infinitely probable, which JSON cannot hold
        top = [
            TopLogprob(token=one, logprob=probability, bytes=_bytes(one))
            for one, probability in first
            if probability > -math.inf
        ]
        return Logprob(token=token, logprob=value, bytes=_bytes(token), top_logprobs=top or None)


def _most(config: GenerateConfig) -> int:
    """The most tokens that a request wants."""
    if config.max_tokens is None:
        return _MOST_NEW_TOKENS
    whole("max_tokens", config.max_tokens, 1)
    return config.max_tokens


def _bytes(token: str) -> list[int] | None:
    """The bytes of a token; None where it is a part of a character, which stands as U+FFFD in its text."""
    return None if "\ufffd" in token else list(token.encode())


def _folder(trace: object) -> Path | None:
    """The folder for traces; OptionError where nothing can be written there."""
    if trace is None or trace is False or trace == "":
        return None
    if not isinstance(trace, str | os.PathLike):
        raise OptionError.about("trace", trace, "is no folder", "give the name of one")
    refuse_unwritable(Path(trace), "trace")
    return expanded(trace)


async def _awaited(future: Any) -> Answer:
    """The future's result, while other requests go on; it is cancelled where the caller is."""
    if sniffio.current_async_library() == "asyncio":
        answer: Answer = await asyncio.wrap_future(future)
        return answer
    try:
        while not future.done():
            await anyio.sleep(0.01)
    except BaseException:
        future.cancel()
        raise
    answer = future.result()
    return answer


def _strategy_of(options: Mapping[str, Any]) -> Strategy:
    """The strategy that arguments of a model name; OptionError where one of them is neither its option nor known."""
    name = options["strategy"]
    if is_strategy_name(name):
        for option, value in options.items():
            if option == "strategy" or takes_option(name, option):
                continue
            if near := did_you_mean(option, (*_OURS, *_LOADING), ""):
                raise OptionError.about(option, value, "is unknown", near)
    return asked_strategy(options)


def _refuse_unable(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    """An error for what a request asks for and does not get."""
    asked = [name for name in _UNABLE if getattr(config, name, None) is not None]
    if tools:
        asked.append("tools")
    if asked:
        raise inspect_refusal()(
            f"layerlens does not follow {' and '.join(asked)}; leave that out, or give another model"
        )


def _until(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string, as other providers give it."""
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _usage(answers: Sequence[Answer]) -> ModelUsage:
    """Tokens of the prompt, and of all answers; padding is not among them."""
    read, written = len(answers[0].prompt.token_ids), sum(len(one.generation.token_ids) for one in answers)
    return ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
