"""Figure 3, read off its axes."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from layerlens.analysis.ablation import ablation_table
from layerlens.errors import RunError
from layerlens.plots.ablation import figure3
from layerlens.plots.save import save
from tests.evaluation.made_up import drawn, like_the_paper, write_ablation
from tests.evaluation.made_up_evaluation import write
from tests.refusals import refused
from tests.thorough import some, thorough

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


def curves(ax):
    """The line of every arm, by its name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def bars(ax):
    """The upright bars (x, lower end, upper end) of every arm that has some, by colour."""
    found = {}
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            ends = [segment.T for segment in collection.get_segments()]
            found[to_hex(collection.get_color()[0])] = [(x[0], min(y), max(y)) for x, y in ends]
    return found


def test_lines_and_bars_are_the_table(paper):
    page, table = figure3(paper)
    assert table.equals(ablation_table(paper))
    for ax, arms in zip(page.axes, PAPER, strict=True):
        assert legend(ax) == [*arms[:-1], "valley (in boxes)"]
        assert list(curves(ax)) == arms
        for arm, line in curves(ax).items():
            rows = table[table["arm"] == arm]
            x = np.asarray(line.get_xdata(), dtype=float)
            assert x[0] == 0
            assert np.abs(x - [0, 0.2, 0.4, 0.6, 0.8, 1]).max() < 0.1
            assert np.asarray(line.get_ydata(), dtype=float) == pytest.approx(100 * rows["score"].to_numpy())
            ends = [(100 * row.score_low, 100 * row.score_high) for row in rows.itertuples()]
            if arm == "last":
                (band,) = (one for one in ax.collections if not isinstance(one, LineCollection))
                heights = band.get_paths()[0].vertices[:, 1]
                assert {(min(heights), max(heights))} == set(ends)
                continue
            drawn = bars(ax)[to_hex(line.get_color())]
            assert [at for at, *_ in drawn] == pytest.approx(x[1:])
            assert np.array([one[1:] for one in drawn]) == pytest.approx(np.array(ends[1:]))
        assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize("width", ["one", "two"])
@thorough
def test_bars_of_different_arms_stand_apart(paper, width):
    page, _ = figure3(paper, width)
    page.draw_without_rendering()
    for ax in page.axes:
        places = sorted(ax.transData.transform((at, 0))[0] for drawn in bars(ax).values() for at, *_ in drawn)
        assert len(places) == 5 * len(bars(ax)) >= 20
        points = np.diff(places) * 72 / page.dpi
        assert points.min() > 2.5, "as far as the caps of two bars are wide"


def test_the_valley_is_dashed_and_black_with_its_values_in_boxes(paper):
    page, table = figure3(paper)
    rows = table[table["arm"] == "valley"]
    for ax in page.axes:
        line = curves(ax)["valley"]
        assert (line.get_linestyle(), to_hex(line.get_color())) == ("--", "#000000")
        assert [box.get_text() for box in boxes(ax)] == [f"{100 * value:.1f}" for value in rows["score"]]
        assert [box.get_position()[0] for box in boxes(ax)] == rows["p"].tolist()
        page.draw_without_rendering()
        highest = ax.transData.transform((0, 100 * table["score_high"].max()))[1]
        assert all(box.get_window_extent().y0 > highest for box in boxes(ax)), "no box covers a bar"


def test_an_ablation_through_a_lens_names_it(tmp_path, paper):
    page = page_of(tmp_path / "tuned", like_the_paper(), lens={"kind": "tuned", "source": "here"})
    assert page.get_supxlabel() == "read through the tuned lens"
    assert figure3(paper)[0].get_supxlabel() == ""


def test_arms_of_a_panel_differ_in_more_than_colour(paper):
    for ax in figure3(paper)[0].axes:
        assert len({(line.get_marker(), str(line.get_linestyle())) for line in curves(ax).values()}) == 5
        assert len({line.get_marker() for line in curves(ax).values()}) == 5


def test_only_arms_that_were_run_are_drawn_and_others_find_a_place(tmp_path):
    shares = {("last", 0.0): 0.5, ("last-8", 1.0): 0.1, ("valley+3", 1.0): 0.6}
    above, below = page_of(tmp_path / "a", shares).axes
    assert legend(above) == ["last", "last-8"]
    assert legend(below) == ["valley+3"]
    assert not boxes(above)
    shares = {("last", 0.0): 0.5, ("last-2", 1.0): 0.4, ("valley", 1.0): 0.5}
    for index, arms in enumerate((["last", "last-2"], ["last", "valley"], ["last", "last-2", "valley"])):
        run = {(arm, p): share for (arm, p), share in shares.items() if arm in arms}
        (only,) = page_of(tmp_path / f"b{index}", run).axes
        assert list(curves(only)) == arms
        assert only.get_title(loc="left").startswith("earlier layers: 20 items"), "no letter where it stands alone"


def test_titles_count_the_items(tmp_path, paper):
    titles = [ax.get_title(loc="left") for ax in figure3(paper)[0].axes]
    assert titles == [
        "(a) earlier layers: 60 items of gpqa, bars: 95 %",
        "(b) shifted valleys: 60 items of gpqa, bars: 95 %",
    ]
    one = {("last", 0.0): {"x": [(True, 3, "stop")]}, ("valley", 1.0): {"x": [(False, 3, "stop")]}}
    page, _ = figure3(write_ablation(tmp_path / "one", one))
    assert page.axes[0].get_title(loc="left") == "earlier layers: 1 item of gsm8k"
    assert not page.axes[0].collections
    part = {("last", 0.0): {"x": [(True, 3, "stop")], "y": [(True, 3, "stop")]}, ("valley", 1.0): one["last", 0.0]}
    page, _ = figure3(write_ablation(tmp_path / "part", part, finish=False))
    title = "earlier layers: 2 items of gsm8k,\nnot complete, sometimes only 1, bars: 95 %"
    assert page.axes[0].get_title(loc="left") == title


def test_an_unfinished_ablation_says_so_and_draws_no_arm_without_answers_of_its_own(tmp_path):
    shares = {("last", 0.0): 0.5, ("last-1", 0.5): 0.4}
    arms = [("last-1", 1.0), ("last-2", 0.5), ("valley", 1.0)]
    folder = write_ablation(tmp_path / "a", drawn(shares, n_items=60), arms=arms, finish=False)
    page, table = figure3(folder)
    assert set(table["arm"]) == {"last", "last-1"}
    (above,) = page.axes
    assert legend(above) == list(curves(above)) == ["last", "last-1"]
    page.draw_without_rendering()
    for ax in page.axes:
        assert ",\nnot complete" in ax.get_title(loc="left")
        assert ax._left_title.get_window_extent().x1 <= page.bbox.width
    whole, _ = figure3(write_ablation(tmp_path / "b", drawn(shares, n_items=60)))
    assert not any("not complete" in ax.get_title(loc="left") for ax in whole.axes)


def test_every_task_has_its_own_panels(tmp_path):
    """Two tasks under the same arms; the second is answered otherwise, and has no shifted valleys."""
    right, wrong = [[1.0]] * 4, [[0.0]] * 4
    scores = {("gsm8k", "last"): right, ("gsm8k", "last-1"): wrong, ("gsm8k", "valley+1"): right}
    scores |= {("math500", "last"): wrong, ("math500", "last-1"): right, ("math500", "dola"): right}
    page, table = figure3(write(tmp_path / "a", scores), "two")
    assert table.groupby("task")["arm"].unique().map(list).to_dict() == {
        "gsm8k": ["last", "last-1", "valley+1"],
        "math500": ["last", "last-1", "dola"],
    }
    titles = [ax.get_title(loc="left") for ax in page.axes]
    assert [title.split(":")[0] for title in titles] == [
        "(a) earlier layers",
        "(b) shifted valleys",
        "(c) earlier layers",
    ]
    assert ["math500" in title for title in titles] == [False, False, True]
    first, _, third = (curves(ax) for ax in page.axes)
    assert [list(line.get_ydata()) for line in first.values()] == [[100, 100], [100, 0]]
    assert {name: list(line.get_ydata()) for name, line in third.items()} == {
        "last": [0, 0],
        "last-1": [0, 100],
        "dola": [0, 100],
    }


def test_answers_of_the_last_layer_alone_are_refused(tmp_path):
    folder = write_ablation(tmp_path / "a", drawn({("last", 0.0): 0.5}, n_items=4))
    with refused(RunError, given=folder, advice="ll.ablate"):
        figure3(folder)


def test_nothing_right_is_a_line_at_zero_on_an_axis_of_percent(tmp_path):
    wrong = {name: [(False, 3, "stop")] for name in "ab"}
    page, _ = figure3(write_ablation(tmp_path / "a", {("last", 0.0): wrong, ("valley", 1.0): wrong}))
    for ax in page.axes:
        assert ax.get_ylim()[1] >= 5
        assert all(set(np.asarray(line.get_ydata(), dtype=float)) == {0.0} for line in curves(ax).values())


@pytest.mark.parametrize(
    "drawn", some([(1, ()), (10, ()), (10, ("last-8", "valley+3")), (33, ()), (5, ("last-8", "valley+3"))], 2)
)
def test_texts_stay_on_the_page_and_off_each_other(tmp_path, drawn):
    steps, more = drawn
    shares = {("last", 0.0): 0.5}
    for arm in [*PAPER[0][1:], *PAPER[1][:-1], *more]:
        shares |= {(arm, n / steps): 0.5 + 0.4 * n / steps for n in range(1, steps + 1)}
    page = page_of(tmp_path / "a", shares)
    page.draw_without_rendering()
    for ax in page.axes:
        assert len(legend(ax)) == 5 + bool(more)
        assert len(boxes(ax)) >= min(steps + 1, 6)
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
    with refused(RunError, given=run.path, advice="ll.evaluate"):
        figure3(run.path)
