"""What was measured, beside what the paper reports."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

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


def beside(rows: Iterable[Measured]) -> pd.DataFrame:
    """One row per quantity: what was measured, its 95 % interval, what is reported, and the difference.

    Columns: quantity; unit; measured with low and high; n_tokens; n_prompts; reported; difference, measured less
    reported. A cell is empty where nothing was measured or reported; none is ever filled from another.
    """
    table = pd.DataFrame([row._asdict() for row in rows]).rename(columns={"value": "measured"})
    table["difference"] = table["measured"] - table["reported"]
    numbers: dict[str, Any] = dict.fromkeys(("n_tokens", "n_prompts"), "Int64")
    composed: pd.DataFrame = table[list(COLUMNS)].astype(numbers)
    return composed
