"""The tables of docs/findings.md about benchmarks, from a directory of `layerlens eval`.

    python analyses/benchmarks.py DIR OUT

writes OUT/evaluation.csv, OUT/explanation.csv and OUT/power.csv; the last one is about a difference of two points.
"""

import sys
from pathlib import Path

from layerlens.analysis.evaluation import evaluation_table
from layerlens.analysis.explanation import explanation_table
from layerlens.analysis.power import power_table
from layerlens.sheets import write_csv


def main(folder: str, out: str) -> int:
    """Write the tables."""
    place = Path(out)
    place.mkdir(parents=True, exist_ok=True)
    tables = {
        "evaluation": evaluation_table(folder),
        "explanation": explanation_table(folder),
        "power": power_table(folder, 0.02),
    }
    for name, table in tables.items():
        if table.empty:  # too few answers are right, or wrong
            continue
        write_csv(table, place / f"{name}.csv")
        print(place / f"{name}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
