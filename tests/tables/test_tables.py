"""Measured beside reported: what is joined to what, in which unit, and that no cell is filled from another."""

import csv
import math

import numpy as np
import pandas as pd
import pytest

import layerlens as ll
from layerlens.analysis.decoding import REPORTED, valley_statistics
from layerlens.analysis.reported import reported
from layerlens.tables import LEVELS, SCORES, TABLES, TITLES, composed, latex, markdown, save
from layerlens.tables.compose import Measured, Origin, beside
from layerlens.tables.save import cell
from tests.made_up_run import write_run
from tests.refusals import refused


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two prompts of ten tokens; every other token walks back one layer, every fourth says another word there."""
    rng = np.random.default_rng(0)
    prompts = {}
    for name in ("a", "b"):
        entropy = np.sort(rng.uniform(0.1, 3, (10, 6)), axis=1)[:, ::-1].copy()
        entropy[::2, [-2, -1]] = entropy[::2, [-1, -2]]
        top = np.full((10, 6), 1)
        top[::4, -2] = 2
        prompts[name] = {"entropy": entropy, "top_token_id": top}
    words = {1: " $", 2: " the"} | {number: f"w{number}" for number in range(3, 12)} | {0: "w0"}
    made = write_run(tmp_path_factory.mktemp("tables") / "run", prompts, words=words)
    made.manifest["model"]["multiply_adds"] = {"forward": 1000, "unembedding": 70}
    return made


def test_a_difference_needs_both_numbers():
    table = beside([Measured("a", "%", 3.0, reported=1.0), Measured("b", "%", 3.0), Measured("c", "%", reported=2.0)])
    assert table["difference"].tolist()[0] == 2.0
    assert table["difference"].isna().tolist() == [False, True, True]
    assert table["measured"].isna().tolist() == [False, False, True]
    assert table["n_tokens"].isna().all()


def test_a_difference_between_other_models_or_data_is_one_of_shares(run):
    rows = [Measured("a", "%", 3.0, reported=1.0), Measured("b", "tokens", 299.0, reported=76637.0)]
    rows += [Measured("c", "nats", 1.0, reported=0.5), Measured("d", "% of forward", 20.0, reported=7.0)]
    paper = Origin("Qwen3.5-35B-A3B", "GPQA-Diamond")
    for origin in (Origin("small", "GPQA-Diamond"), Origin("Qwen3.5-35B-A3B", "GSM8K")):
        table = beside(rows, origin, paper)
        assert table["difference"].tolist() == pytest.approx([2.0, np.nan, np.nan, np.nan], nan_ok=True)
        assert (table["measured_model"].iloc[0], table["measured_data"].iloc[0]) == origin
        assert (table["reported_model"].iloc[0], table["reported_data"].iloc[0]) == paper
    assert beside(rows, paper, paper)["difference"].tolist() == [2.0, 299.0 - 76637.0, 0.5, 13.0]


@pytest.mark.parametrize(("number", "data"), [("5", ""), ("6.1", ""), ("8", ", GPQA-Diamond")])
def test_heads_name_the_models_and_data_once(run, number, data, tmp_path):
    table = composed(number, run)
    csv_file, md_file, tex_file = save(table, "t", tmp_path, "t")
    heads = md_file.read_text().splitlines()[2]
    assert "| measured (made up, made up) |" in heads
    assert f"| reported (Qwen3.5-35B-A3B{data}) |" in heads
    assert "model" not in heads
    assert ("| difference |" in heads) == (number != "5"), "no cost of another model is less or more than the paper's"
    assert f"reported (Qwen3.5-35B-A3B{data})" in tex_file.read_text()
    written = pd.read_csv(csv_file)
    assert set(written["reported_model"]) == {"Qwen3.5-35B-A3B"}
    assert set(written["measured_model"]) == {"made up"}
    assert "difference" in written


def test_models_that_differ_from_row_to_row_keep_their_columns():
    table = pd.DataFrame({"measured": [1.0, 2.0], "measured_model": ["a", "b"], "reported_model": ["c", None]})
    head = markdown(table, "t").splitlines()[2]
    assert head == "| measured | measured model | reported model |"


def test_section_6_1_is_the_statistics_in_percent_beside_the_papers(run):
    table = composed("6.1", run).set_index("quantity")
    statistics = valley_statistics(run).set_index("statistic")
    paper = reported("S6.1").set_index("quantity")["value"]
    for name, row in statistics.iterrows():
        scale = 100 if row["unit"] == "share" else 1
        found = table.loc[name.replace("_", " ")]
        for column, of in (("measured", "value"), ("low", "value_low"), ("high", "value_high")):
            np.testing.assert_allclose(found[column], scale * row[of])
        expected = paper.get(REPORTED.get(name), math.nan)
        np.testing.assert_allclose(found["reported"], expected)
    assert table.loc["valley rate", "measured"] == 50
    assert table.loc["valley rate", "difference"] == pytest.approx(50 - 11.5)
    assert table["reported"].notna().sum() == len(paper) == len(REPORTED), "every reported number finds its row, once"


def test_table_8_puts_the_word_classes_beside_the_papers(run):
    table = composed("8", run).set_index("quantity")
    assert table.index.is_unique
    assert table.loc["standard token, punctuation", "measured"] == 100
    assert table.loc["standard token, other, our own rule", "measured"] == 100
    assert table.loc["standard token, punctuation, our own rule", "measured"] == 0
    assert table.loc["confident token, function", "measured"] == 100
    assert table.loc["confident token, function, our own rule", "measured"] == 100
    assert table.loc["standard token, content", "reported"] == 26
    assert table.loc["confident token, function", "reported"] == 6
    own = table[table.index.str.endswith("our own rule")]
    assert len(own) == 8
    assert own[["reported", "difference"]].isna().all(axis=None)
    assert table.loc["substitutions", "measured"] == 6
    assert table.loc["tokens", "measured"] == 20


def test_table_5_leaves_what_no_run_measures_empty(run):
    table = composed("5", run)
    latency = table.set_index("quantity").loc["latency added, end to end"]
    assert latency["reported"] == 2
    assert np.isnan(latency["measured"])
    assert np.isnan(latency["difference"])
    forward = table[table["quantity"] == "forward pass"].iloc[0]
    assert (forward["measured"], forward["reported"]) == (pytest.approx(0.002), 5212)
    of_last = table[table["unit"] == "% of last"].set_index("quantity")
    assert of_last.loc["one unembedding", "measured"] == pytest.approx(100 * 70 / 1070)
    assert list(of_last.index) == list(table[table["unit"] == "% of forward"]["quantity"])
    assert of_last["reported"].isna().all()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, ""), (pd.NA, ""), (None, ""), (0.0, "0"), (1234567, "1,234,567"), (0.012345, "0.0123"),
        (-1234.5, "−1,234"), (9.99, "9.99"), (math.inf, "inf"), (99.96, "100.0"), (" a\nb ", "a b"), (-3, "−3"),
    ],
)  # fmt: skip
def test_cells(value, text):
    assert cell(value) == text


def test_files_hold_the_table_and_escape_what_their_formats_would_read(tmp_path):
    table = pd.DataFrame({"a_b": ["50 % & |more|", r"back\slash_#1{}~^$"], "n_tokens": pd.array([1234, None], "Int64")})
    csv_file, md_file, tex_file = save(table, "Title: 5 % & more", tmp_path / "new", "tableX")
    assert list(csv.reader(csv_file.read_text().splitlines()))[1:] == [
        ["50 % & |more|", "1234"],
        [r"back\slash_#1{}~^$", ""],
    ]
    lines = md_file.read_text().splitlines()
    assert lines[2:4] == ["| a b | tokens |", "| --- | ---: |"]
    assert lines[4] == r"| 50 % & \|more\| | 1,234 |"
    tex = tex_file.read_text()
    assert r"50 \% \& |more| & 1,234 \\" in tex
    assert r"back\textbackslash{}slash\_\#1\{\}\textasciitilde{}\textasciicircum{}\$ &  \\" in tex
    assert r"\begin{tabular}{lr}" in tex
    assert r"\caption{Title: 5 \% \& more}" in tex


def test_formats_have_a_line_for_every_row(run):
    for number in ("5", "6.1", "8"):
        table = composed(number, run)
        assert len(markdown(table, "t").splitlines()) == len(table) + 4
        assert latex(table, "t").count("\\\\\n") == len(table) + 1


def test_the_command_line(run, cli, tmp_path):
    code, out, err = cli("table", "6.1", "--run", run.path)
    assert (code, err) == (0, "")
    assert TITLES["6.1"] in out
    assert "| valley rate | % | 50.0 |" in out
    code, out, err = cli("table", "all", "--run", run.path, "--out", tmp_path / "out")
    assert code == 0
    names = {f"table{number}.{suffix}" for number in ("6.1", "8") for suffix in ("csv", "md", "tex")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    left_out, lacking = err.splitlines()
    assert left_out == "layerlens: note: tables 1, 2, 3, 4, 7, 9, 10 show scored answers: give --evaluation"
    assert lacking.startswith(
        "layerlens: note: left out table 5: "
    )  # the run on disk does not say what its model costs


@pytest.mark.parametrize("number", [*SCORES, *LEVELS])
def test_tables_of_scores_ask_for_an_evaluation(number, cli):
    code, _, err = cli("table", number)
    assert code == 2
    assert "--evaluation" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("11",), "'11'"),
        (("5",), "give --run"),
        (("7",), "give --evaluation"),
        (("all",), "or --evaluation"),
        (("5", "--run", "nowhere"), "no run"),
        (("7", "--evaluation", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, cli):
    code, out, err = cli("table", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_run_that_lacks_what_all_tables_need(tmp_path, cli):
    entropy = np.ones((2, 6))
    write_run(tmp_path / "given", {"a": {"entropy": entropy, "is_generated": [False, False]}})
    code, out, err = cli("table", "all", "--run", tmp_path / "given")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 5
    assert str(tmp_path / "given") in err.splitlines()[0]
    assert "one prompt" in err.splitlines()[0]
    assert "no table" in err.splitlines()[-1]
    assert set(TABLES) == {*map(str, range(1, 11)), "6.1"} - {"6"}
    with refused(ll.RunError, advice="max_new_tokens"):
        composed("6.1", ll.open_run(tmp_path / "given"))
