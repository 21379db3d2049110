"""Open the lens that an option names, and check that it belongs to the model that is to be read through it."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from layerlens.errors import Notice, OptionError, spelled, spelled_command
from layerlens.lens.files import ADVICE, Stored, parsed, read_lens, sha256_of
from layerlens.lens.transport import IDENTITY, Affine, Identity, Transport, Watched
from layerlens.models import Model
from layerlens.models.placement import parameters
from layerlens.paths import expanded

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
    if model.backend.home is not None:
        found = opened_for_checkpoint(lens, model.source, model.d_model, model.n_layers)
        return found if isinstance(found, Identity) else found.opened(model.hf, torch.device("cpu"), torch.float32)
    owner = _Owner(
        model.source,
        model.d_model,
        model.n_layers,
        set(identity_of(model).split()),
        has_name=not expanded(model.source).exists() and model.source != type(model.hf).__name__,
        unembed_hash=partial(_unembed_hash, model),
    )
    found = _of_file(lens, owner)
    return found if isinstance(found, Identity) else found.opened(model.hf, model.unembed.device, model.hf.dtype)


def opened_for_checkpoint(lens: str, source: str, d_model: int, n_layers: int) -> Affine | Identity:
    """The transport that `lens` names, for a model whose weights are not in this process, on the host.

    Args:
        lens: as `open_lens` takes it.
        source: a folder, whose safetensors are held against what the lens was made for; or a hub id.
        d_model: width of the states.
        n_layers: L.

    Raises:
        OptionError: as `open_lens`.
    """
    folder = expanded(source)
    owner = _Owner(source, d_model, n_layers, digests_of(folder), has_name=not folder.exists(), are_parameters=False)
    return _of_file(lens, owner)


def _of_file(lens: str, owner: "_Owner") -> Affine | Identity:
    kind, path = parsed(lens)
    if path is None:
        return IDENTITY
    stored = read_lens(kind, path)
    _refuse_other_model(lens, stored, owner)
    return Affine(
        kind,
        stored.weights,
        stored.biases,
        owner.n_layers,
        adds=stored.adds,
        source=str(path),
        sha256=sha256_of(path),
    )


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
    return " ".join(sorted({_digest(name, parameter.detach()) for name, parameter in parameters(model.hf)}))


def digests_of(folder: Path) -> set[str]:
    """The digests of `identity_of`, of the tensors of a checkpoint's safetensors. None where there are none, or where
    weights are stored in another form than numbers."""
    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
                    return set()
                found.add(_digest(name, tensor))
    return found


def _digest(name: str, parameter: Tensor) -> str:
    said = f"{re.findall('[0-9]+', name)}{tuple(parameter.shape)}"
    if not parameter.is_meta and parameter.is_floating_point():
        values = parameter.flatten()
        said += repr(values[:: max(1, len(values) // 16)][:16].bfloat16().float().cpu().tolist())
    return hashlib.sha256(said.encode()).hexdigest()[:8]


class _Owner(NamedTuple):
    """What is known of the model that a lens is held against."""

    source: str
    d_model: int
    n_layers: int
    digests: set[str]
    """Of its parameters; none where they are not known."""
    has_name: bool
    """Whether the source is a name that others know it by, and neither a path nor a class."""
    unembed_hash: Callable[[], str] | None = None
    are_parameters: bool = True
    """Whether the digests are of parameters, and not of a checkpoint's tensors, some of which transformers joins."""

    def has(self, identity: str) -> bool:
        """Whether a lens with this identity was made for these weights: of two sets of parameters one has all of the
        other, and a checkpoint has at least half of the parameters. Of other weights it has at most some norms."""
        theirs = set(identity.split())
        if not self.are_parameters:
            return 2 * len(self.digests & theirs) >= len(theirs) > 0
        return bool(theirs) and (self.digests <= theirs or theirs <= self.digests)


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


def _refuse_other_model(lens: str, stored: Stored, model: _Owner) -> None:
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
    if "identity" in said and model.digests:
        if not model.has(said["identity"]):
            what = f"was made for other weights ({named}) than those of {model.source}"
            raise OptionError.about("lens", lens, what, advice)
        return
    theirs = said.get("unembed_hash")
    ours = theirs and model.unembed_hash and model.unembed_hash()
    if not named or (theirs and theirs == ours):
        return
    same_name = named.rsplit("/", 1)[-1].lower() == model.source.rsplit("/", 1)[-1].lower()
    if model.has_name and not same_name:
        raise OptionError.about("lens", lens, f"was made for {named}, and the model is {model.source}", advice)
    if not same_name or ours:
        why = "whose unembedding is different" if ours else "which may be another model"
        problem = f"{spelled('lens', lens)} was made for {named}, and is used with {model.source}, {why}"
        warnings.warn(f"{problem}; compare its readings with those of the logit lens", Notice, stacklevel=3)


def _unembed_hash(model: Model) -> str:
    """The package tuned-lens' hash of an unembedding: its corners, to one decimal, as numpy prints them."""
    corners = np.array_str(model.unembed.weight.detach().float().cpu().numpy(), precision=1)
    return hashlib.sha256(corners.encode()).hexdigest()
