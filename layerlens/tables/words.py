"""Table 8: what kinds of words decoding from the valley substitutes."""

from typing import Any

import pandas as pd

from layerlens.analysis.reported import PAPER_MODEL, reported
from layerlens.analysis.word_shares import substituted_classes
from layerlens.records.reader import Records
from layerlens.tables.compose import Measured, beside, of_paper, of_run

_UNITS = {"percent of substituted tokens": "% of substituted", "substitutions": "tokens", "tokens": "tokens"}
_METHODS = {"last": "standard token", "confident": "confident token", "": ""}


def table8(run: Records) -> pd.DataFrame:
    """The word classes of `substituted_classes` beside the paper's for Qwen3.5-35B-A3B on GPQA-Diamond.

    Columns as in `compose.beside`. The paper gives no rule for its classes, so a difference can come from the rules.
    The rows beside its numbers count $ and line breaks as punctuation, as the paper must have done. The rows "our own
    rule" count them as other, and the paper has no numbers for them.
    """
    in_paper = reported("8")
    in_paper = in_paper[in_paper["model"] == PAPER_MODEL]
    keys = ["method", "condition", "quantity"]
    told = {tuple(row[key] for key in keys): row["value"] for row in in_paper.to_dict("records")}
    as_paper, own = (substituted_classes(run, by=by).to_dict("records") for by in ("class", "own class"))
    rows = [_measured(row, told.get(tuple(row[key] for key in keys))) for row in as_paper]
    rows += [_measured(row, None, ", our own rule") for row in own if row["method"]]
    return beside(rows, of_run(run), of_paper("8"))


def _measured(row: dict[Any, Any], paper: Any, rule: str = "") -> Measured:
    name = f"{_METHODS[row['method']]}, {row['condition']}{rule}" if row["method"] else row["quantity"]
    bounds = (row["value_low"], row["value_high"])
    told = float("nan") if paper is None else float(paper)
    return Measured(name, _UNITS[row["quantity"]], row["value"], *bounds, row["n_tokens"], row["n_prompts"], told)
