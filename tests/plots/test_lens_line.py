"""Pages that were drawn from numbers read through a lens say so, where nothing else stands."""

import math

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.text import Text

from layerlens import plots
from layerlens.plots import FIGURES, NAMED, figure_grid
from tests.made_up_run import write_run

LINEAR = {"kind": "linear", "source": "lens.safetensors"}
WORDS = {number: f" w{number}" for number in range(60)}


def made_up(folder, lens=None, strategy="last", seed=0, n_layers=9):
    """A run that every figure can be drawn from."""
    random = np.random.default_rng(seed)
    shape = (20, n_layers)
    prompts = {
        f"p{index}": {
            "entropy": random.gamma(1, 1, shape),
            "top_token_id": random.integers(0, 30, shape, dtype=np.int32),
            "next_rank": random.integers(0, 3, shape, dtype=np.int32),
            "next_log_prob": -random.gamma(1, 1, shape),
            "js_from_last": random.random(shape) * math.log(2),
            "half_entropy": random.gamma(1, 1, shape),
            "half_top_token_id": np.zeros(shape, np.int32),
        }
        for index in range(3)
    }
    return write_run(folder, prompts, words=WORDS, lens=lens, strategy=strategy)


DRAWN = {str(number): FIGURES[number] for number in (1, 4)} | {name: one.drawn for name, one in NAMED.items()}
DRAWN |= {"7": lambda run: figure_grid(None, run)}


def line(page):
    """What the page says of a lens; "" where it says nothing."""
    return page.get_supxlabel()


@pytest.mark.parametrize("name", DRAWN)
def test_a_page_names_the_lens_where_nothing_else_stands(tmp_path, name):
    page, table = DRAWN[name](made_up(tmp_path / "linear", LINEAR))
    without, same = DRAWN[name](made_up(tmp_path / "logit"))
    assert line(page) == "read through the linear lens"
    assert line(without) == ""
    assert table.equals(same)
    page.draw_without_rendering()
    [words] = [text for text in page.texts if text.get_text() == line(page)]
    box = words.get_window_extent()
    assert page.bbox.x1 - 0.1 * page.dpi <= box.x1 <= page.bbox.x1
    assert page.bbox.y0 <= box.y0
    others = [one for one in page.findobj(Text) if one is not words and one.get_visible() and one.get_text().strip()]
    assert len(others) > 5
    for other in others:
        assert not box.overlaps(other.get_window_extent()), other.get_text()
    assert not any(box.overlaps(ax.get_window_extent()) for ax in page.axes)


def test_norms_are_read_through_no_lens(tmp_path):
    page, _ = FIGURES[2](made_up(tmp_path / "run", LINEAR))
    assert line(page) == ""


def test_two_texts_that_were_read_through_different_lenses_name_both(tmp_path):
    last = made_up(tmp_path / "last")
    tuned, logit = (
        made_up(tmp_path / kind, {"kind": kind, "source": "here"}, "valley", seed=1) for kind in ("tuned", "logit")
    )
    assert line(figure_grid(last, tuned)[0]) == "above read through the logit lens, below through the tuned lens"
    assert line(figure_grid(last, logit)[0]) == ""


@pytest.mark.parametrize("name", ["onset", "settling", "perturbation_parts", "entropy_partition", "lens_grid"])
def test_a_page_that_is_made_for_new_axes_names_the_lens(tmp_path, name):
    axes = getattr(plots, name)(made_up(tmp_path / "run", LINEAR))
    page = np.ravel(axes)[0].figure
    assert line(page) == "read through the linear lens"
    pyplot.close(page)
    assert line(plots.io_cosine(made_up(tmp_path / "other", LINEAR)).figure) == ""
    pyplot.close("all")
