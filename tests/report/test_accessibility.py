"""Whether the page can be used with a keyboard, a screen reader or a small window: axe looks for what hinders."""

import itertools
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from layerlens.report import explorer_html, write_report
from tests.made_up_run import eq7, write_run
from tests.report.browser import CHROMIUM
from tests.report.test_explorer import READY
from tests.thorough import some

AXE = find_spec("axe_playwright_python")  # which is not imported: it needs a driver of browsers

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
    pytest.mark.skipif(AXE is None, reason="axe is not installed: pip install --no-deps axe-playwright-python"),
]

N_LAYERS, N_TOPS = 11, 5
WORDS = dict(
    enumerate(
        (
            "The",
            " sky",
            " is",
            " blue",
            ".",
            "\n",
            " ",
            "",
            "سماء",
            " زرقاء",
            "שלום",
            "天空",
            "は",
            "青い",
            "नी",
            "ला",
            "🌍",
        )
    )
)
TEXTS = {
    "plain": "Why is the sky blue?",
    "arabic": "لماذا السماء زرقاء؟",
    "hebrew": "מדוע השמיים כחולים?",
    "japanese": "空はなぜ青いのですか。",
    "hindi": "आकाश नीला क्यों है?",
}


def measures(seed, *, n_tokens=24, asked=True):
    random = np.random.default_rng(seed)
    shape = (n_tokens, N_LAYERS)
    entropy = random.gamma(1.2, 1.5, shape)
    valley = np.array([eq7(row, 6) for row in entropy], np.int16)
    top = random.integers(0, len(WORDS), shape).astype(np.int32)
    given = {
        "entropy": entropy,
        "norm_ratio": random.lognormal(-1, 1, shape),
        "io_cosine": random.uniform(-0.2, 1, shape),
        "top_token_id": top,
        "next_token_id": random.integers(0, len(WORDS), n_tokens),
        "is_generated": np.arange(n_tokens) >= 8,
        "selected_layer": np.where(random.random(n_tokens) < 0.5, valley, N_LAYERS).astype(np.int16),
    }
    if not asked:
        return given
    return given | {
        "top_k_token_ids": np.concatenate(
            [top[..., None], random.integers(0, len(WORDS), (*shape, N_TOPS - 1))], axis=2
        ),
        "top_k_probs": np.sort(random.dirichlet(np.full(6, 0.5), shape)[..., :N_TOPS])[..., ::-1],
        "next_rank": random.integers(0, 49152, shape),
        "next_log_prob": -random.gamma(1, 2, shape),
        "js_from_last": random.random(shape) * 0.69,
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Addresses: a report with every column, two runs beside each other, a single prompt, a notebook's cell."""
    folder = tmp_path_factory.mktemp("axe")

    def run(name, prompts, **options):
        return write_run(folder / name, prompts, words=WORDS, texts=TEXTS, window=6, **options)

    everything = run("everything", {name: measures(seed) for seed, name in enumerate(TEXTS)}, strategy="valley")
    plain = run("plain", {name: measures(seed, asked=False) for seed, name in enumerate(TEXTS)})
    single = run("single", {"plain": measures(0, n_tokens=3, asked=False)}, finish=False)
    cell = folder / "cell.html"
    cell.write_text(explorer_html(everything), encoding="utf-8")
    written = {
        "everything": write_report(everything, folder / "everything.html"),
        "beside": write_report(everything, folder / "beside.html", beside=plain),
        "single": write_report(single, folder / "single.html"),
        "cell": cell,
    }
    return {name: path.as_uri() for name, path in written.items()}


def violations(browser):
    """What axe finds wrong with the page as it is now: rules, where each is broken, and why."""
    found = browser.evaluate(
        "axe.run(document, {rules: {'target-size': {enabled: true}}}).then(({violations}) => JSON.stringify("
        "violations.map(({id, nodes}) => [id, nodes.map(({target, failureSummary}) => [target, failureSummary])])))"
    )
    return json.loads(found)


def open_page(browser, address, width, dark):
    browser.open(address, width=width, height=800, dark=dark)
    browser.until(READY)
    browser.evaluate(f"{(Path(AXE.submodule_search_locations[0]) / 'axe.min.js').read_text(encoding='utf-8')}; 0")


@pytest.mark.parametrize(
    "shown", some(itertools.product(["everything", "beside", "single", "cell"], [360, 768, 1280], [False, True]), 6)
)
def test_axe_finds_nothing(browser, pages, shown):
    name, width, dark = shown
    open_page(browser, pages[name], width, dark)
    browser.evaluate("for (const part of document.querySelectorAll('details')) part.open = true; 0")
    browser.click("document.querySelectorAll('#tokens [role=option]')[2]")
    browser.click("document.querySelector('#prompt')")
    browser.until("!document.querySelector('#prompt-list').hidden")
    assert violations(browser) == []
    browser.press("Escape")
    browser.click("document.querySelector('#view-grid')")
    browser.click("document.querySelector('#numbers')")
    browser.click("document.querySelector('#grid .cell')")
    assert violations(browser) == []
    browser.click("document.querySelector('#help-open')")
    assert browser.evaluate("document.querySelector('#help').open")
    assert violations(browser) == []
    assert browser.complaints == []


def test_axe_would_notice(browser, pages):
    """A picture without words, a pale text and a button without a name are found, each by its rule."""
    open_page(browser, pages["single"], 1280, False)
    browser.evaluate(
        "(() => { const main = document.querySelector('main'); main.append(document.createElement('button')); "
        "document.images[0].removeAttribute('alt'); const pale = document.createElement('p'); "
        "pale.textContent = 'pale'; pale.style.color = '#d0d0d0'; main.append(pale); })()"
    )
    assert {rule for rule, _ in violations(browser)} == {"button-name", "image-alt", "color-contrast"}
