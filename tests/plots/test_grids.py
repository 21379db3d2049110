"""Grids of token boxes (Figures 7 to 12), read off their axes."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.font_manager import findfont, get_font

from layerlens.errors import OptionError, RunError
from layerlens.plots import save
from layerlens.plots.boxes import FONT
from layerlens.plots.grids import COLUMNS, FRAME, figure_grid, grid_table
from tests.made_up_run import write_run
from tests.plots.heatmaps import cell_colours
from tests.refusals import refused

WORDS = {token_id: f" w{token_id}" for token_id in range(100)}


def text(ids, *, substituted=(), seed=0, selected=3):
    """A generated text of three layers whose valley ranks another token first at some places."""
    ids, random = np.asarray(ids, dtype=np.int32), np.random.default_rng(seed)
    entropy = np.sort(random.gamma(1.0, 1.0, (len(ids), 3)), axis=1)[:, [2, 0, 1]].astype(np.float32)
    top = np.stack([ids, ids + 50 * np.isin(np.arange(len(ids)), substituted), ids], axis=1)
    measures = {"entropy": entropy, "top_token_id": top.astype(np.int32), "next_token_id": ids}
    return measures | {"selected_layer": np.full(len(ids), selected, dtype=np.int16)}


LAST = {"a": text([1, 2, 3, 4], seed=1), "b": text(range(20), seed=2), "only-last": text([1])}
VALLEY = {
    "a": text([1, 2, 9, 4, 5, 6], substituted=[2], seed=3, selected=2),
    "b": text([0, 1, 7, *range(3, 40)], substituted=[2, 5, 6], seed=4, selected=2),
    "only-valley": text(range(9), substituted=range(9), selected=2),
}


@pytest.fixture
def runs(tmp_path):
    last = write_run(tmp_path / "last", LAST, words=WORDS)
    return last, write_run(tmp_path / "valley", VALLEY, words=WORDS, strategy="valley")


def tokens_of(run, prompt_id):
    rows = [row for row in run.tokens.to_dict("records") if row["prompt_id"] == prompt_id and row["is_generated"]]
    return sorted(rows, key=lambda row: row["position"])


def grids(figure):
    """The axes of the texts, without the colour bar."""
    return [ax for ax in figure.axes if ax.get_title(loc="left")]


def drawn_boxes(ax):
    """Bounds (left, upper, right, lower), face or None, edge and line width of every box, in the order of drawing."""
    found = []
    for collection in ax.collections:
        if isinstance(collection, QuadMesh):
            continue
        faces, edges, widths = collection.get_facecolor(), collection.get_edgecolor(), collection.get_linewidth()
        for index, path in enumerate(collection.get_paths()):
            bounds = (*path.vertices.min(axis=0), *path.vertices.max(axis=0))
            face = to_hex(faces[index % len(faces)]) if len(faces) else None
            edge = to_hex(edges[index % len(edges)]) if len(edges) else None
            found.append((bounds, face, edge, widths[index % len(widths)]))
    return found


def framed(ax):
    """Places that have a red frame, counted through the rows."""
    red = [bounds for bounds, _, edge, _ in drawn_boxes(ax) if edge == FRAME.lower()]
    return sorted(int(top) * COLUMNS["two"] + int(left) for left, top, _, _ in red)


def labels(ax):
    """Drawn texts by cell, the line under the grid and what stands below framed tokens left out."""
    inside = [one for one in ax.texts if not one.get_text().startswith("… ") and one.get_style() == "normal"]
    return {(int(one.get_position()[1]), int(one.get_position()[0])): one.get_text() for one in inside}


def replaced(ax):
    """What stands in italics in the lower half of boxes, by place."""
    italics = [one for one in ax.texts if one.get_style() == "italic"]
    assert all(one.get_position()[1] % 1 > 0.5 for one in italics)
    return {
        int(row) * COLUMNS["two"] + int(column): one.get_text()
        for one in italics
        for column, row in [one.get_position()]
    }


@pytest.mark.parametrize("prompt_id", ["a", "b"])
def test_boxes_are_tokens_in_order_and_their_colour_is_the_sampled_layers_entropy(runs, prompt_id):
    figure, _ = figure_grid(*runs, prompt_id)
    (mesh,) = (one for one in figure.axes[-1].collections if one.get_array() is not None and one.get_array().size > 9)
    for run, ax in zip(runs, grids(figure), strict=True):
        tokens = tokens_of(run, prompt_id)
        cells = [divmod(place, COLUMNS["two"]) for place in range(len(tokens))]
        assert labels(ax) == {cell: f"w{row['next_token_id']}" for cell, row in zip(cells, tokens, strict=True)}
        drawn = cell_colours(ax)
        assert sorted(drawn) == cells
        for cell, row in zip(cells, tokens, strict=True):
            entropy = row["entropy"][row["selected_layer"] - 1]
            assert drawn[cell] == to_hex(mesh.cmap(mesh.norm(entropy)))


def test_one_scale_from_zero_to_the_highest_entropy_serves_both_texts(runs):
    figure, _ = figure_grid(*runs, "b")
    highest = max(row["entropy"][row["selected_layer"] - 1] for run in runs for row in tokens_of(run, "b"))
    assert figure.axes[-1].get_xlim() == pytest.approx((0, highest))
    assert len(figure.axes) == 3


def test_colours_darken_with_entropy(runs):
    figure, table = figure_grid(*runs, "b")
    order = table[table["text"] == 1].sort_values("entropy")["place"]
    drawn = cell_colours(grids(figure)[1])
    grey = [
        mpl.colors.to_rgb(drawn[divmod(place, COLUMNS["two"])]) @ np.array([0.2126, 0.7152, 0.0722]) for place in order
    ]
    assert grey == sorted(grey, reverse=True)
    assert grey[0] - grey[-1] > 0.3


def test_frames_mark_what_the_decoding_replaced_and_the_replaced_token_stands_below(runs):
    for prompt_id in ("a", "b"):
        figure, table = figure_grid(*runs, prompt_id)
        above, below = grids(figure)
        tokens = tokens_of(runs[1], prompt_id)
        choices = [(row["top_token_id"][row["selected_layer"] - 1], row["top_token_id"][-1]) for row in tokens]
        expected = {place: last for place, (selected, last) in enumerate(choices) if selected != last}
        assert framed(above) == [], "the last layer replaced nothing"
        assert framed(below) == list(expected) == {"a": [2], "b": [2, 5, 6]}[prompt_id]
        assert replaced(above) == {}
        assert replaced(below) == {place: f"w{last}" for place, last in expected.items()}
        part = table[table["text"] == 1].set_index("place")
        assert part["other_token_id"].dropna().to_dict() == expected
        assert part.loc[list(expected), "other_token"].tolist() == [WORDS[last] for last in expected.values()]
        assert set(table["rule"]) == {"substitution"}


def test_a_token_from_an_earlier_layer_that_ranks_it_first_too_is_not_framed(tmp_path):
    """The selected layer counts, and not the valley: with a probability p of its layer a run has tokens of both."""
    measures = text(range(6), substituted=[1, 3], selected=2)
    measures["selected_layer"][3] = 3
    figure, _ = figure_grid(None, write_run(tmp_path / "run", {"p": measures}, words=WORDS, strategy="valley"))
    (ax,) = grids(figure)
    assert framed(ax) == [1]
    assert ax.get_title(loc="left") == "Confident decoding, valley: 6 tokens, 1 substituted (framed)"


def test_a_strategy_that_contrasts_layers_has_what_is_not_the_last_layers_choice_framed(tmp_path):
    measures = text(range(6))
    measures["next_token_id"] = np.array([0, 1, 9, 3, 4, 5], dtype=np.int32)
    figure, _ = figure_grid(None, write_run(tmp_path / "run", {"p": measures}, words=WORDS, strategy="dola"))
    (ax,) = grids(figure)
    assert (framed(ax), replaced(ax)) == ([2], {2: "w2"})
    assert ax.get_title(loc="left") == "Decoding dola: 6 tokens, 1 substituted (framed)"


def test_frames_mark_places_at_which_the_texts_differ(runs):
    figure, table = figure_grid(*runs, "a", rule="place")
    assert [framed(ax) for ax in grids(figure)] == [[2], [2, 4, 5]]
    assert [replaced(ax) for ax in grids(figure)] == [{}, {}]
    figure, _ = figure_grid(*runs, "b", rule="place")
    assert [framed(ax) for ax in grids(figure)] == [[2], [2, *range(20, 40)]]
    assert set(table["rule"]) == {"place"}


def test_a_frame_lies_within_its_box_on_a_wider_white_one_and_above_the_texts(runs):
    for ax in grids(figure_grid(*runs, "b", rule="place")[0]):
        frames = [one for one in drawn_boxes(ax) if one[1] is None]
        assert len(frames) == 2 * len(framed(ax)) > 0
        for (under, _, white, wide), (over, _, red, narrow) in zip(frames[::2], frames[1::2], strict=True):
            assert (white, red) == ("#ffffff", FRAME.lower())
            assert wide > 2 * narrow
            left, top, right, low = over
            assert tuple(under) == tuple(over)
            assert int(left) < left < right < int(left) + 1
            assert int(top) < top < low < int(top) + 1
        filled, *_, empty = ax.collections
        assert filled.get_zorder() < min(text.get_zorder() for text in ax.texts) <= empty.get_zorder()


@pytest.mark.parametrize("seed", range(6))
def test_places_and_alignments_keep_their_laws(tmp_path, seed):
    random = np.random.default_rng(seed)
    texts = [random.integers(0, 4, random.integers(1, 25)).tolist() for _ in range(2)]
    runs = [write_run(tmp_path / f"r{i}", {"p": text(ids)}, words=WORDS) for i, ids in enumerate(texts)]
    by_place = grid_table(*runs, rule="place")
    for index, (own, other) in enumerate((texts, texts[::-1])):
        expected = [place >= len(other) or own[place] != other[place] for place in range(len(own))]
        assert by_place[by_place["text"] == index]["framed"].tolist() == expected
    aligned = grid_table(*runs, rule="alignment")
    above, below = (aligned[(aligned["text"] == index) & ~aligned["framed"].astype(bool)] for index in (0, 1))
    assert above["token_id"].tolist() == below["token_id"].tolist()


def test_an_alignment_sees_through_an_inserted_token(tmp_path):
    runs = [write_run(tmp_path / str(i), {"p": text(ids)}) for i, ids in enumerate(([1, 2, 3, 4], [1, 9, 2, 3, 4]))]
    figure, table = figure_grid(*runs, rule="alignment")
    assert [framed(ax) for ax in grids(figure)] == [[], [1]]
    assert set(table["rule"]) == {"alignment"}
    assert [framed(ax) for ax in grids(figure_grid(*runs, rule="place")[0])] == [[1, 2, 3], [1, 2, 3, 4]]


def test_a_run_alone_from_the_last_layer_says_that_nothing_was_substituted(tmp_path):
    run = write_run(tmp_path / "run", {"a": text(range(20), substituted=[2, 5], seed=2)}, words=WORDS)
    (ax,) = grids(figure_grid(None, run)[0])
    assert framed(ax) == [2, 5]
    assert replaced(ax) == {2: "w52", 5: "w55"}, "the valley's choice"
    title = "Standard decoding, last layer: 20 tokens, 2 would be substituted (framed)"
    assert ax.get_title(loc="left") == title


def test_a_run_alone_has_its_substitutions_framed(runs):
    figure, table = figure_grid(None, runs[1], "b")
    (ax,) = grids(figure)
    slow = [
        place
        for place, row in enumerate(tokens_of(runs[1], "b"))
        if row["top_token_id"][row["valley_layer"] - 1] != row["top_token_id"][-1]
    ]
    assert framed(ax) == slow == [2, 5, 6]
    assert ax.get_title(loc="left") == "Confident decoding, valley: 40 tokens, 3 substituted (framed)"
    assert set(table["rule"]) == {"substitution"}


def test_the_command_chooses_the_prompt_and_the_rule(runs, tmp_path, cli):
    asked = ("--run", runs[1].path, "--beside", runs[0].path, "--out", tmp_path / "out", "--prompt-id", "a")
    assert cli("figure", "7", *asked, "--rule", "alignment", "--width", "one")[0] == 0
    written = pd.read_csv(tmp_path / "out" / "figure7.csv")
    assert set(written["prompt_id"]) == {"a"}
    assert set(written["rule"]) == {"alignment"}
    assert cli("figure", "8", *asked)[0] == 0
    assert set(pd.read_csv(tmp_path / "out" / "figure8.csv")["prompt_id"]) == {"a"}


def test_the_colour_of_frames_is_the_one_that_the_docs_name():
    said = (Path(__file__).parents[2] / "docs" / "figures" / "grids.md").read_text(encoding="utf-8")
    assert f"orange ({FRAME})" in said
    assert "red" not in said.lower().replace("were", "").split()


def test_titles_say_how_the_text_was_decoded_and_count(runs):
    above, below = grids(figure_grid(*runs, "a")[0])
    assert above.get_title(loc="left") == "(a) Standard decoding, last layer: 4 tokens"
    assert below.get_title(loc="left") == "(b) Confident decoding, valley: 6 tokens, 1 substituted (framed)"
    above, below = grids(figure_grid(*runs, "a", rule="place")[0])
    assert above.get_title(loc="left") == "(a) Standard decoding, last layer: 4 tokens, 1 differs (framed)"
    assert below.get_title(loc="left") == "(b) Confident decoding, valley: 6 tokens, 3 differ (framed)"


def test_figures_choose_the_prompts_with_most_substitutions(runs):
    assert figure_grid(*runs)[1]["prompt_id"].unique().tolist() == ["b"]
    assert figure_grid(*runs, choice=2)[1]["prompt_id"].unique().tolist() == ["a"]
    assert [figure_grid(None, runs[1], choice=k)[1]["prompt_id"].iloc[0] for k in (1, 2, 3)] == [
        "only-valley",
        "b",
        "a",
    ]


@pytest.mark.parametrize(("most", "left_out"), [(1, "… 39 more tokens"), (39, "… 1 more token"), (40, None)])
def test_long_texts_are_cut_and_say_by_how_much(runs, most, left_out):
    figure, table = figure_grid(None, runs[1], "b", most_tokens=most)
    (ax,) = grids(figure)
    assert len(cell_colours(ax)) == most == table["shown"].sum()
    assert len(table) == 40
    assert [one.get_text() for one in ax.texts if one.get_text().startswith("… ")] == ([left_out] if left_out else [])
    assert figure.axes[-1].get_xlim()[1] == pytest.approx(table["entropy"][:most].max())


def test_tokens_that_were_not_generated_are_left_out(tmp_path):
    measures = text(range(6)) | {"is_generated": np.array([False, False, True, True, True, False])}
    table = grid_table(None, write_run(tmp_path / "run", {"p": measures}))
    assert table["token_id"].tolist() == [2, 3, 4]


def test_the_table_holds_what_is_drawn(runs):
    table = grid_table(*runs, "a")
    assert table["text"].tolist() == [0] * 4 + [1] * 6
    assert table["decoding"].unique().tolist() == ["last", "valley"]
    for index, run in enumerate(runs):
        part, tokens = table[table["text"] == index], tokens_of(run, "a")
        assert part["place"].tolist() == list(range(len(tokens)))
        assert part["token_id"].tolist() == [row["next_token_id"] for row in tokens]
        assert part["token"].tolist() == [WORDS[row["next_token_id"]] for row in tokens]
        assert part["selected_layer"].tolist() == [row["selected_layer"] for row in tokens]
        assert part["entropy"].tolist() == [row["entropy"][row["selected_layer"] - 1] for row in tokens]


HARD = [
    " the",
    "\n",
    "\n" * 9,
    "\t",
    " ",
    " " * 16,
    "",
    "\r\n",
    "\x00\x1b[31m",
    "\u202eevil\u202c",
    "中文字",
    "日本",
    "😀",
]
HARD += [
    "👩‍👩‍👧",
    "العربية",
    "שלום",
    "हिन्दी",
    "$x$",
    "$",
    "\\$y_1$",
    "a" * 200,
    "\ufffd",
    "e" + "\u0301" * 40,
    "<b>",
    "&amp;",
]
HARD += ["^{", "%d", "\u2028", "\xad", "\xa0", "-" * 30, "W" * 14, "\\frac{a}{b}", "ﷺ", "\U000e0041", "\ue000", "_"]


@pytest.fixture
def hard(tmp_path):
    return write_run(tmp_path / "run", {"p": text(range(len(HARD)))}, words=dict(enumerate(HARD)))


def test_no_token_breaks_the_layout(hard, tmp_path):
    figure, table = figure_grid(None, hard)
    save(figure, table, tmp_path, "hard")  # warnings about glyphs would be errors here
    (ax,) = grids(figure)
    assert len(labels(ax)) == len(HARD)
    characters = get_font(findfont(FONT)).get_charmap()
    for (row, column), drawn in labels(ax).items():
        assert drawn
        assert all(ord(character) in characters and character.isprintable() for character in drawn), drawn
        (found,) = (one for one in ax.texts if one.get_text() == drawn and int(one.get_position()[0]) == column)
        left, right = ax.transData.transform([(column, row), (column + 1, row)])[:, 0]
        extent = found.get_window_extent()
        assert left - 1 <= extent.x0 <= extent.x1 <= right + 1, drawn
        assert found.get_clip_on()
        assert found.get_clip_path() is None
        cell = ax.transData.transform([(column, row + 1), (column + 1, row)])
        assert found.get_clip_box().extents == pytest.approx(cell.ravel())
        assert not found.get_parse_math()
    written = pd.read_csv(tmp_path / "hard.csv", keep_default_na=False)
    # an apostrophe comes before what a spreadsheet would evaluate
    assert [label.lstrip("'") for label in written["label"]] == [label.lstrip("'") for label in table["label"]]
    assert written["token_id"].tolist() == list(range(len(HARD)))


def test_texts_stay_on_the_page_and_off_each_other(runs):
    for figure, _ in (figure_grid(*runs), figure_grid(*runs, "a"), figure_grid(None, runs[1], "b", most_tokens=15)):
        figure.draw_without_rendering()
        page = figure.bbox
        lines = [ax._left_title for ax in grids(figure)]
        lines += [one for ax in grids(figure) for one in ax.texts if one.get_text().startswith("… ")]
        bar = figure.axes[-1]
        ticks = [one for one in bar.get_xticklabels() if one.get_position()[0] <= bar.get_xlim()[1]]  # others stay away
        lines += [*bar.texts, *ticks]
        extents = [one.get_window_extent() for one in lines if one.get_text()]
        extents += [ax.get_window_extent() for ax in grids(figure)]
        for extent in extents:
            assert page.x0 <= extent.x0 <= extent.x1 <= page.x1
            assert page.y0 <= extent.y0 <= extent.y1 <= page.y1
        titles = [one.get_window_extent() for one in lines if one.get_text()]
        for index, extent in enumerate(titles):
            assert not any(extent.overlaps(other) for other in titles[:index])
            assert not any(extent.overlaps(ax.get_window_extent().shrunk(1, 0.9)) for ax in grids(figure))


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    first, second = (save(*figure_grid(*runs), tmp_path / name, "figure7") for name in ("x", "y"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_readers_settings_are_left_alone(runs, tmp_path):
    with mpl.rc_context({"font.size": 11.5, "font.family": ["serif"], "lines.linewidth": 3.5}):
        before = dict(mpl.rcParams)
        save(*figure_grid(*runs), tmp_path / "out", "figure7")
        assert dict(mpl.rcParams) == before


def test_runs_without_common_prompts_are_refused(tmp_path, runs):
    other = write_run(tmp_path / "other", {"z": text([1])}, strategy="valley")
    with refused(RunError, problem="no prompt"):
        figure_grid(runs[0], other)


def test_a_prompt_that_is_not_there_is_refused_with_some_that_are(runs):
    with refused(RunError, "prompt_id", "only-last", advice="a, b"):
        figure_grid(*runs, "only-last")


def test_a_choice_beyond_the_prompts_is_refused(runs):
    with refused(RunError, "choice", 3, problem="figure 9"):
        figure_grid(*runs, choice=3)
    with refused(RunError, "choice", 7, problem="2 prompts"):
        figure_grid(*runs, choice=7)
    with refused(OptionError, "choice", 0):
        figure_grid(*runs, choice=0)
    with refused(OptionError, "rule", "words", advice="substitution, alignment, place"):
        figure_grid(*runs, rule="words")
    with refused(OptionError, "rule", "alignment", advice="last layer"):
        figure_grid(None, runs[1], rule="alignment")


def test_a_run_of_one_prompt_says_which_text_the_figure_shows(tmp_path, cli):
    run = write_run(tmp_path / "one", {"a": VALLEY["a"]}, words=WORDS, strategy="valley")
    code, out, err = cli("figure", "9", "--run", run.path, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert str(run.path) in err
    assert "1 prompt;" in err
    assert not (tmp_path / "out").exists()


def test_other_prompts_under_the_same_id_are_refused(tmp_path, runs):
    other = write_run(tmp_path / "other", {"a": VALLEY["a"]}, strategy="valley")
    path = other.path / "prompts.parquet"
    prompts = pq.read_table(path)
    pq.write_table(prompts.set_column(1, prompts.schema.field(1), [["something else"]]), path)
    with refused(RunError, "prompt_id", "a"):
        figure_grid(runs[0], other)


def test_a_run_without_generated_tokens_is_refused(tmp_path, runs):
    measures = text([1, 2]) | {"is_generated": np.zeros(2, dtype=bool)}
    run = write_run(tmp_path / "given", {"a": measures})
    with refused(RunError, problem="generated token"):
        figure_grid(runs[0], run)
