"""Figure 3, read off its axes."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from layerlens.analysis.ablation import ablation_table
from layerlens.errors import RunError
from layerlens.plots.ablation import figure3
from layerlens.plots.save import save
from tests.evaluation.made_up import drawn, like_the_paper, write_ablation
from tests.refusals import refused

PAPER = (["last", "last-1", "last-2", "last-4", "valley"], ["valley-2", "valley-1", "valley+1", "valley+2", "valley"])


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The nine arms of the paper at its six p."""
    folder = tmp_path_factory.mktemp("paper") / "a"
    return write_ablation(folder, drawn(like_the_paper(), n_items=60), dataset="gpqa")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def boxes(ax):
    return [text for text in ax.texts if text.get_bbox_patch() is not None]


def page_of(folder, shares, **options):
    return figure3(write_ablation(folder, drawn(shares, n_items=20), **options))[0]


def test_lines_and_bands_are_the_table(paper):
    page, table = figure3(paper)
    assert table.equals(ablation_table(paper))
    for ax, arms in zip(page.axes, PAPER, strict=True):
        assert legend(ax) == arms
        assert [line.get_label() for line in ax.lines] == arms
        bands = {to_hex(band.get_facecolor()): band for band in ax.collections}
        for line in ax.lines:
            rows = table[table["arm"] == line.get_label()]
            assert np.asarray(line.get_xdata(), dtype=float).tolist() == [0, 0.2, 0.4, 0.6, 0.8, 1]
            assert np.asarray(line.get_ydata(), dtype=float) == pytest.approx(100 * rows["accuracy"].to_numpy())
            edges = bands[to_hex(line.get_color())].get_paths()[0].vertices
            for row in rows.itertuples():
                heights = [y for x, y in edges if x == row.p]
                assert (min(heights), max(heights)) == pytest.approx((100 * row.accuracy_low, 100 * row.accuracy_high))
        assert ax.get_ylim()[0] == 0


def test_the_valley_is_dashed_and_black_with_its_values_in_boxes(paper):
    page, table = figure3(paper)
    rows = table[table["arm"] == "valley"]
    for ax in page.axes:
        line = next(line for line in ax.lines if line.get_label() == "valley")
        assert (line.get_linestyle(), to_hex(line.get_color())) == ("--", "#000000")
        assert [box.get_text() for box in boxes(ax)] == [f"{100 * value:.1f}" for value in rows["accuracy"]]
        assert [box.xy for box in boxes(ax)] == list(zip(rows["p"], 100 * rows["accuracy"], strict=True))


def test_an_ablation_through_a_lens_names_it(tmp_path, paper):
    page = page_of(tmp_path / "tuned", like_the_paper(), lens={"kind": "tuned", "source": "here"})
    assert page.get_supxlabel() == "read through the tuned lens"
    assert figure3(paper)[0].get_supxlabel() == ""


def test_arms_of_a_panel_differ_in_more_than_colour(paper):
    for ax in figure3(paper)[0].axes:
        assert len({(line.get_marker(), str(line.get_linestyle())) for line in ax.lines}) == 5
        assert len({line.get_marker() for line in ax.lines}) == 5


def test_only_arms_that_were_run_are_drawn_and_others_find_a_place(tmp_path):
    shares = {("last", 0.0): 0.5, ("last-8", 1.0): 0.1, ("valley+3", 1.0): 0.6}
    above, below = page_of(tmp_path / "a", shares).axes
    assert legend(above) == ["last", "last-8"]
    assert legend(below) == ["valley+3"]
    assert not boxes(above)
    above, below = page_of(tmp_path / "b", {("last", 0.0): 0.5}).axes
    assert legend(above) == ["last"]
    assert [text.get_text() for text in below.texts] == ["no such arm was run"]


def test_titles_count_the_items(tmp_path, paper):
    titles = [ax.get_title(loc="left") for ax in figure3(paper)[0].axes]
    assert titles == [
        "(a) earlier layers: 60 items of gpqa, bands: 95 %",
        "(b) shifted valleys: 60 items of gpqa, bands: 95 %",
    ]
    one = {("last", 0.0): {"x": [(True, 3, "stop")]}, ("valley", 1.0): {"x": [(False, 3, "stop")]}}
    page, _ = figure3(write_ablation(tmp_path / "one", one))
    assert page.axes[0].get_title(loc="left") == "(a) earlier layers: 1 item of gsm8k"
    assert not page.axes[0].collections
    part = {("last", 0.0): {"x": [(True, 3, "stop")], "y": [(True, 3, "stop")]}, ("valley", 1.0): one["last", 0.0]}
    page, _ = figure3(write_ablation(tmp_path / "part", part, finish=False))
    title = "(a) earlier layers: 2 items of gsm8k,\nnot complete, sometimes only 1, bands: 95 %"
    assert page.axes[0].get_title(loc="left") == title


def test_an_unfinished_ablation_says_so_and_draws_no_arm_without_answers_of_its_own(tmp_path):
    shares = {("last", 0.0): 0.5, ("last-1", 0.5): 0.4}
    arms = ["last", "last-1", "last-2", "valley"]
    folder = write_ablation(tmp_path / "a", drawn(shares, n_items=60), arms=arms, p=[0.0, 0.5, 1.0], finish=False)
    page, table = figure3(folder)
    assert set(table["arm"]) == set(arms)
    above, below = page.axes
    assert legend(above) == [line.get_label() for line in above.lines] == ["last", "last-1"]
    assert not below.lines
    assert [text.get_text() for text in below.texts] == ["no such arm was run yet"]
    page.draw_without_rendering()
    for ax in page.axes:
        assert ",\nnot complete" in ax.get_title(loc="left")
        assert ax._left_title.get_window_extent().x1 <= page.bbox.width
    whole, _ = figure3(write_ablation(tmp_path / "b", drawn(shares, n_items=60)))
    assert not any("not complete" in ax.get_title(loc="left") for ax in whole.axes)


def test_nothing_right_is_a_line_at_zero_on_an_axis_of_percent(tmp_path):
    wrong = {name: [(False, 3, "stop")] for name in "ab"}
    page, _ = figure3(write_ablation(tmp_path / "a", {("last", 0.0): wrong, ("valley", 1.0): wrong}))
    for ax in page.axes:
        assert ax.get_ylim()[1] >= 5
        assert all(set(np.asarray(line.get_ydata(), dtype=float)) == {0.0} for line in ax.lines)


@pytest.mark.parametrize(
    ("steps", "more"), [(1, ()), (5, ("last-8", "valley+3")), (10, ()), (10, ("last-8", "valley+3")), (33, ())]
)
def test_texts_stay_on_the_page_and_off_each_other(tmp_path, steps, more):
    shares = {("last", 0.0): 0.5}
    for arm in [*PAPER[0][1:], *PAPER[1][:-1], *more]:
        shares |= {(arm, n / steps): 0.5 + 0.4 * n / steps for n in range(1, steps + 1)}
    page = page_of(tmp_path / "a", shares)
    page.draw_without_rendering()
    for ax in page.axes:
        assert len(legend(ax)) == 5 + bool(more)
        assert len(boxes(ax)) >= min(steps + 1, 9)
        labels = [ax.xaxis.label, ax.yaxis.label, ax._left_title, *ax.texts, *ax.get_legend().get_texts()]
        extents = [text.get_window_extent() for text in labels]
        for index, (text, box) in enumerate(zip(labels, extents, strict=True)):
            edges = (box.x0, box.y0, page.bbox.width - box.x1, page.bbox.height - box.y1)
            assert min(edges) >= 0, text.get_text()
            for other in extents[:index]:
                assert not box.overlaps(other), text.get_text()


def test_the_same_ablation_gives_the_same_bytes_and_leaves_settings_alone(tmp_path, paper):
    with mpl.rc_context({"font.size": 11.5, "lines.linewidth": 3.5}):
        before = dict(mpl.rcParams)
        first, second = (save(*figure3(paper), tmp_path / name, "figure3") for name in ("a", "b"))
        assert dict(mpl.rcParams) == before
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_run_of_trace_is_refused(tmp_path):
    from tests.made_up_run import write_run

    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 4))}})
    with refused(RunError, given=run.path, advice="ll.ablate"):
        figure3(run.path)
