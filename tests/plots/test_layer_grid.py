"""The grid of layers by tokens, its table against the run's own rows and its cells read off the axes."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb

from layerlens.errors import OptionError, RunError
from layerlens.plots import lens_grid, save
from layerlens.plots.layer_grid import COLUMNS, KNOWN, MOST_COLUMNS, MOST_ROWS, figure_lens_grid
from tests.made_up_run import write_run
from tests.plots.heatmaps import cell_colours
from tests.refusals import refused

WORDS = {token_id: f" w{token_id}" for token_id in range(60)} | {7: "\n", 8: " ", 9: "a$b_c$"}
COLOURS = {"entropy": "entropy", "probability": "top_k_probs", "rank": "next_rank", "divergence": "js_from_last"}


def measures(n_tokens, n_layers, seed=0, n_given=0):
    random = np.random.default_rng(seed)
    shape = (n_tokens, n_layers)
    return {
        "entropy": random.gamma(1, 2, shape),
        "top_token_id": random.integers(0, 12, shape),
        "next_token_id": random.integers(0, 12, n_tokens),
        "is_generated": np.arange(n_tokens) >= n_given,
    }


def extras(n_tokens, n_layers, seed=0):
    random = np.random.default_rng(seed)
    shape = (n_tokens, n_layers)
    return {
        "top_k_token_ids": random.integers(0, 12, (*shape, 3)),
        "top_k_probs": np.sort(random.random((*shape, 3)))[:, :, ::-1],
        "next_rank": random.integers(0, 9000, shape),
        "next_log_prob": -random.gamma(1, 2, shape),
        "js_from_last": random.random(shape) * math.log(2),
    }


@pytest.fixture
def run(tmp_path):
    prompts = {name: measures(30, 5, seed) | extras(30, 5, seed) for seed, name in enumerate(("one", "two"))}
    prompts["two"]["is_generated"][:4] = False
    prompts["two"]["entropy"][6, 2] = np.nan
    prompts["two"]["next_rank"][-1] = -1
    prompts["two"]["next_token_id"] = [*prompts["two"]["next_token_id"][:-1].tolist(), None]
    return write_run(tmp_path / "run", prompts, words=WORDS)


def rows_of(run, prompt_id):
    rows = [row for row in run.tokens.to_dict("records") if row["prompt_id"] == prompt_id]
    return sorted(rows, key=lambda row: row["position"])


def framed(ax):
    """(row, column) of every frame."""
    found = set()
    for collection in ax.collections:
        if isinstance(collection, PolyCollection):
            edges = [to_hex(edge) for edge in collection.get_edgecolor()]
            for index, path in enumerate(collection.get_paths()):
                if edges[index % len(edges)] == KNOWN.lower():
                    left, top = path.vertices.min(axis=0)
                    found.add((int(top), int(left)))
    return found


@pytest.mark.parametrize("prompt_id", ["one", "two"])
@pytest.mark.parametrize("colour", COLOURS)
def test_the_table_holds_what_the_run_says(run, prompt_id, colour):
    _, table = figure_lens_grid(run, prompt_id, first=3, last=30, colour=colour)
    rows, seen = rows_of(run, prompt_id), 0
    for cell in table.to_dict("records"):
        row, layer = rows[cell["place"] - 1], cell["layer"]
        followed = row["next_token_id"]
        known = not (followed is None or math.isnan(followed))
        value = row[COLOURS[colour]][layer - 1]
        value = value[0] if colour == "probability" else value
        assert (cell["prompt_id"], cell["position"], cell["token_id"]) == (prompt_id, row["position"], row["token_id"])
        assert cell["token"] == run.text_of([row["token_id"]])[0]
        assert cell["next_token_id"] == (followed if known else -1)
        assert cell["next_token"] == (WORDS[followed] if known else "")
        assert cell["top_token_id"] == row["top_token_id"][layer - 1]
        assert cell["top_token"] == WORDS[cell["top_token_id"]]
        assert cell["is_next"] == (cell["top_token_id"] == followed)
        assert (cell["colour"], cell["measure"]) == (colour, COLOURS[colour])
        expected = math.nan if value is None else value
        assert cell["value"] == pytest.approx(expected, nan_ok=True)
        seen += 1
    assert seen == 28 * 5
    assert np.isnan(table["value"]).sum() == {"entropy": 1, "rank": 5}.get(colour, 0) * (prompt_id == "two")


def test_the_layer_that_is_deepest_stands_on_top_and_frames_are_where_the_next_token_is_known(run):
    figure, table = figure_lens_grid(run, "one", first=1, last=10)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["5", "4", "3", "2", "1"]
    assert ax.get_ylim() == (5, 0)
    expected = {(5 - row["layer"], row["place"] - 1) for row in table.to_dict("records") if row["is_next"]}
    assert framed(ax) == expected
    assert expected
    drawn = {
        (math.floor(t.get_position()[1]), math.floor(t.get_position()[0])): t.get_text()
        for t in ax.texts
        if t.get_clip_on()
    }
    for row in table.to_dict("records"):
        assert drawn[5 - row["layer"], row["place"] - 1] == {"\n": "⏎", " ": "␣"}.get(
            row["top_token"], row["top_token"].strip()
        )


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_those_of_the_bar_and_strong_where_the_model_is_less_sure(run, colour):
    figure, table = figure_lens_grid(run, "one", colour=colour)
    ax, bar = figure.axes
    mesh = next(one for one in bar.collections if one.get_array() is not None and one.get_array().size > 9)
    drawn = cell_colours(ax)
    assert len(drawn) == len(table) == COLUMNS["two"] * 5
    shades = []
    for row in table.to_dict("records"):
        colour_drawn = drawn[5 - row["layer"], row["place"] - 1]
        assert colour_drawn == to_hex(mesh.cmap(mesh.norm(row["value"])))
        shades.append((row["value"], to_rgb(colour_drawn) @ np.array([0.2126, 0.7152, 0.0722])))
    greys = [grey for _, grey in sorted(shades, reverse=colour == "probability")]
    assert greys == sorted(greys, reverse=True)
    assert greys[0] - greys[-1] > 0.3
    unit = {"entropy": "nats", "divergence": "nats", "probability": "probability", "rank": "rank"}[colour]
    assert unit in " ".join(text.get_text() for text in bar.texts)


def test_ranks_lie_on_a_logarithmic_scale(run):
    figure, table = figure_lens_grid(run, "one", colour="rank")
    bar = figure.axes[1]
    mesh = next(one for one in bar.collections if one.get_array() is not None and one.get_array().size > 9)
    top = table["value"].max()
    for rank in (0, 1, 10, 1000):
        assert mesh.norm(rank) == pytest.approx(math.log(1 + rank) / math.log(1 + top))
    assert [text.get_text() for text in bar.get_xticklabels()] == ["0", "1", "10", "100", "1,000"]


def test_what_is_not_finite_is_grey(run):
    figure, table = figure_lens_grid(run, "two", first=1, last=10)
    [broken] = table[table["value"].isna()].to_dict("records")
    red, green, blue = to_rgb(cell_colours(figure.axes[0])[5 - broken["layer"], broken["place"] - 1])
    assert red == green == blue


def test_tokens_begin_where_the_text_was_generated(run):
    assert figure_lens_grid(run)[1]["prompt_id"].unique().tolist() == ["one"]
    for given, expected in (
        ({}, (5, 17)),
        ({"width": "one"}, (5, 9)),
        ({"first": 2}, (2, 14)),
        ({"first": 2, "width": "one"}, (2, 6)),
        ({"last": 29}, (5, 29)),
        ({"last": 3}, (1, 3)),
        ({"first": 20}, (20, 30)),
        ({"first": 30, "last": 30}, (30, 30)),
    ):
        places = figure_lens_grid(run, "two", **given)[1]["place"]
        assert (places.min(), places.max()) == expected


def test_deep_models_show_every_second_or_third_layer_and_always_the_last(tmp_path):
    for n_layers, expected in (
        (40, list(range(40, 0, -1))),
        (41, list(range(41, 0, -2))),
        (90, list(range(90, 0, -3))),
    ):
        run = write_run(tmp_path / str(n_layers), {"p": measures(3, n_layers)})
        layers = figure_lens_grid(run)[1]["layer"].unique().tolist()
        assert layers == expected
        assert len(layers) <= MOST_ROWS
    assert figure_lens_grid(run, layers=[3, 90, 17, 3])[1]["layer"].unique().tolist() == [90, 17, 3]


def test_a_run_with_kl_alone_shows_that(tmp_path):
    given = measures(4, 3)
    run = write_run(tmp_path / "run", {"p": given | {"kl_last_to_layer": given["entropy"] / 3}})
    figure, table = figure_lens_grid(run, colour="divergence")
    assert set(table["measure"]) == {"kl_last_to_layer"}
    assert table["value"].to_numpy() == pytest.approx((given["entropy"][:, ::-1] / 3).ravel(), rel=1e-5)
    assert "KL" in " ".join(text.get_text() for text in figure.axes[1].texts)


def test_texts_stay_on_the_page(run):
    for kwargs in ({}, {"first": 4, "last": 5, "colour": "divergence"}, {"layers": [2]}, {"first": 1, "last": 30}):
        page, _ = figure_lens_grid(run, "two", **kwargs)
        page.draw_without_rendering()
        for text in [*page.texts, *(one for ax in page.axes for one in (*ax.texts, ax.yaxis.label))]:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= page.bbox.width, text.get_text()
            assert box.y0 >= 0, text.get_text()
            assert box.y1 <= page.bbox.height, text.get_text()


def test_the_files_hold_the_table_and_are_the_same_each_time(run, tmp_path):
    first, second = (save(*figure_lens_grid(run, "two"), tmp_path / name, "grid") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    written, table = pd.read_csv(first[2], keep_default_na=False), figure_lens_grid(run, "two")[1]
    assert written["top_token_id"].tolist() == table["top_token_id"].tolist()
    assert written["top_token"].tolist() == table["top_token"].tolist()
    values = pd.to_numeric(written["value"], errors="coerce").to_numpy()
    assert values == pytest.approx(table["value"].to_numpy(), rel=1e-5, nan_ok=True)


def test_what_cannot_be_drawn_is_refused(run, tmp_path):
    with refused(OptionError, "prompt_id", "three", problem="three", advice="one, two"):
        figure_lens_grid(run, "three")
    with refused(OptionError, "colour", "hue", advice="entropy, probability, rank, divergence"):
        figure_lens_grid(run, colour="hue")
    with refused(OptionError, "colour", ["rank"]):
        figure_lens_grid(run, colour=["rank"])
    no_tokens = [("first", value) for value in (0, 31, 1.5, True, "x")] + [("last", 31), ("last", 30.0)]
    for option, value in no_tokens:
        given = {option: value}
        with refused(OptionError, option, given[option], advice="1 to 30"):
            figure_lens_grid(run, "one", **given)
    with refused(OptionError, "last", 4, advice="5"):
        figure_lens_grid(run, "one", first=5, last=4)
    for layers, given in (
        ([], []),
        ([0], 0),
        ([2, 6], 6),
        (["x"], "x"),
        ([1.5], 1.5),
        ([True], True),
        ("x", "x"),
        (1.5, 1.5),
    ):
        with refused(OptionError, "layers", given, advice="1 to 5"):
            figure_lens_grid(run, layers=layers)
    long = write_run(tmp_path / "long", {"p": measures(MOST_COLUMNS + 1, 2)})
    with refused(OptionError, "last", MOST_COLUMNS + 1, problem="97", advice="96"):
        figure_lens_grid(long, first=1, last=MOST_COLUMNS + 1)
    assert figure_lens_grid(long, first=1, last=MOST_COLUMNS)[1]["place"].nunique() == MOST_COLUMNS
    for colour, option in (("probability", "top"), ("rank", "targets"), ("divergence", "js")):
        with refused(RunError, given=long.path, advice=option):
            figure_lens_grid(long, colour=colour)
    empty = write_run(tmp_path / "empty", {"p": {"entropy": np.zeros((0, 3))}})
    with refused(RunError, problem="complete prompt"):
        figure_lens_grid(empty)


def test_from_python_it_gives_the_axes_as_every_other_plot_does(run):
    ax = lens_grid(run, "two", first=2, last=9, colour="rank")
    page, _ = figure_lens_grid(run, "two", first=2, last=9, colour="rank")
    assert isinstance(ax, Axes)
    assert (cell_colours(ax), framed(ax)) == (cell_colours(page.axes[0]), framed(page.axes[0]))
    assert ax.figure.get_size_inches().tolist() == page.get_size_inches().tolist()
    assert ax.get_window_extent().width == pytest.approx(page.axes[0].get_window_extent().width)
    pyplot.close(ax.figure)


def test_the_command_writes_the_figure_and_its_numbers(run, tmp_path, cli):
    out = tmp_path / "figures"
    options = ["--prompt-id", "two", "--first", 2, "--last", 9, "--colour", "rank"]
    code, printed, _ = cli("figure", "grid", "--run", run.path, "--out", out, *options)
    assert (code, printed.split()) == (0, [str(out / f"grid.{suffix}") for suffix in ("png", "pdf", "csv")])
    written = pd.read_csv(out / "grid.csv", keep_default_na=False)
    expected = figure_lens_grid(run, "two", first=2, last=9, colour="rank")[1]
    assert written["place"].tolist() == expected["place"].tolist()
    assert written["value"].astype(float).tolist() == expected["value"].tolist()
    assert cli("figure", "grid", "--run", run.path, "--out", out)[0] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["grid", "--colour", "hue"], ["'hue'", "entropy, probability, rank, divergence"]),
        (["grid", "--first", 99], ["--first 99", "1 to 30"]),
        (["grid", "--prompt-id", "three"], ["'three'", "one, two"]),
        (["2", "--colour", "rank"], ["--colour rank", "figure grid"]),
        (["all", "--first", 1], ["--first 1", "figure grid"]),
        (["4", "--prompt-id", "one"], ["--prompt-id one", "figures 7 to 12 and grid"]),
        (["grid", "--rule", "place"], ["--rule place", "figures 7 to 12"]),
        (["7", "--rule", "place"], ["--rule place", "compares two texts"]),
        (["4", "--width", "three"], ["--width three", "one, two"]),
        (["onset", "--half-steps"], ["--half-steps", "figures 4 and 6", "onset"]),
        (["2", "--half-steps"], ["--half-steps", "figures 4 and 6"]),
        (["grid", "--beside", "other"], ["--beside other", "figures 7 to 12"]),
        (["4", "--evaluation", "other"], ["--evaluation other", "figures 3 and explanation"]),
    ],
)
def test_the_command_refuses_in_one_sentence(run, tmp_path, cli, given, said):
    code, out, err = cli("figure", *given, "--run", run.path, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert all(part in err for part in said)
    assert len(err.strip().splitlines()) == 1
