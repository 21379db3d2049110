"""The figure of the theory, read off its axes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from layerlens.analysis.theory import PAPER, critical_rise, dominance_table, theorem_table
from layerlens.errors import OptionError
from layerlens.plots import save
from layerlens.plots.theory import draw_dominance, draw_inside, draw_loss, figure_theory, theory_table
from tests.refusals import refused

EARLIER = replace(PAPER, onset=25, valley=36)  # as long a descent, and as steep
NOISES = (0.1, 0.37, 1.0, 5.0)
OPTIONS = {"noises": NOISES, "rises": (0.0, 0.1, 0.3), "descents": (0.5, 1.5), "n_draws": 400, "seed": 6}


@pytest.fixture(scope="module")
def drawn():
    figure, table = figure_theory(**OPTIONS)
    return figure, table


def lines(ax):
    """The points of every line that has some and a label of its own, by label."""
    found = {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}
    return {label: points for label, points in found.items() if len(points)}


def simulated(parameters, rule, window=10):
    table = theorem_table(parameters, NOISES, windows=[window], n_draws=400, seed=6)
    return table[table["rule"] == rule]


def test_shares_inside_are_lines_over_noise(drawn):
    ax = drawn[0].axes[0]
    found = lines(ax)
    assert ax.get_xscale() == "log"
    for valley, curve in ((39, PAPER), (36, EARLIER)):
        for name, rule in (("Algorithm 1", "algorithm"), ("Theorem 1", "theorem")):
            points = found[f"{name}, V* = {valley}"]
            assert points[:, 0] == pytest.approx(NOISES)
            assert points[:, 1] == pytest.approx(simulated(curve, rule)["inside"].to_numpy())


def test_the_closed_form_is_marked(drawn):
    (label,) = [label for label in lines(drawn[0].axes[0]) if "Phi" in label]
    points = lines(drawn[0].axes[0])[label]
    expected = [stats.norm.cdf(0.37 / (noise * math.sqrt(2))) for noise in NOISES]
    assert points[:, 1] == pytest.approx(expected)


def test_circles_are_the_shares_without_a_window(drawn):
    circles = [
        line.get_xydata() for line in drawn[0].axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert len(circles) == 4
    whole = simulated(EARLIER, "algorithm", 40)["inside"].to_numpy()
    assert any(points.shape == (2, 2) and points[:, 1] == pytest.approx(whole[::3]) for points in circles)


def test_losses_are_lines_over_noise(drawn):
    ax = drawn[0].axes[1]
    found = lines(ax)
    assert list(found) == ["last layer", "Algorithm 1", "arg-min"]
    for name, rule in (("last layer", "last"), ("Algorithm 1", "algorithm"), ("arg-min", "argmin")):
        assert found[name][:, 0] == pytest.approx(NOISES)
        assert found[name][:, 1] == pytest.approx(simulated(PAPER, rule)["loss"].to_numpy())
    assert found["last layer"][:, 1] == pytest.approx([0.37] * 4)
    assert ax.get_ylim() == pytest.approx((0, 3 * 0.37))


def test_bands_are_the_intervals(drawn):
    ax = drawn[0].axes[1]
    rule = simulated(PAPER, "algorithm")
    band = ax.collections[1].get_paths()[0].vertices
    for noise, low, high in rule[["noise", "loss_low", "loss_high"]].to_numpy():
        at = band[np.isclose(band[:, 0], noise), 1]
        assert (at.min(), at.max()) == pytest.approx((low, high))


def test_regions_meet_at_the_critical_rise(drawn):
    ax = drawn[0].axes[2]
    (boundary,) = [line.get_xydata() for line in ax.lines if line.get_marker() == "None"]
    for descent, rise in boundary[::9]:
        assert rise == pytest.approx(critical_rise(descent), abs=1e-6)
    gains, stays = (collection.get_paths()[0].vertices for collection in ax.collections)
    assert gains[:, 1].min() == pytest.approx(0)  # both touch the boundary's ends
    assert stays[:, 1].max() == pytest.approx(boundary[:, 1].max())


def test_points_say_what_the_simulation_says(drawn):
    found = lines(drawn[0].axes[2])
    cells = dominance_table(OPTIONS["rises"], OPTIONS["descents"], n_draws=400, seed=6).to_dict("records")
    expected = {"walking back gains": [], "walking back loses": [], "undecided": []}
    for cell in cells:
        sure = "walking back gains" if cell["gain_low"] > 0 else "walking back loses"
        undecided = cell["gain_low"] <= 0 <= cell["gain_high"]
        expected["undecided" if undecided else sure].append([cell["descent"], cell["rise"]])
    for label, points in expected.items():
        assert found.get(label, np.empty((0, 2))).tolist() == points
    assert expected["walking back gains"]
    assert expected["walking back loses"]


def test_the_table_holds_all_that_is_drawn(drawn):
    table = drawn[1]
    assert table.groupby("panel", sort=False).size().to_dict() == {
        "inside": 2 * 2 * 2 * 4,
        "loss": 3 * 4,
        "dominance": 6,
        "critical": 45,
    }
    simulations = table[table["panel"] != "critical"]
    assert (simulations["n_draws"] == 400).all()
    assert (simulations["low"] <= simulations["value"]).all()
    assert (simulations["value"] <= simulations["high"]).all()
    assert table.loc[table["panel"] == "critical", "n_draws"].isna().all()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, second = (save(*figure_theory(**OPTIONS), tmp_path / name, "theory") for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_texts_stay_on_the_page_and_off_each_other(drawn):
    page = drawn[0]
    page.draw_without_rendering()
    for ax in page.axes:
        legend = ax.get_legend()
        labels = [ax.xaxis.label, ax.yaxis.label, *ax.texts, *legend.get_texts()]
        boxes = [(text.get_text(), text.get_window_extent()) for text in labels]
        for index, (text, box) in enumerate(boxes):
            assert min(box.x0, box.y0, page.bbox.width - box.x1, page.bbox.height - box.y1) >= 0, text
            assert not any(box.overlaps(other) for _, other in boxes[:index]), text


def test_panels_can_be_drawn_alone():
    table = theory_table(**OPTIONS)
    panels = {draw_inside: ["inside"], draw_loss: ["loss"], draw_dominance: ["dominance", "critical"]}
    for draw, names in panels.items():
        ax = Figure().subplots()
        assert draw(table[table["panel"].isin(names)], ax) is ax
        assert ax.get_legend() is not None


def test_another_curve_is_drawn_with_its_own_valleys():
    shape = replace(PAPER, n_layers=24, onset=10, valley=22, plateau=9.0, rise=0.8)
    figure, table = figure_theory(shape, **OPTIONS)
    labels = list(lines(figure.axes[0]))
    assert {"Algorithm 1, V* = 22", "Algorithm 1, V* = 19"} <= set(labels)
    assert table["expected"][table["panel"] == "inside"].isna().all()  # V* is not L-1: no closed form
    assert not any("Phi" in label for label in labels)


def test_a_curve_without_room_for_an_earlier_valley_is_refused():
    with refused(OptionError, "valley", 36):
        figure_theory(replace(PAPER, onset=3), **OPTIONS)
