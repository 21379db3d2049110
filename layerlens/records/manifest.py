"""The manifest of a run: what made it. Two manifests agree when a resumed run would end with the same rows."""

import hashlib
import json
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from layerlens.errors import RunError
from layerlens.records.schema import FORMAT

Manifest = dict[str, Any]

_VERSIONED = ("layerlens", "torch", "transformers", "tokenizers", "gguf", "numpy")
_CIRCUMSTANCES = {"created", "command", "hardware", "totals"}  # may differ between the sessions of one run


def new_manifest(**parts: Any) -> Manifest:
    """A manifest with the given parts beside the format, the time, the command, the versions and the hardware."""
    return {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **parts,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONED}},
        "hardware": {"machine": platform.machine(), "system": platform.system(), **parts.get("hardware", {})},
        "totals": None,
    }


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def differences(ours: Manifest, theirs: Manifest) -> list[str]:
    """One "key: ours, theirs" for every entry that would change the rows; empty where the manifests agree."""
    left, right = _flat(ours), _flat(theirs)
    return [
        f"{key}: {_short(left.get(key))} here, {_short(right.get(key))} there"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def refuse_disagreement(folder: Path, ours: Manifest, theirs: Manifest) -> None:
    """RunError where what the folder was begun with would not end with the same rows."""
    found = differences(ours, theirs)
    if found:
        raise RunError(f"{folder} was begun with other options and cannot be resumed ({'; '.join(found[:4])})")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run directory; RunError where the folder is no run or its format is not this one."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise RunError(f"there is no run at {folder}: no such directory")
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no manifest.json; give the directory named by --out of a trace")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or trace again into a new directory") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(found, int):
        raise RunError(f"{path} was not written by layerlens: it names no format; give the directory of a trace")
    if found != FORMAT:
        advice = "upgrade layerlens" if found > FORMAT else "trace again"
        raise RunError(f"{folder} is a run of format {found}, this layerlens reads format {FORMAT}: {advice}")
    model, batches = manifest.get("model"), manifest.get("batches")
    if not (isinstance(model, dict) and isinstance(model.get("n_layers"), int) and isinstance(batches, list)):
        raise RunError(f"{path} is damaged: it lacks model.n_layers or batches; restore it, or trace again")
    return manifest  # type: ignore[no-any-return]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _flat(manifest: Manifest) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(manifest)).items():
        if key in _CIRCUMSTANCES:
            continue
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": content for inner, content in value.items()})
        else:
            flat[key] = value
    flat.pop("model.source", None)  # its weights and config tell a model better than the path by which it was named
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:56]} ..."
