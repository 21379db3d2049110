"""The figures of how deep a token becomes known, read off their axes."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from layerlens.analysis import onset, onset_by_layer
from layerlens.analysis.words import CLASSES
from layerlens.errors import OptionError, RunError
from layerlens.plots import NAMED, draw, named_for
from layerlens.plots import onset as plot_onset
from tests.made_up_run import write_run
from tests.plots.test_figures import assert_texts_are_apart
from tests.refusals import refused

FORMS = [" the", "cat", ",", " of", "x1", " valley", " 3"]


def deep(folder, n_layers=12, n_prompts=8, columns=("next_rank", "next_log_prob"), words=True, seed=0):
    """A run whose tokens become known at layers around three quarters of the depth, some of them never."""
    random = np.random.default_rng(seed)
    prompts = {}
    for index in range(n_prompts):
        from_layer = np.round(random.normal(0.75 * n_layers, 0.15 * n_layers, 30))
        unknown = np.arange(1, n_layers + 1) < from_layer[:, None]
        ranks = np.where(unknown, random.integers(1, 900, unknown.shape), 0).astype(np.int32)
        made = {"next_rank": ranks, "next_log_prob": -np.log1p(ranks)}
        prompts[f"p{index}"] = {"entropy": np.ones(unknown.shape)} | {name: made[name] for name in columns}
    texts = {number: FORMS[number % len(FORMS)] for number in range(40)}
    return write_run(folder, prompts, words=texts if words else None)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curve(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_the_figure_of_onsets_draws_the_tables_shares(tmp_path):
    run = deep(tmp_path / "run")
    ax = plot_onset(run, Figure().subplots(), rank=3)
    table = onset_by_layer(run, 3)
    for words in ("all", *CLASSES):
        assert np.asarray(curve(ax, words).get_xdata()).tolist() == list(range(1, 13))
        expected = table.loc[table["words"] == words, "share"].tolist()
        assert np.asarray(curve(ax, words).get_ydata(), float).tolist() == pytest.approx(expected)
    every = onset(run, 3).iloc[0]
    assert ax.get_title(loc="left") == (
        f"240 emitted tokens, {100 * every['outside']:.1f} % not among the first 3 at layer 12"
    )
    assert [text.get_text() for text in ax.texts] == [f"half by layer {every['onset_median']:.0f}"]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(table.loc[table["words"] == "all", "share_high"].max())
    assert legend(ax) == [*CLASSES, "all", "95 % interval of all"]


@pytest.mark.parametrize("n_layers", [1, 2, 4, 9, 30, 80])
@pytest.mark.parametrize("name", NAMED)
def test_texts_stay_on_the_page_and_off_each_other(tmp_path, name, n_layers):
    page, _ = NAMED[name].drawn(deep(tmp_path / "run", n_layers))
    assert_texts_are_apart(page)


def test_one_prompt_without_texts_is_one_line(tmp_path):
    ax = plot_onset(deep(tmp_path / "run", n_prompts=1, words=False), Figure().subplots())
    assert legend(ax) == ["all"]
    assert not ax.collections


def test_tokens_that_are_never_first_have_no_median(tmp_path):
    ranks = np.ones((4, 5), np.int32)
    prompts = {f"p{k}": {"entropy": np.ones((4, 5)), "next_rank": ranks, "next_log_prob": -ranks} for k in range(3)}
    ax = plot_onset(write_run(tmp_path / "run", prompts), Figure().subplots())
    assert not ax.texts
    assert ax.get_title(loc="left") == "12 emitted tokens, 100.0 % not ranked first at layer 5"


def test_figures_by_name_are_files_of_that_name_where_the_run_has_their_columns(tmp_path):
    run = deep(tmp_path / "run")
    assert named_for(run) == ["onset"]
    png, pdf, csv = draw("onset", run, tmp_path / "out")
    assert [path.name for path in (png, pdf, csv)] == ["onset.png", "onset.pdf", "onset.csv"]
    plain = deep(tmp_path / "plain", columns=())
    assert named_for(plain) == []
    with refused(RunError, advice="targets"):
        draw("onset", plain, tmp_path / "out")
    with refused(OptionError, "run"):
        draw("onset", None, tmp_path / "out")
