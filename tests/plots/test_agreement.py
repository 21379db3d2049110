"""The figure of agreement shows the numbers of its analyses."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import layerlens as ll
from layerlens.plots.agreement import agreement_table, draw_agreement
from tests.made_up_run import write_run

# from layer 4, 2, 3 on the last layer's choice, 9, is there for good
TOPS = [[1, 9, 1, 9], [2, 9, 9, 9], [9, 1, 9, 9]]


@pytest.fixture
def run(tmp_path):
    def rows(tops):
        top = np.array(tops, dtype=np.int32)
        return {"entropy": np.ones(top.shape), "top_token_id": top}

    write_run(tmp_path / "run", {"a": rows(TOPS), "b": rows(TOPS[:2])})
    return ll.open_run(tmp_path / "run")


def test_the_curves_are_the_shares(run):
    ax = draw_agreement(agreement_table(run), Figure().subplots())
    kept, single, half = (line.get_ydata() if line.get_label()[0] != "_" else line.get_xdata() for line in ax.lines)
    np.testing.assert_allclose(kept, [0, 2 / 5, 3 / 5, 1])
    np.testing.assert_allclose(single, [1 / 5, 4 / 5, 3 / 5, 1])
    assert list(half) == [3, 3]
    assert "5 tokens, half of them from layer 3 on" in ax.get_title("left")


def test_it_goes_by_its_name(run, tmp_path, cli):
    assert ll.plot.agreement(run).get_ylabel() == "share of tokens"
    code, out, _ = cli("figure", "agreement", "--run", run.path, "--out", tmp_path / "figures")
    assert code == 0
    assert [line.rpartition(".")[2] for line in out.splitlines()] == ["png", "pdf", "csv"]


def test_the_two_intervals_can_be_told_apart_in_grey(tmp_path):
    random = np.random.default_rng(0)
    prompts = {
        f"p{index}": {
            "entropy": np.ones((9, 6)),
            "top_token_id": np.where(np.arange(6) >= random.integers(0, 6, (9, 1)), 9, 1).astype(np.int32),
        }
        for index in range(8)
    }
    ax = draw_agreement(agreement_table(write_run(tmp_path / "run", prompts)), Figure().subplots())
    (span,), (band,) = ax.patches, ax.collections
    assert span.get_hatch()
    assert not band.get_hatch()
    assert {span.get_label(), band.get_label()} < {text.get_text() for text in ax.get_legend().get_texts()}
    assert span.get_label() != band.get_label()
