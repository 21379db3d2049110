"""Whole figures as files, and that drawing leaves nothing behind."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from layerlens.errors import OptionError, RunError
from layerlens.plots import FIGURES, draw, figure2, figure4
from layerlens.plots.dynamics import contributions_table
from layerlens.plots.entropy import entropy_table
from layerlens.plots.save import save
from layerlens.plots.style import look
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused


def hybrid(folder, n_layers=40):
    return write_run(
        folder, planted(hybrid_curves(n_layers), noise=0.1, n_tokens=12), layer_kinds=hybrid_kinds(n_layers)
    )


@pytest.mark.parametrize(("number", "make_table"), [(2, contributions_table), (4, entropy_table)])
def test_a_figure_is_a_picture_a_page_and_its_numbers(tmp_path, number, make_table):
    run = hybrid(tmp_path / "run")
    png, pdf, csv = draw(number, run, tmp_path / "new" / "out")
    assert [path.name for path in (png, pdf, csv)] == [f"figure{number}.{suffix}" for suffix in ("png", "pdf", "csv")]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    written, table = pd.read_csv(csv), make_table(run)
    assert list(written.columns) == list(table.columns)
    for column in table.select_dtypes("number"):
        assert written[column].to_numpy() == pytest.approx(table[column].to_numpy(dtype=float), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("number", [2, 4])
def test_the_same_run_gives_the_same_bytes(tmp_path, number):
    run = hybrid(tmp_path / "run")
    first, second = (draw(number, run, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_picture_has_few_colours_that_are_near_those_drawn(tmp_path):
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.imshow(np.linspace(0, 1, 600).reshape(20, 30), cmap="viridis")
    axes.text(3, 3, "a word", color="#d55e00")
    table = pd.DataFrame({"x": [1.0]})
    png = save(figure, table, tmp_path / "saved", "one")[0]
    with look():
        figure.savefig(tmp_path / "drawn.png")
    with Image.open(png) as saved, Image.open(tmp_path / "drawn.png") as drawn:
        assert (saved.mode, saved.size) == ("P", drawn.size)
        assert saved.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
        pixels, wanted = (np.asarray(picture.convert("RGB"), dtype=int) for picture in (saved, drawn))
        assert len(np.unique(wanted.reshape(-1, 3), axis=0)) > 256
    assert np.abs(pixels - wanted).max() <= 20
    assert (pixels[wanted.min(2) == 255] == 255).all(), "white stays white"
    assert png.stat().st_size < 0.6 * (tmp_path / "drawn.png").stat().st_size


def clipped(folder, n_layers, values):
    """A run whose first layers have these norm ratios, far above all others."""
    curves = hybrid_curves(n_layers)
    curves["norm_ratio"] = np.append(values, np.minimum(curves["norm_ratio"], 0.55)[len(values) :])
    return write_run(folder, planted(curves, n_prompts=2, n_tokens=3), layer_kinds=hybrid_kinds(n_layers))


def assert_texts_are_apart(page):
    page.draw_without_rendering()
    width, height = page.bbox.width, page.bbox.height
    for ax in page.axes:
        labels = [ax.xaxis.label, ax.yaxis.label, ax.title, *ax.texts, *(ax.get_legend().get_texts())]
        labels += [inset.title for inset in ax.child_axes]
        boxes = [(text.get_text(), text.get_window_extent()) for text in labels if text.get_text()]
        boxes.append((ax.get_title(loc="left"), ax._left_title.get_window_extent()))
        for text, box in boxes:
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text
        for index, (text, box) in enumerate(boxes):
            for other_text, other in boxes[:index]:
                assert not box.overlaps(other) or not text or not other_text, (text, other_text)


@pytest.mark.parametrize("figure", [figure2, figure4])
@pytest.mark.parametrize("n_layers", [4, 7, 8, 9, 17, 30, 40, 80])
def test_texts_stay_on_the_page_and_off_each_other(tmp_path, figure, n_layers):
    page, _ = figure(hybrid(tmp_path / "run", n_layers))
    assert_texts_are_apart(page)


@pytest.mark.parametrize("n_layers", [4, 9, 30, 80])
@pytest.mark.parametrize("lowest_is_early", [False, True])
def test_half_steps_leave_texts_on_the_page_and_off_each_other(tmp_path, n_layers, lowest_is_early):
    curves = hybrid_curves(n_layers)
    if lowest_is_early:
        curves["perturbed"][n_layers // 2] = 0.01
    prompts = planted(curves, noise=0.1, n_tokens=12)
    for rows in prompts.values():
        rows["half_entropy"] = rows["entropy"] * np.random.default_rng(1).uniform(0.3, 2, rows["entropy"].shape)
        rows["half_top_token_id"] = np.zeros(rows["entropy"].shape, np.int32)
    page, _ = figure4(write_run(tmp_path / "run", prompts, layer_kinds=hybrid_kinds(n_layers)), half_steps=True)
    assert_texts_are_apart(page)


@pytest.mark.parametrize("n_layers", [4, 8, 12, 13, 17, 40, 80])
@pytest.mark.parametrize("values", [[9.49, 1.08], [94.3, 9.49, 1.08], [1634.2, 9.49, 1.08]])
def test_each_value_of_a_clipped_bar_is_over_its_own_bar(tmp_path, n_layers, values):
    page, _ = figure2(clipped(tmp_path / "run", n_layers, values))
    assert_texts_are_apart(page)
    ax = page.axes[0]
    labels = {text.get_text(): text.get_window_extent() for text in ax.texts}
    for bar, value in zip(ax.containers[0].patches, values, strict=False):
        box, own = bar.get_window_extent(), labels[f"{value:.3g}"]
        assert own.y0 >= box.y1
        assert own.x0 <= (box.x0 + box.x1) / 2 <= own.x1
    assert not any(box.overlaps(bar.get_window_extent()) for box in labels.values() for bar in ax.containers[0].patches)


@pytest.mark.parametrize("n_layers", [8, 17, 40, 80])
def test_the_bounds_are_labelled_above_bars_and_trend(tmp_path, n_layers):
    page, _ = figure2(hybrid(tmp_path / "run", n_layers))
    page.draw_without_rendering()
    for ax in page.axes:
        for text in ax.texts:
            if "→" not in text.get_text():
                continue
            box = text.get_window_extent()
            assert not any(bar.get_window_extent().overlaps(box) for bar in ax.containers[0].patches), text.get_text()
            trend = ax.lines[0].get_xydata()
            fine = np.linspace(1, n_layers, 2000)
            points = ax.transData.transform(np.column_stack([fine, np.interp(fine, *trend.T)]))
            assert not box.count_contains(points), text.get_text()


def test_the_readers_settings_and_backend_are_left_alone(tmp_path):
    with mpl.rc_context({"font.size": 11.5, "savefig.dpi": 77, "lines.linewidth": 3.5}):
        before = dict(mpl.rcParams)
        for number in (2, 4):
            draw(number, hybrid(tmp_path / f"run{number}"), tmp_path / "out")
        assert dict(mpl.rcParams) == before


def test_an_unknown_number_is_refused_with_those_there_are(tmp_path):
    run = hybrid(tmp_path / "run")
    with refused(OptionError, "number", 13):
        draw(13, run, tmp_path / "out")
    with refused(OptionError, "evaluation"):
        draw(3, run, tmp_path / "out")
    with refused(OptionError, "run"):
        draw(7, None, tmp_path / "out")


def test_a_run_without_tokens_is_refused(tmp_path):
    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((0, 9))}})
    for number in FIGURES:
        with refused(RunError, problem="complete prompt"):
            draw(number, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused(OptionError, "out", problem="cannot"):
        draw(2, hybrid(tmp_path / "run"), tmp_path / "file" / "out")
