"""Options of how text is generated. Their names are those of transformers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, ClassVar, TypeVar

from layerlens.errors import OptionError, did_you_mean, excerpt, is_utf8, spelled

NO_TOKEN = -1  # configs write it for "no token"
_LONGEST_STOP = 1_000  # finding where each token can begin or end in a stop string takes time with its square
LEAST_TEMPERATURE = 1e-3  # below, float32 logits over the temperature overflow
# None stands for the value in the model's generation config
_FILLED = ("min_new_tokens", "top_p", "top_k", "repetition_penalty")

# arguments of transformers' apply_chat_template that are not variables of the template
_NO_VARIABLES = {
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclass(frozen=True)
class GenerateOptions:
    """Options of a generation. Options that contradict each other are refused at once."""

    max_new_tokens: int = 256
    """The most tokens to generate for each prompt."""
    min_new_tokens: int | None = None
    """How many tokens must come before an end token may be emitted. None: the generation config's, else 0."""
    do_sample: bool | None = None
    """Sample, instead of taking the most probable token. None: sample where `temperature` is above 0."""
    temperature: float = 0.0
    """0 is greedy; a value above 0 is the temperature at which tokens are sampled."""
    top_p: float | None = None
    """Sample from the smallest set of tokens with this much probability; 0 < top_p <= 1. None: the generation config's,
    else 1."""
    top_k: int | None = None
    """Sample from this many most probable tokens; 0: from all. None: the generation config's, else 0."""
    repetition_penalty: float | None = None
    """Divides positive logits, and multiplies negative logits, of tokens that the text already has; 1 is off. None: the
    generation config's, else 1."""
    stop_strings: str | Sequence[str] | None = None
    """Texts that end a generation once they have been emitted. None: the generation config's, if any."""
    eos_token_id: int | Sequence[int] | None = None
    """Tokens that end a generation. None: the generation config's, else the tokenizer's. -1: none."""
    generation_config: bool | Mapping[str, Any] | None = True
    """Whether the model's generation config is followed where no option is given. This concerns the values that the
    options above take from it, and its suppressed tokens, bad words, n-grams, biases and forced tokens. Its wish to
    sample is not followed: give a `temperature`. In the options of a run this field holds the entries that acted."""
    seed: int = 0
    """Seed of everything that is drawn. Each batch has generators of its own."""
    batch_size: int = 1
    """Prompts that go through the model together."""
    chat_template: bool | None = None
    """Wrap prompts in the tokenizer's chat template. None: do so where the tokenizer has one."""
    system: str | None = None
    """System message before each prompt; needs a chat template."""
    chat_template_args: dict[str, Any] | None = None
    """Variables of the chat template by name, such as {"enable_thinking": False}; JSON values."""
    add_special_tokens: bool | None = None
    """Put the tokenizer's special tokens around a prompt, but not a begin token that the prompt already has. None: do
    so around plain text, and not around what a chat template wrote."""

    _least_new_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        least = {"max_new_tokens": self._least_new_tokens, "min_new_tokens": 0, "top_k": 0, "seed": 0, "batch_size": 1}
        for name, bound in least.items():
            if getattr(self, name) is not None or name not in _FILLED:
                whole(name, getattr(self, name), bound)
        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is None and name in _FILLED:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise OptionError.about(name, value, "is not a number", "give one")
        self._check_sampling()
        penalty = self.repetition_penalty
        if penalty is not None and not 0 < penalty < float("inf"):
            raise OptionError.about("repetition_penalty", penalty, "is out of range", "give a number above 0")
        if self.min_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            what = f"is above {spelled('max_new_tokens', self.max_new_tokens)}"
            raise OptionError.about("min_new_tokens", self.min_new_tokens, what, "lower it")
        for name in ("stop_strings", "eos_token_id"):
            self._check_list(name)
        for stop in self.stops:
            if len(stop) > _LONGEST_STOP:
                shown = f"{stop[:40]}..."
                what = f"has {len(stop):,} characters"
                raise OptionError.about("stop_strings", shown, what, f"give {_LONGEST_STOP:,} at most")
        if self.chat_template not in (None, True, False):
            what = "is neither True nor False"
            advice = (
                "give one of them: the template is the tokenizer's own, which can be set as tokenizer.chat_template"
            )
            raise OptionError.about("chat_template", self.chat_template, what, advice)
        if not isinstance(self.generation_config, bool | Mapping | None):
            what = "is neither True nor False"
            raise OptionError.about("generation_config", self.generation_config, what, "give one of them")
        for name in ("system", "chat_template_args"):
            given = getattr(self, name)
            if given is not None and self.chat_template is False:
                what = f"needs the chat template that {spelled('chat_template', False)} turns off"
                raise OptionError.about(name, given, what, "drop one of them")
        self._check_texts()

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        given = self.stop_strings
        return [] if given is None else [given] if isinstance(given, str) else list(given)

    def _check_sampling(self) -> None:
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < float("inf"):
            advice = f"give 0 for greedy, or {LEAST_TEMPERATURE} and more"
            raise OptionError.about("temperature", self.temperature, "is out of range", advice)
        if self.do_sample is not None and self.do_sample != self.samples:
            what = f"contradicts {spelled('temperature', self.temperature)}"
            advice = f"give a {spelled('temperature')} above 0 to sample, and 0 not to"
            raise OptionError.about("do_sample", self.do_sample, what, advice)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise OptionError.about("top_p", self.top_p, "is out of range", "give a number above 0, 1 at most")
        for name, off in (("top_p", 1.0), ("top_k", 0)):
            value = getattr(self, name)
            if value not in (None, off) and not self.samples:
                advice = f"give {spelled('temperature')} too"
                raise OptionError.about(name, value, "has no effect on greedy decoding", advice)

    def _check_texts(self) -> None:
        for name, text in [("system", self.system or ""), *(("stop_strings", stop) for stop in self.stops)]:
            if not is_utf8(text):
                raise OptionError(
                    f"{spelled(name)} is not UTF-8 text: {excerpt(text)}", "mend it", option=name, given=text
                )
        special = self.add_special_tokens
        if special not in (None, True, False):
            raise OptionError.about("add_special_tokens", special, "is unknown", "give True, False or None")
        variables = self.chat_template_args
        if variables is None:
            return
        if not isinstance(variables, dict) or not all(isinstance(name, str) for name in variables):
            what = "is not a dict of variables"
            raise OptionError.about("chat_template_args", variables, what, 'give {"name": value}')
        for name, value in variables.items():
            if name in _NO_VARIABLES:
                what = "is decided by layerlens"
                raise OptionError.about("chat_template_args", {name: value}, what, "leave it out")
            try:
                json.dumps({name: value}, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError) as error:
                raise OptionError(
                    f"{spelled('chat_template_args')} has {name!r} as {value!r}, which JSON cannot hold",
                    "give true, false, a number, a text, or a list or an object of them",
                    option="chat_template_args",
                    given={name: value},
                ) from error

    def _check_list(self, name: str) -> None:
        value = getattr(self, name)
        kind: type = str if name == "stop_strings" else int
        entries = [value] if isinstance(value, kind) else value
        if value is None:
            return
        good = isinstance(entries, Sequence) and not isinstance(entries, str) and len(entries) > 0
        if not good or not all(
            isinstance(entry, kind) and entry != "" and not isinstance(entry, bool) for entry in entries
        ):
            raise OptionError.about(
                name, value, "cannot be used", f"give {'texts that are not empty' if kind is str else 'token ids'}"
            )


Options = TypeVar("Options", bound=GenerateOptions)


def made(kind: type[Options], options: dict[str, Any], beside: Sequence[str] = ()) -> Options:
    """Options from what was given by name.

    Args:
        kind: of the options.
        options: what was given.
        beside: what else the caller takes by name, which a misspelt name can have meant.

    Raises:
        OptionError: a name is unknown, or a value cannot be.
    """
    known = [field.name for field in fields(kind)]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        advice = did_you_mean(unknown, (*known, *beside), f"there are {', '.join(known)}")
        raise OptionError(f"there is no option {unknown!r}", advice, option=unknown, given=options[unknown])
    return kind(**options)


def settle_chat_template(options: Options, has_chat_template: bool) -> Options:
    """The options with `chat_template` decided for this tokenizer, without `add_special_tokens` if that is default."""
    for name in ("system", "chat_template_args", "chat_template"):
        given = getattr(options, name)
        if not has_chat_template and given is not None and given is not False:
            what = "needs a chat template and this tokenizer has none"
            raise OptionError.about(name, given, what, "leave it out")
    templated = has_chat_template if options.chat_template is None else options.chat_template
    is_default = options.add_special_tokens is (not templated)
    return replace(
        options, chat_template=templated, add_special_tokens=None if is_default else options.add_special_tokens
    )


def whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """OptionError unless the value is a whole number from `least` to `most`, or one that fits into 63 bits."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise OptionError.about(name, value, "is not a whole number", f"give one from {least}")
    if value < least:
        raise OptionError.about(name, value, "is too small", f"give a whole number from {least}")
    if most is not None and int(value) > most:
        raise OptionError.about(name, value, "is too large", f"give {most:,} at most")
    if int(value) >= 2**63:
        raise OptionError.about(name, value, "is too large", "give a whole number below 2**63")
