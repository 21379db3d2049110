"""The token explorer in a real browser: read off the page what a user sees, compare it with the run's numbers."""

import re
from html import escape
from importlib.resources import files

import numpy as np
import pytest

from layerlens.report import explorer_html, write_report
from tests.made_up_run import eq7, write_run

N_LAYERS = 12
WINDOW = 5
TEXTS = {
    0: "Why",
    1: " is",
    2: " the",
    3: " sky",
    4: "<script>window.hacked = 1; alert(1)</script>",
    5: "</script>",
    6: "<img src=x onerror=alert(2)>",
    7: "]]>",
    8: "<!--",
    9: "\u202eabc\u0007",
    10: "\n",
    11: " ",
    12: "      ",
    13: "",
    14: "ש",
    15: "\u0301",
    16: "a\tb",
    17: "\u2028",
    18: "&amp;",
}
SHOWN = {
    1: "·is",
    4: "<script>window.hacked·=·1;·alert(1)</script>",
    9: "U+202EabcU+0007",
    10: "⏎",
    11: "·",
    12: "·×6",
    13: "∅",
    15: "◌\u0301",
    16: "a⇥b",
    17: "U+2028",
    18: "&amp;",
    99: "#99",
}
HOSTILE_ID = "</script><script>window.hacked=2</script>"
BOXES = "[...document.querySelectorAll('#tokens [role=option]')]"
READY = "document.querySelector('#chosen-facts').children.length > 0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    random = np.random.default_rng(0)
    prompts = {}
    ids = [[*range(19), 99], [2, 3, 1, 2, 3, 14, 0, 10, 11, 2, 3, 5], [0, 1, 2, 3, 2, 1]]
    for name, following in zip(("first", HOSTILE_ID, "broken"), ids, strict=True):
        shape = (len(following), N_LAYERS)
        entropy = random.gamma(1.2, 1.5, shape)
        valley = np.array([eq7(row, WINDOW) for row in entropy], dtype=np.int16)
        used = random.random(len(following)) < 0.5
        prompts[name] = {
            "entropy": entropy,
            "norm_ratio": random.lognormal(-1, 0.5, shape),
            "io_cosine": random.uniform(-0.2, 1, shape),
            "top_token_id": random.integers(0, 4, shape).astype(np.int32),
            "token_id": np.array([7, *following[:-1]], np.int32),
            "next_token_id": following,
            "selected_layer": np.where(used, valley, N_LAYERS).astype(np.int16),
        }
    prompts["broken"]["entropy"][2] = np.nan
    prompts[HOSTILE_ID]["position"] = np.arange(12, dtype=np.int32)
    prompts[HOSTILE_ID]["is_generated"] = np.arange(12) >= 7
    prompts[HOSTILE_ID]["next_token_id"] = [*ids[1][:-1], None]
    folder = tmp_path_factory.mktemp("explorer") / "run"
    return write_run(
        folder, prompts, words=TEXTS, window=WINDOW, finish_reasons={"broken": "non_finite"}, strategy="valley"
    )


@pytest.fixture(scope="module")
def report_page(run):
    return write_report(run, run.path / "report.html").as_uri()


@pytest.fixture(scope="module")
def page(run):
    path = run.path / "explorer.html"
    path.write_text(explorer_html(run), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def explorer(browser, page):
    browser.open(page)
    browser.until(READY)
    yield browser
    assert browser.complaints == []
    assert browser.dialogs == []
    assert browser.evaluate("window.hacked") is None
    assert all(url.startswith(("file://", "data:")) for url in browser.requests)


def rows_of(run, name):
    return np.flatnonzero(run.positions["prompt_id"].to_numpy() == name)


def choose(browser, control, value):
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('{control}'); e.value = '{value}'; "
        "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )


def shown_prompt(browser):
    """Which prompt is on the page, from 0."""
    return int(text_of(browser, "#prompt-number").split(" of ")[0].replace(",", "")) - 1


def go_to(browser, prompt):
    """Choose a prompt from the list of all, as a user does."""
    browser.click("document.querySelector('#prompt')")
    browser.until("!document.querySelector('#prompt-list').hidden")
    browser.evaluate(f"document.querySelector('#prompt-{prompt}').scrollIntoView({{block: 'nearest'}})")
    browser.click(f"document.querySelector('#prompt-{prompt}')")
    browser.until("document.querySelector('#prompt-list').hidden")
    assert shown_prompt(browser) == prompt


def prompts_listed(browser):
    """What the list of prompts says of each, once it is opened: the beginning of the text, and the rest."""
    browser.click("document.querySelector('#prompt')")
    browser.until("!document.querySelector('#prompt-list').hidden")
    options = "[...document.querySelectorAll('#prompt-list [role=option]')]"
    return [tuple(one) for one in browser.evaluate(f"{options}.map((o) => [...o.children].map((e) => e.textContent))")]


def text_of(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).textContent")


def chosen(browser):
    """Which token is chosen, from 0, and which layer."""
    [token] = browser.evaluate(
        f"{BOXES}.flatMap((box, at) => box.getAttribute('aria-selected') === 'true' ? [at] : [])"
    )
    layer = browser.evaluate("Number(document.querySelector('#layers [aria-current]').dataset.layer)")
    return token, layer


def fact(browser, name):
    return browser.evaluate(
        f"[...document.querySelectorAll('#chosen-facts div')].find((d) => d.firstChild.textContent === {name!r})"
        "?.lastChild.textContent"
    )


def colours(browser):
    found = browser.evaluate(f"{BOXES}.map((box) => box.style.backgroundColor)")
    return [tuple(map(int, re.findall(r"\d+", colour))) or None for colour in found]


def ramp(name, *, dark=False):
    """The stops of a ramp as the style sheet writes them."""
    sheet = files("layerlens.report").joinpath("report.css").read_text(encoding="utf-8")
    light_and_dark = re.findall(rf"--ramp-{name}: ([^;]*);", sheet)
    assert len(light_and_dark) == 3
    assert light_and_dark[1] == light_and_dark[2]
    stops = light_and_dark[1 if dark else 0].split(", ")
    return [tuple(int(stop[at : at + 2], 16) for at in (1, 3, 5)) for stop in stops]


def mixed(stops, along):
    place = min(max(along, 0.0), 1.0) * (len(stops) - 1)
    return [np.interp(place, range(len(stops)), [stop[part] for stop in stops]) for part in range(3)]


def test_the_report_loads_from_disk_and_asks_for_nothing(browser, report_page):
    browser.open(report_page)
    browser.until(READY)
    assert browser.complaints == []
    assert browser.dialogs == []
    assert {url.split(":")[0] for url in browser.requests} == {"file", "data"}
    assert len([url for url in browser.requests if url.startswith("file:")]) == 1
    assert browser.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


def test_an_injected_script_would_be_noticed(browser, tmp_path):
    """The checks of `explorer` can fail: a page without our care trips every one of them."""
    path = tmp_path / "bad.html"
    path.write_text("<script>window.hacked = 1; fetch('http://127.0.0.1:9/x'); setTimeout(() => oops(), 0)</script>")
    browser.open(path.as_uri())
    browser.until("window.hacked === 1")
    assert [url for url in browser.requests if url.startswith("http:")]
    assert browser.complaints


def test_the_page_lets_no_other_script_run(explorer):
    explorer.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.inline = 1'; "
        "document.body.append(s); const d = document.createElement('div'); "
        "d.innerHTML = '<img src=x onerror=\"window.handler = 1\">'; document.body.append(d); })()"
    )
    explorer.evaluate("fetch('http://127.0.0.1:9/x').catch(() => 0)")
    assert explorer.evaluate("[window.inline, window.handler].every((value) => value === undefined)")
    assert any("Content Security Policy" in complaint for complaint in explorer.complaints)
    assert not [url for url in explorer.requests if url.startswith("http:")]
    explorer.complaints.clear()


def test_tokens_are_shown_as_text(explorer):
    words = explorer.evaluate(
        f"{BOXES}.map((box) => [...box.childNodes].slice(0, -1).map((n) => n.textContent).join(''))"
    )
    assert len(words) == 20
    for place, token_id in enumerate([*range(19), 99]):
        assert words[place] == SHOWN.get(token_id, TEXTS.get(token_id, "").replace(" ", "·"))
    assert explorer.evaluate("document.querySelectorAll('script').length") == 2
    assert explorer.evaluate("document.querySelectorAll('#tokens img').length") == 0
    explorer.click(f"{BOXES}[4]")
    assert text_of(explorer, "#chosen") == SHOWN[4]
    assert SHOWN[4] in text_of(explorer, "#spoken")


def test_right_to_left_text_stays_in_its_box(explorer):
    go_to(explorer, 1)
    lefts = explorer.evaluate(f"{BOXES}.slice(3, 7).map((box) => Math.round(box.getBoundingClientRect().left))")
    assert lefts == sorted(lefts)


def test_a_hostile_prompt_id_is_a_name(explorer):
    assert prompts_listed(explorer) == [
        ("the text of first", "first · 20 tokens"),
        (f"the text of {HOSTILE_ID}", f"{HOSTILE_ID} · 12 tokens"),
        ("the text of broken", "broken · 6 tokens · with values that are not finite"),
    ]


def test_clicking_a_token_shows_what_every_layer_made_of_it(explorer, run):
    rows = rows_of(run, "first")
    for token in (3, 0, 19):
        explorer.click(f"{BOXES}[{token}]")
        row = rows[token]
        table = explorer.evaluate(
            "[...document.querySelectorAll('#layers tbody tr')].map((tr) => [...tr.cells].map((c) => c.textContent))"
        )
        assert len(table) == N_LAYERS
        assert chosen(explorer) == (token, N_LAYERS)
        for cells, layer in zip(table, range(N_LAYERS, 0, -1), strict=True):
            valley, selected = (int(run.positions[name][row]) for name in ("valley_layer", "selected_layer"))
            signs = "▼" * (layer == valley < N_LAYERS) + "○" * (layer == selected)
            assert cells[0] == f"{layer} {signs}"
            assert cells[1] == TEXTS[run.layers("top_token_id")[row, layer - 1]].replace(" ", "·")
            for cell, measure in zip(cells[2:], ("entropy", "norm_ratio", "io_cosine"), strict=True):
                assert float(cell.replace("−", "-")) == pytest.approx(run.layers(measure)[row, layer - 1], abs=0.0056)
        entropy = run.layers("entropy")[row]
        effect = fact(explorer, "Last layer’s effect")
        assert float(effect.split()[0].replace("−", "-")) == pytest.approx(entropy[-1] - entropy[-2], abs=0.0056)
        assert ("not perturbed" in effect) == (entropy[-1] <= entropy[-2])
        assert f"position {run.positions['position'][row]}" in fact(explorer, "Read before it")


def test_the_plot_draws_the_entropy_of_every_layer(explorer, run):
    explorer.click(f"{BOXES}[5]")
    entropy = run.layers("entropy")[rows_of(run, "first")[5]]
    whole, last = explorer.evaluate(
        "[...document.querySelectorAll('#plot .curve')].map((path) => path.getAttribute('d'))"
    )
    for path, expected in ((whole, entropy), (last, entropy[-WINDOW:])):
        points = np.array([[float(part) for part in point.split()] for point in re.findall(r"[ML]([^ML]+)", path)])
        assert len(points) == len(expected)
        assert np.allclose(np.diff(points[:, 0]), np.diff(points[:, 0])[0])
        slope, start = np.polyfit(expected, points[:, 1], 1)
        assert slope < 0  # upwards on the page
        assert np.allclose(points[:, 1], start + slope * expected, atol=0.1)
        ticks = np.array(
            explorer.evaluate(
                "[...document.querySelectorAll('#plot text')].filter((t) => t.getAttribute('text-anchor') === 'end')"
                ".map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4, Number(t.getAttribute('x'))])"
            )
        )
        own = ticks[ticks[:, 2] < points[0, 0]]
        own = own[own[:, 2] == own[:, 2].max()]
        assert np.allclose(own[:, 1], start + slope * own[:, 0], atol=0.2)
        assert own[:, 1].min() >= 20  # below the panel's title


def test_framed_tokens_are_those_where_the_valley_speaks_otherwise(explorer, run):
    top = run.layers("top_token_id")
    for index, name in enumerate(["first", HOSTILE_ID, "broken"]):
        if index:
            go_to(explorer, index)
            explorer.until(f"{BOXES}.length === {len(rows_of(run, name))}")
        expected = []
        for row in rows_of(run, name):
            layers = [int(run.positions[column][row]) for column in ("selected_layer", "valley_layer")]
            said = [top[row, layer - 1] != top[row, -1] for layer in layers]
            expected.append("replaced" if said[0] else "differs" if said[1] else "")
        found = explorer.evaluate(
            f"{BOXES}.map((box) => ['replaced', 'differs'].filter((name) => box.classList.contains(name)).join(' '))"
        )
        assert found == expected
        n_framed = sum(map(bool, expected))
        assert text_of(explorer, "#framed-count") == f"{n_framed or 'No'} framed token{'s' * (n_framed != 1)}"
        assert explorer.evaluate("document.querySelector('#framed-next').disabled") == (n_framed == 0)
        if index == 0:
            assert {"replaced", "differs", ""} == set(expected)
            places = [place for place, kind in enumerate(expected) if kind]
            explorer.click(f"{BOXES}[0]")
            visited = []
            for _ in range(len([place for place in places if place > 0]) + 1):
                explorer.press("s")
                visited.append(chosen(explorer)[0])
            assert visited == [*[place for place in places if place > 0], places[0]]
            explorer.press("S", shift=True)
            assert chosen(explorer)[0] == places[-1]


def test_keys_move_between_tokens_layers_and_prompts(explorer):
    explorer.click(f"{BOXES}[2]")
    keys = [("ArrowRight", (3, 12)), ("ArrowLeft", (2, 12)), ("ArrowDown", (2, 11)), ("ArrowDown", (2, 10))]
    keys += [
        ("ArrowUp", (2, 11)),
        ("End", (19, 11)),
        ("ArrowRight", (19, 11)),
        ("Home", (0, 11)),
        ("ArrowLeft", (0, 11)),
    ]
    for key, expected in keys:
        explorer.press(key)
        assert chosen(explorer) == expected
        assert explorer.evaluate(f"document.activeElement === {BOXES}[{expected[0]}]") or key in (
            "ArrowUp",
            "ArrowDown",
        )
    assert text_of(explorer, "#layer-number") == "11 of 12"
    assert text_of(explorer, "#spoken").startswith("Token 1 of 20: “Why”. After layer 11: entropy ")
    explorer.press("]")
    explorer.until(f"{BOXES}.length === 12")
    explorer.press("[")
    explorer.until(f"{BOXES}.length === 20")


def test_only_one_token_is_in_the_tab_order(explorer):
    explorer.click(f"{BOXES}[6]")
    assert explorer.evaluate(f"{BOXES}.flatMap((box, at) => box.tabIndex === 0 ? [at] : [])") == [6]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("measure", "ramp_name"), [("entropy", "entropy"), ("norm_ratio", "stream"), ("io_cosine", "stream")]
)
def test_the_slider_colours_tokens_by_the_numbers_of_the_run(explorer, run, measure, ramp_name, shared, dark):
    explorer.prefer(dark=dark)
    explorer.until(f"document.querySelector('#theme').getAttribute('aria-pressed') === '{str(dark).lower()}'")
    choose(explorer, "measure", measure)
    if shared:
        explorer.click("document.querySelector('#shared')")
    values, rows = run.layers(measure), rows_of(run, "first")
    ends = np.nanquantile(values, [0.02, 0.98], axis=0)
    if measure == "entropy":
        ends[0] = 0
    seen = set()
    for layer in (1, 7, N_LAYERS):
        choose(explorer, "layer", layer)
        low, high = (ends[0].min(), ends[1].max()) if shared else ends[:, layer - 1]
        along = (values[rows, layer - 1] - low) / (high - low)
        along = 1 - along if measure == "io_cosine" else along
        found = colours(explorer)
        for token in range(20):
            assert found[token] == pytest.approx(mixed(ramp(ramp_name, dark=dark), along[token]), abs=1.6)
        seen.add(tuple(found))
        shown = explorer.evaluate(f"{BOXES}.map((box) => box.lastChild.textContent)")
        assert [float(value.replace("−", "-")) for value in shown] == pytest.approx(values[rows, layer - 1], abs=0.0056)
    assert len(seen) == 3


@pytest.mark.parametrize("column", ["valley_layer", "selected_layer"])
def test_layers_can_colour_too(explorer, run, column):
    choose(explorer, "measure", column)
    layers = run.positions[column].to_numpy()[rows_of(run, "first")].astype(float)
    earliest = run.positions[["valley_layer", "selected_layer"]].to_numpy().min()
    for found, layer in zip(colours(explorer), layers, strict=True):
        along = (N_LAYERS - layer) / (N_LAYERS - earliest)
        assert found == pytest.approx(mixed(ramp("layer"), along), abs=1.1)


def test_values_that_are_not_finite_are_hatched_and_break_nothing(explorer):
    go_to(explorer, 2)
    explorer.until(f"{BOXES}.length === 6")
    assert explorer.evaluate(f"{BOXES}.map((box) => box.classList.contains('missing'))") == [0, 0, 1, 0, 0, 0]
    assert colours(explorer)[2] is None
    explorer.click(f"{BOXES}[2]")
    assert "entropy –" in text_of(explorer, "#spoken")
    assert fact(explorer, "Last layer’s effect") == "not finite"


def test_given_tokens_are_told_from_generated_ones(explorer):
    go_to(explorer, 1)
    explorer.until(f"{BOXES}.length === 12")
    shown = explorer.evaluate("[...document.querySelector('#tokens').children].map((e) => e.textContent)")
    at = shown.index("generated ▸")
    assert shown[0] == "]]>"  # the token at position 0, which no state predicted
    assert at == 8
    explorer.click(f"{BOXES}[0]")
    assert fact(explorer, "Next token, given") == "·the"
    explorer.click(f"{BOXES}[8]")
    assert fact(explorer, "Next token, emitted") == "·"
    explorer.click(f"{BOXES}[11]")
    assert fact(explorer, "Next token, emitted") == "nothing followed"


def test_search_finds_words_across_tokens_and_prompts(explorer):
    explorer.press("/")
    assert explorer.evaluate("document.activeElement.id") == "search"
    explorer.type("THE SKY")
    explorer.until("document.querySelector('#search-count').textContent === '1 of 5'")
    places = [(0, 2), (1, 0), (1, 3), (1, 9), (2, 2)]

    def here():
        return shown_prompt(explorer), chosen(explorer)[0]

    assert here() == places[0]
    assert explorer.evaluate(f"{BOXES}.flatMap((box, at) => box.classList.contains('match') ? [at] : [])") == [2, 3]
    for number, place in [*enumerate(places[1:], start=2), (1, places[0])]:
        explorer.press("Enter")
        explorer.until(f"document.querySelector('#search-count').textContent === '{number} of 5'")
        explorer.until(f"document.querySelector('#prompt-number').textContent === '{place[0] + 1} of 3'")
        explorer.until(f"{BOXES}.length === {[20, 12, 6][place[0]]}")
        assert here() == place
    explorer.press("Enter", shift=True)
    explorer.until("document.querySelector('#search-count').textContent === '5 of 5'")
    explorer.click("document.querySelector('#search-next')")
    explorer.until("document.querySelector('#search-count').textContent === '1 of 5'")
    explorer.until(f"{BOXES}.length === 20")
    explorer.click("document.querySelector('#search')")
    explorer.type(" moon")
    explorer.until("document.querySelector('#search-count').textContent === 'nothing found'")
    explorer.press("Escape")
    assert explorer.evaluate("document.activeElement.getAttribute('role')") == "option"
    choose(explorer, "search", "<script>")
    explorer.until("document.querySelector('#search-count').textContent === '1 of 1'")
    assert here() == (0, 4)


def test_help_opens_and_closes(explorer):
    explorer.press("?")
    assert explorer.evaluate("document.querySelector('#help').open")
    explorer.press("ArrowDown")
    assert chosen(explorer)[1] == N_LAYERS
    explorer.click("document.querySelector('#help-close')")
    assert not explorer.evaluate("document.querySelector('#help').open")


def test_light_and_dark(explorer):
    def brightness():
        colour = explorer.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    def pressed():
        return explorer.evaluate("document.querySelector('#theme').getAttribute('aria-pressed')")

    light = brightness()
    assert light > 600
    assert pressed() == "false"
    explorer.click("document.querySelector('#theme')")
    assert brightness() < 150
    assert pressed() == "true"
    explorer.prefer(dark=True)
    explorer.until("matchMedia('(prefers-color-scheme: dark)').matches")
    explorer.click("document.querySelector('#theme')")
    assert brightness() == light  # the reader's choice beats the system's
    assert pressed() == "false"


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_colour(dark):
    """At least 4.5:1, what WCAG AA asks of text; ramps grow darker, or brighter, all the way: they tell in grey too."""
    sheet = files("layerlens.report").joinpath("report.css").read_text(encoding="utf-8")
    named = {
        name: [tuple(int(value[at : at + 2], 16) for at in (1, 3, 5)) for value in found]
        for name in ("ink", "soft", "page", "pane", "shade", "frame", "valley", "selected", "accent")
        if (found := re.findall(rf"--{name}: (#[0-9a-f]{{6}})", sheet))
    }
    colour = {name: values[1 if dark else 0] for name, values in named.items()}
    for ground in ("page", "pane", "shade"):
        for ink in ("ink", "soft", "valley", "selected", "accent"):
            assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
    for name in ("entropy", "stream", "layer"):
        tones = [mixed(ramp(name, dark=dark), along) for along in np.linspace(0, 1, 31)]
        assert min(contrast(colour["ink"], tone) for tone in tones) >= 4.5, name
        steps = np.diff([luminance(tone) for tone in tones])
        assert (steps > 0).all() if dark else (steps < 0).all()
    assert contrast(colour["frame"], colour["pane"]) >= 3


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(browser, report_page, width):
    browser.open(report_page, width=width, height=800)
    browser.until(READY)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    text, detail = (
        browser.evaluate(f"document.querySelector('{part}').getBoundingClientRect().left")
        for part in ("#tokens", "#detail")
    )
    assert (detail > text + 300) == (width == 1600)  # beside the text, or below it


def test_it_works_in_a_notebooks_frame(browser, run, tmp_path):
    path = tmp_path / "notebook.html"
    frame = f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{escape(explorer_html(run))}"></iframe>'
    path.write_text(f"<!DOCTYPE html>{frame}", encoding="utf-8")
    browser.open(path.as_uri())
    browser.until(READY, in_frame=True)
    browser.evaluate(f"{BOXES}[3].click()", in_frame=True)
    assert browser.evaluate("document.querySelector('#chosen').textContent", in_frame=True) == "·sky"
    browser.evaluate("document.querySelector('#help-open').click()", in_frame=True)
    assert browser.evaluate("document.querySelector('#help').open", in_frame=True)
    browser.evaluate("document.querySelector('#help-close').click()", in_frame=True)
    assert not browser.evaluate("document.querySelector('#help').open", in_frame=True)
    assert browser.complaints == []


def test_a_run_without_words_shows_ids(browser, tmp_path):
    run = write_run(tmp_path / "run", {"x": {"entropy": np.random.default_rng(0).random((4, 3))}}, finish=False)
    path = tmp_path / "page.html"
    path.write_text(explorer_html(run), encoding="utf-8")
    browser.open(path.as_uri())
    browser.until(READY)
    words = browser.evaluate(f"{BOXES}.map((box) => box.firstChild.textContent)")
    assert words == ["#1", "#2", "#3", "#4"]
    assert browser.complaints == []


@pytest.mark.parametrize("n_layers", [1, 2])
def test_models_of_hardly_any_layers(browser, tmp_path, n_layers):
    run = write_run(tmp_path / "run", {"x": {"entropy": np.random.default_rng(0).random((4, n_layers))}})
    path = tmp_path / "page.html"
    path.write_text(explorer_html(run), encoding="utf-8")
    browser.open(path.as_uri())
    browser.until(READY)
    browser.click(f"{BOXES}[2]")
    browser.press("ArrowDown")
    assert chosen(browser) == (2, 1)
    choose(browser, "measure", "valley_layer")
    assert browser.complaints == []
