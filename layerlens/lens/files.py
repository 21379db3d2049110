"""Lenses in files: our own, and tuned and Jacobian lenses as others publish them. Reading a file never runs code."""

import hashlib
import json
import pickle
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerlens.errors import OptionError, did_you_mean, first_sentence
from layerlens.parsing import json_of
from layerlens.paths import expanded

KINDS = ("logit", "linear", "tuned", "jacobian")
FORMAT = "layerlens lens 1"

ADVICE = "give logit, linear:FILE, tuned:FILE or jacobian:FILE"
_ESTIMATOR = "jacobian_lens"  # TransformerLens' name for the published estimator


@dataclass(frozen=True)
class Stored:
    """A lens as it lies in a file.

    Attributes:
        kind: one of `KINDS`, except "logit".
        weights, biases: by layer 0..L − 1; see `Affine`.
        d_model: width of the states.
        n_layers: L of the model it was made for; None where the file does not say.
        made_for: what the file says of that model: "model", "revision", "identity", "unembed_hash", as far as it says
            it.
        fit: how it was fitted, for people to read.
    """

    kind: str
    weights: Mapping[int, Tensor]
    biases: Mapping[int, Tensor]
    d_model: int
    n_layers: int | None
    made_for: Mapping[str, str] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError where a lens cannot have such a tensor."""
        if not self.weights:
            raise ValueError("it holds no matrices")
        for tensors, shape in ((self.weights, (self.d_model, self.d_model)), (self.biases, (self.d_model,))):
            for layer, tensor in tensors.items():
                _refuse_odd(layer, tensor, shape)
        if not all(isinstance(value, str) for value in self.made_for.values()):
            raise ValueError("it does not say in texts which model it was made for")

    @property
    def adds(self) -> bool:
        """Whether the result of the matrix is added to the state."""
        return self.kind == "tuned"


def parsed(lens: str) -> tuple[str, Path | None]:
    """Kind and path of "linear:FILE", and no path for "logit"; OptionError for what is not a lens or a missing file."""
    kind, colon, path = lens.partition(":")
    if kind not in KINDS or (kind == "logit") == bool(colon) or (colon and not path):
        advice = ADVICE if kind in KINDS else did_you_mean(kind, KINDS, ADVICE)
        raise OptionError.about("lens", lens, "is not a lens", advice)
    if not colon:
        return kind, None
    try:
        place = expanded(path)
        mode = place.stat().st_mode
    except (OSError, ValueError, OptionError) as error:  # the last two for a path that no file can have
        what = f"cannot be read ({getattr(error, 'strerror', None) or getattr(error, 'problem', error)})"
        raise OptionError.about("lens", lens, what, ADVICE) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading from a pipe could wait for ever
        raise OptionError.about("lens", lens, "is neither a file nor a folder", ADVICE)
    return kind, place


def read_lens(kind: str, path: Path) -> Stored:
    """The lens of that kind at `path`: our own .safetensors, a tuned-lens folder, or a Jacobian-lens .pt.

    Raises:
        OptionError: it is damaged, of another kind, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors" and not path.is_dir():
            return _own(kind, path)
        if kind == "tuned":
            return _tuned_lens(path)
        if kind == "jacobian":
            return _jacobian_lens(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OptionError):
            raise
        raise _unreadable(kind, path, first_sentence(error)) from error
    raise _unreadable(kind, path, "it is not a .safetensors file")


def refuse_unreadable(kind: str, path: Path) -> None:
    """OptionError as `read_lens`, as far as that can be seen in a moment: the tensors of our own files are not read."""
    if path.suffix != ".safetensors" or path.is_dir():
        read_lens(kind, path)
        return
    try:
        with safe_open(path, framework="pt") as file:
            _refuse_other_kind(kind, path, file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(kind, path, first_sentence(error)) from error


def write_lens(path: Path, stored: Stored) -> None:
    """Write a lens as our own file, in float32; it appears whole or not at all."""
    tensors = {f"layers.{layer}.weight": one.float().contiguous() for layer, one in stored.weights.items()}
    tensors |= {f"layers.{layer}.bias": one.float().contiguous() for layer, one in stored.biases.items()}
    said = {"format": FORMAT, "kind": stored.kind, "d_model": str(stored.d_model)}
    said |= {} if stored.n_layers is None else {"n_layers": str(stored.n_layers)}
    said |= {"made_for": json.dumps(dict(stored.made_for)), "fit": json.dumps(dict(stored.fit))}
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.touch()
    mode = unfinished.stat().st_mode  # safetensors lets nobody else read what it writes
    save_file(tensors, unfinished, said)
    unfinished.chmod(mode)
    unfinished.replace(path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, or of the files of a folder in the order of their names."""
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
        _refuse_other_kind(kind, path, said)
        named = _by_layer({name.removeprefix("layers."): file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    entries = {name: said.get(name, "") for name in ("d_model", "made_for", "fit")}
    try:
        width, made_for, fit = (json_of(entry) for entry in entries.values())
        n_layers = json_of(said.get("n_layers", "null"))
    except ValueError as error:
        raise _unreadable(kind, path, f"its metadata is not JSON: {entries}") from error
    if not (isinstance(width, int) and isinstance(n_layers, int | None) and isinstance(fit, dict)):
        raise _unreadable(kind, path, f"its metadata has d_model {width!r} and n_layers {n_layers!r}")
    if not isinstance(made_for, dict) or not made_for.get("model"):
        raise _unreadable(kind, path, "it does not say which model it was made for")
    if named["bias"] and (lacking := set(named["weight"]) ^ set(named["bias"])):
        raise _unreadable(kind, path, f"layer {min(lacking)} has a matrix or a vector, but not both")
    return Stored(kind, named["weight"], named["bias"], width, n_layers, made_for, fit)


def _refuse_other_kind(kind: str, path: Path, said: Mapping[str, str]) -> None:
    """OptionError where the metadata of a .safetensors file are not those of a lens of this kind."""
    if said.get("format") != FORMAT:
        raise _unreadable(kind, path, "it was not written by a fit of layerlens")
    if (stored := said.get("kind")) != kind:
        if stored not in KINDS:
            raise _unreadable(kind, path, f"it calls itself a {stored!r} lens")
        raise OptionError.about("lens", f"{kind}:{path}", f"is a {stored} lens", f"give {stored}:{path}")


def _by_layer(tensors: Mapping[Any, Tensor]) -> dict[str, dict[int, Tensor]]:
    """Tensors with names such as "3.weight" and "3.bias", by kind and layer; ValueError for other names."""
    named: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in tensors.items():
        layer, _, what = str(name).partition(".")
        if what not in named or not layer.isdecimal() or layer != str(int(layer)):
            raise ValueError(f"it holds {str(name)!r}, which is neither the matrix nor the vector of a layer")
        named[what][int(layer)] = tensor
    return named


def _refuse_odd(layer: int, tensor: Any, shape: tuple[int, ...]) -> None:
    """ValueError unless this is a finite tensor of that shape."""
    if layer < 0 or not isinstance(tensor, Tensor):
        raise ValueError(f"it holds a {type(tensor).__name__} for layer {layer}")
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        kind = f"{tensor.dtype} {'on meta' if tensor.is_meta else str(tensor.layout)}".replace("torch.", "")
        raise ValueError(f"its matrix or vector of layer {layer} is {kind}, but must be dense and of real numbers")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"it holds a tensor of shape {tuple(tensor.shape)} for layer {layer}, not {shape}")
    if not tensor.float().isfinite().all():
        raise ValueError(f"it holds NaN, infinity or a number beyond float32 for layer {layer}")


def _tuned_lens(path: Path) -> Stored:
    """A folder of the package tuned-lens. Translator i is for layer i (0: the embeddings) and is added to the state."""
    if not path.is_dir():
        raise _unreadable(
            "tuned", path, "it is neither a folder with config.json and params.pt nor a .safetensors file"
        )
    config = json_of((path / "config.json").read_text(encoding="utf-8"))
    named = _by_layer(_tensors_only("tuned", path, "params.pt"))
    said = {"model": config.get("base_model_name_or_path"), "revision": config.get("base_model_revision")}
    said |= {"unembed_hash": config.get("unembed_hash")}
    return Stored(
        "tuned",
        named["weight"],
        named["bias"],
        int(config["d_model"]),
        int(config["num_hidden_layers"]),
        {name: value for name, value in said.items() if value},
    )


def _jacobian_lens(path: Path) -> Stored:
    """A file of the reference implementation or of TransformerLens. J[i] maps the output of block i, layer i + 1."""
    payload = _tensors_only("jacobian", path)
    if "J" not in payload:
        raise _unreadable("jacobian", path, 'it has no entry "J"')
    said = payload.get("metadata") or {}
    if said.get("estimator", _ESTIMATOR) != _ESTIMATOR:
        raise _unreadable("jacobian", path, f"it was fitted by the estimator {said['estimator']!r}")
    blocks = payload["J"]
    named = isinstance(blocks, dict) and all(
        type(block) is not bool and str(block).isascii() and str(block).isdecimal() for block in blocks
    )
    if not named:
        raise _unreadable("jacobian", path, 'its entry "J" is not a table of matrices by block, from 0')
    matrices = {int(block) + 1: matrix for block, matrix in blocks.items()}
    sizes = [one.shape[-1] for one in matrices.values() if isinstance(one, Tensor) and one.dim()]
    width = payload.get("d_model", sizes[0] if sizes else 0)
    target = said.get("target_layer")
    names = {"model": said.get("model_name"), "revision": said.get("model_revision")}
    return Stored(
        "jacobian",
        matrices,
        {},
        int(width),
        None if target is None else int(target) + 1,
        {name: value for name, value in names.items() if value} | dict(said.get("made_for") or {}),
        said,
    )


def _tensors_only(kind: str, path: Path, within: str = "") -> dict[Any, Any]:
    """What torch.save wrote, if it holds nothing but tensors, numbers, texts, and lists and dicts of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle that is then refused
            loaded = torch.load(path / within, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError) as error:
        raise _unreadable(
            kind, path, "it is damaged, or a pickle that holds more than tensors and could run code"
        ) from error
    if not isinstance(loaded, dict):
        raise _unreadable(kind, path, f"it holds a {type(loaded).__name__}")
    return loaded


def _unreadable(kind: str, path: Path, why: str) -> OptionError:
    return OptionError.about("lens", f"{kind}:{path}", f"cannot be read: {why}", "fit or fetch it again")
