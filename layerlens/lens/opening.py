"""Open the lens that an option names, and check that it belongs to the model that is to be read through it."""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import Notice, OptionError, spelled, spelled_command
from layerlens.lens.files import ADVICE, Stored, parsed, read_lens, sha256_of
from layerlens.lens.transport import IDENTITY, Affine, Transport, Watched
from layerlens.models import Model
from layerlens.models.placement import parameters

_ANOTHER = "give a lens of this model"


def open_lens(lens: str | Transport | None, model: Model) -> Transport:
    """The transport that `lens` names, on the device of the model's head.

    Args:
        lens: "logit", "linear:FILE", "tuned:FILE" or "jacobian:FILE"; a transport of your own; None for "logit".
        model: the model to be read through it.

    Raises:
        OptionError: there is no such lens, its file cannot be read or could run code, or it was made for another model.
    """
    if lens is None or lens is IDENTITY:
        return IDENTITY
    if not isinstance(lens, str):
        if isinstance(lens, type) or not isinstance(lens, Transport):
            raise OptionError.about("lens", lens, "is not a lens", f"{ADVICE}, or an object that is a Transport")
        if isinstance(lens, Affine) and lens.was_opened_for(model.hf):
            return lens
        _refuse_unfit(lens, model)
        return lens if isinstance(lens, Affine | Watched) else Watched(lens)
    kind, path = parsed(lens)
    if path is None:
        return IDENTITY
    stored = read_lens(kind, path)
    _refuse_other_model(lens, stored, model)
    transport = Affine(
        kind,
        stored.weights,
        stored.biases,
        model.n_layers,
        adds=stored.adds,
        source=str(path),
        sha256=sha256_of(path),
    )
    return transport.opened(model.hf, model.unembed.device, model.hf.dtype)


def made_for(model: Model) -> dict[str, str]:
    """What the file of a lens says of the model that it was made for."""
    said = {"model": model.source, "identity": identity_of(model)}
    return said | ({} if model.revision is None else {"revision": model.revision})


def identity_of(model: Model) -> str:
    """A short digest of each parameter, sorted, with spaces between.

    A digest is of the numbers in the parameter's name, its shape, and 16 of its values in bfloat16, so that the type in
    which a model is loaded does not matter. Nor do the names that a backend gives: TransformerLens has the parameters
    of the model under other names, and beside some of them parts that it cut from them.
    """
    digests = set()
    for name, parameter in parameters(model.hf):
        said = f"{re.findall('[0-9]+', name)}{tuple(parameter.shape)}"
        if not parameter.is_meta and parameter.is_floating_point():
            values = parameter.detach().flatten()
            said += repr(values[:: max(1, len(values) // 16)][:16].bfloat16().float().cpu().tolist())
        digests.add(hashlib.sha256(said.encode()).hexdigest()[:8])
    return " ".join(sorted(digests))


def _are_alike(one: str, other: str) -> bool:
    """Whether two identities are of the same weights: one of them has every parameter of the other."""
    ours, theirs = set(one.split()), set(other.split())
    return bool(ours and theirs) and (ours <= theirs or theirs <= ours)


def _refuse_unfit(transport: Transport, model: Model) -> None:
    """OptionError where a transport made in Python does not describe itself, or cannot map states of this model."""
    name, advice = type(transport).__name__, "see Transport of docs/api.md"
    record: Any = None
    try:
        record = transport.record()
        json.dumps(record)
        kind = record["kind"]
    except (TypeError, KeyError, ValueError) as error:
        problem = f"the lens {name} has a record that lacks a kind or does not fit into JSON: {record!r}"
        raise OptionError(problem, advice, option="lens", given=name) from error
    if not isinstance(kind, str) or kind in ("", "logit"):
        problem = f"the lens {name} calls its kind {kind!r}"
        raise OptionError(problem, "give it a name of its own", option="lens", given=name)
    if isinstance(transport, Affine) and transport.is_opened:
        problem = f"the lens {transport.spec} was opened for another model than this {model.source}"
        advice = "give its name, or open it for this model with open_lens"
        raise OptionError(problem, advice, option="lens", given=name)
    if isinstance(transport, Affine) and transport.layers[-1] != model.n_layers:
        problem = f"the lens {transport.spec} was made for a model of {transport.layers[-1]} layers"
        raise OptionError(f"{problem}, and {model.source} has {model.n_layers}", _ANOTHER, option="lens", given=name)
    try:
        layers = [layer for layer in range(1, model.n_layers) if layer in transport.layers]
    except TypeError as error:
        problem = f"the layers of the lens {name} are {transport.layers!r}"
        raise OptionError(problem, "give a list or a range of them", option="lens", given=name) from error
    states = torch.ones(2, model.d_model, dtype=model.hf.dtype, device=model.unembed.device)
    for layer in layers:
        try:
            Watched(transport)(states, layer)
        except OptionError:
            raise
        except Exception as error:  # of whatever somebody else's code raises
            problem = f"the lens {name} failed on states of width {model.d_model:,} of layer {layer}: {error}"
            raise OptionError(problem, advice, option="lens", given=name) from error


def _refuse_other_model(lens: str, stored: Stored, model: Model) -> None:
    """OptionError where the lens was made for a model of another width or depth, or for other weights."""
    advice = f"{_ANOTHER}; {spelled_command('fit_lens')} fits one"
    if stored.d_model != model.d_model:
        what = f"was made for states of width {stored.d_model}, and those of {model.source} have {model.d_model}"
        raise OptionError.about("lens", lens, what, advice)
    if stored.n_layers not in (None, model.n_layers):
        what = f"was made for a model of {stored.n_layers} layers, and {model.source} has {model.n_layers}"
        raise OptionError.about("lens", lens, what, advice)
    if (deepest := max(stored.weights)) >= model.n_layers:
        what = f"has a matrix for layer {deepest}, and lenses of {model.source} have them below layer {model.n_layers}"
        raise OptionError.about("lens", lens, what, advice)
    said = stored.made_for
    named = said.get("model", "")
    if "identity" in said:
        if not _are_alike(said["identity"], identity_of(model)):
            what = f"was made for other weights ({named}) than those of {model.source}"
            raise OptionError.about("lens", lens, what, advice)
        return
    if said.get("unembed_hash") == _unembed_hash(model) or not named:
        return
    same_name = named.rsplit("/", 1)[-1].lower() == model.source.rsplit("/", 1)[-1].lower()
    tells = not Path(model.source).expanduser().exists() and model.source != type(model.hf).__name__
    if tells and not same_name:
        raise OptionError.about("lens", lens, f"was made for {named}, and the model is {model.source}", advice)
    if not same_name or "unembed_hash" in said:
        why = "whose unembedding is different" if "unembed_hash" in said else "which may be another model"
        problem = f"{spelled('lens', lens)} was made for {named}, and is used with {model.source}, {why}"
        warnings.warn(f"{problem}; compare its readings with those of the logit lens", Notice, stacklevel=3)


def _unembed_hash(model: Model) -> str:
    """The package tuned-lens' hash of an unembedding: its corners, to one decimal, as numpy prints them."""
    corners = np.array_str(model.unembed.weight.detach().float().cpu().numpy(), precision=1)
    return hashlib.sha256(corners.encode()).hexdigest()
