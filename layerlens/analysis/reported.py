"""The numbers that arXiv 2606.21906 reports."""

from functools import cache

import pandas as pd

from layerlens.sources.shipped import shipped_file

PAPER_MODEL = "Qwen3.5-35B-A3B"
"""The model of most of the numbers."""
BENCHMARKS = {
    "gpqa": "GPQA-Diamond",
    "hle": "HLE",
    "livecodebench_v6": "LiveCodeBench v6",
    "longbench_v2_cot": "LongBench v2",
    "omni_math": "Omni-MATH",
    "air_bench": "AIR-Bench 2024",
    "writingbench": "WritingBench",
    "math500": "MATH-500",
    "gsm8k": "GSM8K",
}
"""The names that the paper has for our datasets."""


def reported(source: str) -> pd.DataFrame:
    """The numbers of one table ("1" to "10"), figure ("F2" to "F6") or section ("S6.1") of the paper.

    Columns: source, model, method, condition, benchmark, quantity, value; sd, what the paper prints after the
    plus-minus sign. A column that does not apply holds an empty text; a missing sd is NaN.
    """
    table = _everything()
    chosen: pd.DataFrame = table[table["source"] == source].reset_index(drop=True)
    return chosen


def reported_value(source: str, **where: str) -> float:
    """The one number of a source that has the given values in its other columns; NaN where the source reports none."""
    table = reported(source)
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    return float(table["value"].iloc[0]) if len(table) == 1 else float("nan")


def short_name(model: str) -> str:
    """The last part of a model's source, which the paper's names are: Qwen3.5-35B-A3B of Qwen/Qwen3.5-35B-A3B."""
    return model.rstrip("/").rpartition("/")[2]


@cache
def _everything() -> pd.DataFrame:
    table: pd.DataFrame = pd.read_csv(shipped_file("reported_values.csv"), dtype={"source": str})
    texts = ("model", "method", "condition", "benchmark")
    filled: pd.DataFrame = table.fillna(dict.fromkeys(texts, ""))
    return filled
