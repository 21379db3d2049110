"""Figure 2, read off its axes."""

import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from layerlens.plots import contributions, io_cosine, style
from layerlens.plots.dynamics import contributions_table, dwarfing, trend
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def hybrid(tmp_path):
    return write_run(tmp_path / "run", planted(hybrid_curves(), noise=0.1, n_tokens=10), layer_kinds=hybrid_kinds())


def bars(ax: Axes):
    """Centre and height of every bar."""
    found = ax.containers[0].patches
    return [(bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height()) for bar in found]


def line(ax: Axes, label: str):
    """The values of the line of that label, by layer."""
    (found,) = [candidate for candidate in ax.lines if candidate.get_label() == label]
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


def texts(ax: Axes):
    return [text.get_text() for text in ax.texts]


def legend(ax: Axes):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def banded(ax: Axes, colour: str):
    """The layers over whose middle a vertical band of a colour lies."""
    spans = [p for p in ax.patches if p not in ax.containers[0].patches and to_hex(p.get_facecolor()) == to_hex(colour)]
    return [round(span.get_x() + span.get_width() / 2) for span in spans]


def token_mean(run, column, layer):
    """The mean of a measure at a layer (from 1), token by token."""
    values = [float(row[layer - 1]) for row in run.tokens[column]]
    return math.fsum(values) / len(values)


def test_bars_are_mean_norm_ratios_and_the_first_is_cut_with_its_value(hybrid, ax):
    assert contributions(hybrid, ax) is ax
    drawn = bars(ax)
    assert [layer for layer, _ in drawn] == pytest.approx(range(1, 41))
    for layer in range(2, 41):
        assert drawn[layer - 1][1] == pytest.approx(token_mean(hybrid, "norm_ratio", layer), rel=1e-6)
    first = token_mean(hybrid, "norm_ratio", 1)
    assert max(height for _, height in drawn[1:]) < drawn[0][1] < first
    assert f"{first:.3g}" in texts(ax)


def test_parts_are_step_lines(hybrid, ax):
    contributions(hybrid, ax)
    for label, column in (("attention", "attn_ratio"), ("MLP", "mlp_ratio")):
        layers, values = line(ax, label)
        assert layers.tolist() == list(range(1, 41))
        assert math.isnan(values[0])  # the layer whose bar is cut
        assert values[1:] == pytest.approx([token_mean(hybrid, column, layer) for layer in range(2, 41)], rel=1e-6)
        (drawn,) = [candidate for candidate in ax.lines if candidate.get_label() == label]
        assert drawn.get_drawstyle() == "steps-mid"


def test_the_trend_is_a_running_mean_weighted_by_a_normal_curve(hybrid, ax):
    contributions(hybrid, ax)
    heights = [token_mean(hybrid, "norm_ratio", layer) for layer in range(1, 41)]
    _, values = line(ax, "trend")
    assert math.isnan(values[0])
    for layer in range(2, 41):
        weights = {other: math.exp(-(((layer - other) / (40 / 30)) ** 2) / 2) for other in range(2, 41)}
        expected = sum(weights[other] * heights[other - 1] for other in weights) / sum(weights.values())
        assert values[layer - 1] == pytest.approx(expected, rel=1e-6)


def test_cosines_are_bars_with_a_trend(hybrid, ax):
    assert io_cosine(hybrid, ax) is ax
    for layer, height in bars(ax):
        assert height == pytest.approx(token_mean(hybrid, "io_cosine", round(layer)), rel=1e-6)
    assert line(ax, "trend")[1] == pytest.approx(trend(np.array([height for _, height in bars(ax)])))


@pytest.mark.parametrize("draw", [contributions, io_cosine])
def test_phases_are_named_and_their_bounds_dotted(hybrid, ax, draw):
    draw(hybrid, ax)
    assert {"I", "II", "III", "I → II", "II → III"} <= set(texts(ax))
    dots = [candidate for candidate in ax.lines if candidate.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [5, 40]
    heights = {round(layer): height for layer, height in bars(ax)}
    assert [float(dot.get_ydata()[0]) for dot in dots] == pytest.approx([heights[5], heights[40]])


def test_intervals_are_error_bars_where_the_bar_is_whole(hybrid, ax):
    contributions(hybrid, ax)
    table = hybrid.by_layer()
    segments = [segment for collection in ax.collections for segment in collection.get_segments()]
    assert len(segments) == 39
    for segment, row in zip(segments, table.iloc[1:].to_dict("records"), strict=True):
        assert segment[:, 0] == pytest.approx(row["layer"])
        assert segment[:, 1] == pytest.approx([row["norm_ratio_low"], row["norm_ratio_high"]])


def test_full_attention_layers_are_banded_where_kinds_are_mixed(hybrid, ax, tmp_path):
    contributions(hybrid, ax)
    assert banded(ax, style.FULL_ATTENTION) == list(range(4, 41, 4))
    assert "full attention" in legend(ax)
    dense = write_run(tmp_path / "dense", planted(hybrid_curves(), n_tokens=3))
    other = contributions(dense, Figure().subplots())
    assert banded(other, style.FULL_ATTENTION) == []
    assert "full attention" not in legend(other)


def test_only_the_bounds_that_exist_are_drawn(tmp_path, ax):
    curves = hybrid_curves(24)
    curves["norm_ratio"][-1], curves["io_cosine"][-1] = 0.24, 0.98
    contributions(write_run(tmp_path / "run", planted(curves, n_tokens=3)), ax)
    assert "I → II" in texts(ax)
    assert not {"III", "II → III"} & set(texts(ax))


@pytest.mark.parametrize("n_layers", [1, 2, 4, 7])
def test_few_layers_are_drawn_without_phases_or_parts(tmp_path, n_layers):
    absent = np.full((5, n_layers), np.nan)
    rows = {"entropy": np.ones((5, n_layers)), "attn_ratio": absent, "mlp_ratio": absent}
    run = write_run(tmp_path / "run", {"p": rows, "q": rows})
    for draw in (contributions, io_cosine):
        ax = draw(run, Figure().subplots())
        assert len(bars(ax)) == n_layers
        assert texts(ax) == []
        assert not {"attention", "MLP", "trend", "95 % interval"} & set(legend(ax))
        assert "trend" not in [drawn.get_label() for drawn in ax.lines]
    assert contributions_table(run)[["norm_ratio_trend", "io_cosine_trend"]].isna().all(axis=None)


def test_one_prompt_has_no_error_bars(tmp_path, ax):
    contributions(write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=1)), ax)
    assert not ax.collections
    assert "95 % interval" not in legend(ax)


def test_legends_name_all_that_is_drawn(tmp_path):
    prompts = planted(hybrid_curves(), noise=0.1, n_tokens=3)
    for index, rows in enumerate(prompts.values()):
        rows["io_cosine"] = rows["io_cosine"] - 0.01 * index  # so that the cosine has an interval too
    run = write_run(tmp_path / "run", prompts, layer_kinds=hybrid_kinds())
    above, below = contributions(run, Figure().subplots()), io_cosine(run, Figure().subplots())
    assert legend(above) == ["total", "trend", "attention", "MLP", "95 % interval", "full attention"]
    assert legend(below) == ["cosine", "trend", "95 % interval", "full attention"]


def test_the_table_is_what_is_drawn(hybrid):
    table = contributions_table(hybrid)
    assert table["phase"].tolist() == ["I"] * 4 + ["II"] * 35 + ["III"]
    assert table["norm_ratio_clipped"].tolist() == [True] + [False] * 39
    assert set(table["n_tokens"]) == {80}
    assert set(table["n_prompts"]) == {8}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([16, 0.9, 0.3, 0.7], [True, False, False, False]),
        ([16, 6, 0.3, 0.7], [True, True, False, False]),
        ([0.9, 0.3, 0.7], [False, False, False]),
        ([0.3, 16, 0.7], [False, False, False]),
        ([5.0], [False]),
        ([8.0, 2.0], [True, False]),
        ([32, 16, 8, 4, 2, 1], [True, True, True, False, False, False]),
    ],
)
def test_bars_that_dwarf_all_others_are_found(values, expected):
    assert dwarfing(np.array(values)).tolist() == expected


def test_new_axes_are_made_where_none_are_given(hybrid):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    for draw in (contributions, io_cosine):
        ax = draw(hybrid)
        assert len(bars(ax)) == 40
        pyplot.close(ax.figure)
