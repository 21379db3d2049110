"""Figure 4, read off its axes."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from layerlens.errors import RunError
from layerlens.plots import entropy_partition, figure4, style
from layerlens.plots.entropy import entropy_table
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused


@pytest.fixture
def hybrid(tmp_path):
    prompts = planted(hybrid_curves(), noise=0.2, n_tokens=20, perturbed_share=0.25)
    prompts["made-up-000"]["entropy"] = prompts["made-up-000"]["entropy"][:13]  # so that shares differ between prompts
    for name in ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio"):
        prompts["made-up-000"][name] = prompts["made-up-000"][name][:13]
    return write_run(tmp_path / "run", prompts, layer_kinds=hybrid_kinds(), n_vocab=248320)


@pytest.fixture
def axes(hybrid):
    return entropy_partition(hybrid, Figure().subplots(2, 1))


def members(run, perturbed):
    """The entropies of the tokens of a group, token by token."""
    rows = run.tokens.to_dict("records")
    return [[float(value) for value in row["entropy"]] for row in rows if row["perturbed"] == perturbed]


def band(collection):
    """Lower and upper edge of a filled band by layer."""
    points = collection.get_paths()[0].vertices
    return {
        x: (min(y for at, y in points if at == x), max(y for at, y in points if at == x))
        for x in np.unique(points[:, 0])
    }


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def upright(ax):
    """Where the dashed vertical lines stand."""
    return [float(line.get_xdata()[0]) for line in ax.lines if len(set(np.asarray(line.get_xdata(), float))) == 1]


@pytest.mark.parametrize(("index", "perturbed"), [(0, True), (1, False)])
def test_lines_and_bands_are_means_deviations_and_intervals(hybrid, axes, index, perturbed):
    tokens, ax = members(hybrid, perturbed), axes[index]
    drawn = np.asarray(ax.lines[0].get_ydata(), dtype=float)
    deviation, interval = band(ax.collections[0]), band(ax.collections[1])
    for layer in range(1, 41):
        values = [token[layer - 1] for token in tokens]
        mean, sd = statistics.fmean(values), statistics.pstdev(values)
        assert drawn[layer - 1] == pytest.approx(mean, rel=1e-5)
        assert deviation[layer] == pytest.approx((max(0.0, mean - sd), mean + sd), rel=1e-5)
        assert deviation[layer][0] < interval[layer][0] < mean < interval[layer][1]
    assert ax.get_ylim()[0] == 0


def test_the_deviation_is_cut_at_zero(tmp_path):
    random = np.random.default_rng(1)
    prompts = {f"p{i}": {"entropy": random.exponential(1.0, (30, 9)) ** 3} for i in range(3)}
    ax = entropy_partition(write_run(tmp_path / "run", prompts), Figure().subplots(2, 1))[0]
    assert min(low for low, _ in band(ax.collections[0]).values()) == 0


def test_titles_count_the_tokens(hybrid, axes):
    rows = hybrid.positions
    for ax, (group, wanted) in zip(axes, (("Perturbed", True), ("Unperturbed", False)), strict=True):
        number = sum(bool(value) == wanted for value in rows["perturbed"])
        title = ax.get_title(loc="left")
        assert title.startswith(f"{group}: {number} tokens, {100 * number / len(rows):.1f} % (95 %: ")
    low, high = (float(end) for end in axes[0].get_title(loc="left")[:-1].split("95 %: ")[1].split("–"))
    share = 100 * rows["perturbed"].mean()
    assert low <= share <= high
    assert low < high


def test_marks_stand_where_they_are_and_are_missed_in_words(axes):
    assert upright(axes[0]) == [28, 39]
    assert {"V_onset of perturbed tokens: 28", "V* of perturbed tokens: 39"} <= set(legend(axes[0]))
    assert not [text for text in legend(axes[0]) if text.startswith("no ")]
    assert upright(axes[1]) == [28]
    assert "no V* of unperturbed tokens" in legend(axes[1])


@pytest.mark.parametrize("n_layers", [9, 30, 40, 80])
def test_the_curve_and_its_deviation_fill_the_panel(tmp_path, n_layers):
    run = write_run(tmp_path / "run", planted(hybrid_curves(n_layers), noise=0.3))
    for ax in entropy_partition(run, Figure().subplots(2, 1)):
        highest = max(top for _, top in band(ax.collections[0]).values())
        assert highest > 0.85 * ax.get_ylim()[1]


def test_a_lowest_layer_before_the_final_rise_is_drawn_and_named(tmp_path):
    perturbed = np.interp(np.arange(1, 31), [1, 10, 20, 24, 28, 30], [3, 2.5, 0.4, 1.0, 0.6, 1.4])
    run = write_run(tmp_path / "run", planted({"perturbed": perturbed, "unperturbed": np.append(perturbed[:-1], 0.2)}))
    drawn_on = entropy_partition(run, Figure().subplots(2, 1))
    assert "V* of perturbed tokens: 28" in legend(drawn_on[0])
    rings = [line for ax in drawn_on for line in ax.lines if line.get_marker() == "o"]
    assert [ring.get_xydata()[0].tolist() for ring in rings] == [pytest.approx([20, 0.4], rel=1e-5)]
    assert "lowest layer: 20" in legend(drawn_on[0])
    table = entropy_table(run)
    marks = table.dropna(subset="mark")[["group", "layer", "mark"]].to_numpy().tolist()
    assert marks == [["perturbed", 20, "lowest"], ["perturbed", 28, "V*"]]


def test_an_inset_enlarges_the_last_five_layers(hybrid, axes):
    for ax, perturbed in zip(axes, (True, False), strict=True):
        (inset,) = ax.child_axes
        assert np.asarray(inset.lines[0].get_xdata()).tolist() == [36, 37, 38, 39, 40]
        tokens = members(hybrid, perturbed)
        expected = [statistics.fmean(token[layer - 1] for token in tokens) for layer in range(36, 41)]
        assert np.asarray(inset.lines[0].get_ydata(), dtype=float) == pytest.approx(expected, rel=1e-5)
        assert inset.get_ylim()[0] <= min(expected) < max(expected) <= inset.get_ylim()[1]


@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("n_layers", [9, 30, 80])
def test_the_enlarged_layers_stand_beside_the_panel_on_the_page(tmp_path, n_layers, width):
    page, _ = figure4(write_run(tmp_path / "run", planted(hybrid_curves(n_layers), noise=0.3)), width=width)
    page.draw_without_rendering()
    panels = [ax.get_window_extent() for ax in page.axes]
    insets = [ax.child_axes[0].get_tightbbox() for ax in page.axes]
    for box in insets:
        assert page.bbox.x0 <= box.x0 < box.x1 <= page.bbox.x1
        assert not any(box.overlaps(panel) for panel in panels)
    assert not insets[0].overlaps(insets[1])


def test_phases_are_tinted_and_full_attention_is_banded(axes):
    for ax in axes:
        spans = [(to_hex(p.get_facecolor()), p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
        assert [span[1:] for span in spans if span[0] == to_hex(style.PHASE_TINTS["I"])] == [(0.5, 4.5)]
        assert [span[1:] for span in spans if span[0] == to_hex(style.PHASE_TINTS["III"])] == [(39.5, 40.5)]
        grey = [round(start + 0.5) for colour, start, _ in spans if colour == to_hex(style.FULL_ATTENTION)]
        assert grey == list(range(4, 41, 4))
        assert {"I", "II", "III"} <= set(texts(ax))


def test_half_steps_are_drawn_between_the_layers(tmp_path):
    prompts = planted(hybrid_curves(), noise=0.2, n_tokens=20)
    random = np.random.default_rng(0)
    for rows in prompts.values():
        rows["half_entropy"] = (rows["entropy"] * random.uniform(0.5, 1.5, (20, 40))).astype(np.float32)
        rows["half_entropy"][:, 6] = np.nan
        rows["half_top_token_id"] = np.zeros((20, 40), np.int32)
    run = write_run(tmp_path / "run", prompts)
    for ax, perturbed in zip(
        entropy_partition(run, Figure().subplots(2, 1), half_steps=True), (True, False), strict=True
    ):
        halves = [row["half_entropy"] for row in run.tokens.to_dict("records") if row["perturbed"] == perturbed]
        (drawn,) = [line.get_xydata() for line in ax.lines if line.get_label() == "half steps"]
        assert drawn[::2, 0].tolist() == [layer - 0.5 for layer in range(1, 41)]
        assert drawn[::2, 1] == pytest.approx(np.mean(halves, axis=0), rel=1e-5, nan_ok=True)
        assert drawn[1::2] == pytest.approx(ax.lines[0].get_xydata())
        assert "half steps" in legend(ax)
        (inset,) = ax.child_axes
        assert "half steps" in [line.get_label() for line in inset.lines]
    without = entropy_partition(run, Figure().subplots(2, 1))
    assert not [text for ax in without for text in legend(ax) if text == "half steps"]


@pytest.mark.parametrize("n_layers", [2, 4, 7])
def test_few_layers_are_drawn_without_phases_or_inset(tmp_path, n_layers):
    prompts = {f"p{i}": {"entropy": np.random.default_rng(i).gamma(1, 1, (9, n_layers))} for i in range(3)}
    for ax in entropy_partition(write_run(tmp_path / "run", prompts), Figure().subplots(2, 1)):
        assert not ax.child_axes
        assert not {"I", "II", "III"} & set(texts(ax))
        assert len(ax.lines[0].get_xdata()) == n_layers


def test_one_prompt_is_drawn_without_intervals(tmp_path):
    prompts = planted(hybrid_curves(), n_prompts=1, noise=0.1)
    ax = entropy_partition(write_run(tmp_path / "run", prompts), Figure().subplots(2, 1))[0]
    assert ax.get_title(loc="left") == "Perturbed: 12 tokens, 30.0 %"
    assert len(ax.collections) == 1
    assert legend(ax)[:2] == ["mean", "± 1 sd"]
    assert "95 % interval" not in legend(ax)


def test_one_token_is_drawn_as_a_line_alone(tmp_path):
    prompts = planted(hybrid_curves(), n_prompts=1, n_tokens=20, perturbed_share=0.05, noise=0.1)
    ax = entropy_partition(write_run(tmp_path / "run", prompts), Figure().subplots(2, 1))[0]
    assert ax.get_title(loc="left") == "Perturbed: 1 token, 5.0 %"
    assert not ax.collections
    assert not {"± 1 sd", "95 % interval"} & set(legend(ax))
    assert not ax.child_axes[0].collections


def test_a_group_without_tokens_says_so(tmp_path):
    prompts = planted(hybrid_curves(), perturbed_share=0)
    empty, whole = entropy_partition(write_run(tmp_path / "run", prompts), Figure().subplots(2, 1))
    assert "no such token" in texts(empty)
    unseen = 100 * scipy.stats.binomtest(0, 8).proportion_ci().high
    assert empty.get_title(loc="left") == f"Perturbed: 0 tokens, 0.0 % (95 %: 0.0–{unseen:.1f})"
    assert whole.get_title(loc="left") == f"Unperturbed: 320 tokens, 100.0 % (95 %: {100 - unseen:.1f}–100.0)"
    assert len(whole.lines[0].get_ydata()) == 40


def test_the_table_carries_marks_phases_and_shares(hybrid):
    table = entropy_table(hybrid)
    assert len(table) == 80
    marks = table.dropna(subset="mark")[["group", "layer", "mark"]].to_numpy().tolist()
    assert marks == [["perturbed", 28, "V_onset"], ["perturbed", 39, "V*"], ["unperturbed", 28, "V_onset"]]
    assert table["phase"].tolist() == 2 * (["I"] * 4 + ["II"] * 35 + ["III"])
    assert math.fsum(table.groupby("group")["share"].first()) == pytest.approx(1)


def test_a_model_of_one_layer_has_no_such_figure(tmp_path):
    run = write_run(tmp_path / "run", {"p": {"entropy": np.ones((3, 1))}})
    with refused(RunError, problem="single layer"):
        entropy_partition(run)
