"""Figures of columns that a run has on request, read off their axes."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from layerlens import plots
from layerlens.analysis import THRESHOLDS, onset, onset_by_layer, parts_by_layer, settling, settling_by_layer
from layerlens.analysis.words import CLASSES
from layerlens.errors import OptionError, RunError
from layerlens.plots import NAMED, draw, named_for
from layerlens.records.schema import ON_REQUEST
from tests.made_up_run import write_run
from tests.plots.test_figures import assert_texts_are_apart
from tests.refusals import refused

ON_COLUMNS = {name: one for name, one in NAMED.items() if one.option}
FORMS = [" the", "cat", ",", " of", "x1", " valley", " 3"]


def deep(folder, n_layers=12, n_prompts=8, options=("targets", "js", "sublayers"), words=True, seed=0):
    """A run whose tokens become known and settle around three quarters of the depth, some of them never."""
    random = np.random.default_rng(seed)
    layers = np.arange(1, n_layers + 1)
    prompts = {}
    for index in range(n_prompts):
        from_layer = np.round(random.normal(0.75 * n_layers, 0.15 * n_layers, (30, 1)))
        ranks = np.where(layers < from_layer, random.integers(1, 900, (30, n_layers)), 0).astype(np.int32)
        entropy, half = random.gamma(1, 1, (2, 30, n_layers)).astype(np.float32)
        made = {
            "next_rank": ranks,
            "next_log_prob": -np.log1p(ranks),
            "js_from_last": math.log(2)
            * np.clip((n_layers - layers) / n_layers + 0.2 * random.normal(size=(30, 1)), 0, 1),
            "half_entropy": half,
            "half_top_token_id": np.zeros_like(ranks),
        }
        asked = {column.name for option in options for column in ON_REQUEST[option]}
        prompts[f"p{index}"] = {"entropy": entropy} | {name: made[name] for name in made if name in asked}
    texts = {number: FORMS[number % len(FORMS)] for number in range(40)}
    return write_run(folder, prompts, words=texts if words else None)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curve(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_the_figure_of_onsets_draws_the_tables_shares(tmp_path):
    run = deep(tmp_path / "run")
    ax = plots.onset(run, Figure().subplots(), rank=3)
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
    assert legend(ax) == [*CLASSES, "all", "95 % interval"]


@pytest.mark.parametrize("n_layers", [2, 4, 9, 30, 80])
@pytest.mark.parametrize("name", ON_COLUMNS)
def test_texts_stay_on_the_page_and_off_each_other(tmp_path, name, n_layers):
    page, _ = NAMED[name].drawn(deep(tmp_path / "run", n_layers))
    assert_texts_are_apart(page)


def test_one_prompt_without_texts_is_one_line(tmp_path):
    ax = plots.onset(deep(tmp_path / "run", n_prompts=1, words=False), Figure().subplots())
    assert legend(ax) == ["all"]
    assert not ax.collections


def test_tokens_that_are_never_first_have_no_median(tmp_path):
    ranks = np.ones((4, 5), np.int32)
    prompts = {f"p{k}": {"entropy": np.ones((4, 5)), "next_rank": ranks, "next_log_prob": -ranks} for k in range(3)}
    ax = plots.onset(write_run(tmp_path / "run", prompts), Figure().subplots())
    assert not ax.texts
    assert ax.get_title(loc="left") == "12 emitted tokens, 100.0 % not ranked first at layer 5"


def test_the_figure_of_settling_draws_the_tables_shares_and_ratios(tmp_path):
    run = deep(tmp_path / "run")
    above, below = plots.settling(run, Figure().subplots(2, 1), g=0.3, rho=0.7)
    thresholds = sorted({*THRESHOLDS, 0.3})
    curves = settling_by_layer(run, thresholds)
    for g in thresholds:
        expected = curves.loc[np.isclose(curves["g"], g) & (curves["words"] == "all"), "share"].tolist()
        assert np.asarray(curve(above, f"{g:g}").get_ydata(), float).tolist() == pytest.approx(expected)
    assert curve(above, "0.3").get_color() == "black"
    dashes = [repr(curve(above, f"{g:g}")._unscaled_dash_pattern) for g in thresholds]
    assert len(set(dashes)) == len(thresholds), "the thresholds differ in grey"
    assert legend(above) == [*(f"{g:g}" for g in thresholds), "95 % interval"]
    (regime,) = above.patches
    assert regime.get_x() == 8.5  # ⌈0.7 · 12⌉ = 9
    table = settling(run, thresholds, 0.7)
    for words in ("all", *CLASSES):
        assert np.asarray(curve(below, words).get_xdata(), float).tolist() == pytest.approx(thresholds)
        expected = table.loc[table["words"] == words, "deep_thinking_ratio"].tolist()
        assert np.asarray(curve(below, words).get_ydata(), float).tolist() == pytest.approx(expected)
    chosen = settling(run, 0.3, 0.7).iloc[0]
    ratio, low, high = (chosen[f"deep_thinking_ratio{end}"] for end in ("", "_low", "_high"))
    assert below.get_title(loc="left") == (f"g = 0.3 bits: ratio {ratio:.3f} (95 %: {low:.3f}–{high:.3f})")


def test_a_threshold_that_cannot_be_drawn_is_refused(tmp_path):
    run = deep(tmp_path / "run", options=("js",))
    for g in ("0.5", True, [0.5], 2):
        with refused(OptionError, "g", g):
            plots.settling(run, Figure().subplots(2, 1), g=g)


def test_the_figure_of_parts_draws_the_tables_parts(tmp_path):
    run = deep(tmp_path / "run")
    above, below = plots.perturbation_parts(run, Figure().subplots(2, 1))
    table = parts_by_layer(run)
    perturbed = table[table["group"] == "perturbed"]
    for label, name in (("attention", "attention"), ("MLP", "mlp")):
        drawn = np.asarray(curve(above, label).get_ydata(), float)
        assert drawn == pytest.approx(perturbed[name].to_numpy(), nan_ok=True)
    last = table[table["layer"] == 12]
    for name, bars in zip(
        ("attention", "mlp", "change"), (one for one in below.containers if isinstance(one, BarContainer)), strict=True
    ):
        assert [bar.get_height() for bar in bars.patches] == pytest.approx(last[name].tolist())
        assert {bool(bar.get_hatch()) for bar in bars.patches} == {name == "mlp"}, "the halves differ in grey"
    shares = [100 * last.iloc[0][name] for name in ("attention_alone", "mlp_alone", "both")]
    title = "Raised by attention {:.0f} %, MLP {:.0f} %, both {:.0f} %".format(*shares)
    assert below.get_title(loc="left") == title
    assert legend(below) == ["attention", "MLP", "sum of the two"]
    counts = [f"{group}\n{n}" for group, n in zip(last["group"], last["n_tokens"], strict=True)]
    assert [label.get_text() for label in below.get_xticklabels()] == counts


def test_parts_of_a_run_without_perturbed_tokens_say_so(tmp_path):
    falling = {"entropy": [[3, 2, 1]] * 4, "half_entropy": [[3, 2, 1]] * 4, "half_top_token_id": [[0, 0, 0]] * 4}
    prompts = {f"p{k}": {name: np.array(rows) for name, rows in falling.items()} for k in range(3)}
    above, below = plots.perturbation_parts(write_run(tmp_path / "run", prompts), Figure().subplots(2, 1))
    assert [text.get_text() for text in above.texts] == ["no such token"]
    assert below.get_title(loc="left") == "No token is perturbed"


def test_figures_by_name_are_files_of_that_name_where_the_run_has_their_columns(tmp_path):
    run = deep(tmp_path / "run")
    assert named_for(run) == list(ON_COLUMNS)
    for name, one in ON_COLUMNS.items():
        png, pdf, csv = draw(name, run, tmp_path / "out")
        assert [path.name for path in (png, pdf, csv)] == [f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")]
        written, table = pd.read_csv(csv), one.drawn(run)[1]
        assert list(written.columns) == list(table.columns)
        for column in table.select_dtypes("number"):
            assert written[column].to_numpy() == pytest.approx(table[column].to_numpy(float), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", ON_COLUMNS)
def test_a_run_without_the_columns_has_no_such_figure_and_names_the_option(tmp_path, name):
    others = [one.option for other, one in ON_COLUMNS.items() if other != name]
    run = deep(tmp_path / "run", options=others)
    assert named_for(run) == [other for other in ON_COLUMNS if other != name]
    with refused(RunError, advice=NAMED[name].option):
        draw(name, run, tmp_path / "out")
    with refused(OptionError, "run"):
        draw(name, None, tmp_path / "out")
