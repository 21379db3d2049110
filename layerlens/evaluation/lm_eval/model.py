"""Models of lm-eval that decode, and give log-likelihoods, by a strategy."""

from contextlib import ExitStack
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from layerlens.decode.chooser import Chooser
from layerlens.decode.dropin import decoding
from layerlens.decode.registry import asked_strategy, is_strategy_name, takes_option
from layerlens.lens.opening import open_lens
from layerlens.models import load
from layerlens.models.use import in_use

_LOADING = ("dtype", "device", "revision", "trust_remote_code", "allow_pickle", "quantize", "keep_quantized")


@register_model("layerlens")
class Strategic(HFLM):  # type: ignore[misc]
    """lm-eval's own `hf` model, whose logits a strategy chooses.

    Arguments (`--model_args`): `pretrained`, as `load` takes it; `strategy` (default: last) and its options, such as
    `window`; `lens`; what `load` takes (`dtype`, `device`, `revision`, `trust_remote_code`, `allow_pickle`, `quantize`,
    `keep_quantized`); all others are those of `hf`. With `last`, everything is `hf`'s own.
    """

    def __init__(self, pretrained: str, strategy: str = "last", lens: str | None = None, **arguments: Any) -> None:
        taken = [name for name in arguments if is_strategy_name(strategy) and takes_option(strategy, name)]
        self.strategy = asked_strategy({"strategy": strategy, **{name: arguments.pop(name) for name in taken}})
        loading = {name: arguments.pop(name) for name in _LOADING if arguments.get(name) is not None}
        if str(loading.get("device")).startswith("cuda") and not torch.cuda.is_available():
            del loading["device"]  # lm-eval's own default, which `hf` passes over too
        self.lens_model = load(pretrained, **loading)
        self.strategy.fit(self.lens_model.n_layers, self.lens_model.tied)
        self.transport = open_lens(lens, self.lens_model)
        super().__init__(pretrained=self.lens_model.hf, tokenizer=self.lens_model.tokenizer, **arguments)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of every position, [rows, positions, vocab], as the strategy chooses them."""
        with ExitStack() as stack:
            if not self.strategy.is_untouched:
                stack.enter_context(in_use(self.lens_model))
                chooser = Chooser(self.lens_model, self.strategy, 0, self.transport)
                chooser.n_read = inps.shape[1]
                stack.enter_context(chooser.choosing())
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
            return logits

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """The texts with what was generated, [rows, positions]."""
        with ExitStack() as stack:
            if not self.strategy.is_untouched:
                stack.enter_context(decoding(self.lens_model, self.strategy, lens=self.transport))
            texts: Tensor = super()._model_generate(context, max_length, stop, **options)
            return texts
