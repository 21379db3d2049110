"""Texts in csv files: none is a formula to a spreadsheet, and all are read back where they were no formulas."""

import csv

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from layerlens.sheets import without_formulas, write_csv

ACTS = ["=1+1", '=HYPERLINK("x")', "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "＝1+1", "-1 [2]", "=\n1"]
"""Begin as a formula does."""
RESTS = ["", "-", "=", "-1", "+2.5", "-1e-05", "-3%", " =1", "a=b", 'a"b', "a\nb", "a\rb", "'x", "NaN", "א=1", "\x00"]
"""Do not, or are numbers or a single character."""


def test_a_formula_has_an_apostrophe_and_all_else_is_read_back(tmp_path):
    texts = ACTS + RESTS
    table = pd.DataFrame({"=name": texts, "n": np.arange(len(texts)) / 3, "kind": pd.Categorical(texts)})
    write_csv(table, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=name", "n", "kind"]
    wanted = [f"'{text}" for text in ACTS] + RESTS
    assert [row[0] for row in rows] == [row[2] for row in rows] == wanted
    assert [float(row[1]) for row in rows] == pytest.approx(table["n"], rel=1e-5)
    back = pd.read_csv(tmp_path / "a.csv", keep_default_na=False, dtype={"'=name": str})
    assert back["'=name"].tolist() == wanted


def test_numbers_are_numbers(tmp_path):
    table = pd.DataFrame({"a": [-1.5, np.nan], "b": [-1, 2], "c": [True, False], "d": [None, -1.0], "a b": [[1], None]})
    write_csv(table, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "a,b,c,d,a b\n-1.5,-1,True,,[1]\n,2,False,-1,\n"


def test_two_columns_of_one_name_and_none_at_all(tmp_path):
    write_csv(pd.DataFrame([["=1=", 2]], columns=["a", "a"]), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "a,a\n'=1=,2\n"
    write_csv(pd.DataFrame({"a": []}), tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text() == "a\n"


def test_texts_of_long_tables_are_marked_in_the_same_way():
    texts = [*ACTS, *RESTS, None]
    found = without_formulas(pa.table({"token": texts, "layer": range(len(texts))}))
    assert found.column("token").to_pylist() == [f"'{text}" for text in ACTS] + [*RESTS, None]
    assert found.column("layer").to_pylist() == list(range(len(texts)))
