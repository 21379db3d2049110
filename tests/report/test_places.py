"""Where things are on the page: the explorer near the top, the details of a token where they are seen at once."""

import json
from urllib.parse import urlencode

import numpy as np
import pytest

from layerlens.report import write_report
from layerlens.report.facts import _counts
from layerlens.run import open_run
from tests.made_up_run import hybrid_curves, planted, write_run
from tests.report.test_explorer import BOXES, READY, text_of

PHONE = {"width": 360, "height": 740}
TOKEN, CELL = "document.querySelector('#tokens [aria-selected=true]')", "document.querySelector('#chosen-cell')"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    prompts = planted(hybrid_curves(), n_prompts=6, n_tokens=1100, noise=0.1)
    for columns in prompts.values():
        columns["position"] = np.arange(1100, dtype=np.int32) + 5
    words = {token_id: f" token{token_id}" for token_id in range(1101)}
    return write_run(tmp_path_factory.mktemp("places") / "run", prompts, words=words)


@pytest.fixture(scope="module")
def page(run):
    return write_report(run, run.path / "report.html").as_uri()


def box_of(browser, element, *, in_frame=False):
    return browser.evaluate(f"{element}.getBoundingClientRect().toJSON()", in_frame=in_frame)


def test_the_explorer_begins_on_the_first_screen(browser, page):
    for width, height in (PHONE.values(), (768, 1024), (1280, 800)):
        browser.open(page, width=width, height=height)
        browser.until(READY)
        assert box_of(browser, "document.querySelector('#explorer-title')")["bottom"] < height
        assert box_of(browser, "document.querySelector('#tokens')")["top"] < 2 * height


def test_on_a_phone_the_details_of_a_token_open_beside_the_finger(browser, page):
    browser.open(page, **PHONE)
    browser.until(READY)
    assert browser.evaluate("document.querySelector('#detail').offsetHeight") == 0
    for view, target, chosen in (
        ("text", f"{BOXES}[40]", TOKEN),
        ("grid", 'document.querySelector(\'#grid .cell[data-token="41"][data-layer="36"]\')', CELL),
    ):
        browser.evaluate(f"document.querySelector('#view-{view}').click()")
        if view == "grid":
            browser.until(f"{target} !== null")
        browser.click(target)
        sheet = box_of(browser, "document.querySelector('#detail')")
        assert sheet["bottom"] == PHONE["height"]
        assert sheet["top"] > 0.4 * PHONE["height"]
        plot = box_of(browser, "document.querySelector('#plot')")
        assert sheet["top"] < plot["top"]
        assert plot["bottom"] < PHONE["height"]
        token = box_of(browser, chosen)
        assert 0 <= token["top"] < token["bottom"] <= sheet["top"]  # what was tapped is not covered
        browser.click("document.querySelector('#detail-close')")
        assert browser.evaluate("document.querySelector('#detail').offsetHeight") == 0
    browser.press("ArrowRight")
    assert browser.evaluate("document.querySelector('#detail').offsetHeight") > 0
    browser.press("Escape")
    assert browser.evaluate("document.querySelector('#detail').offsetHeight") == 0
    assert browser.complaints == []


def test_the_last_token_is_not_covered_either(browser, page):
    browser.open(page, **PHONE)
    browser.until(READY)
    browser.evaluate(f"{BOXES}[0].focus()")
    browser.press("End")
    token, sheet = (box_of(browser, part) for part in (TOKEN, "document.querySelector('#detail')"))
    assert 0 <= token["top"] < token["bottom"] <= sheet["top"]
    assert text_of(browser, "#spoken").startswith("Token 1,100 of 1,100: ")


@pytest.mark.parametrize("width", [760, 900, 1100])
def test_a_notebooks_cell_shows_the_details_without_scrolling(browser, run, tmp_path, width):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><body style='margin:0'>{run.show()._repr_html_()}</body>", encoding="utf-8")
    browser.open(path.as_uri(), width=width, height=800)
    browser.until(READY, in_frame=True)
    height = browser.evaluate("innerHeight", in_frame=True)
    assert browser.evaluate("document.documentElement.scrollHeight", in_frame=True) == height
    for view in ("text", "grid"):
        browser.evaluate(f"document.querySelector('#view-{view}').click()", in_frame=True)
        for part in ("chosen", "spoken", "plot", "chosen-facts"):
            seen = box_of(browser, f"document.querySelector('#{part}')", in_frame=True)
            assert 0 < seen["top"] < seen["bottom"] <= height, (view, part)
        shown = box_of(browser, f"document.querySelector('#{'tokens' if view == 'text' else 'grid'}')", in_frame=True)
        assert shown["height"] > 150
        assert shown["bottom"] <= height


def test_a_narrow_cell_shows_the_token_and_its_details_and_moves_nothing_around_it(browser, run, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><p>before</p>{run.show()._repr_html_()}<p>after</p>", encoding="utf-8")
    browser.open(path.as_uri(), width=560, height=500)
    browser.until(READY, in_frame=True)
    token, sheet = (box_of(browser, part, in_frame=True) for part in (TOKEN, "document.querySelector('#detail')"))
    assert 0 <= token["top"] < token["bottom"] <= sheet["top"]
    assert browser.evaluate("scrollY") == 0
    assert browser.evaluate("document.activeElement === document.body")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("view", ["text", "grid"])
def test_a_link_opens_the_same_prompt_token_and_layer(browser, page, width, view):
    link = urlencode({"prompt": "made-up-003", "token": 1042, "layer": 17, "view": view, "colour": "norm_ratio"})
    browser.open(f"{page}#{link}", width=width, height=740)
    chosen = CELL if view == "grid" else TOKEN
    browser.until(f"{chosen} !== null && document.querySelector('#prompt-number').textContent === '4 of 6'")
    assert text_of(browser, "#spoken").startswith("Token 1,042 of 1,100: “·token1042”. After layer 17:")
    assert browser.evaluate("document.querySelector('#layer').value") == "17"
    browser.until("document.activeElement !== document.body")
    token, detail = (box_of(browser, part) for part in (chosen, "document.querySelector('#detail')"))
    assert 0 <= token["top"] < token["bottom"] <= 740
    assert 0 <= detail["top"] < 740
    if width == 360:
        assert token["bottom"] <= detail["top"]
    browser.press("ArrowLeft")
    browser.until("location.hash.includes('token=1041')")
    browser.open(page + browser.evaluate("location.hash"))
    browser.until("document.querySelector('#spoken').textContent.startsWith('Token 1,041 of 1,100')")


def test_large_counts_carry_separators(browser, run, page, tmp_path):
    browser.open(page)
    browser.until(READY)
    assert text_of(browser, "#prompt-about") == "made-up-000 · 1,100 tokens"
    browser.evaluate(f"{BOXES}[1050].click()")
    assert text_of(browser, "#chosen-facts").startswith("Read before it·token1050 at position 1,055")
    browser.evaluate(
        "(() => { const e = document.querySelector('#search'); e.value = 'token'; "
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    browser.until("document.querySelector('#search-count').textContent === '1,051 of 6,600'")
    assert "6 prompts of made up · 6,600 positions" in text_of(browser, "header")
    part = write_run(tmp_path / "part", {"a": {"entropy": np.ones((2, 3))}}, finish=False)
    manifest = json.loads((part.path / "manifest.json").read_text())
    manifest["dataset"]["rows"] = 12345
    (part.path / "manifest.json").write_text(json.dumps(manifest))
    half = write_report(open_run(part.path), tmp_path / "half.html").read_text(encoding="utf-8")
    assert "1 of 12,345 prompts are in it" in half
    assert _counts({"prompts": 6, "positions": 66000, "seconds": 1234.5, "resumed": False}) == (
        "prompts 6, positions 66,000, seconds 1234.5, resumed false"
    )


def test_a_link_to_a_prompt_that_is_not_there_says_so(browser, page):
    browser.open(f"{page}#{urlencode({'prompt': 'nope<b>'})}", **PHONE)
    browser.until("document.querySelector('#prompt-number').textContent === '1 of 6'")
    assert "“nope<b>”" in text_of(browser, "#link-note")
    note = box_of(browser, "document.querySelector('#link-note')")
    assert 0 <= note["top"] < note["bottom"] <= PHONE["height"]
    browser.evaluate("document.querySelector('#prompt-next').click()")
    browser.until("document.querySelector('#prompt-number').textContent === '2 of 6'")
    assert text_of(browser, "#link-note") == ""
    browser.evaluate("location.hash = '#prompt=gone'")
    browser.until("document.querySelector('#link-note').textContent.includes('gone')")
    assert text_of(browser, "#prompt-number") == "2 of 6"
    assert browser.complaints == []
