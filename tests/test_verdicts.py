"""The rule that turns intervals into verdicts, and the page of findings against what follows from its tables."""

import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analyses.verdicts import MODELS, Number, Statement, together, verdicts
from layerlens.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
COMMITTED = pd.read_csv(ROOT / "figures" / "verdicts.csv")


def number(low, high, n_prompts=60, value=None):
    return Number("it", (low + high) / 2 if value is None else value, low, high, n_prompts)


SIDES = [
    (number(0.1, 2), "above", 0.0, "holds"),
    (number(-2, -0.1), "above", 0.0, "reversed"),
    (number(-2, 0.1), "above", 0.0, "cannot be told"),
    (number(-4.7, 0.0), "above", 0.0, "cannot be told"),
    (number(0.0, 4.7), "above", 0.0, "cannot be told"),
    (number(-2, -0.1), "below", 0.0, "holds"),
    (number(0.1, 2), "below", 0.0, "reversed"),
    (number(-0.1, 2), "below", 0.0, "cannot be told"),
    (number(5, 9), "above", 50.0, "reversed"),
    (number(math.nan, math.nan, value=3.0), "above", 0.0, "cannot be told"),
    (number(0.1, 2, n_prompts=7), "above", 0.0, "cannot be told"),
    (number(0.1, 2, n_prompts=8), "above", 0.0, "holds"),
    (number(0.1, 2, n_prompts=math.nan), "above", 0.0, "cannot be told"),
    (number(5, 6), "above", number(1, 4), "holds"),
    (number(1, 4), "above", number(5, 6), "reversed"),
    (number(1, 4), "above", number(4, 6), "cannot be told"),
    (number(1, 4), "below", number(3, 6), "cannot be told"),
    (number(1, 2), "below", number(3, 6), "holds"),
    (number(1, 2), "below", number(3, 6, n_prompts=3), "cannot be told"),
    (number(60, 65), "size", 16.2, "more"),
    (number(2, 3), "size", 16.2, "less"),
    (number(10, 20), "size", 16.2, "as much"),
    (number(math.nan, math.nan, value=28.0), "found", math.nan, "holds"),
    (number(math.nan, math.nan, value=math.nan), "found", math.nan, "not found"),
]


@pytest.mark.parametrize(("found", "says", "bound", "verdict"), SIDES)
def test_a_statement_is_told_by_its_interval_and_its_prompts(found, says, bound, verdict):
    assert Statement(found, says, bound).verdict() == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "cannot be told"], "cannot be told"),
        (["reversed", "reversed"], "reversed"),
        (["holds", "reversed"], "does not hold"),
        (["cannot be told", "reversed"], "does not hold"),
        (["holds", "not found"], "does not hold"),
        (["not found"], "does not hold"),
        (["holds", "more"], "holds, more"),
        (["more", "more"], "more"),
        (["less", "more"], "less, more"),
        (["cannot be told"], "cannot be told"),
    ],
)
def test_a_claim_is_told_by_its_statements(parts, verdict):
    assert together(parts) == verdict


def test_the_committed_verdicts_follow_from_the_committed_tables():
    again = verdicts(ROOT / "figures")
    assert again["verdict"].tolist() == COMMITTED["verdict"].tolist()
    assert again["claim_verdict"].tolist() == COMMITTED["claim_verdict"].tolist()
    assert again["claim"].tolist() == COMMITTED["claim"].tolist()
    columns = ["measured", "low", "high", "against_value", "against_low", "against_high", "n_prompts"]
    for name in columns:
        assert again[name].to_numpy() == pytest.approx(COMMITTED[name].to_numpy(), rel=1e-5, nan_ok=True)


def test_a_table_that_lacks_a_row_is_not_judged(tmp_path):
    shutil.copytree(ROOT / "figures", tmp_path / "figures", ignore=shutil.ignore_patterns("*.png", "*.pdf", "*.tex"))
    table = tmp_path / "figures" / "smollm2-gsm8k" / "claims.csv"
    table.write_text(table.read_text().replace("perturbed tokens,", "tokens that are perturbed,"))
    with pytest.raises(RunError, match="'perturbed tokens'") as caught:
        verdicts(tmp_path / "figures")
    assert str(table.relative_to(tmp_path / "figures")) in str(caught.value)


def page_rows():
    """Every row of the page's two tables of claims: the first cell, and what stands in bold."""
    sections = dict(zip(MODELS, re.split(r"\n## ", PAGE)[1:3], strict=True))
    for model, section in sections.items():
        (table,) = re.findall(r"\n\| the paper's claim \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", section)
        for line in table.splitlines():
            yield model, line.strip("| ").split(" | ")[0], re.findall(r"\*\*(.+?)\*\*", line)


def test_the_page_says_of_every_claim_what_follows_and_nothing_else():
    told = COMMITTED.drop_duplicates(["model", "claim"])
    expected = [(row.model, row.claim, [row.claim_verdict]) for row in told.itertuples()]
    assert list(page_rows()) == expected


def test_the_page_says_how_many_comparisons_it_makes():
    compared = COMMITTED[COMMITTED["says"].isin(["above", "below", "size"])]
    (said,) = re.findall(r"verdicts rest on (\d+) comparisons", " ".join(PAGE.split()))
    assert int(said) == len(compared)
