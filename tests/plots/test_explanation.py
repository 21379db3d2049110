"""The figure of what tells right answers from wrong ones, read off its axes."""

import random

import numpy as np
import pytest
from matplotlib.colors import to_hex

from layerlens.analysis.explanation import explanation_table
from layerlens.errors import RunError
from layerlens.plots.explanation import _NAMES, figure_explanation
from layerlens.plots.style import LOOKS
from tests.evaluation.made_up_evaluation import write
from tests.refusals import refused

ARMS = ["last", "valley", "dola"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks and three arms; the length tells, the valley's measure is told by the valley alone."""
    draw = random.Random(3)
    scores = {(task, arm): [[float(draw.random() < 0.4)] for _ in range(80)] for task in ("a", "b") for arm in ARMS}
    return write(
        tmp_path_factory.mktemp("evaluation") / "out",
        scores,
        n_generated_tokens=lambda task, arm, item, epoch, score: int(90 - 40 * score + 50 * draw.random()),
        final_entropy=lambda task, arm, item, epoch, score: draw.random(),
        valley_rate=lambda task, arm, item, epoch, score: draw.random() + score if arm == "valley" else None,
    )


@pytest.mark.parametrize("width", ["one", "two"])
def test_marks_and_bars_are_the_table(folder, width):
    page, table = figure_explanation(folder, width)
    assert table.equals(explanation_table(folder))
    assert len(page.axes) == 2
    for ax, task in zip(page.axes, ("a", "b"), strict=True):
        rows = table[table["task"] == task]
        names = [label.get_text() for label in ax.get_yticklabels()]
        measures = [name for name, shown in _NAMES.items() if shown in names]
        assert measures == ["n_generated_tokens", "final_entropy", "valley_rate"]
        drawn = {}
        for container in ax.containers:
            line, _, (bars,) = container
            ends = [segment[:, 0] for segment in bars.get_segments()]
            for x, y, (low, high) in zip(line.get_xdata(), line.get_ydata(), ends, strict=True):
                drawn[container.get_label(), measures[round(y)]] = (x, low, high)
            assert to_hex(line.get_color()) == to_hex(LOOKS[ARMS.index(container.get_label())]["color"])
        expected = {(row.arm, row.measure): (row.auroc, row.low, row.high) for row in rows.itertuples()}
        assert drawn.keys() == expected.keys()
        for key, values in expected.items():
            assert drawn[key] == pytest.approx(values)
        right, wrong = (sum(rows.groupby("arm")[name].max()) for name in ("n_right", "n_wrong"))
        assert ax.get_title(loc="left").endswith(f" {task}: {right} right, {wrong} wrong")
        assert right + wrong == 3 * 80
    (legend,) = page.legends
    assert [text.get_text() for text in legend.get_texts()] == ARMS


@pytest.mark.parametrize("width", ["one", "two"])
def test_texts_stay_on_the_page_and_off_each_other(folder, width):
    page, _ = figure_explanation(folder, width)
    page.draw_without_rendering()
    labels = [text for ax in page.axes for text in (ax.xaxis.label, ax._left_title, *ax.get_yticklabels())]
    labels += page.legends[0].get_texts()
    extents = [text.get_window_extent() for text in labels]
    for index, (text, box) in enumerate(zip(labels, extents, strict=True)):
        edges = (box.x0, box.y0, page.bbox.width - box.x1, page.bbox.height - box.y1)
        assert min(edges) >= 0, text.get_text()
        assert not any(box.overlaps(other) for other in extents[:index]), text.get_text()


def test_marks_of_arms_stand_apart(folder):
    page, _ = figure_explanation(folder)
    page.draw_without_rendering()
    for ax in page.axes:
        places = sorted(
            ax.transData.transform((0, y))[1] * 72 / page.dpi for line, *_ in ax.containers for y in line.get_ydata()
        )
        assert np.diff(places).min() > 3, "as far as a mark is high"


def test_too_few_answers_are_refused(tmp_path):
    folder = write(tmp_path / "out", {("a", "last"): [[1.0]] * 14 + [[0.0]] * 40})
    with refused(RunError, given=folder, problem="15 right and 15 wrong"):
        figure_explanation(folder)
