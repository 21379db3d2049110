"""The paper's tables: what a run measured beside what the paper reports, as csv, Markdown and LaTeX."""

from collections.abc import Sequence
from os import PathLike

import pandas as pd

from layerlens.analysis.ablation import table7
from layerlens.errors import OptionError, spelled, spelled_command
from layerlens.records.reader import Records
from layerlens.tables.decoding import table6_1
from layerlens.tables.overhead import table5
from layerlens.tables.save import latex, markdown, save
from layerlens.tables.scores import difficulty_table, scores_table
from layerlens.tables.words import table8

__all__ = ["TABLES", "TITLES", "composed", "latex", "markdown", "save"]

TITLES = {
    "1": "Table 1: scores of the last layer and of the valley, in percent",
    "2": "Table 2: scores of a base model and of its instruct model, in percent",
    "3": "Table 3: scores by difficulty, in percent",
    "4": "Table 4: scores by difficulty, in percent",
    "5": "Table 5: what decoding from the valley costs",
    "6.1": "Section 6.1: what decoding from the valley does to tokens",
    "7": "Table 7: accuracy of valley decoding by temperature and p, in percent",
    "8": "Table 8: what kinds of words are substituted",
    "9": "Table 9: scores of rival strategies, in percent",
    "10": "Table 10: scores of further models, in percent",
}
TABLES = tuple(TITLES)
SCORES, LEVELS = ("1", "2", "7", "9", "10"), ("3", "4")
"""Tables that are made from evaluations: scores of benchmarks, and scores by difficulty."""
_OF_A_RUN = {"5": table5, "6.1": table6_1, "8": table8}


def composed(
    number: str,
    run: Records | None,
    evaluations: Sequence[str | PathLike[str]] = (),
) -> pd.DataFrame:
    """One of `TABLES`. Its columns are described in `compose.beside`, `analysis.ablation.table7` and `tables.scores`.

    Raises:
        OptionError: the run or the evaluation that it is made from was not given.
        RunError: the run or the evaluation lacks what the table needs.
    """
    if number in (*SCORES, *LEVELS):
        if not evaluations:
            advice = f"give {spelled('evaluation')}, a directory that {spelled_command('evaluate')} wrote"
            raise OptionError(f"table {number} shows scores of benchmarks", advice, option="evaluation")
        if number == "7":
            return table7(evaluations)
        return scores_table(number, evaluations) if number in SCORES else difficulty_table(number, evaluations)
    if run is None:
        advice = f"give {spelled('run')}, a directory that {spelled_command('trace')} wrote"
        raise OptionError(f"table {number} shows a run", advice, option="run")
    return _OF_A_RUN[number](run)
