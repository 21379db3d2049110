"""The explorer's grid of layers by tokens, and the links to what is shown, in a real browser."""

import math
import re
from html import escape
from urllib.parse import parse_qs, quote

import numpy as np
import pytest

from layerlens.report import explorer_html
from tests.made_up_run import eq7, write_run
from tests.report.test_explorer import (
    HOSTILE_ID,
    READY,
    SHOWN,
    TEXTS,
    choose,
    go_to,
    mixed,
    ramp,
    shown_prompt,
    text_of,
)

N_LAYERS, N_TOPS = 9, 4
CELLS = "[...document.querySelectorAll('#grid .cell')]"
HEADS = "[...document.querySelectorAll('#grid .head-cell')]"
RAMPS = {"entropy": "entropy", "top_prob": "entropy", "next_rank": "entropy", "js_from_last": "stream"}
IDS = [*range(19), 99]


def visible(token_id):
    return SHOWN.get(token_id, TEXTS.get(token_id, "").replace(" ", "·"))


def measures(following, seed):
    random = np.random.default_rng(seed)
    shape = (len(following), N_LAYERS)
    entropy = random.gamma(1.2, 1.5, shape)
    valley = np.array([eq7(row, 5) for row in entropy], np.int16)
    top = random.integers(0, 19, shape)
    for layers, token in zip(top, following, strict=True):
        layers[random.integers(4, N_LAYERS) :] = token
    return {
        "entropy": entropy,
        "norm_ratio": random.lognormal(-1, 0.5, shape),
        "top_token_id": top.astype(np.int32),
        "next_token_id": following,
        "selected_layer": np.where(random.random(len(following)) < 0.5, valley, N_LAYERS).astype(np.int16),
        "top_k_token_ids": np.concatenate([top[..., None], random.integers(0, 40, (*shape, N_TOPS - 1))], axis=2),
        "top_k_probs": np.sort(random.dirichlet(np.full(6, 0.5), shape)[..., :N_TOPS])[..., ::-1],
        "next_rank": random.integers(0, 9000, shape) * (top != np.array(following)[:, None]),
        "next_log_prob": -random.gamma(1, 2, shape),
        "js_from_last": random.random(shape) * math.log(2),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    prompts = {"first": measures(IDS, 0), HOSTILE_ID: measures([4, 6, 3, 2, 1, 0, 5], 1)}
    prompts["first"]["entropy"][2] = np.nan
    prompts["first"]["top_k_probs"][2] = np.nan
    folder = tmp_path_factory.mktemp("grid") / "run"
    return write_run(folder, prompts, words=TEXTS, window=5, strategy="valley")


@pytest.fixture(scope="module")
def page(run):
    path = run.path / "explorer.html"
    path.write_text(explorer_html(run), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def grid(browser, page):
    """The page with its grid, wide enough for all of its columns."""
    browser.open(page, width=2300)
    browser.until(READY)
    browser.evaluate("document.body.style.maxWidth = 'none'")
    browser.click("document.querySelector('#view-grid')")
    browser.until(f"{CELLS}.length === {20 * N_LAYERS}")
    yield browser
    assert browser.complaints == []
    assert browser.dialogs == []
    assert browser.evaluate("window.hacked") is None


def cells(browser):
    """Token and layer, text, colour, and whether it is framed, of every cell on the page."""
    found = browser.evaluate(
        f"{CELLS}.map((c) => [Number(c.dataset.token), Number(c.dataset.layer), c.firstChild.textContent, "
        "c.style.backgroundColor, c.classList.contains('known'), c.classList.contains('missing')])"
    )
    return {(token, layer): rest for token, layer, *rest in found}


def chosen(browser):
    """Token and layer of the chosen cell, and of what the details are about."""
    cell = browser.evaluate(
        "(() => { const c = document.querySelector('#grid .cell[aria-selected]'); "
        "return c && [Number(c.dataset.token), Number(c.dataset.layer)]; })()"
    )
    spoken = re.match(r"Token ([\d,]+) of .*After layer (\d+)", text_of(browser, "#spoken"))
    about = [int(spoken[1].replace(",", "")) - 1, int(spoken[2])]
    assert cell == about
    return tuple(cell)


def values_of(run, measure):
    return run.layers("top_k_probs")[:, :, 0] if measure == "top_prob" else run.layers(measure).astype(float)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("measure", RAMPS)
def test_cells_are_the_top_tokens_of_every_layer_coloured_by_the_runs_numbers(grid, run, measure, dark):
    grid.prefer(dark=dark)
    grid.until(f"document.querySelector('#theme').getAttribute('aria-pressed') === '{str(dark).lower()}'")
    choose(grid, "measure", measure)
    values, drawn = values_of(run, measure), cells(grid)
    assert set(drawn) == {(token, layer) for token in range(20) for layer in range(1, N_LAYERS + 1)}
    ends = np.nanquantile(values, [0.02, 0.98], axis=0)
    low, high = (0.0 if measure != "top_prob" else ends[0].min()), ends[1].max()
    bent = math.log1p if measure == "next_rank" else float
    for (token, layer), (text, colour, known, missing) in drawn.items():
        top = run.layers("top_token_id")[token, layer - 1]
        assert text == visible(top)
        assert known == (top == IDS[token])
        value = values[token, layer - 1]
        assert missing == (not math.isfinite(value))
        if not missing:
            along = (bent(value) - bent(low)) / (bent(high) - bent(low))
            along = 1 - along if measure == "top_prob" else along
            found = tuple(map(int, re.findall(r"\d+", colour)))
            assert found == pytest.approx(mixed(ramp(RAMPS[measure], dark=dark), along), abs=2.6)


def test_the_deepest_layer_is_on_top_and_what_followed_stands_above(grid):
    tops = grid.evaluate(f"{CELLS}.map((c) => [Number(c.dataset.layer), c.getBoundingClientRect().top])")
    order = sorted({tuple(one) for one in tops}, key=lambda one: one[1])
    assert [layer for layer, _ in order] == list(range(N_LAYERS, 0, -1))
    heads = grid.evaluate(
        f"{HEADS}.map((c) => [c.firstChild.textContent, c.getBoundingClientRect().left, c.getBoundingClientRect().top])"
    )
    assert [text for text, _, _ in heads] == [visible(token_id) for token_id in IDS]
    lefts = grid.evaluate(f"{CELLS}.filter((c) => c.dataset.layer === '3').map((c) => c.getBoundingClientRect().left)")
    assert lefts == [left for _, left, _ in heads]
    assert max(top for _, _, top in heads) < min(top for _, top in tops)


def test_valleys_and_selected_layers_are_marked(grid, run):
    marked = grid.evaluate(
        f"{CELLS}.flatMap((c) => [...c.querySelectorAll('.valley-sign, .selected-sign')].map((s) => "
        "[Number(c.dataset.token), Number(c.dataset.layer), s.textContent]))"
    )
    expected = []
    for token, row in run.positions.iloc[:20].reset_index(drop=True).iterrows():
        for name, drawn in (("valley_layer", "▼"), ("selected_layer", "○")):
            if row[name] < N_LAYERS:
                expected.append([token, int(row[name]), drawn])
    assert sorted(marked) == sorted(expected)
    assert expected


def test_frames_of_replaced_tokens_are_those_of_the_text(grid):
    framed = "e.classList.contains('replaced') ? 'replaced' : e.classList.contains('differs') ? 'differs' : ''"
    boxes = grid.evaluate(f"[...document.querySelectorAll('#tokens [role=option]')].map((e) => {framed})")
    assert grid.evaluate(f"{HEADS}.map((e) => {framed})") == boxes
    assert set(boxes) == {"", "replaced", "differs"}


def test_clicking_a_cell_shows_the_first_words_of_that_layer(grid, run):
    ids, probs = run.layers("top_k_token_ids"), run.layers("top_k_probs")
    for token, layer in ((3, 2), (0, 9), (19, 1), (2, 5)):
        grid.click(f'document.querySelector(\'#grid .cell[data-token="{token}"][data-layer="{layer}"]\')')
        assert chosen(grid) == (token, layer)
        assert text_of(grid, "#first-words h4") == f"Top tokens after layer {layer}"
        words = grid.evaluate("[...document.querySelectorAll('#first-words .word')].map((e) => e.textContent)")
        assert words == [visible(i) if i in TEXTS else f"#{i}" for i in ids[token, layer - 1]]
        shown = grid.evaluate("[...document.querySelectorAll('#first-words .prob')].map((e) => e.textContent)")
        for said, prob in zip(shown, probs[token, layer - 1], strict=True):
            if not math.isfinite(prob):
                assert said == "–"
            elif said == "<0.01":
                assert prob < 0.0065
            else:
                assert float(said) == pytest.approx(prob, abs=0.0091)


def test_the_table_of_layers_has_what_the_run_was_asked_for(grid, run):
    grid.click('document.querySelector(\'#grid .cell[data-token="5"][data-layer="4"]\')')
    heads = grid.evaluate("[...document.querySelectorAll('#layers thead th')].map((e) => e.textContent)")
    assert heads[2:6] == ["Entropy", "Probability", "Rank", "JS"]
    rows = grid.evaluate(
        "[...document.querySelectorAll('#layers tbody tr')].map((tr) => [...tr.cells].map((c) => c.textContent))"
    )
    for row, layer in zip(rows, range(N_LAYERS, 0, -1), strict=True):
        for said, measure in zip(row[2:6], RAMPS, strict=True):
            assert float(said.replace(",", "")) == pytest.approx(values_of(run, measure)[5, layer - 1], abs=0.51)
    assert "probability" in text_of(grid, "#spoken")


def test_keys_walk_tokens_and_layers_and_change_the_view(grid):
    grid.click('document.querySelector(\'#grid .cell[data-token="2"][data-layer="9"]\')')
    assert grid.evaluate("document.activeElement.id") == "grid"
    moves = [("ArrowRight", (3, 9)), ("ArrowDown", (3, 8)), ("ArrowDown", (3, 7)), ("ArrowUp", (3, 8))]
    moves += [("ArrowLeft", (2, 8)), ("End", (19, 8)), ("ArrowRight", (19, 8)), ("Home", (0, 8))]
    for key, expected in moves:
        grid.press(key)
        assert chosen(grid) == expected
        active = "document.querySelector('#grid').getAttribute('aria-activedescendant')"
        assert grid.evaluate(f"document.getElementById({active}).getAttribute('aria-selected')") == "true"
    grid.press("v")
    assert grid.evaluate("[document.querySelector('#grid').hidden, document.querySelector('#tokens').hidden]") == [
        True,
        False,
    ]
    assert grid.evaluate("document.activeElement.getAttribute('role')") == "option"
    grid.press("ArrowRight")
    grid.press("v")
    assert chosen(grid) == (1, 8)
    assert grid.evaluate("document.activeElement.id") == "grid"
    assert "change the view" in text_of(grid, "#help")


def test_hostile_tokens_are_text_in_the_grid(grid):
    go_to(grid, 1)
    grid.until(f"{HEADS}.length === 7")
    assert grid.evaluate(f"{HEADS}.map((c) => c.textContent)") == [visible(i) for i in (4, 6, 3, 2, 1, 0, 5)]
    assert grid.evaluate("document.querySelectorAll('script').length") == 2
    assert grid.evaluate("document.querySelectorAll('#explorer img').length") == 0


def test_values_can_be_written_into_the_cells(grid, run):
    grid.click("document.querySelector('#numbers')")
    shown = grid.evaluate(
        f"{CELLS}.filter((c) => c.dataset.layer === '3').map((c) => c.querySelector('.value').textContent)"
    )
    for said, value in zip(shown, run.layers("entropy")[:20, 2], strict=True):
        assert (said == "–") == (not math.isfinite(value))
        assert said == "–" or float(said) == pytest.approx(value, abs=0.0056)


def test_search_marks_the_columns(grid):
    choose(grid, "search", "the sky")
    grid.until("document.querySelector('#search-count').textContent === '1 of 1'")
    marked = f"{HEADS}.flatMap((c) => c.classList.contains('match') ? [Number(c.dataset.token)] : [])"
    assert grid.evaluate(marked) == [2, 3]
    assert chosen(grid)[0] == 2


def offered(browser):
    return browser.evaluate("[...document.querySelectorAll('#measure option')].map((o) => o.value)")


def test_a_run_offers_the_colours_it_has(browser, run, page, tmp_path):
    given = measures([1, 2, 3], 5)
    kinds = {
        "plain": [],
        "kl": ["kl_last_to_layer"],
        "top": ["top_k_token_ids", "top_k_probs"],
        "targets": ["next_rank", "next_log_prob"],
    }
    expected = {"plain": [], "kl": ["kl_last_to_layer"], "top": ["top_prob"], "targets": ["next_rank"]}
    given["kl_last_to_layer"] = given["js_from_last"]
    always = ["norm_ratio", "io_cosine", "valley_layer", "selected_layer"]
    for name, columns in kinds.items():
        some = {column: given[column] for column in ("entropy", "top_token_id", "next_token_id", *columns)}
        path = tmp_path / f"{name}.html"
        path.write_text(explorer_html(write_run(tmp_path / name, {"p": some})), encoding="utf-8")
        browser.open(path.as_uri())
        browser.until(READY)
        assert offered(browser) == ["entropy", *expected[name], *always]
        assert browser.evaluate("document.querySelector('#first-words').hidden") == (name != "top")
        browser.press("v")
        browser.evaluate("document.querySelector('#view-grid').click()")
        assert browser.evaluate(f"{CELLS}.length") == 3 * N_LAYERS
        assert browser.complaints == []
    browser.open(page)
    browser.until(READY)
    assert offered(browser) == [*RAMPS, *always]


def test_colours_of_whole_tokens_are_the_texts_alone(grid):
    usable = "[...document.querySelectorAll('#measure option')].flatMap((o) => o.disabled ? [o.value] : [])"
    assert grid.evaluate(usable) == ["valley_layer", "selected_layer"]
    grid.press("v")
    grid.evaluate("document.querySelector('#view-text').click()")
    assert grid.evaluate(usable) == []
    choose(grid, "measure", "valley_layer")
    grid.evaluate("document.querySelector('#view-grid').click()")
    assert grid.evaluate("document.querySelector('#measure').value") == "entropy"


def test_first_words_that_did_not_fit_are_said_to_be_missing(browser, run, tmp_path, monkeypatch):
    monkeypatch.setattr("layerlens.report.packing.BUDGET", 1)
    path = tmp_path / "page.html"
    page = explorer_html(run)
    path.write_text(page.replace('"n_layers"', '"first_words":{"k":3,"words":"eJyLjgUAARUAuQ=="},"n_layers"', 1))
    browser.open(path.as_uri())
    browser.until(READY)
    assert "did not fit" in text_of(browser, "#first-words")
    assert browser.complaints == []


# Long texts


@pytest.fixture(scope="module")
def long_page(tmp_path_factory):
    random = np.random.default_rng(0)
    shape = (4096, 40)
    given = {"entropy": random.gamma(1, 2, shape), "top_token_id": random.integers(0, 19, shape).astype(np.int32)}
    folder = tmp_path_factory.mktemp("long")
    run = write_run(folder / "run", {"long": given | {"next_token_id": np.arange(4096) % 19}}, words=TEXTS)
    path = folder / "page.html"
    path.write_text(explorer_html(run), encoding="utf-8")
    return run, path.as_uri()


def test_only_what_is_in_view_is_on_the_page(browser, long_page):
    run, address = long_page
    browser.open(address, width=1200)
    browser.until(READY)
    browser.click("document.querySelector('#view-grid')")
    top = run.layers("top_token_id")
    for scrolled, expected in ((0, 0), (2000 * 78, 2000), (10**9, 4095)):
        browser.evaluate(f"document.querySelector('#grid').scrollLeft = {scrolled}")
        browser.until(f"{CELLS}.some((c) => c.dataset.token === '{expected}')")
        drawn = cells(browser)
        assert 40 * 5 < len(drawn) < 40 * 30
        assert all(text == visible(top[token, layer - 1]) for (token, layer), (text, *_) in drawn.items())
    browser.press("Home")
    browser.evaluate("document.querySelector('#grid').focus()")
    browser.press("End")
    assert chosen(browser)[0] == 4095
    for _ in range(39):
        browser.press("ArrowDown")
    assert chosen(browser) == (4095, 1)
    inside = browser.evaluate(
        "(() => { const c = document.querySelector('#chosen-cell').getBoundingClientRect(); "
        "const g = document.querySelector('#grid').getBoundingClientRect(); "
        "return c.left >= g.left && c.right <= g.right && c.top >= g.top && c.bottom <= g.bottom; })()"
    )
    assert inside


# Links


def link(browser):
    return browser.evaluate("location.hash")


def test_the_address_names_what_is_shown_and_opens_it_again(browser, page):
    browser.open(page)
    browser.until(READY)
    assert link(browser) == ""
    go_to(browser, 1)
    browser.until("document.querySelectorAll('#tokens [role=option]').length === 7")
    browser.click("document.querySelector('#view-grid')")
    choose(browser, "measure", "next_rank")
    browser.click('document.querySelector(\'#grid .cell[data-token="4"][data-layer="6"]\')')
    browser.until("location.hash.includes('token=5')")
    shown = link(browser)
    assert parse_qs(shown[1:]) == {
        "prompt": [HOSTILE_ID],
        "token": ["5"],
        "layer": ["6"],
        "view": ["grid"],
        "colour": ["next_rank"],
    }
    browser.open(page + shown)
    browser.until("document.querySelector('#chosen-cell') !== null")
    assert shown_prompt(browser) == 1
    assert browser.evaluate("document.querySelector('#measure').value") == "next_rank"
    assert browser.evaluate("document.querySelector('#view-grid').getAttribute('aria-pressed')") == "true"
    assert chosen(browser) == (4, 6)
    browser.evaluate("location.hash = 'prompt=first&token=2&layer=3&view=text&colour=norm_ratio'")
    browser.until("document.querySelectorAll('#tokens [role=option]').length === 20")
    browser.until("document.querySelector('#spoken').textContent.startsWith('Token 2 of 20')")
    assert "After layer 3:" in text_of(browser, "#spoken")
    assert browser.evaluate("document.querySelector('#measure').value") == "norm_ratio"
    assert browser.complaints == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("prompt=nowhere&token=3", (1, N_LAYERS)),
        ("prompt=first&token=999&layer=77", (20, N_LAYERS)),
        ("prompt=first&token=-4&layer=0", (1, 1)),
        ("prompt=first&token=x&layer=1.5&view=<b>&colour=constructor&run=9", (1, N_LAYERS)),
        (f"prompt=first&token=2&colour={quote('<img src=x onerror=alert(1)>')}", (2, N_LAYERS)),
        ("%", (1, N_LAYERS)),
        ("explorer-title", (1, N_LAYERS)),
    ],
)
def test_an_address_that_asks_for_what_is_not_there(browser, page, asked, expected):
    browser.open(f"{page}#{asked}")
    browser.until(READY)
    token, layer = expected
    assert re.match(rf"Token {token} of 20: .*After layer {layer}:", text_of(browser, "#spoken"))
    assert browser.evaluate("document.querySelector('#measure').value") == "entropy"
    assert browser.complaints == []
    assert browser.dialogs == []


def test_a_notebooks_frame_has_the_grid_and_no_address(browser, run, tmp_path):
    path = tmp_path / "notebook.html"
    frame = f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{escape(explorer_html(run))}"></iframe>'
    path.write_text(f"<!DOCTYPE html>{frame}", encoding="utf-8")
    browser.open(path.as_uri())
    browser.until(READY, in_frame=True)
    browser.evaluate("document.querySelector('#view-grid').click()", in_frame=True)
    browser.evaluate('document.querySelector(\'.cell[data-token="3"][data-layer="2"]\').click()', in_frame=True)
    browser.evaluate("new Promise((done) => setTimeout(done, 500))", in_frame=True)
    assert browser.evaluate("location.hash", in_frame=True) == ""
    assert browser.evaluate("document.querySelector('#chosen-cell').dataset.layer", in_frame=True) == "2"
    assert browser.complaints == []
