"""What was measured, beside what the paper reports."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from layerlens.analysis.reported import BENCHMARKS, PAPER_MODEL, reported, short_name
from layerlens.records.reader import Records

_POINTS = ("%", "% of substituted")
"""Units of shares of tokens: their difference is in percentage points, whatever the model and the number of tokens."""

COLUMNS = ("quantity", "unit", "measured", "low", "high", "n_tokens", "n_prompts", "reported", "difference")


class Measured(NamedTuple):
    """A number of a run; NaN or None where the run has none."""

    quantity: str
    unit: str
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n_tokens: int | None = None
    n_prompts: int | None = None
    reported: float = np.nan
    """The paper's number for the same quantity, in the same unit; NaN where it reports none."""


class Origin(NamedTuple):
    """The model and the data that numbers come from; an empty text where they are not known."""

    model: str
    data: str


def of_run(run: Records) -> Origin:
    """The model and the dataset of a run, as the paper would call them."""
    data = str(run.manifest["dataset"]["name"])
    return Origin(short_name(str(run.manifest["model"]["source"])), BENCHMARKS.get(data, data))


def of_paper(source: str) -> Origin:
    """The model and the data of one of the paper's tables; see `analysis.reported`."""
    table = reported(source)
    data = [one for one in table.loc[table["model"] == PAPER_MODEL, "benchmark"].unique() if one]
    return Origin(PAPER_MODEL, ", ".join(data))


def beside(
    rows: Iterable[Measured], measured_of: Origin | None = None, reported_of: Origin | None = None
) -> pd.DataFrame:
    """One row per quantity: what was measured, its 95 % interval, what is reported, and the difference.

    Columns: quantity; unit; measured with low and high; n_tokens; n_prompts; reported; difference, measured less
    reported. A cell is empty where nothing was measured or reported. No cell is ever filled from another.

    Args:
        rows: what was measured.
        measured_of: model and data of the measured numbers. With `reported_of` this adds the columns measured_model,
            measured_data, reported_model and reported_data.
        reported_of: model and data of the reported numbers. If the model or the data differ, only shares of tokens have
            a difference. Numbers of tokens, layers and operations, and entropies in nats, depend on the amount of text,
            on the depth and size of the model, and on its vocabulary.
    """
    table = pd.DataFrame([row._asdict() for row in rows]).rename(columns={"value": "measured"})
    table["difference"] = table["measured"] - table["reported"]
    if measured_of is not None and reported_of is not None and measured_of != reported_of:
        table["difference"] = table["difference"].where(table["unit"].isin(_POINTS))
    numbers: dict[str, Any] = dict.fromkeys(("n_tokens", "n_prompts"), "Int64")
    composed: pd.DataFrame = table[list(COLUMNS)].astype(numbers)
    for name, origin in (("measured", measured_of), ("reported", reported_of)):
        for part, said in (origin._asdict() if origin else {}).items():
            composed[f"{name}_{part}"] = said
    return composed
