"""Every number with an interval on the page of findings stands in the tables that are committed beside the figures."""

import re
from pathlib import Path

import pandas as pd
import pytest

from layerlens.tables.save import cell

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
NUMBER = r"−?[\d.,]+"
QUOTED = re.findall(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", PAGE)


def committed() -> set[tuple[str, str, str]]:
    found = set()
    for path in (ROOT / "figures").glob("*-*/**/*.csv"):  # of the models, not of theory alone
        table = pd.read_csv(path)
        names = {name: (name, f"{name}_low", f"{name}_high") for name in ("predicted", "accuracy", "difference")}
        for columns in (("measured", "low", "high"), *names.values()):
            if set(columns) <= set(table):
                scale = 100 if columns[0] in ("accuracy", "difference") else 1  # shares are quoted in percent
                rows = (scale * table[list(columns)]).to_numpy().tolist()
                found |= {tuple(cell(float(f"{value:.6g}")) for value in row) for row in rows}
                # a fall is quoted without its sign, and then its bounds the other way round
                found |= {tuple(cell(-float(f"{row[k]:.6g}")) for k in (0, 2, 1)) for row in rows}
    return found


@pytest.fixture(scope="module")
def known():
    return committed()


def test_there_is_much_to_check():
    assert len(QUOTED) > 30


@pytest.mark.parametrize("quoted", QUOTED, ids=" ".join)
def test_every_quoted_number_was_measured(quoted, known):
    plain = lambda row: tuple(f"{float(number.replace(',', '').replace('−', '-')):g}" for number in row)  # noqa: E731
    assert plain(quoted) in {plain(row) for row in known if all(row)}
