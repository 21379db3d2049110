"""Two runs beside each other in a real browser: what is chosen in one is chosen in the other."""

import json
import re
from urllib.parse import parse_qs

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import RunError
from layerlens.report import explorer_html, write_report
from layerlens.report.beside import text_of as read_text
from tests.made_up_run import write_run
from tests.refusals import refused
from tests.report.test_beside import plain_counterparts, plain_parting
from tests.report.test_explorer import READY, choose, go_to, prompts_listed, text_of

HOSTILE = "<img src=x onerror=alert(1)></script><script>window.hacked=1</script>"
OURS = {0: "The", 1: " sky", 2: " is", 3: " blue", 4: ".", 5: "Why", 6: "?", 7: "</script>", 8: " to", 9: "day"}
THEIRS = {0: "The sky", 1: " is", 2: " gr", 3: "ey", 4: " today", 5: "Why?", 6: HOSTILE}
ASKED = {"sky": "why is the sky blue?", "SKY": "why is the sky blue?", "same": "say it", "SAME": "say it"}
SUFFIXES = ("", "-beside")


def measures(following, n_layers, seed, n_given=0, extra=()):
    random = np.random.default_rng(seed)
    shape = (len(following), n_layers)
    given = {
        "entropy": random.gamma(1.2, 1.5, shape),
        "top_token_id": random.integers(0, 6, shape).astype(np.int32),
        "next_token_id": np.array(following, np.int32),
        "is_generated": np.arange(len(following)) >= n_given,
    }
    return given | {name: random.random(shape) for name in extra}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    ours = {
        "sky": measures([5, 6, 0, 1, 2, 3, 8, 9, 7, 4], 6, 0, 2, ["js_from_last"]),
        "same": measures([0, 1, 2, 4], 6, 1, 0, ["js_from_last"]),
        "alone": measures([0], 6, 2, 0, ["js_from_last"]),
    }
    theirs = {"SAME": measures([0, 1], 12, 3), "SKY": measures([5, 0, 1, 2, 3, 4, 6], 12, 4, 1)}
    return (
        write_run(folder / "ours", ours, words=OURS, texts=ASKED),
        write_run(folder / "theirs", theirs, words=THEIRS, texts=ASKED, strategy=HOSTILE),
    )


@pytest.fixture(scope="module")
def page(runs):
    path = runs[0].path / "beside.html"
    path.write_text(explorer_html(runs[0], beside=runs[1]), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def two(browser, page):
    browser.open(page, width=1500)
    browser.until(READY)
    yield browser
    assert browser.complaints == []
    assert browser.dialogs == []
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('#explorer img').length") == 0


def boxes(side):
    return f"[...document.querySelectorAll('#tokens{SUFFIXES[side]} [role=option]')]"


def chosen(browser):
    """Of both runs the chosen token and layer, as the details say."""
    found = []
    for suffix in SUFFIXES:
        spoken = re.match(r"Token (\d+) of .*After layer (\d+)", text_of(browser, f"#spoken{suffix}"))
        found.append((int(spoken[1]) - 1, int(spoken[2])))
    for side, (token, _) in enumerate(found):
        marked = f"{boxes(side)}.flatMap((box, at) => box.getAttribute('aria-selected') === 'true' ? [at] : [])"
        assert browser.evaluate(marked) == [token]
    return found


def test_a_token_chosen_in_one_run_is_chosen_in_the_other(two, runs):
    texts = [read_text(run, name) for run, name in zip(runs, ("sky", "SKY"), strict=True)]
    for side in (0, 1):
        expected = plain_counterparts(texts[side], texts[1 - side])
        assert len(set(expected)) > 4
        for token, its in enumerate(expected):
            two.click(f"{boxes(side)}[{token}]")
            tokens = [one for one, _ in chosen(two)]
            assert tokens == ([token, its] if side == 0 else [its, token])


def test_layers_belong_together_by_their_depth(two):
    for layer, its in ((6, 12), (3, 6), (1, 2)):
        choose(two, "layer", layer)
        assert [one for _, one in chosen(two)] == [layer, its]
    two.evaluate("document.querySelector('#layers-beside tr[data-layer=\"9\"]').click()")
    assert [one for _, one in chosen(two)] == [5, 9]  # 4.5, rounded
    assert text_of(two, "#layer-number") == "5 of 6"
    two.evaluate("document.querySelector('#layers-beside tr[data-layer=\"1\"]').click()")
    assert [one for _, one in chosen(two)] == [1, 1]


@pytest.mark.parametrize("view", ["text", "grid"])
def test_the_first_difference_is_marked_and_found_by_a_key(two, runs, view):
    expected = plain_parting(*(read_text(run, name) for run, name in zip(runs, ("sky", "SKY"), strict=True)))
    assert expected == (5, 3)
    two.click(f"document.querySelector('#view-{view}')")
    for side, token in enumerate(expected):
        of_view = ".token" if view == "text" else ".head-cell"
        marked = f"[...document.querySelectorAll('#text-pane{SUFFIXES[side]} {of_view}.parts')]"
        assert two.evaluate(f"{marked}.map((box) => Number(box.dataset.token))") == [token]
    two.press("d")
    assert [token for token, _ in chosen(two)] == [5, 3]
    go_to(two, 1)
    two.until(f"{boxes(0)}.length === 4")
    assert two.evaluate("document.querySelectorAll('.token.parts').length") == 1  # the second text has ended
    two.click(f"document.querySelector('#view-{view}')")
    two.press("d")
    assert [token for token, _ in chosen(two)] == [3, 1]


def test_keys_go_to_the_run_that_was_chosen_last(two):
    two.click(f"{boxes(1)}[2]")
    two.press("ArrowRight")
    assert chosen(two)[1][0] == 3
    assert two.evaluate(f"document.activeElement === {boxes(1)}[3]")
    two.press("b")
    assert two.evaluate(f"document.activeElement === {boxes(0)}[5]")
    assert two.evaluate("document.querySelector('#text-pane').classList.contains('active')")
    two.press("ArrowLeft")
    assert chosen(two)[0][0] == 4
    assert not two.evaluate("document.querySelector('.of-two').hidden")


def test_the_grids_follow_each_other(two, runs):
    two.click("document.querySelector('#view-grid')")
    two.click('document.querySelector(\'#grid-beside .cell[data-token="3"][data-layer="10"]\')')
    assert chosen(two) == [(5, 5), (3, 10)]
    cells = "document.querySelector('#chosen-cell{}').firstChild.textContent"
    for side, (run, suffix) in enumerate(zip(runs, SUFFIXES, strict=True)):
        token, layer = chosen(two)[side]
        row = {"ours": 0, "theirs": 2}[run.path.name] + token  # SAME has two tokens and comes first
        expected = run.text_of([run.layers("top_token_id")[row, layer - 1]])[0].replace(" ", "·")
        assert two.evaluate(cells.format(suffix)) == expected


def test_colours_are_those_that_both_runs_have_on_one_scale(two, runs):
    offered = two.evaluate("[...document.querySelectorAll('#measure option')].map((o) => o.value)")
    assert "js_from_last" not in offered
    assert "entropy" in offered
    highest = max(np.quantile(run.layers("entropy")[:, -1], 0.98) for run in runs)
    assert float(text_of(two, "#scale-high")) == pytest.approx(highest, abs=0.0056)


def test_runs_are_named_and_their_prompts_counted(two):
    assert text_of(two, "#run-name") == "ours: made up, last"
    assert text_of(two, "#run-name-beside") == f"theirs: made up, {HOSTILE}"
    assert prompts_listed(two) == [("why is the sky blue?", "sky · 10 tokens"), ("say it", "same · 4 tokens")]
    assert "1 prompt that only one of the runs has" in text_of(two, "#explorer-note")


def test_a_link_names_the_run_that_was_chosen(two, page):
    two.click(f"{boxes(1)}[4]")
    two.until("location.hash.includes('run=2')")
    assert parse_qs(two.evaluate("location.hash")[1:])["token"] == ["5"]
    two.open(page + two.evaluate("location.hash"), width=1500)
    two.until("document.querySelector('#spoken-beside').textContent.startsWith('Token 5 of 7')")
    assert chosen(two)[1][0] == 4
    two.press("ArrowRight")
    assert chosen(two)[1][0] == 5


@pytest.mark.parametrize("width", [420, 800, 1200])
@pytest.mark.parametrize("view", ["text", "grid"])
def test_two_runs_fit_the_window(browser, page, width, view):
    browser.open(page, width=width, height=900)
    browser.until(READY)
    browser.click(f"document.querySelector('#view-{view}')")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    places = [
        browser.evaluate(f"document.querySelector('#{part}').getBoundingClientRect().toJSON()")
        for part in ("text-pane", "text-pane-beside", "detail", "detail-beside")
    ]
    beside = places[1]["left"] >= places[0]["right"]
    assert beside == (width > 420)
    if beside:
        assert min(places[2]["top"], places[3]["top"]) >= max(places[0]["bottom"], places[1]["bottom"])


def test_in_a_narrow_window_the_details_are_those_of_the_run_that_was_tapped(browser, page):
    browser.open(page, width=420, height=800)
    browser.until(READY)
    shown = "[...document.querySelectorAll('.detail')].filter((e) => e.offsetHeight > 0).map((e) => e.id)"
    assert browser.evaluate(shown) == ["detail"]
    for side, token in ((0, 3), (1, 2)):
        browser.click(f"{boxes(side)}[{token}]")
        assert browser.evaluate(shown) == [f"detail{SUFFIXES[side]}"]
    browser.press("b")
    assert browser.evaluate(shown) == ["detail"]


def test_every_part_has_one_name(two):
    ids = two.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_a_run_beside_itself_says_the_same_twice(browser, runs, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(explorer_html(runs[0], beside=runs[0]), encoding="utf-8")
    browser.open(path.as_uri())
    browser.until(READY)
    assert browser.evaluate("document.querySelectorAll('.parts.token').length") == 0
    for token in (3, 7):
        browser.click(f"{boxes(0)}[{token}]")
        assert text_of(browser, "#spoken") == text_of(browser, "#spoken-beside")
    offered = browser.evaluate("[...document.querySelectorAll('#measure option')].map((o) => o.value)")
    assert "js_from_last" in offered
    assert browser.complaints == []


def test_the_command_writes_both_runs_into_one_file(runs, tmp_path, cli):
    out = tmp_path / "page.html"
    assert cli("report", runs[0].path, "--beside", runs[1].path, "--out", out) == (0, f"{out}\n", "")
    assert out.read_bytes() == write_report(runs[0], tmp_path / "again.html", beside=runs[1]).read_bytes()
    text = out.read_text(encoding="utf-8")
    assert HOSTILE not in text
    data = json.loads(re.search(r'id="explorer-data">(.*?)</script>', text)[1])
    assert [prompt["id"] for prompt in data["beside"]["prompts"]] == ["SKY", "SAME"]
    assert "What was run beside it" in text
    assert runs[0].show(beside=runs[1]).page == explorer_html(runs[0], beside=runs[1])


def test_runs_that_share_no_prompt_are_refused(runs, tmp_path, cli):
    other = write_run(tmp_path / "other", {"else": measures([0], 3, 0)}, words=OURS)
    code, out, err = cli("report", runs[0].path, "--beside", other.path, "--out", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert str(other.path) in err
    assert "no prompt in common" in err
    assert not (tmp_path / "page.html").exists()
    with refused(RunError, given=runs[0].path, problem="no prompt in common"):
        ll.open_run(runs[0].path).show(beside=other)
    code, _, err = cli("report", runs[0].path, "--beside", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err
