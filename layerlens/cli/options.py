"""Options that several commands share: single options, and groups of options that belong together."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from layerlens.cli.printable import echo, note
from layerlens.errors import OptionError, spelled
from layerlens.parsing import json_of
from layerlens.paths import expanded

if TYPE_CHECKING:
    from layerlens.decode.speculative.drafter import Drafter
    from layerlens.decode.speculative.policy import SkipPolicy
    from layerlens.decode.strategies import Strategy
    from layerlens.models import Model as LoadedModel
    from layerlens.models.placement import Place

Result = TypeVar("Result")

Model = Annotated[
    str,
    typer.Option(help="A hub id, a folder, a .gguf file, or a built-in model: smollm2-135m-instruct or gemma3-270m."),
]
DataFile = Annotated[Path | None, typer.Option(help="Local copy of the dataset, as .json, .jsonl, .csv or .parquet.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first N prompts.")]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Use one of N shards of the prompts; shard 2/4 has prompts 2, 6, 10 and so on."
    ),
]
BatchSize = Annotated[int, typer.Option(help="How many prompts go through the model together.")]
StrategyName = Annotated[
    str,
    typer.Option(
        help="Decoding strategy: last, valley (also called trough), valley-1, valley+1, last-1, dola-low, dola-high, "
        "sled, or a registered name."
    ),
]
Lens = Annotated[
    str | None,
    typer.Option(
        help="Lens that layers are read through: logit, linear:FILE, tuned:FILE or jacobian:FILE. [default: logit]"
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        help="How many candidate layers a valley, or another strategy with a window, chooses from. [default: 10]"
    ),
]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    backend: Annotated[
        str | None,
        typer.Option(
            help="Library that runs the model: transformers, transformer-lens, nnsight, nnsight-remote or vllm. "
            "[default: transformers]"
        ),
    ] = None
    dtype: Annotated[str, typer.Option(help="Number format of the weights: auto, float32, bfloat16 or float16.")] = (
        "auto"
    )
    device: Annotated[
        str | None, typer.Option(help="Device of the model, such as cpu or cuda:0. [default: a GPU if there is one]")
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            help="How to spread the model over all GPUs, with the rest in main memory: auto, balanced or sequential; "
            "not together with --device."
        ),
    ] = None
    offload_folder: Annotated[
        Path | None, typer.Option(help="With --device-map: folder for weights that fit on no device and stay on disk.")
    ] = None
    quantize: Annotated[
        str | None, typer.Option(help="Quantize the weights while loading, with bitsandbytes: 4bit or 8bit.")
    ] = None
    keep_quantized: Annotated[
        bool,
        typer.Option(
            "--keep-quantized",
            help="Keep the weights of a GGUF file packed. Every pass then unpacks them, which is slower.",
        ),
    ] = False
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code.")] = (
        False
    )
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="With --backend vllm: an argument of vLLM's LLM, such as tensor_parallel_size=8; can be given several "
            "times.",
        ),
    ] = None

    def refuse_unloadable(self, model: str, window: int | None = None) -> None:
        """ModelError or OptionError where the model cannot be loaded or the window is too deep for it.

        Only what can be seen in a moment is checked.
        """
        from layerlens.models import locate

        self.refuse_unknown()
        if self.backend != "nnsight-remote":
            locate.refuse_unloadable(model, self.revision, window)

    def refuse_unknown(self) -> None:
        """OptionError where an option has a value that it cannot have."""
        from layerlens.models import choices

        choices.refuse_unknown("dtype", self.dtype, choices.DTYPES)
        for option, known in (
            ("backend", choices.BACKENDS),
            ("quantize", choices.QUANTIZED),
            ("device_map", choices.DEVICE_MAPS),
        ):
            if (given := getattr(self, option)) is not None:
                choices.refuse_unknown(option, given, known)
        if self.device is not None:
            choices.refuse_misspelt_device(self.device)

    def refuse_unfit(self, model: str, *strategies: "Strategy") -> None:
        """OptionError where the model's config shows that a strategy does not fit the model."""
        from layerlens.models import locate

        depths = [] if self.backend == "nnsight-remote" else set(locate.depths(locate.located(model)))
        if len(depths) == 1:  # else the config does not say which of them is the decoder's
            for strategy in strategies:
                _refuse_unfit(strategy, *depths)

    def load(self, model: str) -> "LoadedModel":
        """The model of that name."""
        from transformers.utils import logging

        import layerlens as ll

        logging.set_verbosity_error()  # of the models, while they run: what a user must know is said by layerlens
        given = asdict(self)
        options = variables_of(given.pop("engine_option") or [], "engine_options", "tensor_parallel_size=8")
        return ll.load(model, **given, engine_options=options or None)

    def place(self) -> "Place":
        """On which devices the model is put."""
        from layerlens.models.placement import place_for

        return place_for(self.device, self.device_map, None, self.offload_folder)

    def sizing(self) -> dict[str, Any]:
        """Those of the options that change how much memory a model takes."""
        names = ("dtype", "quantize", "keep_quantized", "revision", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Wrapping:
    """How prompts are wrapped."""

    no_chat_template: Annotated[
        bool,
        typer.Option("--no-chat-template", help="Give prompts to the model as they are, without its chat template."),
    ] = False
    chat_template_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Variable of the chat template, such as enable_thinking=false; can be given several times.",
        ),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--add-special-tokens/--no-add-special-tokens",
            help="Add the tokenizer's special tokens to prompts, but never a second begin token. "
            "[default: add them only without a chat template]",
        ),
    ] = None

    def wrapping(self) -> dict[str, Any]:
        """Fields of `GenerateOptions`."""
        return {
            "chat_template": False if self.no_chat_template else None,
            "chat_template_args": variables_of(self.chat_template_arg or []) or None,
            "add_special_tokens": self.add_special_tokens,
        }


@dataclass(frozen=True)
class Decoding(Wrapping):
    """How prompts are wrapped, and how tokens are chosen."""

    system: Annotated[str | None, typer.Option(help="System message before each prompt.")] = None
    temperature: Annotated[float, typer.Option(help="Temperature of sampling; 0 means greedy decoding.")] = 0.0
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the smallest set of tokens with this much probability. [default: the model's, else 1]"
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample from this many most probable tokens; 0 means all. [default: the model's, else 0]"),
    ] = None
    min_new_tokens: Annotated[
        int | None,
        typer.Option(help="How many tokens to generate before an end token is allowed. [default: the model's, else 0]"),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            help="Above 1, tokens that the text already has become less likely; 1 is off. "
            "[default: the model's, else 1]"
        ),
    ] = None
    stop_strings: Annotated[
        list[str] | None,
        typer.Option(help="Text that ends a generation; can be given several times. [default: the model's, if any]"),
    ] = None
    no_generation_config: Annotated[
        bool,
        typer.Option(
            "--no-generation-config",
            help="Ignore the model's own generation config, with its defaults, suppressed tokens and bad words.",
        ),
    ] = False
    seed: Annotated[
        int, typer.Option(help="Seed for sampling, for the draws of --p, and for shuffling answer options.")
    ] = 0

    def settings(self, **others: Any) -> dict[str, Any]:
        """Fields of `GenerateOptions`: these options, and others that a command has of its own."""
        wrapping = {field.name for field in fields(Wrapping)}
        settings = {name: value for name, value in asdict(self).items() if name not in wrapping}
        settings["stop_strings"] = self.stop_strings or None
        settings["generation_config"] = not settings.pop("no_generation_config")
        return self.wrapping() | settings | others


@dataclass(frozen=True)
class StrategyOptions:
    """The options of a strategy beside its name and its window."""

    p: Annotated[
        float | None,
        typer.Option(
            help="Probability that a token comes from the strategy's layer rather than from the last. [default: 1]"
        ),
    ] = None
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Measure that must fall for a valley to go one layer further back: shannon, neg-sum-sq-logp, max-prob "
            "or margin. [default: shannon]"
        ),
    ] = None
    scan: Annotated[
        str | None,
        typer.Option(
            help="How candidate layers are read out: batched (all at once), lazy (one after the other) or auto. "
            "[default: auto]"
        ),
    ] = None
    entropy_floor: Annotated[
        float | None,
        typer.Option(
            help="Use the last layer where its entropy is below this many nats. [default: 0, which changes nothing]"
        ),
    ] = None

    def strategy(self, name: str, window: int | None, *, window_has_other_use: bool = False) -> "Strategy":
        """The strategy of that name with the options that were given; a trace uses a window for its valleys too."""
        from layerlens.decode.registry import named_strategy, takes_option

        given = {option: value for option, value in asdict(self).items() if value is not None}
        if window is not None and (not window_has_other_use or takes_option(name, "window")):
            given["window"] = window
        return named_strategy(name, **given)


@dataclass(frozen=True)
class Drafting:
    """Whether the model drafts with some of its blocks left out, and by which policy."""

    draft: Annotated[
        str | None,
        typer.Option(
            help="Draft tokens with blocks left out, and let the whole model check them: conflayers, swift, clasp, "
            "knapspec, every-other, fixed, traced, or a registered name. The text stays the same."
        ),
    ] = None
    draft_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="With --draft: an option of the policy, such as length=10 or skipped=[3,5]; can be given several "
            "times.",
        ),
    ] = None
    save_skip_set: Annotated[
        Path | None, typer.Option(help="With --draft: JSON file for the blocks that the policy left out in the end.")
    ] = None

    def refuse_unknown(self) -> None:
        """OptionError where no policy has the name, what needs one is given without, or no such file can be written."""
        from layerlens.decode.speculative.registry import refuse_unknown_policy
        from layerlens.records.places import refuse_inside, refuse_no_folder, refuse_other_suffix

        if self.draft is not None:
            refuse_unknown_policy(self.draft)
        else:
            what, advice = f"has no effect without {spelled('draft')}", "name a policy, or leave it out"
            if self.draft_option:
                raise OptionError.about("draft_option", self.draft_option[0], what, advice)
            if self.save_skip_set is not None:
                raise OptionError.about("save_skip_set", self.save_skip_set, what, advice)
        if self.save_skip_set is not None:
            refuse_other_suffix(self.save_skip_set, (".json",), "save_skip_set")
            refuse_inside(self.save_skip_set, option="save_skip_set")
            refuse_no_folder(expanded(self.save_skip_set), "save_skip_set")

    def end(self, drafter: "Drafter | None") -> None:
        """Print what the drafts were worth, and save what was left out in the end where that was asked for."""
        from layerlens.cli.text import print_drafts

        if drafter is None:
            return
        print_drafts(drafter)
        if self.save_skip_set is None:
            return
        if drafter.skips:
            drafter.skips.save(self.save_skip_set, drafter.model)
            echo(f"skip set written to {self.save_skip_set}")
        else:
            note(f"no blocks are left out, so that {self.save_skip_set} was not written")

    def policy(self) -> "SkipPolicy | None":
        """The policy with its options; None where nothing is drafted."""
        from layerlens.decode.speculative.registry import named_skip_policy

        if self.draft is None:
            return None
        given = variables_of(self.draft_option or [], "draft_option", "length=10", texts=True)
        return named_skip_policy(self.draft, **given)


@dataclass(frozen=True)
class Readings:
    """What is read at each layer, and through which lens."""

    lens: Lens = None
    targets: Annotated[
        bool,
        typer.Option("--targets", help="Also record each layer's log-probability and rank of the token that followed."),
    ] = False
    top: Annotated[
        int,
        typer.Option(
            metavar="K", help="Also record the K most probable tokens of each layer, at most 20; 0 records none."
        ),
    ] = 0
    kl: Annotated[
        bool, typer.Option("--kl", help="Also record the KL divergence from the last layer to each layer, in nats.")
    ] = False
    js: Annotated[
        bool,
        typer.Option("--js", help="Also record each layer's Jensen-Shannon divergence from the last layer."),
    ] = False
    sublayers: Annotated[
        bool, typer.Option("--sublayers", help="Also read the residual stream between attention and MLP of each block.")
    ] = False

    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also record how peaked is what attention and MLP return, by which ConfLayers skips layers.",
        ),
    ] = False

    def numbers(self) -> dict[str, Any]:
        """What is read, as options of a trace."""
        return {name: value for name, value in asdict(self).items() if name != "lens"}


def _refuse_unfit(strategy: "Strategy", n_layers: int) -> None:
    """OptionError where the strategy fits no model of so many layers, whether its embedding is tied or not."""
    try:
        strategy.fit(n_layers, False)
    except OptionError:
        strategy.fit(n_layers, True)


def refuse_no_lens(lens: str | None) -> None:
    """OptionError where there is no such lens, or its file holds none."""
    if lens is not None:
        from layerlens.lens.files import parsed, refuse_unreadable

        kind, path = parsed(lens)
        if path is not None:
            refuse_unreadable(kind, path)


def shard_of(text: str) -> tuple[int, int]:
    """The number of a shard and the number of all shards, from a text such as "2/4".

    Raises:
        OptionError: the text is not of that form.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise OptionError.about(
            "shard", text, "is not a shard", "give its number and the number of all shards, such as 2/4"
        )
    return int(number), int(of)


_PYTHON = {"True": True, "False": False, "None": None}


def variables_of(
    words: Sequence[str],
    option: str = "chat_template_args",
    example: str = "enable_thinking=false",
    *,
    texts: bool = False,
) -> dict[str, Any]:
    """Values in JSON by name, from texts such as "enable_thinking=false".

    Args:
        words: the texts.
        option: for messages.
        example: for messages.
        texts: whether a value that is not JSON is a text as it stands, but for True, False and None.

    Raises:
        OptionError: a text is not a name with a value in JSON, or a name is given twice.
    """
    variables: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise OptionError.about(option, word, "is not of the form KEY=VALUE", f"write it like {example}")
        if name in variables:
            raise OptionError.about(option, word, f"gives {name} a second time", "give it once")
        try:
            variables[name] = _PYTHON[value] if texts and value in _PYTHON else json_of(value)
        except ValueError as error:
            if texts:
                variables[name] = value
                continue
            advice = f"write true, false, a number, or a text in double quotes: '{name}=\"text\"'"
            raise OptionError.about(option, word, "has a value that is not JSON", advice) from error
    return variables


def grouped(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command for typer: each parameter that is a group of options is replaced by its options."""
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
