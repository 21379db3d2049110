"""One figure or table, or all that can be made from a run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerlens.cli.printable import note
from layerlens.errors import OptionError, RunError, did_you_mean, spelled
from layerlens.paths import expanded

if TYPE_CHECKING:
    from layerlens.run import Run


def opened(path: Path | None) -> "Run | None":
    """The run at a path. If it is not complete, a line on standard error says so."""
    if path is None:
        return None
    import layerlens as ll

    run = ll.open_run(path)
    say_incomplete(run)
    if len(run.prompts) == 1:
        note(f"{path} has one prompt, so means have no intervals")
    return run


def say_incomplete(run: "Run") -> None:
    """Say on standard error how far a run is that is not complete."""
    if not run.is_complete:
        rows = run.manifest["dataset"]["rows"]
        note(f"{run.path} is not complete: {len(run.prompts)} of {rows} prompts")


def say_unfinished(evaluation: Path) -> None:
    """Say on standard error that an evaluation is not complete; RunError where there is none."""
    from layerlens.records.evaluation import read_manifest

    if read_manifest(expanded(evaluation))["totals"] is None:
        note(f"{evaluation} is not complete: repeat its command to continue it")


def refuse_unknown(noun: str, asked: str, known: Sequence[str]) -> None:
    """OptionError where there is no such figure or table."""
    if asked not in (*known, "all"):
        problem = f"there is no {noun} {asked!r}"
        advice = did_you_mean(asked, (*known, "all"), f"give {', '.join(known)} or all")
        raise OptionError(problem, advice, option="number", given=asked)


def each(noun: str, asked: str, everything: Sequence[str], make: Callable[[str], list[Path]]) -> Iterator[Path]:
    """The files of what was asked for, as they are made.

    Args:
        noun: "figure" or "table".
        asked: one of them, or "all".
        everything: what "all" stands for with these inputs. What the records of a run do not allow is left out, with a
            line on standard error.
        make: writes the files of one.

    Raises:
        OptionError: neither a run nor an evaluation was given.
        RunError: the run lacks the records that it needs.
    """
    if asked != "all":
        yield from make(asked)
        return
    if not everything:
        advice = f"give {spelled('run')} or {spelled('evaluation')}"
        raise OptionError(f"{noun} all needs a run or an evaluation", advice, option="run")
    made, lacking = 0, dict[str, list[str]]()
    for one in everything:
        try:
            paths = make(one)
        except RunError as error:
            lacking.setdefault(str(error), []).append(one)
            continue
        made += 1
        yield from paths
    for reason, several in lacking.items():
        nouns = noun if len(several) == 1 else f"{noun}s"
        note(f"left out {nouns} {', '.join(several)}: {reason}")
    if not made:
        problem = f"no {noun} could be made, {'the reason is' if len(lacking) == 1 else 'each reason is'} above"
        raise RunError(problem, f"give a {noun} whose records this run has", option="number", given=asked)
