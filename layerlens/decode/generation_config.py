"""A model's own generation config. It applies where no option is given, as in transformers' `generate`, with one
exception: tokens are sampled only where a temperature is given."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from layerlens.compat import processors_of
from layerlens.decode.options import GenerateOptions, Options
from layerlens.errors import Notice, OptionError, first_sentence, spelled
from layerlens.models import Model

# Entries that have an option of the same name here, with the value that turns each off.
_OPTIONS: dict[str, Any] = {"repetition_penalty": 1.0, "min_new_tokens": 0, "stop_strings": None}
_OPTIONS_OF_SAMPLING: dict[str, Any] = {"top_p": 1.0, "top_k": 0}
# Entries without such an option, with the value, besides None, that turns each off.
_OTHERS: dict[str, Any] = {
    "sequence_bias": {},
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": [],
    "min_length": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "remove_invalid_values": False,
    "watermarking_config": None,
}
_OTHERS_OF_SAMPLING: dict[str, Any] = {
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
# Entries that are not followed here, with the value, besides None, that turns each off, and what they ask for.
_LEFT_OUT: dict[str, tuple[Any, str]] = {
    "num_beams": (1, "beams"),
    "num_return_sequences": (1, "several texts for each prompt"),
    "guidance_scale": (1.0, "guidance"),
    "penalty_alpha": (0.0, "contrastive search"),
    "dola_layers": (None, "transformers' DoLa"),
    "prompt_lookup_num_tokens": (None, "candidates from the prompt"),
    "token_healing": (False, "token healing"),
    "constraints": (None, "constraints"),
    "force_words_ids": (None, "words that must occur"),
    "max_time": (None, "an end after so many seconds"),
}


def with_generation_config(options: Options, model: Model) -> Options:
    """The options, with None replaced where the model's generation config has a value; see `GenerateOptions`.

    A `Notice` says what the generation config asks for that is not done.
    """
    asked = options.generation_config is True and options.max_new_tokens > 0
    config = getattr(model.hf, "generation_config", None) if asked else None
    for notice in unfollowed(config, model.source, options):
        warnings.warn(notice, Notice, stacklevel=2)
    off = _OPTIONS | _OPTIONS_OF_SAMPLING
    values = {name: value for name, value in off.items() if getattr(options, name) is None}
    for name in values:
        own = getattr(config, name, None)
        if own is not None and (options.samples or name not in _OPTIONS_OF_SAMPLING):
            values[name] = min(own, options.max_new_tokens) if name == "min_new_tokens" else own
    given = options.generation_config
    others = acting(model, options) if asked else given if isinstance(given, Mapping) else None
    return replace(options, **values, generation_config=others or None)


def acting(model: Model, options: GenerateOptions) -> dict[str, Any]:
    """Entries of the model's generation config that change logits and have no option of their own, fit for JSON."""
    config = getattr(model.hf, "generation_config", None)
    off = _OTHERS | (_OTHERS_OF_SAMPLING if options.samples else {})
    values = {name: getattr(config, name, None) for name in off}
    return {name: _for_json(value) for name, value in values.items() if value is not None and value != off[name]}


def unfollowed(config: GenerationConfig | None, source: str, options: GenerateOptions) -> Iterator[str]:
    """A sentence on each thing that a generation config asks for and layerlens does not do."""
    if getattr(config, "do_sample", None) and not options.samples:
        names = ("temperature", "top_k", "top_p", "min_p")
        given = [f"{name} {value}" for name in names if (value := getattr(config, name, None)) is not None]
        how = f" ({', '.join(given)})" if given else ""
        temperature = getattr(config, "temperature", None) or 1.0
        yield (
            f"the generation config of {source} samples{how}, and layerlens takes the most probable token; give "
            f"{spelled('temperature', temperature)} to sample"
        )
    for name, (off, what) in _LEFT_OUT.items():
        value = getattr(config, name, None)
        if value is not None and value != off:
            yield f"the generation config of {source} asks for {what} ({name} {value}), which is left out here"


def row_processors(
    model: Model, prompts: Sequence[Sequence[int]], options: GenerateOptions, ends: Sequence[int]
) -> list[LogitsProcessorList] | None:
    """For each prompt the logits processors of transformers; None where the options alone say everything.

    Each row has its own processors, made for its own length, so that padding beside a longer prompt changes nothing.

    Raises:
        OptionError: transformers cannot follow the generation config.
    """
    if not isinstance(options.generation_config, Mapping):
        return None
    with _followed(model.source):
        return [_processors_of(model, prompt, options, ends) for prompt in prompts]


def processed(
    source: str, processors: Sequence[LogitsProcessorList], texts: Sequence[Tensor], scores: Tensor
) -> Tensor:
    """The scores [rows, vocab], where each row is changed by its own processors, which see its own text so far."""
    rows: Any = zip(processors, texts, scores.split(1), strict=True)
    with _followed(source):
        return torch.cat([own(text.unsqueeze(0), row) for own, text, row in rows])


def _processors_of(
    model: Model, prompt: Sequence[int], options: GenerateOptions, ends: Sequence[int]
) -> LogitsProcessorList:
    assert isinstance(options.generation_config, Mapping)
    config = GenerationConfig(**copy.deepcopy(dict(options.generation_config)))
    config.update(
        do_sample=options.samples,
        **({name: getattr(options, name) for name in ("temperature", "top_p", "top_k")} if options.samples else {}),
        repetition_penalty=options.repetition_penalty,
        min_new_tokens=options.min_new_tokens,
        max_length=len(prompt) + options.max_new_tokens,
        eos_token_id=list(ends) or None,
    )
    processors: LogitsProcessorList = processors_of(model.hf, config, prompt, model.device)
    return processors


@contextmanager
def _followed(source: str) -> Iterator[None]:
    """OptionError in place of any error that transformers raises for entries that do not fit the model."""
    try:
        yield
    except Exception as error:
        problem = f"the generation config of {source} cannot be followed ({first_sentence(error)})"
        advice = f"give {spelled('generation_config', False)}"
        raise OptionError(problem, advice, option="generation_config", given=True) from error


def _for_json(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):  # a bias of sequences of ids
        return [[list(key), number] for key, number in value.items()]
    return list(value) if isinstance(value, tuple) else value
