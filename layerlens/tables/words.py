"""Table 8: what kinds of words decoding from the valley substitutes."""

from typing import TYPE_CHECKING

import pandas as pd

from layerlens.analysis.reported import reported
from layerlens.analysis.words import substituted_classes
from layerlens.tables.compose import Measured, beside

if TYPE_CHECKING:
    from layerlens.run import Run

PAPER_MODEL = "Qwen3.5-35B-A3B"
_UNITS = {"percent of substituted tokens": "% of substituted", "substitutions": "tokens", "tokens": "tokens"}
_METHODS = {"last": "standard token", "confident": "confident token", "": ""}


def table8(run: "Run") -> pd.DataFrame:
    """The word classes of `analysis.words.substituted_classes` beside the paper's for Qwen3.5-35B-A3B on GPQA-Diamond.

    Columns as in `compose.beside`. The paper gives no rule for its classes, so that a difference can be one of rules.
    """
    in_paper = reported("8")
    in_paper = in_paper[in_paper["model"] == PAPER_MODEL]
    keys = ["method", "condition", "quantity"]
    told = {tuple(row[key] for key in keys): row["value"] for row in in_paper.to_dict("records")}
    rows = []
    for row in substituted_classes(run).to_dict("records"):
        name = f"{_METHODS[row['method']]}, {row['condition']}" if row["method"] else row["quantity"]
        bounds = (row["value_low"], row["value_high"])
        paper = float(told.get(tuple(row[key] for key in keys), float("nan")))
        rows.append(
            Measured(name, _UNITS[row["quantity"]], row["value"], *bounds, row["n_tokens"], row["n_prompts"], paper)
        )
    return beside(rows)
