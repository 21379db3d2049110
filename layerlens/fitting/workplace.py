"""The folder beside the lens where a fit saves its progress, so that a fit that was stopped can be continued.

lens.safetensors.fitting/
    manifest.json    what is fitted: model, texts, options
        *.snapshot       how far a part of it has come, and its tensors; replaced by rename
        gram, cross      sums that are too large for memory, while they change
"""

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerlens.errors import OptionError, spelled
from layerlens.parsing import json_of
from layerlens.records.files import FolderWriter, refuse_foreign, remove_unfinished, write_json, writing

_SECONDS_BETWEEN = 60.0
_NO_OPTIONS = ("kind", "model", "identity", "revision", "texts")
_SHARE_OF_TIME = 20  # the share of time that snapshots may take is one part in this many


class Workplace(FolderWriter):
    """The folder of one fit; use as a context manager.

    Args:
        folder: the folder; made if it is missing.
        manifest: what is fitted.
        resume: continue what is there.
        overwrite: begin anew in place of what is there.

    Raises:
        OptionError: it holds an unfinished fit and neither is given, or the fit of another lens.
    """

    entries = re.compile(r"(manifest\.json|\w+\.snapshot)(\.partial)?|gram|cross|\.lock")

    def __init__(self, out: Path, manifest: dict[str, Any], *, resume: bool, overwrite: bool = False) -> None:
        self._out = out
        super().__init__(folder_of(out), manifest, resume=resume, overwrite=overwrite)
        self._saved_at, self._took = time.perf_counter(), 0.0
        self._began = time.perf_counter()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """How long the fit has worked, in seconds, over all processes."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def _has_begun(self) -> bool:
        return any(self.folder.glob("*.snapshot"))

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.perf_counter() - self._saved_at >= max(_SECONDS_BETWEEN, _SHARE_OF_TIME * self._took)

    def save(self, done: dict[str, Any], tensors: Sequence[Tensor], part: str) -> None:
        """Save how far a part of the fit has come, in place of what was saved of it before."""
        before = time.perf_counter()
        partial = self.folder / f"{part}.snapshot.partial"
        said = json.dumps(done | {"seconds": self.seconds}).encode()
        with writing(self.folder), partial.open("wb") as handle:
            np.save(handle, np.frombuffer(said, dtype=np.uint8))
            for tensor in tensors:
                np.save(handle, tensor.cpu().numpy())
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(self.folder / f"{part}.snapshot")
        self._saved_at = time.perf_counter()
        self._took = self._saved_at - before

    def load(self, tensors: Sequence[Tensor], part: str) -> dict[str, Any] | None:
        """What was saved last of a part of the fit, with its tensors read into these; None where nothing was saved."""
        path = self.folder / f"{part}.snapshot"
        if not path.exists():
            return None
        with path.open("rb") as handle:
            done: dict[str, Any] = json_of(np.load(handle).tobytes())
            for tensor in tensors:
                tensor.copy_(torch.from_numpy(np.load(handle)))
        seconds = done.pop("seconds")
        if seconds > self._seconds_before:
            self._seconds_before, self._began = seconds, time.perf_counter()
        return done

    def zeros(self, name: str, *shape: int, on_disk: bool) -> Tensor:
        """A float64 tensor of zeros, in memory or in a file in the folder."""
        if not on_disk:
            return torch.zeros(*shape, dtype=torch.float64)
        with writing(self.folder):
            array = np.memmap(self.folder / name, dtype=np.float64, mode="w+", shape=shape)
        return torch.from_numpy(array)

    def remove(self) -> None:
        """Remove the folder: the lens is written."""
        with writing(self.folder):
            shutil.rmtree(self.folder)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.folder.exists() and not self._has_begun:
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing to continue; the error that came first is told

    def _refuse_unless_free(self, *, resume: bool, overwrite: bool) -> None:
        refuse_foreign(self.folder, self.entries)  # always, because the folder is removed in the end
        if self._has_begun and not (resume or overwrite):
            what = f"was begun before, in {self.folder}"
            continued, anew = spelled("resume", True), spelled("overwrite", True)
            advice = f"give {continued} to continue that fit, {anew} to begin anew, or another file"
            raise OptionError.about("out", self._out, what, advice)

    def _open(self) -> None:
        path = self.folder / "manifest.json"
        if self._has_begun:
            refuse_other(self._out, self.manifest, json_of(path.read_text(encoding="utf-8")))
        else:
            write_json(path, self.manifest)
        remove_unfinished(self.folder)


def folder_of(out: Path) -> Path:
    """The folder in which the fit of that lens works."""
    return out.with_name(f"{out.name}.fitting")


def refuse_other(out: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """OptionError where the fit that was begun is not the one that is asked for now."""
    names = {name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)}
    if names:
        options = [name for name in ours if name in names and name not in _NO_OPTIONS]
        # an option such as the seed also changes the texts; the option is what was given differently
        differs = (
            "another model"
            if names & {"model", "identity", "revision"}
            else spelled(options[0], theirs.get(options[0]))
            if options
            else "other texts"
        )
        advice = f"give what it was begun with, or another {spelled('out')}"
        raise OptionError.about("out", out, f"was begun with {differs}", advice)
