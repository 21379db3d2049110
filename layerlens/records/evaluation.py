"""The records of an evaluation: a manifest, inspect's logs, and one table of all answers with their scores.

    DIR/manifest.json
    DIR/logs/*.eval       a log of inspect for each task and arm; `inspect view --log-dir DIR/logs` shows them
    DIR/answers.parquet   a row for each task, item, epoch and arm
    DIR/damaged           logs that could not be read; what they had is answered again
    DIR/traces/TASK-ARM   where the answers were traced: a run directory for each task and arm

Nothing here needs a model or inspect.
"""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerlens.errors import RunError, spelled, spelled_command
from layerlens.paths import expanded
from layerlens.records import Column, Manifest, files, store
from layerlens.records.manifest import read_manifest_of, refuse_disagreement
from layerlens.records.schema import arrow_schema
from layerlens.records.shape import EVALUATION, misfit

SCORED = (
    Column("task", pa.string(), "", "", "name of the benchmark"),
    Column("item", pa.string(), "", "", "id of the item in the benchmark"),
    Column("epoch", pa.int16(), "", ">= 1", "which of the answers to the item"),
    Column("arm", pa.string(), "", "", "name of the strategy"),
    Column("score", pa.float64(), "", "0..1", "of the answer, 1 is right; null where it has none"),
    Column("outcome", pa.string(), "", "", "scored | unscored (the judge did not say) | error | missing"),
    Column("stop_reason", pa.string(), "", "", "why the answer ended, as inspect calls it"),
    Column("n_prompt_tokens", pa.int32(), "tokens", ">= 0", "length of the prompt"),
    Column("n_generated_tokens", pa.int32(), "tokens", ">= 0", "length of the answer, end token included"),
    Column("valley_rate", pa.float64(), "", "0..1", "share of the tokens whose walk ended before the last layer"),
    Column("substituted", pa.float64(), "", "0..1", "share of the tokens that are not the last layer's first choice"),
    Column("mean_depth", pa.float64(), "", "0..1", "mean of the chosen layer, as a share of all layers"),
    Column("projections", pa.float64(), "", ">= 1", "states that went through the unembedding for a token, on average"),
    Column("final_entropy", pa.float64(), "nats", ">= 0", "mean entropy of the last layer, where it was read"),
)
MEASURES = ("valley_rate", "substituted", "mean_depth", "projections", "final_entropy")
"""The columns that the provider of layerlens measures inside the model."""


class EvaluationWriter(files.FolderWriter):
    """Writes the directory of an evaluation, or continues one; use as a context manager.

    Args:
        folder: the directory; made if missing.
        manifest: what is about to be run. Its "evaluation" has "tasks" and "arms", each by name; "asked", the pairs of
            them; "judged", the judge of each task that has one; and "code", a digest of the class of each arm that is
            not of this package. What is there already is kept, so that tasks and arms can be added.

    Raises:
        RunError: the folder holds something else, or an evaluation with other settings.
    """

    entries = re.compile(r"(manifest\.json|answers\.parquet)(\.partial)?|logs/.*|traces/.*|damaged/.*|\.lock")

    @property
    def logs(self) -> Path:
        """The folder of inspect's logs, as inspect does not read it otherwise: it writes out every ~ itself."""
        return self.folder.absolute() / "logs"

    def finish(self, answers: dict[str, list[Any]], totals: dict[str, Any] | None) -> None:
        """Write the table of answers, a list for each column of `SCORED`, and the totals where nothing is missing."""
        with files.writing(self.folder):
            files.write_table(self.folder / "answers.parquet", store.to_table(SCORED, answers))
            files.write_json(self.folder / "manifest.json", self.manifest | {"totals": totals})

    def _refuse_unless_free(self, *, resume: bool, overwrite: bool) -> None:
        refuse_unless_free(self.folder)

    def _open(self) -> None:
        if (self.folder / "manifest.json").exists():
            self.manifest = _joined(self.folder, self.manifest, read_manifest(self.folder))
        files.write_json(self.folder / "manifest.json", self.manifest)
        self.logs.mkdir(exist_ok=True)
        for log in self.logs.glob("*.eval"):
            if not zipfile.is_zipfile(log):
                files.set_aside(self.folder, log)
        files.remove_unfinished(self.folder)


def refuse_unless_free(folder: Path) -> None:
    """RunError where an evaluation can neither begin in a folder nor go on: it holds something else, or no folder can
    have that name."""
    folder = expanded(folder)
    if files.exists(folder / "manifest.json"):
        with files.not_replaced(folder):
            read_manifest(folder)
    else:
        store.refuse_unless_free(folder, resume=False, overwrite=False)


def _joined(folder: Path, ours: Manifest, theirs: Manifest) -> Manifest:
    """The manifest with the tasks and arms of both; RunError where they are not parts of one evaluation."""
    both = [dict(one) for one in (ours, theirs)]
    ours_, theirs_ = (one.pop("evaluation") for one in both)
    refuse_disagreement(folder, *both)
    known: dict[str, Callable[[str, Any, Any], str]] = {
        "tasks": _task_differs,
        "arms": lambda name, _, __: f"other options of the strategy {name}",
        "code": lambda name, _, __: f"other code of the strategy {name}",
        "judged": lambda name, ours, theirs: f"the judge {theirs} of {name}, not with {ours}",
    }
    for one in (ours_, theirs_):
        one.update({part: one.get(part, {}) for part in ("code", "judged")})  # which older manifests do not have
    for part, told in known.items():
        for name in ours_[part].keys() & theirs_[part].keys():
            if ours_[part][name] != theirs_[part][name]:
                raise RunError(
                    f"{folder} was begun with {told(name, ours_[part][name], theirs_[part][name])}",
                    f"give what it was begun with to continue it, or another directory as {spelled('out')}",
                    option="out",
                    given=name,
                )
    joined = {part: theirs_[part] | ours_[part] for part in known}
    joined["asked"] = theirs_["asked"] + [pair for pair in ours_["asked"] if pair not in theirs_["asked"]]
    return ours | {"created": theirs["created"], "evaluation": joined}


def _task_differs(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """In what the items or settings of a task differ from those that an evaluation was begun with."""
    items, begun = ours["items"], theirs["items"]
    if len(items) != len(begun):
        return f"{len(begun):,} items of {name}, not with {len(items):,}"
    if items != begun or ours["items_sha256"] != theirs["items_sha256"]:
        return f"other items of {name}"
    settings, earlier = (one["config"] for one in (ours, theirs))
    for key in sorted(settings.keys() | earlier.keys()):
        if settings.get(key) != earlier.get(key):
            option = {"max_tokens": "max_new_tokens", "stop_seqs": "stop_strings"}.get(key, key)
            before = f"no {spelled(option)}" if earlier.get(key) is None else spelled(option, earlier[key])
            return f"{before} for {name}, not with {settings.get(key)}"
    return f"another best score of {name}"


def arm_name(strategy: str, p: float) -> str:
    """The name of the arm of a strategy at a p: valley at 1, valley_p0.2 below."""
    return strategy if p == 1 else f"{strategy}_p{float(p)!r}"


def arm_parts(name: str, options: Mapping[str, Any]) -> tuple[str, float]:
    """The strategy and the p of an arm, from its name and its options; what has no p always acts, as at p = 1."""
    p = float(options.get("p", 1))
    return (name if p == 1 else name.removesuffix(f"_p{p!r}")), p


def n_epochs(manifest: Manifest, task: str, arm: str) -> int:
    """How often each item of a task is answered under an arm: once where nothing is drawn and no judge scores."""
    said = manifest["evaluation"]
    is_drawn = said["tasks"][task]["config"].get("temperature", 0) > 0 or 0 < said["arms"][arm].get("p", 1) < 1
    epochs: int = manifest["options"]["epochs"]
    return epochs if is_drawn or task in said.get("judged", ()) else 1


def trace_folder(folder: Path, task: str, arm: str) -> Path:
    """The run directory with the traces of an arm's answers to a task."""
    return folder / "traces" / f"{task}-{arm}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an evaluation; RunError where the folder holds none, or one of another format."""
    manifest = read_manifest_of(expanded(folder), "evaluation", "an evaluation", "evaluate")
    found = misfit(manifest, EVALUATION)
    if found is None and not all(_is_asked(pair, manifest["evaluation"]) for pair in manifest["evaluation"]["asked"]):
        found = "evaluation.asked does not name tasks and arms that it has"
    if found is not None:
        advice = "restore it, or begin anew in another directory"
        raise RunError(f"{folder / 'manifest.json'} is damaged: {found}", advice, given=folder)
    return manifest


def _is_asked(pair: list[str], said: Mapping[str, Any]) -> bool:
    """Whether it is the pair of a task and an arm."""
    return len(pair) == 2 and pair[0] in said["tasks"] and pair[1] in said["arms"]


def read_answers(folder: Path) -> pa.Table:
    """All answers of an evaluation, with the columns of `SCORED`.

    Raises:
        RunError: there is none yet, or the file cannot be read.
    """
    path = folder / "answers.parquet"
    if not path.exists():
        advice = f"repeat the command of {spelled_command('evaluate')} that began it, which continues it"
        raise RunError(f"{folder} has no answers yet", advice, given=folder)
    return files.read_table(path, arrow_schema(SCORED))
