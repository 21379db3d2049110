"""Models of lm-eval that decode, and give log-likelihoods, by a strategy."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from layerlens.decode.chooser import Chooser, generator_of
from layerlens.decode.dropin import decoding
from layerlens.decode.registry import asked_strategy, is_strategy_name, takes_option
from layerlens.errors import OptionError, Spelling, did_you_mean, spelling
from layerlens.lens.opening import open_lens
from layerlens.models import load
from layerlens.models.locate import BUILT_IN
from layerlens.models.use import in_use
from layerlens.paths import expanded

_LOADING = ("dtype", "device", "revision", "trust_remote_code", "allow_pickle", "quantize", "keep_quantized")
_TOKENIZING = ("tokenizer", "use_fast_tokenizer", "add_bos_token")
_KEPT = (
    *("batch_size", "max_batch_size", "max_length", "truncation", "logits_cache", "softmax_dtype", "prefix_token_id"),
    *("mixed_precision_dtype", "think_end_token", "enable_thinking", "chat_template_args"),
)
"""Arguments of `hf` that it follows for a model that is loaded already."""
_HARMLESS: dict[str, tuple[object, ...]] = {
    "backend": ("default", "causal"),
    **dict.fromkeys(("parallelize", "autogptq", "gptqmodel"), (False,)),
    **{"subfolder": ("",), "offload_folder": ("./offload",)},
}
"""Arguments of `hf` that it passes over for such a model, with the values that ask for nothing."""
_IMPOSSIBLE = -1000.0
"""The log-probability of a token that a strategy rules out, as in the release of DoLa: minus infinity would make all
texts that hold such a token equal."""


class _ModelArguments(Spelling):
    """Messages write arguments of the model as `--model_args` has them."""

    def with_value(self, option: str, value: object) -> str:
        return f"{option}={value}"


@register_model("layerlens")
class Strategic(HFLM):  # type: ignore[misc]
    """lm-eval's own `hf` model, whose logits a strategy chooses.

    Arguments (`--model_args`): `pretrained`, as `load` takes it; `strategy` (default: last) and its options, such as
    `window`; `lens`; what `load` takes (`dtype`, `device`, `revision`, `trust_remote_code`, `allow_pickle`, `quantize`,
    `keep_quantized`); and of `hf` `tokenizer`, `use_fast_tokenizer`, `add_bos_token`, `batch_size`, `max_batch_size`,
    `max_length`, `truncation`, `logits_cache`, `softmax_dtype`, `mixed_precision_dtype`, `prefix_token_id`,
    `think_end_token`, `enable_thinking` and `chat_template_args`. With `last`, everything is `hf`'s own.

    Raises:
        OptionError: an argument is unknown, or has no effect on the strategy or on a model that `load` loads.
        ModelError: as `load`.
    """

    def __init__(self, pretrained: str = "", strategy: str = "last", lens: str | None = None, **arguments: Any) -> None:
        with spelling(_ModelArguments()):
            if not pretrained:
                advice = "give a hub id, a folder or a .gguf file: --model_args pretrained=MODEL"
                raise OptionError("pretrained is missing", advice, option="pretrained", given=pretrained)
            loading, kept, others = _sorted(arguments)
            tokenizing = _tokenizing(str(pretrained), arguments)
            self.strategy = asked_strategy({"strategy": strategy, **_options_of(strategy, others)})
            if str(loading.get("device")).startswith("cuda") and not torch.cuda.is_available():
                del loading["device"]  # lm-eval's own default, which `hf` passes over too
            self.lens_model = load(pretrained, **loading)
            self.strategy.fit(self.lens_model.n_layers, self.lens_model.tied)
            self.transport = open_lens(lens, self.lens_model)
        with _unwarned():
            super().__init__(
                pretrained=self.lens_model.hf, **{"tokenizer": self.lens_model.tokenizer, **tokenizing}, **kept
            )

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of every position, [rows, positions, vocab], as the strategy chooses them there.

        A choice that decoding makes for a whole batch, such as DoLa's, is made for each position alone. A token that
        the strategy rules out has a log-probability of −1000.
        """
        with ExitStack() as stack:
            if self.strategy.is_untouched:
                return super()._model_call(inps, attn_mask, labels)  # type: ignore[no-any-return]
            stack.enter_context(in_use(self.lens_model))
            chooser = Chooser(self.lens_model, self.strategy.for_one_row(), 0, self.transport)
            # draws follow from lm-eval's seed and the texts, so that texts draw independently, and again alike
            seed = int.from_bytes(hashlib.sha256(inps.cpu().numpy().tobytes()).digest()[:4], "big")
            chooser.generator = generator_of(seed ^ torch.initial_seed() % 2**32, chooser.generator.device)
            chooser.n_read = inps.shape[1]
            stack.enter_context(chooser.choosing())
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
        ruled_out = logits == -torch.inf
        if not ruled_out.any():
            return logits
        return torch.where(ruled_out, logits.logsumexp(-1, keepdim=True) + _IMPOSSIBLE, logits)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """The texts with what was generated, [rows, positions]."""
        with ExitStack() as stack:
            if not self.strategy.is_untouched:
                stack.enter_context(decoding(self.lens_model, self.strategy, lens=self.transport))
            texts: Tensor = super()._model_generate(context, max_length, stop, **options)
            return texts


def _sorted(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What `load` takes, what `hf` follows, and what is left for the strategy."""
    given = {
        name: value
        for name, value in arguments.items()
        if name not in _TOKENIZING and value is not None and value not in _HARMLESS.get(name, ())
    }
    loading = {name: value for name, value in given.items() if name in _LOADING and value is not None}
    kept = {name: value for name, value in given.items() if name in _KEPT}
    return loading, kept, {name: value for name, value in given.items() if name not in (*_LOADING, *_KEPT)}


def _options_of(strategy: str, others: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of the strategy; OptionError for one that it does not have."""
    for name, value in others.items():
        if is_strategy_name(strategy) and not takes_option(strategy, name):
            what = f"has no effect on strategy {strategy!r}, and is no argument that a loaded model follows"
            near = did_you_mean(name, (*_KEPT, *_TOKENIZING, *_LOADING, "window", "lens", "strategy"), "leave it out")
            raise OptionError.about(name, value, what, near)
    return others


def _tokenizing(pretrained: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `hf` needs to make a tokenizer, where arguments are about it."""
    given = {name: arguments[name] for name in _TOKENIZING if arguments.get(name) is not None}
    if not given:
        return {}
    if "tokenizer" not in given and (pretrained in BUILT_IN or pretrained.lower().endswith(".gguf")):
        name = next(iter(given))
        what = f"is for a tokenizer in a folder or on a hub, and that of {pretrained} is in a GGUF file"
        raise OptionError.about(name, given[name], what, "leave it out, or give tokenizer=FOLDER too")
    from_hub = {name: arguments[name] for name in ("revision", "trust_remote_code") if arguments.get(name) is not None}
    folder = expanded(pretrained)
    return {"tokenizer": str(folder) if folder.is_dir() else pretrained, **from_hub, **given}


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without the warning of `hf` that arguments are ignored, all of which are refused here."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    unwarned = lambda record: "not of type `str`" not in record.getMessage()  # noqa: E731
    logger.addFilter(unwarned)
    try:
        yield
    finally:
        logger.removeFilter(unwarned)
