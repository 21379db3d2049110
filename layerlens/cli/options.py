"""What several commands take, said once: single options, and groups of options that belong together."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from layerlens.errors import OptionError

if TYPE_CHECKING:
    from layerlens.decode.strategies import Strategy
    from layerlens.models import Model as LoadedModel
    from layerlens.models.placement import Place

Result = TypeVar("Result")

Model = Annotated[str, typer.Option(help="Hub id, folder, .gguf file, smollm2-135m-instruct or gemma3-270m.")]
DataFile = Annotated[Path | None, typer.Option(help="Local copy of the dataset: .json, .jsonl, .csv, .parquet.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N prompts.")]
ShardOf = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only every N-th prompt, from the I-th on: 1/4, 2/4, ...")
]
BatchSize = Annotated[int, typer.Option(help="Prompts that go through the model together.")]
StrategyName = Annotated[
    str,
    typer.Option(
        help="last, valley (trough), valley-1, valley+1, last-1, dola-low, dola-high, sled, or a registered name."
    ),
]
Lens = Annotated[
    str | None,
    typer.Option(
        help="What layers are read through: logit, linear:FILE, tuned:FILE or jacobian:FILE. [default: logit]"
    ),
]
Window = Annotated[
    int | None, typer.Option(help="Candidate layers of a valley, or of a strategy that takes a window. [default: 10]")
]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    backend: Annotated[
        str | None,
        typer.Option(help="transformers, transformer-lens, nnsight or nnsight-remote. [default: transformers]"),
    ] = None
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0. [default: a GPU if there is one]")] = None
    device_map: Annotated[
        str | None,
        typer.Option(help="auto, balanced or sequential: over all GPUs, the rest in memory. In place of --device."),
    ] = None
    offload_folder: Annotated[
        Path | None, typer.Option(help="With --device-map: leave what fits nowhere else on disk, if need be here.")
    ] = None
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes, while loading.")] = None
    keep_quantized: Annotated[
        bool, typer.Option("--keep-quantized", help="Leave the weights of a GGUF file packed; slower.")
    ] = False
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code.")] = (
        False
    )

    def refuse_unloadable(self, model: str, window: int | None = None) -> None:
        """ModelError or OptionError where the model, or a window in it, cannot be, as far as that shows in a moment."""
        from layerlens.models import locate

        if self.backend != "nnsight-remote":
            locate.refuse_unloadable(model, self.revision, window)

    def load(self, model: str) -> "LoadedModel":
        """The model of that name."""
        from transformers.utils import logging

        import layerlens as ll

        logging.set_verbosity_error()  # of the models, while they run: what a user must know is said by layerlens
        return ll.load(model, **asdict(self))

    def place(self) -> "Place":
        """Where a model is to lie."""
        from layerlens.models.placement import place_for

        return place_for(self.device, self.device_map, None, self.offload_folder)

    def sizing(self) -> dict[str, Any]:
        """What of it changes how large a model is."""
        names = ("dtype", "quantize", "keep_quantized", "revision", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Decoding:
    """How prompts are wrapped and tokens chosen."""

    no_chat_template: Annotated[bool, typer.Option("--no-chat-template", help="Give prompts as they are.")] = False
    system: Annotated[str | None, typer.Option(help="System message before each prompt.")] = None
    chat_template_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Variable of the chat template, such as enable_thinking=false; repeatable."
        ),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--add-special-tokens/--no-add-special-tokens",
            help="The tokenizer's begin token and its like, never twice. [default: not with a chat template]",
        ),
    ] = None
    temperature: Annotated[float, typer.Option(help="0 is greedy; above, sampling.")] = 0.0
    top_p: Annotated[float | None, typer.Option(help="Nucleus of sampling. [default: the model's, else 1]")] = None
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample from this many most probable tokens, 0 for all. [default: the model's, else 0]"),
    ] = None
    min_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens before an end token may be emitted. [default: the model's, else 0]")
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: disfavour tokens that were there. [default: the model's, else 1]")
    ] = None
    stop_strings: Annotated[
        list[str] | None, typer.Option(help="Text that ends a generation; repeatable. [default: the model's, if any]")
    ] = None
    no_generation_config: Annotated[
        bool,
        typer.Option(
            "--no-generation-config",
            help="Pass over the model's own generation config: its defaults, suppressed tokens, bad words.",
        ),
    ] = False
    seed: Annotated[int, typer.Option(help="Of sampling, of --p, and of shuffled options.")] = 0

    def settings(self, **others: Any) -> dict[str, Any]:
        """Fields of `GenerateOptions`: these, and others that a command has of its own."""
        settings = asdict(self)
        settings["chat_template"] = False if settings.pop("no_chat_template") else None
        settings["stop_strings"] = self.stop_strings or None
        settings["generation_config"] = not settings.pop("no_generation_config")
        settings["chat_template_args"] = variables_of(settings.pop("chat_template_arg") or []) or None
        return settings | others


@dataclass(frozen=True)
class StrategyOptions:
    """What a strategy takes beside its name and a window."""

    p: Annotated[
        float | None, typer.Option(help="Probability of the strategy's layer, drawn for each token. [default: 1]")
    ] = None
    criterion: Annotated[
        str | None, typer.Option(help="What is to fall: shannon, neg-sum-sq-logp, max-prob, margin. [default: shannon]")
    ] = None
    scan: Annotated[
        str | None, typer.Option(help="How candidates are read out: batched, lazy, auto. [default: auto]")
    ] = None
    entropy_floor: Annotated[
        float | None,
        typer.Option(help="Do not walk where the last entropy is below, in nats. [default: 0, exact]"),
    ] = None

    def strategy(self, name: str, window: int | None, *, window_has_other_use: bool = False) -> "Strategy":
        """The strategy of that name with the options that were given; a trace uses a window for its valleys too."""
        from layerlens.decode.registry import named_strategy, takes_option

        given = {option: value for option, value in asdict(self).items() if value is not None}
        if window is not None and (not window_has_other_use or takes_option(name, "window")):
            given["window"] = window
        return named_strategy(name, **given)


@dataclass(frozen=True)
class Readings:
    """What is read of each layer, and through which lens."""

    lens: Lens = None
    targets: Annotated[
        bool,
        typer.Option("--targets", help="Record each layer's log-probability and rank of the token that followed."),
    ] = False
    top: Annotated[
        int, typer.Option(metavar="K", help="Record the K likeliest words of each layer, 20 at most; 0: none.")
    ] = 0
    kl: Annotated[bool, typer.Option("--kl", help="Record KL from the last layer to each layer too, in nats.")] = False
    js: Annotated[
        bool, typer.Option("--js", help="Record each layer's Jensen-Shannon divergence from the last; reads twice.")
    ] = False
    sublayers: Annotated[
        bool, typer.Option("--sublayers", help="Read the stream between attention and MLP of each block too.")
    ] = False

    def numbers(self) -> dict[str, Any]:
        """What is read, as options of a trace."""
        return {name: value for name, value in asdict(self).items() if name != "lens"}


def refuse_no_lens(lens: str | None) -> None:
    """OptionError where there is no such lens."""
    if lens is not None:
        from layerlens.lens.files import parsed

        parsed(lens)


def shard_of(text: str) -> tuple[int, int]:
    """The number of a shard and of all shards, from "2/4"; OptionError where it says something else."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise OptionError.about("shard", text, "is no shard", "give its number and that of all shards, such as 2/4")
    return int(number), int(of)


def variables_of(words: Sequence[str]) -> dict[str, Any]:
    """The variables of a chat template, from words such as "enable_thinking=false".

    Raises:
        OptionError: a word is no name with a value in JSON, or gives a name again.
    """
    variables: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            advice = "write it like enable_thinking=false"
            raise OptionError.about("chat_template_args", word, "is no KEY=VALUE", advice)
        if name in variables:
            raise OptionError.about("chat_template_args", word, f"gives {name} again", "give it once")
        try:
            variables[name] = json.loads(value)
        except ValueError as error:
            advice = f"write true, false, a number, or a text in double quotes: '{name}=\"text\"'"
            raise OptionError.about("chat_template_args", word, "has a value that is no JSON", advice) from error
    return variables


def grouped(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command as typer is to see it: in place of each parameter that is a group of options, the options."""
    parameters = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in parameters if is_dataclass(one.annotation)}

    @wraps(command)
    def ungrouped(**given: Any) -> Result:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        return command(**given)

    options = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in parameters
        for option in (inspect.signature(groups[one.name]).parameters.values() if one.name in groups else [one])
    ]
    ungrouped.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    ungrouped.__annotations__ = {option.name: option.annotation for option in options}
    return ungrouped
