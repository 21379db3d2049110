"""Every number with an interval on the page of findings stands in the tables that are committed beside the figures."""

import re
from pathlib import Path

import pandas as pd
import pytest

from layerlens.tables.save import cell

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
NUMBER = r"[\d.,]+"
QUOTED = re.findall(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", PAGE)


def committed() -> set[tuple[str, str, str]]:
    found = set()
    for path in (ROOT / "figures").glob("smollm2-*/**/*.csv"):
        table = pd.read_csv(path)
        names = {"measured": ("measured", "low", "high"), "predicted": ("predicted", "predicted_low", "predicted_high")}
        for columns in names.values():
            if set(columns) <= set(table):
                rows = table[list(columns)].itertuples(index=False, name=None)
                # a fall is quoted without its sign, and then its bounds the other way round
                found |= {tuple(cell(float(f"{value:.6g}")) for value in row) for row in rows}
                rows = table[list(columns)].itertuples(index=False, name=None)
                found |= {tuple(cell(-float(f"{row[k]:.6g}")) for k in (0, 2, 1)) for row in rows}
    return found


@pytest.fixture(scope="module")
def known():
    return committed()


def test_there_is_much_to_check():
    assert len(QUOTED) > 30


@pytest.mark.parametrize("quoted", QUOTED, ids=" ".join)
def test_every_quoted_number_was_measured(quoted, known):
    assert quoted in known or tuple(f"{float(number.replace(',', '')):g}" for number in quoted) in {
        tuple(f"{float(number.replace(',', '').replace('−', '-')):g}" for number in row if number)
        for row in known
        if all(row)
    }
