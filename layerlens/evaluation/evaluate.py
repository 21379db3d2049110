"""An evaluation: the items of benchmarks are answered under several strategies by inspect, scored, and kept."""

import contextlib
import copy
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from layerlens.analysis.evaluation import evaluation_table
from layerlens.compat import inspect_buffers
from layerlens.decode.identity import code_of
from layerlens.decode.options import GenerateOptions, made, settle_chat_template, whole
from layerlens.decode.registry import asked_strategy, strategy_record
from layerlens.decode.strategies import layers_of
from layerlens.errors import OptionError, first_sentence, spelled
from layerlens.evaluation.arms import Arm
from layerlens.evaluation.asked import Asked, Generating, Task, asked_of
from layerlens.evaluation.benchmarks.benchmark import Setting, task_of
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import Transport, refuse_lacking
from layerlens.models import Model
from layerlens.models.use import in_use
from layerlens.records import new_manifest
from layerlens.records.evaluation import EvaluationWriter, n_epochs, read_manifest
from layerlens.records.manifest import digest

if TYPE_CHECKING:
    from inspect_ai import Task as InspectTask

    from layerlens.evaluation.subject import Subject


def run(asked: Asked, subject: "Subject", out: str | os.PathLike[str]) -> Path:
    """Answer what is asked, or go on with what is missing, and write the table of answers.

    Args:
        asked: tasks and arms.
        subject: what answers.
        out: the directory of the evaluation.

    Returns:
        The directory.

    Raises:
        PromptError: the rows of a benchmark cannot be used.
        RunError: the directory holds something else, or another evaluation.
        KeyboardInterrupt: it was interrupted; the table has what was answered before.
    """
    from inspect_ai import eval_set

    tasks = {one.benchmark.name: _task(one, asked, subject) for one in asked.tasks}
    manifest = new_manifest(
        **subject.parts,
        options={"epochs": asked.epochs},
        seed=asked.generating.seed,
        evaluation={
            "tasks": {one.benchmark.name: _told(tasks[one.benchmark.name], one.benchmark.best) for one in asked.tasks},
            "arms": {arm.name: dict(arm.options) for arm in asked.arms},
            "asked": [[name, arm.name] for name in tasks for arm in asked.arms],
            "judged": {one.benchmark.name: asked.judge for one in asked.tasks if one.benchmark.judged},
            "code": {arm.name: code for arm in asked.arms if (code := code_of(type(asked_strategy(arm.options))))},
        },
    )
    runs = [
        _under(task, name, arm, n_epochs(manifest, name, arm.name))
        for name, task in tasks.items()
        for arm in asked.arms
    ]
    judge = None if asked.judge is None else _judge(asked.judge, asked.judge_url)
    roles = None if judge is None else {"grader": judge}
    with EvaluationWriter(out, manifest) as writer:
        _forget_failure(writer.logs)
        try:
            _score_again(writer.logs, tasks, subject, roles)
            with contextlib.redirect_stdout(io.StringIO()):  # where nothing is left to do, inspect says so there
                _, logs = eval_set(
                    runs,
                    str(writer.logs),
                    model=subject.model,
                    model_roles=roles,
                    max_connections=subject.model.api.max_connections(),  # else inspect begins with 20, in any batch
                    max_tasks=1,
                    fail_on_error=False,
                    log_dir_allow_dirty=True,
                    retry_attempts=3,
                    display="none",
                    ctl_server=False,
                )
        finally:
            _write(writer)
        if len(logs) < len(runs):  # inspect ends at Ctrl-C as if all were well, and gives no logs
            raise KeyboardInterrupt
        return writer.folder


def _forget_failure(folder: Path) -> None:
    """Remove what inspect has left of logs that this process could not write, such as on a full disk.

    It goes on with such a log, and cannot where its own database of it is there already.
    """
    for buffer in inspect_buffers(folder):
        if buffer.name.endswith(f".{os.getpid()}.db"):
            buffer.unlink()


def _score_again(folder: Path, tasks: "Mapping[str, InspectTask]", subject: "Subject", roles: Any) -> None:
    """Have answers of an earlier session scored to which the judge gave no score; the logs are written anew."""
    from inspect_ai import score
    from inspect_ai.log import recompute_metrics, write_eval_log

    from layerlens.evaluation.logs import logs_in, unscored_in

    for log in logs_in(folder):
        task = tasks.get((log.eval.metadata or {})["benchmark"])
        left = unscored_in(log)
        if task is None or task.scorer is None or not left:
            continue
        part = log.model_copy(update={"samples": left, "results": None})
        part = score(
            part, task.scorer, model=subject.model, model_roles=roles, action="overwrite", display="none", copy=True
        )
        found = {(sample.id, sample.epoch): sample for sample in part.samples or []}
        log.samples = [found.get((sample.id, sample.epoch), sample) for sample in log.samples or []]
        recompute_metrics(log)
        write_eval_log(log, log.location)


def _judge(name: str, url: str | None) -> Any:
    """The model of inspect that scores; OptionError where inspect has none, or cannot reach it without a key."""
    from inspect_ai.model import get_model

    try:
        return get_model(name, base_url=url)
    except Exception as error:  # of a provider; which one depends on it
        said = first_sentence(re.sub(r"\[/?(bold|blue)\]", "", str(error)).removeprefix("ERROR: "))
        advice = "give PROVIDER/MODEL as inspect names it, with the key in the environment"
        raise OptionError.about("judge", name, f"cannot be used ({said})", advice) from error


def _task(one: Task, asked: Asked, subject: "Subject") -> "InspectTask":
    """The task of a benchmark, with the options of generation."""
    from inspect_ai.model import GenerateConfig

    config = asked.generating.config(one.benchmark.settings)
    setting = Setting(
        asked.generating.seed, subject.context, subject.fit, subject.length, max_new_tokens=int(config["max_tokens"])
    )
    task = task_of(one.benchmark, one.rows, one.origin, setting)
    task.config = GenerateConfig(**config)
    return task


def _told(task: "InspectTask", best: float) -> dict[str, Any]:
    """What a manifest says of a task."""
    samples = list(task.dataset)
    texts = "\0".join(f"{sample.id}\0{_text(sample.input)}\0{sample.choices}\0{sample.target}" for sample in samples)
    return {
        "items": [str(sample.id) for sample in samples],
        "items_sha256": digest(texts),
        "best": best,
        "config": task.config.model_dump(exclude_none=True),
    }


def _text(given: Any) -> Any:
    """An input of inspect without the ids of its messages, which are drawn anew each time."""
    return given if isinstance(given, str) else [(message.role, message.text) for message in given]


def _under(task: "InspectTask", name: str, arm: Arm, epochs: int) -> "InspectTask":
    """The task, to be answered under an arm so many times."""
    from inspect_ai import task_with
    from inspect_ai.model import GenerateConfig

    return task_with(
        copy.copy(task),
        name=f"{name}-{arm.name}",
        epochs=epochs,
        config=task.config.merge(GenerateConfig(extra_body={"layerlens": dict(arm.options)})),
        metadata={"benchmark": name, "arm": arm.name},
    )


def tell_again(folder: Path) -> None:
    """Write the table of all answers that the logs have, for an evaluation that was killed before it could.

    Raises:
        RunError: the folder holds no evaluation, or one that another process is writing.
    """
    with EvaluationWriter(folder, read_manifest(folder)) as writer:
        _write(writer)


def _write(writer: EvaluationWriter) -> None:
    """Write the table of all answers that the logs have."""
    from layerlens.evaluation.logs import answers_in

    said = writer.manifest["evaluation"]
    asked = [(task, arm, n_epochs(writer.manifest, task, arm)) for task, arm in said["asked"]]
    answers = answers_in(writer.logs, said["tasks"], asked)
    n_missing = answers["outcome"].count("missing")
    writer.finish(answers, None if n_missing else {"answers": len(answers["outcome"])})


def evaluate(
    model: Model,
    tasks: Sequence[str],
    strategies: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("last",),
    *,
    out: str | os.PathLike[str],
    limit: int | Mapping[str, int] | None = None,
    epochs: int = 1,
    data_files: Mapping[str, str | os.PathLike[str]] | None = None,
    window: int | None = None,
    lens: str | Transport | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
    stop_strings: str | Sequence[str] | None = None,
    batch_size: int = 16,
    judge: str | None = None,
    judge_url: str | None = None,
    allow_code_execution: bool = False,
    trace: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Answer the items of benchmarks with every strategy, score the answers, and return `evaluation_table(out)`.

    inspect runs the tasks and writes a log for each. Where `out` holds a part of the same evaluation, what is missing
    is answered; tasks and strategies can be added to it.

    Args:
        model: from `load`.
        tasks: names of benchmarks.
        strategies: names, or options of a strategy (with "strategy" among them) by the name of the arm. The last layer
            is always an arm.
        out: the directory to write.
        limit: how many of the first items of each benchmark, one number or a number for each; None: all.
        epochs: how often each item is answered where something is drawn or a judge scores; otherwise once.
        data_files: local copies of benchmarks, by name.
        window: candidate layers of the strategies that take a window.
        lens: through which layers are read.
        max_new_tokens, temperature, top_p, top_k: in place of a benchmark's own settings.
        seed: of everything that is drawn, and of the order of options.
        stop_strings: texts before which an answer ends.
        batch_size: requests that are decoded at once.
        judge: a model of inspect, such as "openai/gpt-5", that scores answers where a benchmark needs it.
        judge_url: address of a server for it.
        allow_code_execution: whether code that the model writes may be run, where a benchmark needs it.
        trace: trace the answers as well, with these options beside: targets, top, kl, js, sublayers, batch_size; {} for
            none; None: no trace. See `evaluation.traced.trace_answers`.
        progress: show a progress bar of the trace on standard error.
        **options: further fields of `GenerateOptions` that do not depend on a benchmark, such as chat_template_args.

    Raises:
        OptionError, PromptError: before anything is answered.
        RunError: `out` holds something else, or another evaluation.
    """
    asked = asked_of(
        tasks,
        strategies,
        Generating(max_new_tokens, temperature, top_p, top_k, seed, stop_strings),
        limit=limit,
        epochs=epochs,
        data_files=data_files,
        window=window,
        judge=judge,
        judge_url=judge_url,
        allow_code_execution=allow_code_execution,
    )
    return answer(model, asked, out, lens=lens, batch_size=batch_size, trace=trace, progress=progress, **options)


def answer(
    model: Model,
    asked: Asked,
    out: str | os.PathLike[str],
    *,
    lens: str | Transport | None = None,
    batch_size: int = 16,
    trace: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """As `evaluate`, for what is asked already."""
    from layerlens.evaluation.subject import loaded

    if asked.judge is not None and Path(asked.judge).name == Path(model.source).name:
        what = "is the model that is evaluated, which must not judge itself"
        raise OptionError.about("judge", asked.judge, what, "give another model")
    whole("batch_size", batch_size, 1)
    with in_use(model, may_decode_elsewhere=True):
        pass  # an error here, and not for each item, where it is no model or is not as it was loaded
    settle_chat_template(made(GenerateOptions, dict(options)), bool(getattr(model.tokenizer, "chat_template", None)))
    transport = open_lens(lens, model)
    strategies = [asked_strategy(arm.options) for arm in asked.arms]
    for strategy in strategies:
        layers = layers_of(strategy, model.n_layers, model.tied)
        refuse_lacking(transport, layers, strategy_record(strategy)["name"])
    if trace is not None and not model.backend.is_here:
        what = f"reads the states of a model in this process, and not of {spelled('backend', model.backend.name)}"
        raise OptionError.about("trace", True, what, "leave it out, or give another backend")
    with loaded(model, transport, batch_size, strategies, options) as subject:
        folder = run(asked, subject, out)
    if trace is not None:
        from layerlens.evaluation.traced import trace_answers

        trace_answers(model, folder, transport=transport, progress=progress, **trace)
    return evaluation_table(folder)
