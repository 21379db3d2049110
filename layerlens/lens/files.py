"""Lenses in files: our own, and tuned and Jacobian lenses as others publish them. No file can run code."""

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerlens.errors import Notice, OptionError, first_sentence, spelled, spelled_command
from layerlens.lens.transport import IDENTITY, Affine, Transport
from layerlens.models import Model
from layerlens.models.placement import parameters

KINDS = ("logit", "linear", "tuned", "jacobian")
FORMAT = "layerlens lens 1"

_ADVICE = "give logit, linear:FILE, tuned:FILE or jacobian:FILE"
_ESTIMATOR = "jacobian_lens"  # as TransformerLens calls the one that is published


@dataclass(frozen=True)
class Stored:
    """A lens as it lies in a file.

    Attributes:
        kind: one of `KINDS` but "logit".
        weights, biases: by layer 0..L − 1; see `Affine`.
        adds: whether what comes out is added to the state.
        d_model: width of the states.
        n_layers: L of the model it was made for; None where the file does not say.
        made_for: what the file says of that model: "model", "revision", "identity", "unembed_hash"; what it does not
            say is missing.
        fit: how it was fitted, for a reader.
    """

    kind: str
    weights: Mapping[int, Tensor]
    biases: Mapping[int, Tensor]
    adds: bool
    d_model: int
    n_layers: int | None
    made_for: Mapping[str, str] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


def open_lens(lens: str | Transport | None, model: Model) -> Transport:
    """What `lens` stands for, on the device of the model's head.

    Args:
        lens: "logit", "linear:FILE", "tuned:FILE" or "jacobian:FILE"; a transport of your own; None for "logit".
        model: to be read through it.

    Raises:
        OptionError: there is no such lens, its file cannot be read or could run code, or it was made for another model.
    """
    if lens is None:
        return IDENTITY
    if not isinstance(lens, str):
        if not isinstance(lens, Transport):
            raise OptionError.about("lens", lens, "is no lens", _ADVICE)
        return lens
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
    return transport.on(model.unembed.device, model.hf.dtype)


def parsed(lens: str) -> tuple[str, Path | None]:
    """Kind and path of "linear:FILE", no path for "logit"; OptionError where it is none or there is no such file."""
    kind, colon, path = lens.partition(":")
    if kind not in KINDS or (kind == "logit") == bool(colon) or (colon and not path):
        raise OptionError.about("lens", lens, "is no lens", _ADVICE)
    if not colon:
        return kind, None
    place = Path(path).expanduser()
    if not place.exists():
        raise OptionError.about("lens", lens, f"cannot be read, there is no {place}", _ADVICE)
    return kind, place


def read_lens(kind: str, path: Path) -> Stored:
    """A lens of that kind as it lies at `path`: our own .safetensors, a tuned-lens folder, or a Jacobian-lens .pt.

    Raises:
        OptionError: it is damaged, of another kind, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return _own(kind, path)
        if kind == "tuned":
            return _tuned_lens(path)
        if kind == "jacobian":
            return _jacobian_lens(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OptionError):
            raise
        raise _unreadable(kind, path, first_sentence(error)) from error
    raise _unreadable(kind, path, "it is no .safetensors file")


def write_lens(path: Path, stored: Stored) -> None:
    """Write a lens as our own file, in float32; it appears whole or not at all."""
    tensors = {f"layers.{layer}.weight": one.float().contiguous() for layer, one in stored.weights.items()}
    tensors |= {f"layers.{layer}.bias": one.float().contiguous() for layer, one in stored.biases.items()}
    said = {"format": FORMAT, "kind": stored.kind, "adds": json.dumps(stored.adds), "d_model": str(stored.d_model)}
    said |= {} if stored.n_layers is None else {"n_layers": str(stored.n_layers)}
    said |= {"made_for": json.dumps(dict(stored.made_for)), "fit": json.dumps(dict(stored.fit))}
    unfinished = path.with_name(f"{path.name}.partial")
    save_file(tensors, unfinished, said)
    unfinished.replace(path)


def made_for(model: Model) -> dict[str, str]:
    """What a file says of the model that a lens was made for."""
    said = {"model": model.source, "identity": identity_of(model)}
    return said | ({} if model.revision is None else {"revision": model.revision})


def identity_of(model: Model) -> str:
    """SHA-256 of names, shapes and some values of all parameters, in bfloat16: the same in any type it is loaded in."""
    digest = hashlib.sha256()
    for name, parameter in parameters(model.hf):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 16)][:16].bfloat16().float().cpu().tolist()
        digest.update(repr(sample).encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file, or of the files of a folder by name."""
    digest = hashlib.sha256()
    for one in [path] if path.is_file() else sorted(path.iterdir()):
        if path.is_dir():
            digest.update(one.name.encode())
        if one.is_file():
            with one.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
    return digest.hexdigest()


def _own(kind: str, path: Path) -> Stored:
    with safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
        if said.get("format") != FORMAT:
            raise _unreadable(kind, path, "no fit of layerlens wrote it")
        if said["kind"] != kind:
            what = f"is a {said['kind']} lens"
            raise OptionError.about("lens", f"{kind}:{path}", what, f"give {said['kind']}:{path}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    named: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in tensors.items():
        _, layer, what = name.split(".")
        named[what][int(layer)] = tensor
    n_layers = said.get("n_layers")
    return Stored(
        kind,
        named["weight"],
        named["bias"],
        json.loads(said["adds"]),
        int(said["d_model"]),
        None if n_layers is None else int(n_layers),
        json.loads(said["made_for"]),
        json.loads(said["fit"]),
    )


def _tuned_lens(path: Path) -> Stored:
    """A folder of the package tuned-lens: translator i is layer i's, 0 the embeddings, and is added to the state."""
    if not path.is_dir():
        raise _unreadable(
            "tuned", path, "it is neither a folder with config.json and params.pt nor a .safetensors file"
        )
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    state = _tensors_only("tuned", path, "params.pt")
    named: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in state.items():
        layer, what = str(name).split(".")
        named[what][int(layer)] = tensor
    said = {"model": config.get("base_model_name_or_path"), "revision": config.get("base_model_revision")}
    said |= {"unembed_hash": config.get("unembed_hash")}
    return Stored(
        "tuned",
        named["weight"],
        named["bias"],
        True,
        int(config["d_model"]),
        int(config["num_hidden_layers"]),
        {name: value for name, value in said.items() if value},
    )


def _jacobian_lens(path: Path) -> Stored:
    """A file of the reference implementation or of TransformerLens: J[i] reads the output of block i, layer i + 1."""
    payload = _tensors_only("jacobian", path)
    if "J" not in payload:
        raise _unreadable("jacobian", path, 'it has no entry "J"')
    said = payload.get("metadata") or {}
    if said.get("estimator", _ESTIMATOR) != _ESTIMATOR:
        raise _unreadable("jacobian", path, f"it was fitted by the estimator {said['estimator']!r}")
    matrices = {int(block) + 1: matrix for block, matrix in payload["J"].items()}
    target = said.get("target_layer")
    names = {"model": said.get("model_name"), "revision": said.get("model_revision")}
    return Stored(
        "jacobian",
        matrices,
        {},
        False,
        int(payload["d_model"]),
        None if target is None else int(target) + 1,
        {name: value for name, value in names.items() if value} | dict(said.get("made_for") or {}),
        said,
    )


def _tensors_only(kind: str, path: Path, within: str = "") -> dict[Any, Any]:
    """What torch.save wrote, where it is nothing but tensors, numbers, texts, and lists and dicts of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that is then refused
            loaded = torch.load(path / within, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unreadable(kind, path, "it is a pickle that holds more than tensors and could run code") from error
    if not isinstance(loaded, dict):
        raise _unreadable(kind, path, f"it holds a {type(loaded).__name__}")
    return loaded


def _unreadable(kind: str, path: Path, why: str) -> OptionError:
    return OptionError.about("lens", f"{kind}:{path}", f"cannot be read: {why}", "fit or fetch it again")


def _refuse_other_model(lens: str, stored: Stored, model: Model) -> None:
    """OptionError where the lens was made for a model of another width or depth, or for other weights."""
    advice = f"give a lens of this model; {spelled_command('fit_lens')} fits one"
    if stored.d_model != model.d_model:
        what = f"was made for states of width {stored.d_model}, and those of {model.source} have {model.d_model}"
        raise OptionError.about("lens", lens, what, advice)
    deepest = max(stored.weights, default=0)
    n_layers = stored.n_layers if stored.n_layers is not None else deepest + 1
    if stored.n_layers not in (None, model.n_layers) or deepest >= model.n_layers:
        what = f"was made for a model of {n_layers} layers, and {model.source} has {model.n_layers}"
        raise OptionError.about("lens", lens, what, advice)
    width = model.d_model
    for tensors, shape in ((stored.weights, (width, width)), (stored.biases, (width,))):
        for layer, tensor in tensors.items():
            if tuple(tensor.shape) != shape:
                what = f"holds a tensor of shape {tuple(tensor.shape)} for layer {layer}"
                raise OptionError.about("lens", lens, what, f"give one of {shape} for each layer")
    said = stored.made_for
    named = said.get("model", "another model")
    if "identity" in said and said["identity"] != identity_of(model):
        what = f"was made for other weights ({named}) than those of {model.source}"
        raise OptionError.about("lens", lens, what, advice)
    if "identity" in said or said.get("unembed_hash") == _unembed_hash(model):
        return
    if "model" in said and _is_another(named, model.source):
        raise OptionError.about("lens", lens, f"was made for {named}, and the model is {model.source}", advice)
    if "unembed_hash" in said:
        problem = f"{spelled('lens', lens)} was made for an unembedding of {named} that looks other than this one"
        warnings.warn(f"{problem}; compare its readings with those of the logit lens", Notice, stacklevel=3)


def _is_another(named: str, source: str) -> bool:
    """Whether two names on the hub tell two models; a folder can hold any."""
    if "/" not in named or "/" not in source or Path(source).expanduser().exists():
        return False
    return named.rsplit("/", 1)[1].lower() != source.rsplit("/", 1)[1].lower()


def _unembed_hash(model: Model) -> str:
    """What the package tuned-lens tells an unembedding by: its corners, to one decimal, as numpy prints them."""
    corners = np.array_str(model.unembed.weight.detach().float().cpu().numpy(), precision=1)
    return hashlib.sha256(corners.encode()).hexdigest()
