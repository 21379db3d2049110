"""csv files that a spreadsheet may open: no text of a model or of a data set becomes a formula there."""

import csv
import os
import re
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_FORMULA = r"^[=+\-@\t\r＝＋－＠]"
"""How a cell begins that a spreadsheet evaluates, in the widths of East Asian keyboards too."""
_HARMLESS = r"^.?$|^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?$"
"""A single character, or a number."""


def write_csv(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table, floats with six digits. A text that a spreadsheet would take for a formula begins with an
    apostrophe, in cells and in the names of columns; numbers and single characters are left as they are.

    Raises:
        OSError: the file cannot be written.
    """
    columns = {index: _without_formulas(table.iloc[:, index]) for index in range(table.shape[1])}
    safe = pd.DataFrame(columns, index=table.index)
    safe.columns = pd.Index([_safe(name) for name in table.columns], dtype=object)
    # before Python 3.13 a carriage return is not quoted by itself, and would end the row for those who read it
    texts = [column for column in columns.values() if column.dtype == object]
    returns = any("\r" in value for column in texts for value in column if isinstance(value, str))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    safe.to_csv(path, index=False, float_format="%.6g", quoting=quoting)


def without_formulas(table: pa.Table) -> pa.Table:
    """The same for the texts of a table of pyarrow."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = table.column(index)
            acts = pc.and_not(pc.match_substring_regex(texts, _FORMULA), pc.match_substring_regex(texts, _HARMLESS))
            marked = pc.binary_join_element_wise("'", texts, "")
            table = table.set_column(index, field, pc.if_else(acts, marked, texts))
    return table


def _without_formulas(column: Any) -> Any:
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column
    return pd.Series([_safe(value) for value in column], index=column.index, dtype=object)


def _safe(value: Any) -> Any:
    if isinstance(value, str) and re.search(_FORMULA, value) and not re.search(_HARMLESS, value):
        return f"'{value}"
    return value
