"""nnsight as a backend: one full pass of a model, here or on a remote server, from which only scalars come back."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from layerlens import compat, formulas
from layerlens.compat import has_edits, module_in
from layerlens.errors import LayerlensError, ModelError, OptionError, first_sentence, spelled
from layerlens.models import nnsight_reduction
from layerlens.models.adapter import adapt
from layerlens.models.backend import Connection
from layerlens.models.check import checked, refuse_not_causal, stream_changed
from layerlens.models.check_readout import possible_heads, with_best_head
from layerlens.models.families import FAMILIES
from layerlens.models.model import Model
from layerlens.models.probing import probe
from layerlens.paths import expanded
from layerlens.sources import hub

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Nnsight(Connection):
    """nnsight as a backend.

    Attributes:
        language_model: nnsight's own wrapper.
        remote: the argument of its traces: False here, True on the server, "local" for nnsight's simulation of a
            server.
    """

    language_model: Any = None
    remote: bool | str = False

    def measured(self, model: Model, ids: Tensor, mask: Tensor, keep: Tensor) -> tuple[Array, Array]:
        """The numbers of one full pass over ids [batch, seq]: floats [5, rows, L] and top token ids [rows, L].

        Args:
            model: of this backend.
            ids: padded on the right.
            mask: 1 where `ids` is not padding.
            keep: the rows to measure, batch and positions flattened; int64 [rows].

        Raises:
            ModelError: the server refused the request or failed.
        """
        lm, plan = self.language_model, _plan(model)
        reduce_blocks: Any = nnsight_reduction.reduce_blocks
        inputs = {"input_ids": ids, "attention_mask": mask}
        saved = _nnsight().save
        with _answering(model.source), torch.no_grad(), lm.trace(inputs, remote=self.remote) as tracer:
            numbers = saved(reduce_blocks(lm, *plan, keep))
            tracer.stop()  # the model's own logits, [batch, seq, vocab], are not computed
        floats, tops = numbers
        return floats.transpose(1, 2).numpy(), tops.t().numpy()

    def generated(self, model: Model, ids: Sequence[int], n_new: int, least: int, ends: Sequence[int]) -> list[int]:
        """The tokens that transformers' greedy generation adds to one prompt on the server.

        Raises:
            ModelError: the server refused the request or failed.
        """
        lm, saved = self.language_model, _nnsight().save
        prompt = torch.tensor([list(ids)])
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        settings: dict[str, Any] = {"max_new_tokens": n_new, "min_new_tokens": least, "do_sample": False}
        settings |= {"eos_token_id": list(ends) or None, "repetition_penalty": 1.0, "remote": self.remote}
        with _answering(model.source), torch.no_grad(), lm.generate(inputs, **settings) as tracer:
            whole = saved(tracer.result)
        added: list[int] = whole[0, len(ids) :].tolist()
        return added


def is_language_model(model: object) -> bool:
    """Whether this is nnsight's wrapper of a model; nnsight is not imported where it is not in use."""
    return any(kind.__module__.startswith("nnsight.modeling") for kind in type(model).__mro__)


def wrapped(hf: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A loaded transformers model in nnsight's wrapper."""
    _nnsight()
    from nnsight.modeling.transformers import TransformersModel

    return TransformersModel(hf, tokenizer=tokenizer, task="text-generation")


def named(source: str, revision: str | None) -> Any:
    """nnsight's wrapper of a hub model, without its weights, which stay on the server.

    Raises:
        OptionError: there is no key, or `source` is on this machine.
        ModelError: the config or the tokenizer cannot be read.
    """
    _refuse_without_key()
    from nnsight.modeling.transformers import TransformersModel

    if expanded(source).exists():
        what = f"runs models that its server has, and {source} is here"
        raise OptionError.about("backend", "nnsight-remote", what, "give the hub id of one of them")
    revision = revision or "main"
    if not hub.answers(source, "config.json", revision=revision):
        raise ModelError(
            f"{source!r} does not answer on the hub",
            "give the hub id of a model that nnsight's server runs, and check that the hub can be reached",
            given=source,
        )
    try:
        # given, because nnsight 0.8 does not ask for it with transformers 5.23
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        return TransformersModel(source, task="text-generation", revision=revision, tokenizer=tokenizer)
    except Exception as error:
        raise ModelError(
            f"nnsight cannot read the config or tokenizer of {source!r} ({first_sentence(error)})",
            "give the hub id of another model",
            given=source,
        ) from error


def loaded(lm: Any, tokenizer: PreTrainedTokenizerBase | None, source: str, name: str) -> Model:
    """The model in the shape of `Model`, checked where its weights are.

    Args:
        lm: nnsight's wrapper.
        tokenizer: in place of its own.
        source: what it is called in messages and records.
        name: "nnsight", "nnsight-remote" or "nnsight-simulated".

    Raises:
        ModelError: it cannot be traced, or the server does not answer.
        OptionError: the server wants a key, and there is none.
    """
    tokenizer = tokenizer or lm.tokenizer
    if tokenizer is None:
        raise OptionError(
            f"{source} has no tokenizer in nnsight",
            "call load(model, tokenizer=tokenizer)",
            option="tokenizer",
            given=source,
        )
    if name == "nnsight":
        lm.dispatch()
        model = checked(adapt(module_in(lm).eval(), tokenizer, source))
        return replace(model, backend=Nnsight(name, language_model=lm))
    for travels in (nnsight_reduction, formulas, compat):
        _nnsight().register(travels)
    remote: bool | str = "local" if name == "nnsight-simulated" else True
    if remote is True:
        _refuse_without_key()
    backend = Nnsight(name, is_here=False, language_model=lm, remote=remote)
    hf = module_in(lm)
    if hf.get_input_embeddings().weight.is_meta:
        hf = hf.to(torch.bfloat16).eval()  # a type that torch can follow without weights; it is corrected below
    model = adapt(hf, tokenizer, source)
    if model.family not in FAMILIES:  # the check of the parts needs the weights
        model = replace(model, sublayers=[None] * model.n_layers)
    return _checked_there(replace(model, backend=backend), backend)


def refuse_edits(model: Model) -> None:
    """OptionError where the model carries nnsight's edits, which act in nnsight's traces but not in our decoding."""
    lm = getattr(model.backend, "language_model", None)
    if lm is not None and any(has_edits(envoy) for envoy in lm.modules()):
        raise OptionError(
            f"{model.source} carries edits of nnsight, which act only inside nnsight's traces and not while text "
            "is generated",
            f"trace given text with {spelled('max_new_tokens', 0)}, or call clear_edits()",
            option="model",
            given=model.source,
        )


def _checked_there(model: Model, backend: Nnsight) -> Model:
    """The model with the readout that gives its logits, found by a pass over two texts on the server."""
    lm, saved, probe_misses = backend.language_model, _nnsight().save, nnsight_reduction.probe_misses
    ids = probe(model).cpu()
    blocks, head, tail, _, _, n_vocab = _plan(model)
    settings = [(one.scale, one.softcap) for one in possible_heads(model)]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with _answering(model.source), torch.no_grad(), lm.trace(inputs, remote=backend.remote):
        probed = saved(probe_misses(lm, blocks, head, tail, settings, n_vocab))
    changed_at, moved, misses, dtype = probed
    if model.hf.get_input_embeddings().weight.is_meta:
        model.hf.to(getattr(torch, dtype))
    refuse_not_causal(model, moved)  # checked before the stream, because a NaN never equals another
    if changed_at:
        raise stream_changed(model, changed_at)
    return with_best_head(model, misses)


def _plan(model: Model) -> tuple[Any, ...]:
    """The arguments of `reduce_blocks` after the model and before the rows; paths mean the same on a server."""
    path_of = {module: path for path, module in model.hf.named_modules()}
    blocks = [
        (path_of[block], None if part is None else path_of[part.watched], part is not None and part.parallel)
        for block, part in zip(model.blocks, model.sublayers, strict=True)
    ]
    readout = model.unembed
    tail = [path_of[module] for module in readout.tail]
    return blocks, path_of[model.head], tail, readout.scale, readout.softcap, model.n_vocab


def _refuse_without_key() -> None:
    if not _nnsight().CONFIG.API.APIKEY:
        run = "`python -c \"import nnsight; nnsight.CONFIG.set_default_api_key('KEY')\"`"
        advice = f"set NDIF_API_KEY, or run {run} once"
        raise OptionError.about("backend", "nnsight-remote", "needs a key of its server", advice)


@contextlib.contextmanager
def _answering(source: str) -> Iterator[None]:
    """ModelError in place of any failure between here and the server."""
    try:
        yield
    except LayerlensError:
        raise
    except Exception as error:
        raise ModelError(
            f"nnsight could not run {source} ({first_sentence(error)})", "try again, or another model", given=source
        ) from error


def _nnsight() -> Any:
    try:
        return import_module("nnsight")
    except ImportError as error:
        raise OptionError(
            "this backend needs nnsight", "get it with: pip install 'nnsight>=0.8,<0.9'", option="backend"
        ) from error
