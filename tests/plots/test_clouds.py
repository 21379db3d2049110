"""Figure 1, read off its axes."""

import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text

from layerlens.analysis.uncertainty import mean_interval, resample
from layerlens.errors import RunError
from layerlens.plots import save
from layerlens.plots.clouds import BLUE, DARK, PALE, RED, clouds_table, figure1
from tests.made_up_run import write_run
from tests.refusals import refused

TEXTS = [" the", "the", " birds", ".", "\n", " ", " energy", " a", " 42", "$x$"]
WORDS = dict(enumerate(TEXTS))
LABELS = ["the", "the", "birds", ".", "⏎", "␣", "energy", "a", "42", "$x$"]
CLASSES = {
    "the": "function",
    ".": "punctuation",
    "⏎": "punctuation",
    "a": "function",
    "birds": "content",
    "energy": "content",
}


def prompts_of(random, words, n_prompts=4, n_tokens=30):
    """Prompts of random choices, low ids more often; where the sides differ, the valley is the fifth of six layers."""
    chances = 1 / np.arange(1, words + 1)
    made = {}
    for index in range(n_prompts):
        sides = random.choice(words, (2, n_tokens), p=chances / chances.sum()).astype(np.int32)
        entropy = random.gamma(2.0, 0.5, (n_tokens, 6)) + np.array([3, 3, 2, 1, 0, 0])
        entropy[:, 5] = entropy[:, 4] + np.where(sides[0] == sides[1], -0.5, 1.0)
        top = np.full((n_tokens, 6), 1, dtype=np.int32)
        for layer in range(6):
            top[:, layer] = sides[1] if layer < 5 else sides[0]
        made[f"p{index}"] = {"entropy": entropy, "top_token_id": top, "next_token_id": sides[0]}
    made["p0"]["is_generated"] = np.arange(n_tokens) > 3
    return made


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", prompts_of(np.random.default_rng(5), len(TEXTS)), words=WORDS)


def slow_substitutions(run):
    """(prompt, standard, confident, entropy) of every substitution, token by token."""
    found = []
    for row in run.tokens.to_dict("records"):
        standard, confident = int(row["top_token_id"][-1]), int(row["top_token_id"][row["valley_layer"] - 1])
        if row["is_generated"] and standard != confident:
            found.append((row["prompt_id"], standard, confident, [float(value) for value in row["entropy"]]))
    return found


def panels(figure):
    """The axes of the valley's cloud, of the last layer's, and of the curves."""
    confident, last, depth = figure.axes
    return confident, last, depth


def words_in(ax):
    """The labels of a cloud; what stands outside its axes is the key."""
    return [text for text in ax.texts if text.get_transform() == ax.transData]


@pytest.mark.parametrize(("index", "side"), [(0, 2), (1, 1)])
def test_a_cloud_holds_every_label_once(run, index, side):
    counts = Counter(LABELS[one[side]] for one in slow_substitutions(run))
    drawn = [text.get_text() for text in words_in(panels(figure1(run)[0])[index])]
    assert sorted(drawn) == sorted(counts)
    assert {"⏎", "␣", ".", "$x$"} <= set(drawn)
    assert not any(text.get_parse_math() for text in panels(figure1(run)[0])[index].texts if "$" in text.get_text())


@pytest.mark.parametrize(("index", "side"), [(0, 2), (1, 1)])
def test_the_more_frequent_a_label_the_larger(run, index, side):
    counts = Counter(LABELS[one[side]] for one in slow_substitutions(run))
    sizes = {text.get_text(): text.get_fontsize() for text in words_in(panels(figure1(run)[0])[index])}
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    assert [sizes[name] for name in ranked] == sorted(sizes.values(), reverse=True)
    assert sizes[ranked[0]] > 1.5 * sizes[ranked[-1]]
    assert sizes[ranked[-1]] >= 6


def test_colours_tell_sides_and_classes(run):
    confident, last, _ = panels(figure1(run)[0])
    assert {to_hex(text.get_color()) for text in words_in(confident)} == {BLUE.lower()}
    for text in words_in(last):
        colours = {"function": RED, "punctuation": RED, "content": DARK}
        expected = colours.get(CLASSES.get(text.get_text()), PALE)
        assert to_hex(text.get_color()) == to_hex(expected), text.get_text()


@pytest.mark.parametrize("special", ["<|im_end|>", "<s>", "</s>", "<end_of_turn>", "[INST]", "[/INST]", "[SEP]"])
def test_a_special_token_is_not_among_the_content_words(tmp_path, special):
    measures = {"entropy": [[2.0, 1.0, 1.5]], "top_token_id": np.array([[0, 2, 3]], dtype=np.int32)}
    run = write_run(tmp_path / "run", {"p": measures}, words=WORDS | {3: special})
    (label,) = words_in(panels(figure1(run)[0])[1])
    key = {text.get_text(): to_hex(text.get_color()) for text in panels(figure1(run)[0])[1].texts}
    assert to_hex(label.get_color()) == key["other, special tokens"] != key["content words"]


def ink(text, grey):
    """The rectangle of dark pixels that a label alone leaves on a page: left, lower, right, upper."""
    rows, columns = np.nonzero(grey < 128)
    return columns.min(), grey.shape[0] - rows.max(), columns.max(), grey.shape[0] - rows.min()


@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("n_words", [len(TEXTS), 200])
def test_rendered_labels_lie_within_their_cloud_and_never_touch(tmp_path, n_words, width):
    words = WORDS | {token_id: f" word{token_id}" for token_id in range(len(TEXTS), n_words)}
    prompts = prompts_of(np.random.default_rng(8), n_words, n_tokens=60)
    figure, _ = figure1(write_run(tmp_path / "run", prompts, words=words), width)
    canvas = FigureCanvasAgg(figure)
    everything = figure.findobj(Text)
    for ax in panels(figure)[:2]:
        cloud = words_in(ax)
        assert len(cloud) > 8
        for artist in [*everything, *panels(figure)]:
            artist.set_visible(artist in (*cloud, ax))
        ax.title.set_visible(False)
        boxes = []
        for label in cloud:
            for other in cloud:
                other.set(visible=other is label, color="black")
            canvas.draw()
            boxes.append(ink(label, np.asarray(canvas.buffer_rgba())[:, :, 0]))
        frame, points = ax.get_window_extent(), figure.dpi / 72
        for left, lower, right, upper in boxes:
            assert frame.x0 - points <= left <= right <= frame.x1 + points
            assert frame.y0 - points <= lower <= upper <= frame.y1 + points
        for index, (left, lower, right, upper) in enumerate(boxes):
            for there in boxes[:index]:
                across = max(left - there[2], there[0] - right) / points
                up = max(lower - there[3], there[1] - upper) / points
                assert across >= 2 or up >= 1, "points between the rectangles of two labels"


def test_more_labels_than_there_is_room_for_are_counted_in_the_title(tmp_path):
    words = {token_id: f" word{token_id}" for token_id in range(400)}
    prompts = prompts_of(np.random.default_rng(8), 400, n_tokens=100)
    run = write_run(tmp_path / "run", prompts, words=words)
    figure, table = figure1(run)
    n = table["n_tokens"].iloc[0]
    for ax, method in zip(panels(figure)[:2], ("confident", "last"), strict=True):
        part = table[table["part"] == method]
        drawn = [text.get_text() for text in words_in(ax)]
        total = len({one[2 if method == "confident" else 1] for one in slow_substitutions(run)})
        assert total > 60 == len(part) >= len(drawn) > 40
        assert set(drawn) <= set(part["label"])
        assert part["n_labels"].tolist() == [total] * 60
        assert f": {len(drawn)} of {total} labels, {n} substitutions" in ax.get_title(loc="left")


def test_curves_are_means_over_the_tokens(run):
    depth = panels(figure1(run)[0])[2]
    substituted = [one[3] for one in slow_substitutions(run)]
    generated = [list(map(float, row["entropy"])) for row in run.tokens.to_dict("records") if row["is_generated"]]
    curves = [line for line in depth.lines if len(line.get_xdata()) == 6]
    for line, tokens in zip(curves, (substituted, generated), strict=True):
        assert np.asarray(line.get_xdata(), dtype=int).tolist() == [1, 2, 3, 4, 5, 6]
        means = [statistics.fmean(token[layer] for token in tokens) for layer in range(6)]
        assert np.asarray(line.get_ydata(), dtype=float) == pytest.approx(means, rel=1e-5)
    labels = [text.get_text() for text in depth.get_legend().get_texts()]
    assert f"substituted tokens ({len(substituted)})" in labels
    assert f"all generated ({len(generated)})" in labels


def test_the_band_is_the_interval_over_prompts(run):
    found = slow_substitutions(run)
    names = [f"p{index}" for index in range(4)]
    sums = np.array([[sum(one[3][layer] for one in found if one[0] == name) for layer in range(6)] for name in names])
    counts = np.array([[sum(one[0] == name for one in found)] * 6 for name in names], dtype=float)
    _, low, high = mean_interval(sums, counts, resample(4))
    points = panels(figure1(run)[0])[2].collections[0].get_paths()[0].vertices
    for layer in range(1, 7):
        drawn = sorted(y for x, y in points if x == layer)
        assert [drawn[0], drawn[-1]] == pytest.approx([low[layer - 1], high[layer - 1]], rel=1e-5)


def test_trough_and_last_layer_are_marked(run):
    figure, table = figure1(run)
    depth = panels(figure)[2]
    mean = [statistics.fmean(one[3][layer] for one in slow_substitutions(run)) for layer in range(6)]
    assert mean.index(min(mean)) == 4
    marks = {line.get_marker(): line.get_xydata()[0].tolist() for line in depth.lines if len(line.get_xdata()) == 1}
    assert marks["v"] == pytest.approx([5, mean[4]], rel=1e-5)
    assert marks["s"] == pytest.approx([6, mean[5]], rel=1e-5)
    assert not depth.texts, "a label in the panel could lie on a curve"
    legend = [text.get_text() for text in depth.get_legend().get_texts()]
    assert f"V* of substituted tokens: 5, {mean[4]:.2f} nats" in legend, "Figure 4 has V* of other tokens"
    assert f"last layer: 6, {mean[5]:.2f} nats" in legend
    curve = table[table["part"] == "substituted"]
    assert curve["mark"].tolist() == ["", "", "", "", "trough", "last layer"]


def test_a_lowest_layer_before_the_final_rise_is_drawn_and_named(tmp_path):
    prompts = prompts_of(np.random.default_rng(5), len(TEXTS))
    for columns in prompts.values():
        columns["entropy"][:, 1] /= 1000
    figure, table = figure1(write_run(tmp_path / "run", prompts, words=WORDS))
    curve = table[table["part"] == "substituted"]
    assert curve["mark"].tolist() == ["", "lowest", "", "", "trough", "last layer"]
    (ring,) = (line for line in panels(figure)[2].lines if line.get_marker() == "o")
    assert ring.get_xydata()[0].tolist() == pytest.approx([2, curve["entropy"].iloc[1]], rel=1e-5)
    assert ring.get_label() == f"lowest layer: 2, {curve['entropy'].iloc[1]:.2f} nats"


def test_the_table_counts_labels_with_shares(run):
    table = clouds_table(run)
    found = slow_substitutions(run)
    assert table["part"].unique().tolist() == ["confident", "last", "substituted", "generated"]
    for method, side in (("confident", 2), ("last", 1)):
        counts = Counter(LABELS[one[side]] for one in found)
        part = table[table["part"] == method]
        assert part["label"].tolist() == sorted(counts, key=lambda name: (-counts[name], name))
        for row in part.to_dict("records"):
            assert row["count"] == counts[row["label"]]
            assert row["share"] == pytest.approx(counts[row["label"]] / len(found))
            assert row["share_low"] <= row["share"] <= row["share_high"]
            assert row["n_prompts"] == len({one[0] for one in found if LABELS[one[side]] == row["label"]})
            assert row["word_class"] == CLASSES.get(row["label"], "other")
            assert row["n_tokens"] == len(found)


def test_one_prompt_is_drawn_without_intervals(tmp_path):
    run = write_run(tmp_path / "run", prompts_of(np.random.default_rng(5), 9, n_prompts=1), words=WORDS)
    figure, table = figure1(run)
    assert not panels(figure)[2].collections
    assert "95 % interval" not in [text.get_text() for text in panels(figure)[2].get_legend().get_texts()]
    assert table[["share_low", "entropy_low"]].isna().all(axis=None)


def test_a_single_substitution_is_drawn(tmp_path):
    measures = {"entropy": [[2.0, 1.0, 1.5]], "top_token_id": np.array([[0, 2, 3]], dtype=np.int32)}
    figure, _ = figure1(write_run(tmp_path / "run", {"p": measures}, words=WORDS))
    assert [[text.get_text() for text in words_in(ax)] for ax in panels(figure)[:2]] == [["birds"], ["."]]
    assert "1 label, 1 substitution" in panels(figure)[0].get_title(loc="left")


def test_a_run_without_texts_is_refused_and_the_other_figures_are_drawn(tmp_path, cli):
    run = write_run(tmp_path / "run", prompts_of(np.random.default_rng(5), 9))
    with refused(RunError, given=run.path, problem="words.parquet", advice="trace it"):
        figure1(run)
    code, out, err = cli("figure", "1", "--run", run.path, "--out", tmp_path / "one")
    assert (code, out) == (2, "")
    assert "words.parquet" in err
    code, out, err = cli("figure", "all", "--run", run.path, "--out", tmp_path / "all")
    assert code == 0
    assert "figure 1:" in err
    assert str(run.path) in err
    assert {Path(line).stem for line in out.split()} == {"figure2", "figure4", *(f"figure{n}" for n in range(7, 11))}


def test_hard_tokens_are_drawn_without_a_warning(tmp_path):
    hard = [
        "\x00\x1b[31m",
        "\u202eevil",
        "中文字",
        "😀",
        "العربية",
        "$",
        "\\$y_1$",
        "a" * 200,
        "e" + "\u0301" * 40,
        "^{",
        "\r\n",
    ]
    run = write_run(tmp_path / "run", prompts_of(np.random.default_rng(5), len(hard)), words=dict(enumerate(hard)))
    figure, table = figure1(run)
    save(figure, table, tmp_path, "hard")
    drawn = {text.get_text() for ax in panels(figure)[:2] for text in words_in(ax)}
    assert {"\\x00\\x1b[31m", "\\u4e2d\\u6587\\u5b57", "a" * 23 + "…", "^{", "\\r⏎"} <= drawn


@pytest.mark.parametrize("width", ["one", "two"])
def test_texts_stay_on_the_page_and_off_each_other(run, width):
    figure, _ = figure1(run, width)
    figure.draw_without_rendering()
    page, depth = figure.bbox, panels(figure)[2]
    lines = [ax._left_title for ax in panels(figure)[:2]] + [depth.xaxis.label, depth.yaxis.label, *depth.texts]
    lines += [text for text in panels(figure)[1].texts if text not in words_in(panels(figure)[1])]
    extents = [line.get_window_extent() for line in lines] + [depth.get_legend().get_window_extent()]
    for index, extent in enumerate(extents):
        assert page.x0 <= extent.x0 <= extent.x1 <= page.x1
        assert page.y0 <= extent.y0 <= extent.y1 <= page.y1
        assert not any(extent.overlaps(other) for other in extents[:index])


@pytest.mark.parametrize("width", ["one", "two"])
def test_the_headings_of_a_large_run_stay_on_the_page(tmp_path, width):
    sides = np.arange(12_000, dtype=np.int32)
    measures = {"entropy": np.tile([2.0, 1.0, 1.5], (12_000, 1)), "next_token_id": sides}
    measures["top_token_id"] = np.stack([sides, sides + 12_000, sides], axis=1)
    words = {token_id: f" word{token_id}" for token_id in range(24_000)}
    figure, table = figure1(write_run(tmp_path / "run", {"p": measures}, words=words), width)
    figure.draw_without_rendering()
    assert panels(figure)[2].get_legend().get_window_extent().x1 <= figure.bbox.x1
    for ax in panels(figure)[:2]:
        assert " of 12,000 labels, 12,000 substitutions" in ax.get_title(loc="left")
    extents = [ax._left_title.get_window_extent() for ax in panels(figure)[:2]]
    assert not extents[0].overlaps(extents[1])
    assert max(extents[0].x1, extents[1].x1) <= figure.bbox.x1
    assert len(table[table["part"] == "last"]) == 60


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first, second = (save(*figure1(run), tmp_path / name, "figure1") for name in ("x", "y"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert list(pd.read_csv(first[2]).columns) == list(clouds_table(run).columns)


def test_the_readers_settings_and_backend_are_left_alone(run, tmp_path):
    with mpl.rc_context({"font.size": 11.5, "font.family": ["serif"]}):
        before = dict(mpl.rcParams)
        save(*figure1(run), tmp_path / "out", "figure1")
        assert dict(mpl.rcParams) == before


def test_a_run_without_substitutions_is_refused(tmp_path):
    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 4))}}, words=WORDS)
    with refused(RunError, problem="no substitution"):
        figure1(run)


def test_drawing_starts_no_window_system(run, tmp_path):
    check = (
        "import sys; from layerlens.run import open_run; from layerlens.plots.clouds import figure1; "
        f"figure1(open_run({str(run.path)!r})); sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
