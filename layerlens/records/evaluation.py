"""The records of an evaluation: a manifest, inspect's logs, and one table of all answers with their scores.

    DIR/manifest.json
    DIR/logs/*.eval       a log of inspect for each task and arm; `inspect view --log-dir DIR/logs` shows them
    DIR/answers.parquet   a row for each task, item, epoch and arm
    DIR/traces/TASK-ARM   where the answers were traced: a run directory for each task and arm

Nothing here needs a model or inspect.
"""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerlens.errors import RunError, spelled, spelled_command
from layerlens.records import Column, Manifest, files, store
from layerlens.records.manifest import read_manifest_of, refuse_disagreement
from layerlens.records.schema import arrow_schema

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
        manifest: what is about to be run. Its "evaluation" has "tasks" and "arms", each by name, and "asked", the pairs
            of them. What is there already is kept, so that tasks and arms can be added.

    Raises:
        RunError: the folder holds something else, or an evaluation with other settings.
    """

    entries = re.compile(r"(manifest\.json|answers\.parquet)(\.partial)?|logs/.*|traces/.*|\.lock")

    @property
    def logs(self) -> Path:
        """The folder of inspect's logs."""
        return self.folder / "logs"

    def finish(self, answers: dict[str, list[Any]], totals: dict[str, Any] | None) -> None:
        """Write the table of answers, a list for each column of `SCORED`, and the totals where nothing is missing."""
        with files.writing(self.folder):
            files.write_table(self.folder / "answers.parquet", store.to_table(SCORED, answers))
            files.write_json(self.folder / "manifest.json", self.manifest | {"totals": totals})

    def _refuse_unless_free(self, *, resume: bool, overwrite: bool) -> None:
        if (self.folder / "manifest.json").exists():
            with files.not_replaced(self.folder):
                read_manifest(self.folder)
        else:
            store.refuse_unless_free(self.folder, resume=resume, overwrite=overwrite)

    def _open(self) -> None:
        if (self.folder / "manifest.json").exists():
            self.manifest = _joined(self.folder, self.manifest, read_manifest(self.folder))
        files.write_json(self.folder / "manifest.json", self.manifest)
        self.logs.mkdir(exist_ok=True)
        files.remove_unfinished(self.folder)


def _joined(folder: Path, ours: Manifest, theirs: Manifest) -> Manifest:
    """The manifest with the tasks and arms of both; RunError where they are not parts of one evaluation."""
    both = [dict(one) for one in (ours, theirs)]
    ours_, theirs_ = (one.pop("evaluation") for one in both)
    refuse_disagreement(folder, *both)
    for part, what in (("tasks", "items or settings of the task"), ("arms", "options of the strategy")):
        for name in ours_[part].keys() & theirs_[part].keys():
            if ours_[part][name] != theirs_[part][name]:
                raise RunError(
                    f"{folder} was begun with other {what} {name}",
                    f"give what it was begun with to continue it, or another directory as {spelled('out')}",
                    option="out",
                    given=name,
                )
    joined = {part: theirs_[part] | ours_[part] for part in ("tasks", "arms")}
    joined["asked"] = theirs_["asked"] + [pair for pair in ours_["asked"] if pair not in theirs_["asked"]]
    return ours | {"created": theirs["created"], "evaluation": joined}


def trace_folder(folder: Path, task: str, arm: str) -> Path:
    """The run directory with the traces of an arm's answers to a task."""
    return folder / "traces" / f"{task}-{arm}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an evaluation; RunError where the folder holds none, or one of another format."""
    return read_manifest_of(folder, "evaluation", "an evaluation", "evaluate")


def read_answers(folder: Path) -> pa.Table:
    """All answers of an evaluation, with the columns of `SCORED`.

    Raises:
        RunError: there is none yet, or the file cannot be read.
    """
    path = folder / "answers.parquet"
    if not path.exists():
        advice = f"repeat the command of {spelled_command('evaluate')} that began it, which continues it"
        raise RunError(f"{folder} has no answers yet", advice, given=folder)
    return files.read_table(path, arrow_schema(SCORED).names)
