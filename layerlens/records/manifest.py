"""The manifest of a run: what made it. Two manifests agree if a resumed run would end with the same rows."""

import hashlib
import json
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from layerlens.errors import OptionError, RunError, excerpt, first_sentence, is_utf8, spelled, spelled_command
from layerlens.parsing import json_of
from layerlens.records.disagreement import disagreement
from layerlens.records.schema import FORMAT
from layerlens.records.shape import RUN, misfit
from layerlens.secrets import redacted, without_secrets

Manifest = dict[str, Any]

_VERSIONED = ("layerlens", "torch", "transformers", "tokenizers", "gguf", "numpy")


def new_manifest(**parts: Any) -> Manifest:
    """A manifest with the given parts beside the format, the time, the command, the versions and the hardware.

    Raises:
        OptionError: a name or an option in it is not UTF-8 text.
    """
    parts |= {name: redacted(parts[name]) for name in ("model", "hardware", "options") if name in parts}
    manifest = {
        "format": FORMAT,
        **circumstances(),
        **parts,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONED}},
        "hardware": {"machine": platform.machine(), "system": platform.system(), **parts.get("hardware", {})},
        "totals": None,
    }
    written = json.dumps(manifest, ensure_ascii=False)
    if not is_utf8(written):
        shown = excerpt(written)
        raise OptionError(f"a name of a file or an option is not UTF-8 text: {shown}", "give it in UTF-8", given=shown)
    return manifest


def circumstances() -> Manifest:
    """When something is done, and by which command."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "layerlens"), *map(without_secrets, sys.argv[1:])],
    }


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def refuse_disagreement(folder: Path, ours: Manifest, theirs: Manifest) -> None:
    """RunError where the folder was begun with something that would not end with the same rows."""
    difference = disagreement(ours, theirs)
    if difference is not None:
        raise RunError(
            f"{folder} was begun with {difference}",
            f"give what it was begun with to continue it, or another directory as {spelled('out')} to begin anew",
            given=folder,
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run directory; RunError where the folder is not a run, or has another format."""
    path = folder / "manifest.json"
    advice = f"give a directory that {spelled_command('trace')} wrote"
    if not folder.is_dir():
        reason = "that is a file" if folder.exists() else "no such directory"
        raise RunError(f"there is no run at {folder}: {reason}", advice, given=folder)
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no manifest.json", advice, given=folder)
    try:
        manifest = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be read ({first_sentence(error)})"
        raise RunError(problem, "restore it, or trace again into a new directory", given=folder) from error
    format_number = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(format_number, int) or isinstance(format_number, bool):
        raise RunError(f"{path} was not written by layerlens: it names no format", advice, given=folder)
    if format_number != FORMAT:
        problem = f"{folder} is a run of format {format_number}, but this layerlens reads {FORMAT}"
        raise RunError(problem, "upgrade layerlens" if format_number > FORMAT else "trace again", given=folder)
    if "evaluation" in manifest:
        advice = f"give a run, such as one in {folder / 'traces'}, or show it with {spelled_command('evaluate')}"
        raise RunError(f"{folder} is an evaluation and not a run", advice, given=folder)
    _refuse_misfit(path, misfit(manifest, RUN), "restore it, or trace again into a new directory")
    return manifest  # type: ignore[no-any-return]


def read_manifest_of(folder: Path, part: str, noun: str, command: str) -> Manifest:
    """The manifest of a folder that is no run; RunError where it is another one, or has another format.

    Args:
        folder: what was given.
        part: the entry that only such a manifest has, such as "ablation".
        noun: what the folder is called, with its article, such as "an ablation".
        command: what writes such folders, as `spelled_command` takes it.
    """
    path = folder / "manifest.json"
    kind, advice = noun.partition(" ")[2], f"give a directory that {spelled_command(command)} wrote"
    if not folder.is_dir():
        reason = "that is a file" if folder.exists() else "no such directory"
        raise RunError(f"there is no {kind} at {folder}: {reason}", advice, given=folder)
    try:
        manifest = json_of(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is not {noun}: it has no manifest.json", advice, given=folder) from error
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be read ({first_sentence(error)})"
        raise RunError(problem, f"restore it, or run the {kind} anew", given=folder) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get(part), dict):
        raise RunError(f"{folder} is not {noun}", advice, given=folder)
    if manifest.get("format") != FORMAT:
        problem = f"{folder} is {noun} of format {manifest.get('format')}, but this layerlens reads {FORMAT}"
        raise RunError(problem, f"use the layerlens that wrote it, or run the {kind} anew", given=folder)
    return manifest


def _refuse_misfit(path: Path, found: str | None, advice: str) -> None:
    """RunError where an entry of a manifest is not what it should be."""
    if found is not None:
        raise RunError(f"{path} is damaged: {found}", advice, given=path.parent)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
