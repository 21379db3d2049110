"""What drafts are worth, read off the axes of its figures."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba

from layerlens.errors import OptionError
from layerlens.plots import save, style
from layerlens.plots.speculative import figures
from tests.plots import test_print
from tests.refusals import refused

NAN = math.nan


def row(way, speed_up, after=None, **others):
    """A line of the table, with intervals that are not symmetric."""
    found = {"way": way, "speed_up": speed_up, "speed_up_low": 0.8 * speed_up, "speed_up_high": 1.5 * speed_up}
    if after is not None:
        names = [f"speed_up_after_search{end}" for end in ("", "_low", "_high")]
        found |= dict(zip(names, (after, 0.9 * after, 1.2 * after), strict=True))
    return found | others


def tried(share, rounds, acceptance, speed_up, lam=NAN):
    return {"share": share, "rounds": rounds, "acceptance": acceptance, "speed_up": speed_up, "lambda": lam}


SETS = {
    "conflayers": [tried(0.3, 4, 0.5, 0.9, 0.0), tried(0.4, 150, 0.25, 1.2, 0.05), tried(0.5, 20, 0.75, NAN, 0.1)],
    "swift": [tried(0.45, 30, 0.6, 1.1)],
    "every-other": [],
}
PICTURE = pd.DataFrame(
    {
        "block": [1, 2, 4, 5],
        "confidence": [0.2, 0.5, 0.1, 0.3],
        "local_mean": [0.5, 0.15, 0.4, 0.1],
        "window": [2, 3, 4, 6],
        "is_skipped": [True, False, True, False],
    }
)
BLOCKS = [
    {"block": number, "acceptance": value, "acceptance_low": value - 0.1, "acceptance_high": value + 0.02}
    | {"one_minus_cosine": turned, "norm_ratio": 2 * turned}
    for number, value, turned in ((1, 0.9, 0.001), (2, 0.3, 0.2), (3, 0.8, 0.01), (4, 0.5, 0.1), (5, 0.4, 0.05))
]
RHO = {"one_minus_cosine": {"rho": -0.9, "low": -0.95, "high": -0.5, "n_blocks": 5, "n_prompts": 3}}


def made_up(**changes):
    table = [
        row("plain", 1.0),
        row("conflayers", 0.9, 1.3),
        row("swift", 0.7, NAN),
        row("every-other", 1.1, 1.1),
        row("generate", 1.0),
        row("assistant_early_exit", 0.6),
    ]
    return {"table": table, "sets": SETS, "blocks": BLOCKS, "rank_correlations": RHO} | changes


def drawn(report=None, pictures=None, width="one"):
    pictures = {"conflayers": PICTURE} if pictures is None else pictures
    return {stem: (figure, table) for stem, figure, table in figures(report or made_up(), pictures, width)}


def axes(found, stem):
    [ax] = found[stem][0].axes
    return ax


def legend(figure):
    return [text.get_text() for own in figure.legends for text in own.get_texts()]


def bars(ax):
    """Of each set of points with bars: its label, its points, and the ends of its bars, (start, end) each."""
    found = []
    for container in ax.containers:
        line, _, [segments] = container
        ends = [tuple(map(tuple, segment)) for segment in segments.get_segments()]
        found.append((container.get_label(), line.get_xydata().tolist(), ends))
    return found


def test_every_measurement_has_its_figure():
    assert list(drawn()) == ["speed_up", "acceptance", "lambda", "conflayers_confidence", "blocks"]
    assert [table.shape[0] for _, table in drawn().values()] == [6, 4, 2, 4, 5]


def test_without_blocks_sets_and_pictures_only_speeds_are_drawn():
    report = made_up(sets={"fixed": [], "swift": []})
    del report["blocks"], report["rank_correlations"]
    assert list(drawn(report, {})) == ["speed_up"]


def test_a_report_without_policies_has_an_empty_panel():
    """As `measure_speculative` makes it of no policies."""
    report = {"table": [row("plain", 1.0)], "sets": {}}
    assert list(drawn(report, {})) == ["speed_up"]
    assert bars(axes(drawn(report, {}), "speed_up")) == []


@pytest.mark.parametrize("sets", [[], [tried(0.3, 4, 0.5, 0.9, 0.0)] * 2, [tried(0.3, 4, 0.5, NAN, 0.1)]])
def test_one_lambda_needs_no_figure(sets):
    """Nor one that has a speed, where another has none because no plain round went before."""
    report = made_up(sets={"conflayers": [tried(0.3, 4, 0.5, 0.9, 0.0), *sets], "swift": SETS["swift"]})
    assert "lambda" not in drawn(report)
    assert "acceptance" in drawn(report)


def test_speed_ups_stand_with_their_intervals_beside_their_names():
    found = drawn()
    ax = axes(found, "speed_up")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["assistant early exit", "every-other", "swift", "conflayers"]  # from below
    rows = {one["way"].replace("_", " "): one for one in made_up()["table"]}
    both = bars(ax)
    assert [label for label, _, _ in both] == ["search included", "after the search"]
    for (_, points, ends), column, side in zip(both, ("speed_up", "speed_up_after_search"), (1, -1), strict=True):
        heights = [height for _, height in points]
        assert [round(height) for height in heights] == [0, 1, 2, 3]
        assert all(side * (height - round(height)) > 0.05 for height in heights), "the two do not hide each other"
        for name, (value, height), bar in zip(names, points, ends, strict=True):
            expected = rows[name].get(column, NAN)
            if math.isnan(expected):
                assert math.isnan(value)
                assert not bar
                continue
            assert value == expected
            assert [x for x, _ in bar] == pytest.approx([rows[name][f"{column}_low"], rows[name][f"{column}_high"]])
            assert [y for _, y in bar] == [height, height]
    [line] = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert list(line.get_xdata()) == [1, 1]
    assert ax.get_xlim()[0] == 0
    assert legend(found["speed_up"][0]) == ["search included", "after the search"]


def test_what_is_not_over_has_no_points_after_the_search():
    report = made_up(table=[row("plain", 1.0), row("swift", 0.7, NAN), row("conflayers", 0.8, NAN)])
    found = drawn(report)
    assert [label for label, _, _ in bars(axes(found, "speed_up"))] == ["search included"]


def scattered(ax):
    """Points, sizes and colours by label."""
    return {
        one.get_label(): (one.get_offsets().tolist(), one.get_sizes().tolist(), to_hex(one.get_facecolor()[0]))
        for one in ax.collections
    }


def test_acceptance_stands_over_what_was_left_out():
    found = drawn()
    points = scattered(axes(found, "acceptance"))
    assert list(points) == legend(found["acceptance"][0]) == ["conflayers", "swift"]
    for name, (places, sizes, _) in points.items():
        assert places == [pytest.approx([100 * one["share"], one["acceptance"]]) for one in SETS[name]]
        assert np.argsort(sizes).tolist() == np.argsort([one["rounds"] for one in SETS[name]]).tolist()
        assert min(sizes) > 0
    assert len({colour for *_, colour in points.values()}) == 2
    assert found["acceptance"][1]["policy"].tolist() == ["conflayers"] * 3 + ["swift"]


def test_many_rounds_are_drawn_as_large_as_a_hundred():
    report = made_up(sets={"swift": [tried(0.4, n, 0.5, 1.0) for n in (1, 50, 100, 5000)]})
    [(_, sizes, _)] = scattered(axes(drawn(report), "acceptance")).values()
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


def test_no_policy_is_left_out_of_a_figure():
    """However many there are."""
    names = [f"policy-{number}" for number in range(9)]
    report = made_up(sets={name: [tried(0.4, 3, 0.5, 1.0, lam) for lam in (0.0, 0.05)] for name in names})
    found = drawn(report)
    for stem in ("acceptance", "lambda"):
        assert list(scattered(axes(found, stem))) == names


def test_speeds_stand_over_lambda():
    found = drawn()
    points = scattered(axes(found, "lambda"))
    assert list(points) == ["conflayers"]
    assert points["conflayers"][0] == [[0.0, 0.9], [0.05, 1.2]]
    assert axes(found, "lambda").get_ylim()[0] == 0
    assert found["lambda"][1]["lambda"].tolist() == [0.0, 0.05]


def test_confidences_stand_beside_their_neighbours():
    ax = axes(drawn(), "conflayers_confidence")
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines if len(line.get_xdata())}
    for label, column in (("confidence", "confidence"), ("mean of the neighbours", "local_mean")):
        assert lines[label] == PICTURE[["block", column]].astype(float).to_numpy().tolist()
    tint = to_rgba(style.FULL_ATTENTION)
    spans = [(one.get_x(), one.get_x() + one.get_width()) for one in ax.patches if one.get_facecolor() == tint]
    assert spans == [(0.5, 1.5), (3.5, 4.5)]
    [reaches] = [one for one in ax.collections if hasattr(one, "get_segments") and len(one.get_segments())]
    expected = [[(0, 0.5), (2, 0.5)], [(1, 0.15), (3, 0.15)], [(2, 0.4), (6, 0.4)], [(2, 0.1), (8, 0.1)]]
    assert [[tuple(point) for point in segment] for segment in reaches.get_segments()] == expected
    first, last = ax.get_xlim()
    assert first < 0.5 < 5.5 < last


def test_acceptance_without_a_block_stands_over_how_far_it_turns_the_stream():
    found = drawn()
    ax = axes(found, "blocks")
    [(_, points, ends)] = bars(ax)
    assert points == [[one["one_minus_cosine"], one["acceptance"]] for one in BLOCKS]
    for one, ((x, low), (also_x, high)) in zip(BLOCKS, ends, strict=True):
        assert x == also_x == one["one_minus_cosine"]
        assert (low, high) == pytest.approx((one["acceptance_low"], one["acceptance_high"]))
    named = {text.get_text(): text.xy for text in ax.texts}
    assert named == {"2": (0.2, 0.3), "5": (0.05, 0.4), "4": (0.1, 0.5)}
    assert ax.get_xscale() == "log"
    title = ax.get_title(loc="left").replace("−", "-")
    assert [float(number) for number in re.findall(r"-?[\d.]+", title)] == [-0.9, -0.95, -0.5, 5]


def test_a_block_that_turns_nothing_has_no_logarithm():
    blocks = [*BLOCKS, BLOCKS[0] | {"block": 6, "one_minus_cosine": 0.0}]
    ax = axes(drawn(made_up(blocks=blocks)), "blocks")
    assert ax.get_xscale() == "linear"
    assert len(bars(ax)[0][1]) == 6


@pytest.mark.parametrize("width", ["one", "two"])
def test_figures_are_drawn_at_the_width_in_which_they_are_printed(tmp_path, width):
    for stem, (figure, table) in drawn(width=width).items():
        assert figure.get_figwidth() == style.WIDTHS[width]
        figure.draw_without_rendering()
        [ax] = figure.axes
        written = [ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        written += [text for own in figure.legends for text in own.get_texts()]
        for text in (one for one in written if one.get_text()):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
        paths = save(figure, table, tmp_path, stem)
        assert [path.name for path in paths] == [f"{stem}.{suffix}" for suffix in ("png", "pdf", "csv")]
        found = pd.read_csv(paths[2])
        assert list(found.columns) == list(table.columns)
        for name in table.select_dtypes("number"):
            np.testing.assert_allclose(found[name], table[name], rtol=1e-5)


@pytest.mark.parametrize("turned", [1.0, 0.05])
def test_every_text_is_large_enough_to_read(turned):
    """Where blocks turn the stream by several powers of ten, and where by less than one."""
    blocks = [one | {"one_minus_cosine": one["one_minus_cosine"] ** turned} for one in BLOCKS]
    for figure, _ in drawn(made_up(blocks=blocks)).values():
        figure.draw_without_rendering()
        [ax] = figure.axes
        outside = [
            tick
            for axis, view in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
            for which in ("major", "minor")
            for tick, at in zip(
                axis.get_ticklabels(which=which), axis.get_ticklocs(minor=which == "minor"), strict=True
            )
            if not view[0] <= at <= view[1]
        ]
        for text in test_print.shown(figure):
            assert test_print.points(text) >= test_print.LEAST or text in outside, text.get_text()


def test_an_unknown_width_is_refused():
    with refused(OptionError, "width", "three"):
        drawn(width="three")


def test_a_report_read_from_json_is_drawn_alike():
    """There None stands where nothing was measured."""
    report = made_up()
    nulls = [{name: None if value != value else value for name, value in one.items()} for one in report["table"]]
    again = drawn(report | {"table": nulls})
    assert bars(axes(again, "speed_up"))[0] == bars(axes(drawn(), "speed_up"))[0]
    np.testing.assert_array_equal(bars(axes(again, "speed_up"))[1][1], bars(axes(drawn(), "speed_up"))[1][1])
