"""Every number with an interval on the pages of findings stands in the tables that are committed beside the figures."""

import re
from pathlib import Path

import pandas as pd
import pytest

from layerlens.tables.save import cell

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
NUMBER = r"−?[\d.,]+"
WITH_INTERVAL = rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]"
QUOTED = re.findall(WITH_INTERVAL, PAGE)
BY_LENS = (ROOT / "docs" / "lenses.md").read_text(encoding="utf-8").split("## What this does to the paper's claim")[1]
QUOTED_BY_LENS = re.findall(WITH_INTERVAL, " ".join(BY_LENS.split()))


def committed(folders: str = "*-*") -> set[tuple[str, str, str]]:
    found = set()
    for path in (ROOT / "figures").glob(f"{folders}/**/*.csv"):  # of the models, not of theory alone
        table = pd.read_csv(path)
        of_three = ("predicted", "accuracy", "difference", "score", "generated_tokens", "needed")
        names = {name: (name, f"{name}_low", f"{name}_high") for name in of_three}
        for columns in (("measured", "low", "high"), ("auroc", "low", "high"), *names.values()):
            if set(columns) <= set(table):
                scale = 100 if columns[0] in ("accuracy", "difference", "score") else 1  # shares are quoted in percent
                rows = (scale * table[list(columns)]).to_numpy().tolist()
                found |= {tuple(cell(float(f"{value:.6g}")) for value in row) for row in rows}
                # a fall is quoted without its sign, and then its bounds the other way round
                found |= {tuple(cell(-float(f"{row[k]:.6g}")) for k in (0, 2, 1)) for row in rows}
    return found


@pytest.fixture(scope="module")
def known():
    return committed()


@pytest.fixture(scope="module")
def known_by_lens():
    # the last layer's answers are the same for every lens
    return committed("*-lenses") | committed("smollm2-sample") | committed("gemma3-sample")


def test_there_is_much_to_check():
    assert len(QUOTED) > 30
    assert len(QUOTED_BY_LENS) > 30


@pytest.mark.parametrize("quoted", QUOTED, ids=" ".join)
def test_every_quoted_number_was_measured(quoted, known):
    assert plain(quoted) in {plain(row) for row in known if all(row)}


@pytest.mark.parametrize("quoted", QUOTED_BY_LENS, ids=" ".join)
def test_every_number_of_lenses_was_measured(quoted, known_by_lens):
    assert plain(quoted) in {plain(row) for row in known_by_lens if all(row)}


def plain(row):
    return tuple(f"{float(number.replace(',', '').replace('−', '-')):g}" for number in row)
