"""A strategy inside transformers' own `generate`."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from layerlens.decode.chooser import Chooser
from layerlens.decode.endings import ending_criteria
from layerlens.decode.log import COLUMNS, Decisions, DecodingLog
from layerlens.decode.options import whole
from layerlens.decode.prompts import refuse_unreadable
from layerlens.decode.registry import strategy_of
from layerlens.decode.strategies import Strategy
from layerlens.errors import ModelError, OptionError
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import Transport
from layerlens.models import Model
from layerlens.models.compiled import recompiled
from layerlens.models.use import alone, in_use

_MODES = {"greedy_search", "sample"}


@contextmanager
def decoding(
    model: Model, strategy: Strategy | str, *, lens: str | Transport | None = None, seed: int = 0
) -> Iterator[DecodingLog]:
    """While open, the model decodes with the strategy: `with ll.decoding(model, strategy) as log: model.hf.generate()`.

    The forward pass, the cache and the sampler stay the model's own. Only the logits of the last position come from
    another layer. When the context is left, also by an exception, the model is as it was.

    Args:
        model: from `load`.
        strategy: such as `Valley(window=10)`, or its name, as the command line takes it.
        lens: through which layers are read: "linear:FILE", "tuned:FILE", "jacobian:FILE", a transport, or None for the
            logit lens.
        seed: seed of what the strategy draws (p below 1). The sampler uses torch's own seed, as always.

    Returns:
        the log. It is filled at the end of every `generate`; a `generate` that fails adds nothing.

    Raises:
        OptionError: the strategy or the lens does not fit the model. `generate` raises it too, where it is asked for a
            search that scores more than one continuation (beams, assistants).
        ModelError: raised by `generate`, where the logits of a text that has not ended are NaN or infinite, or the
            config counts fewer layers than the model has.
    """
    whole("seed", seed, 0)
    strategy = strategy_of(strategy)

    def generate(*args: Any, **kwargs: Any) -> Any:
        # in any thread: with a streamer, another thread generates
        with in_use(model, may_be_compiled=True):
            chooser.thread = get_ident()
            return _followed(model, chooser, log, own_generate, *args, **kwargs)

    with ExitStack() as stack:
        with in_use(model, may_be_compiled=True):
            hf: Any = model.hf
            chooser = Chooser(model, strategy, seed, open_lens(lens, model))
            chooser.is_running = False  # only `generate` is changed, not other passes of the model
            log = DecodingLog(criterion_name(strategy))
            if "_layerlens_decoding" in vars(hf):
                raise OptionError("this model is already inside ll.decoding", "leave that first", option="model")
            own_generate, theirs = hf.generate, vars(hf).get("generate")
            stack.enter_context(recompiled(hf))
            stack.enter_context(chooser.choosing())
            hf.generate, hf._layerlens_decoding = generate, log
        try:
            yield log
        finally:
            stack.enter_context(alone(hf))  # waits until a generation in another thread has ended
            del hf._layerlens_decoding
            if theirs is None:
                del hf.generate
            else:
                hf.generate = theirs


def criterion_name(strategy: Strategy) -> str:
    """The name in the log of the values that a strategy compared; OptionError where another column has that name."""
    name = "entropy" if strategy.criterion == "shannon" else str(strategy.criterion).replace("-", "_")
    if name in COLUMNS:
        what = f"of {type(strategy).__name__} is the name of another column of the log"
        raise OptionError.about("criterion", strategy.criterion, what, "give another name")
    return name


def _followed(
    model: Model, chooser: Chooser, log: DecodingLog, own_generate: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """A `generate` that runs transformers' own and adds what was decided to the log."""
    kwargs = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
    config = _effective_config(model, kwargs)
    _refuse_other_searches(config, kwargs)
    _refuse_unreadable_ids(model, config, _inputs(kwargs))
    follower = _Follower(chooser, model.source)
    tokenizer = kwargs.get("tokenizer") or model.tokenizer
    endings = _Endings(model, config, kwargs.get("stopping_criteria"), tokenizer, chooser)
    kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), follower])
    kwargs["stopping_criteria"] = StoppingCriteriaList([endings])
    chooser.is_running = True
    try:
        output = own_generate(**kwargs)
    except IndexError as error:
        _refuse_short_cache(model, error)
        raise
    finally:
        chooser.is_running = False
    sequences = output if isinstance(output, Tensor) else output.sequences
    if follower.decisions:
        new = sequences[:, follower.first :].tolist()
        emitted = [row[:length] for row, length in zip(new, endings.lengths, strict=True)]
        decisions = Decisions.of_texts(follower.decisions, endings.lengths)
        log.add_call(emitted, _first_positions(config, kwargs, len(emitted)), decisions)
    return output


def _refuse_short_cache(model: Model, error: IndexError) -> None:
    """ModelError where transformers makes its cache for fewer layers than the model has."""
    counted = getattr(model.hf.config.get_text_config(decoder=True), "num_hidden_layers", model.n_layers)
    if counted < model.n_layers:
        raise ModelError(
            f"the config of {model.source} says num_hidden_layers={counted} and {model.n_layers} blocks run, so that "
            "the cache of transformers' generate is too short",
            f"set model.hf.config.num_hidden_layers to {model.n_layers}, or give use_cache=False, or decode by "
            "ll.generate",
            given=counted,
        ) from error


_POSITIONAL = ("inputs", "generation_config", "logits_processor", "stopping_criteria")


def _effective_config(model: Model, kwargs: dict[str, Any]) -> GenerationConfig:
    hf: Any = model.hf
    config: GenerationConfig = copy.deepcopy(hf.generation_config)
    given = kwargs.get("generation_config")
    if given is not None:
        config.update(**given.to_diff_dict())
    config.update(**{name: value for name, value in kwargs.items() if hasattr(config, name)})
    return config


def _refuse_other_searches(config: GenerationConfig, kwargs: dict[str, Any]) -> None:
    mode = config.get_generation_mode(kwargs.get("assistant_model")).value
    if mode not in _MODES:
        problem = f"{mode.replace('_', ' ')} compares or proposes several continuations"
        raise OptionError(
            f"{problem} and cannot take another layer's logits",
            "use greedy decoding or sampling inside ll.decoding",
            given=mode,
        )
    for name, off in (("custom_generate", None), ("guidance_scale", 1.0), ("negative_prompt_ids", None)):
        value = kwargs.get(name, getattr(config, name, None))
        if value not in (None, off):
            problem = f"{name} runs passes of its own beside the one that emits a token"
            raise OptionError(problem, "leave it out inside ll.decoding", option=name, given=value)


def _inputs(kwargs: dict[str, Any]) -> Tensor | None:
    given = (kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
    return next((value for value in given if value is not None), None)


def _refuse_unreadable_ids(model: Model, config: GenerationConfig, inputs: Tensor | None) -> None:
    """OptionError where generate would look up a token that has no embedding."""
    ids = [] if inputs is None or inputs.is_floating_point() else [int(inputs.min()), int(inputs.max())]
    n_rows = (1 if inputs is None else len(inputs)) * (config.num_return_sequences or 1)
    if n_rows > 1 and config.pad_token_id is not None:
        ids.append(config.pad_token_id)  # emitted for rows that have ended
    unknown = [token_id for token_id in ids if not 0 <= token_id < model.n_known_tokens]
    if unknown:
        what = "pad_token_id" if unknown[0] == config.pad_token_id else "an input token"
        problem = f"{what} {unknown[0]} has no embedding: the model has embeddings of 0..{model.n_known_tokens - 1}"
        raise OptionError(problem, "give one of these", given=unknown[0])


class _Follower(LogitsProcessor):
    """Keeps what was decided for each token that is about to be emitted. It changes no score.

    Raises:
        ModelError: the logits of a row that has not ended are NaN or infinite.
    """

    def __init__(self, chooser: Chooser, source: str) -> None:
        self._chooser = chooser
        self._source = source
        self.decisions: list[Decisions] = []
        self.first = 0  # length of what generate began with

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.decisions:
            self.first = input_ids.shape[1]
        assert self._chooser.decisions is not None
        alive = self._chooser.is_alive
        broken = ~self._chooser.decisions.is_finite
        if alive is not None:
            broken &= alive.to(broken.device)
        if broken.any():
            row = int(broken.nonzero()[0])
            raise ModelError(
                f"{self._source} gave NaN or infinite logits for row {row} of the batch after "
                f"{len(self.decisions)} new tokens, where no token can be drawn",
                "check its weights, or load it with another dtype",
                given=row,
            )
        self.decisions.append(self._chooser.decisions)
        return scores


class _Endings(StoppingCriteria):
    """The user's own criteria, and how many tokens each row emitted until any criterion ended it."""

    def __init__(
        self,
        model: Model,
        config: GenerationConfig,
        theirs: Sequence[StoppingCriteria] | None,
        tokenizer: Any,
        chooser: Chooser,
    ) -> None:
        self._n_known = model.n_known_tokens
        self._may_emit_unknown = model.n_vocab > self._n_known
        self._most = config.max_new_tokens
        self._theirs = StoppingCriteriaList(theirs or [])
        self._known = ending_criteria(config.eos_token_id, config.stop_strings, tokenizer)
        self._chooser = chooser
        self._chooser.is_alive = None
        self._alive: Tensor | None = None
        self._lengths = torch.zeros(0)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self._alive is None:
            self._alive = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self._lengths = torch.zeros_like(self._alive, dtype=torch.long)
        done = torch.zeros_like(self._alive)
        if self._theirs:
            done = torch.as_tensor(self._theirs(input_ids, scores, **kwargs), device=done.device).expand_as(done)
        self._lengths += self._alive
        self._alive = self._alive & ~done & ~self._known(input_ids, scores)
        self._chooser.is_alive = self._alive
        if self._may_emit_unknown and int(self._lengths.max()) != self._most:
            refuse_unreadable(input_ids[self._alive, -1].tolist(), self._n_known)
        return done

    @property
    def lengths(self) -> list[int]:
        """Tokens emitted by each row."""
        return [int(length) for length in self._lengths.tolist()]


def _first_positions(config: GenerationConfig, kwargs: dict[str, Any], n_rows: int) -> list[int]:
    """Position of the state that emits each row's first token."""
    inputs = _inputs(kwargs)
    if inputs is None:
        return [0] * n_rows  # it begins with the token that begins a text
    lengths = torch.full((len(inputs),), inputs.shape[1])
    mask, pad, ends = kwargs.get("attention_mask"), config.pad_token_id, config.eos_token_id
    if mask is not None:
        lengths = mask.sum(1)
    elif inputs.ndim == 2 and pad is not None and pad not in (ends if isinstance(ends, list) else [ends]):
        lengths = (inputs != pad).sum(1)  # transformers takes this token for padding
    per_prompt = n_rows // len(lengths)
    return [int(length) - 1 for length in lengths.tolist() for _ in range(per_prompt)]
