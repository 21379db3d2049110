"""Figures at the size in which they are printed: one column is 3.3 inches wide, two are 6.9."""

import re

import pytest
from matplotlib.text import Text

from layerlens.errors import OptionError
from layerlens.plots import NAMED, draw, figure1, figure2, figure3, figure4, figure_explanation, figure_grid
from layerlens.plots.theory import figure_theory
from layerlens.records.evaluation import MEASURES
from tests.evaluation.made_up import drawn, like_the_paper, write_ablation
from tests.evaluation.made_up_evaluation import write
from tests.plots.test_lens_line import made_up
from tests.refusals import refused
from tests.thorough import some

INCHES = {"one": 3.3, "two": 6.9}
LEAST = 6.0
SCRIPT = 0.7  # of a text's size are its superscripts and subscripts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("print")
    return (
        made_up(folder / "last", n_layers=30),
        made_up(folder / "valley", strategy="valley", seed=1, n_layers=30),
        write_ablation(folder / "ablation", drawn(like_the_paper(), n_items=20)),
        evaluated(folder / "evaluation"),
    )


def evaluated(folder):
    """Two arms with every measure, and one without, on three tasks."""
    arms = ("last", "valley", "dola-low")
    scores = {(task, arm): [[float(n % 3 > 0)] for n in range(60)] for task in ("gpqa", "gsm8k", "hle") for arm in arms}

    def measure(task, arm, item, epoch, score):
        return None if arm == "dola-low" else (item * 7 % 60) / 60

    return write(folder, scores, **dict.fromkeys(MEASURES, measure))


FIGURES = {
    "1": lambda last, valley, ablation, evaluation, width: figure1(last, width),
    "2": lambda last, valley, ablation, evaluation, width: figure2(last, width),
    "3": lambda last, valley, ablation, evaluation, width: figure3(ablation, width),
    "4": lambda last, valley, ablation, evaluation, width: figure4(last, width=width),
    "4 with half steps": lambda last, valley, ablation, evaluation, width: figure4(last, True, width),
    "7": lambda last, valley, ablation, evaluation, width: figure_grid(last, valley, width=width),
    "7 alone": lambda last, valley, ablation, evaluation, width: figure_grid(None, last, width=width),
    "7 aligned": lambda last, valley, ablation, evaluation, width: figure_grid(
        last, valley, rule="alignment", width=width
    ),
    "explanation": lambda last, valley, ablation, evaluation, width: figure_explanation(evaluation, width),
    "grid of ranks": lambda last, valley, ablation, evaluation, width: NAMED["grid"].drawn(
        last, width=width, colour="rank"
    ),
}


def by_name(name):
    return lambda last, valley, ablation, evaluation, width: NAMED[name].drawn(last, width=width)


FIGURES |= {name: by_name(name) for name in NAMED}


def points(text):
    """The size of the smallest signs of a text."""
    has_scripts = re.search(r"\$[^$]*[\^_][^$]*\$", text.get_text()) and text.get_parse_math()
    return text.get_fontsize() * (SCRIPT if has_scripts else 1)


def shown(page):
    texts = [one for one in page.findobj(Text) if one.get_visible() and one.get_text().strip()]
    assert texts
    return texts


@pytest.mark.parametrize("width", INCHES)
@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_large_enough_to_read_and_on_the_page(runs, name, width):
    page, _ = FIGURES[name](*runs, width)
    assert page.get_figwidth() == INCHES[width]
    assert page.get_figheight() <= 9.5, "it goes onto a page"
    page.draw_without_rendering()
    for text in shown(page):
        assert points(text) >= LEAST, text.get_text()
        box = text.get_window_extent()
        assert page.bbox.x0 - 1 <= box.x0 <= box.x1 <= page.bbox.x1 + 1, text.get_text()
        assert page.bbox.y0 - 1 <= box.y0 <= box.y1 <= page.bbox.y1 + 1, text.get_text()


def test_the_theorys_texts_are_large_enough():
    page, _ = figure_theory(n_draws=20)
    page.draw_without_rendering()
    assert page.get_figwidth() == INCHES["one"]
    assert all(points(text) >= LEAST for text in shown(page))
    assert all(ax.get_legend().get_window_extent().x1 <= page.bbox.x1 for ax in page.axes)


def test_every_figure_is_measured_here():
    assert {name.split()[0] for name in FIGURES} == {"1", "2", "3", "4", "7", "explanation", *NAMED}


@pytest.mark.parametrize("number", [1, 2, 4, 7, "onset", "grid"])
def test_a_width_that_is_none_is_refused(runs, tmp_path, number):
    with refused(OptionError, "width", "three", advice="one, two"):
        draw(number, runs[0], tmp_path / "out", width="three")


@pytest.mark.parametrize("number", some([1, 4, 7, "onset", "grid"], 2))
def test_files_have_the_width_that_was_asked_for(runs, tmp_path, number):
    from PIL import Image

    across = {}
    for width in (None, "one", "two"):
        png, *_ = draw(number, runs[0], tmp_path / str(width), width=width)
        with Image.open(png) as picture:
            across[width] = picture.width / picture.info["dpi"][0]
    assert across["one"] == pytest.approx(3.3, abs=0.01)
    assert across["two"] == pytest.approx(6.9, abs=0.01)
    assert across[None] == across["two" if number in (1, 7, "grid") else "one"]
