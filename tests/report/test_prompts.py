"""The list of prompts: chosen by finger or keys, searched, named by what a text says that others do not."""

import random

import pytest

from layerlens.report import explorer_html
from layerlens.report.packing import BEGINNING, distinct_beginnings
from tests.made_up_run import planted, write_run
from tests.report.test_explorer import READY, prompts_listed, shown_prompt, text_of

TEMPLATE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
TEMPLATE += "<|im_start|>assistant\n"
QUESTIONS = ["What is 7 + 5?", "Why is the sky blue?", "Wie heißt\nder Fluss?", "لماذا السماء زرقاء؟", "x" * 400]


def test_a_beginning_is_what_a_text_says_and_not_what_all_say():
    said = distinct_beginnings([TEMPLATE.format(question) for question in QUESTIONS])
    assert said[:4] == ["What is 7 + 5?", "Why is the sky blue?", "Wie heißt der Fluss?", "لماذا السماء زرقاء؟"]
    assert said[4] == "x" * BEGINNING + "…"
    assert distinct_beginnings(["What is the capital of France?", "What is the capital of Spain?"]) == [
        "What is the capital of France?",
        "What is the capital of Spain?",
    ]
    examples = "Q: 1 + 1 A: 2 " * 8 + "Q: "
    assert distinct_beginnings([f"{examples}{ending}" for ending in ("2 + 2", "3 + 4")]) == ["2 + 2", "3 + 4"]


def test_any_text_has_a_beginning():
    assert distinct_beginnings([]) == []
    assert distinct_beginnings(["", "a"]) == ["", "a"]
    assert distinct_beginnings([TEMPLATE.format("alone")])[0].startswith("<|im_start|>system You are")
    assert distinct_beginnings(["the same text"] * 2) == ["the same text"] * 2
    drawn = random.Random(0)
    for _ in range(300):
        texts = ["".join(drawn.choices("ab \n", k=drawn.randrange(60))) for _ in range(drawn.randrange(1, 4))]
        for text, said in zip(texts, distinct_beginnings(texts), strict=True):
            assert said.removesuffix("…") in " ".join(text.split())
            assert bool(said) == bool(text.strip())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    prompts = planted({"perturbed": [3, 2, 1, 2], "unperturbed": [3, 2, 2, 1]}, n_prompts=5, n_tokens=4)
    texts = {name: TEMPLATE.format(question) for name, question in zip(prompts, QUESTIONS, strict=True)}
    folder = tmp_path_factory.mktemp("prompts")
    path = folder / "page.html"
    path.write_text(explorer_html(write_run(folder / "run", prompts, texts=texts)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def explorer(browser, page):
    browser.open(page)
    browser.until(READY)
    yield browser
    assert browser.complaints == []


LISTED = "[...document.querySelectorAll('#prompt-list [role=option]')].map((o) => o.firstChild.textContent)"
IS_OPEN = "!document.querySelector('#prompt-list').hidden"
ACTIVE = "document.getElementById(document.querySelector('#prompt').getAttribute('aria-activedescendant'))"


def value(browser):
    return browser.evaluate("document.querySelector('#prompt').value")


def search(browser, text):
    browser.click("document.querySelector('#prompt')")
    browser.until(IS_OPEN)
    browser.type(text)


def test_prompts_are_listed_by_their_text_with_the_id_beside_it(explorer):
    assert value(explorer) == "What is 7 + 5?"
    assert text_of(explorer, "#prompt-number") == "1 of 5"
    assert text_of(explorer, "#prompt-about") == "made-up-000 · 4 tokens"
    listed = prompts_listed(explorer)
    assert listed[1] == ("Why is the sky blue?", "made-up-001 · 4 tokens")
    assert len(listed) == 5
    left, right = (
        explorer.evaluate(f"document.querySelector('#prompt-3 .{part}').getBoundingClientRect().toJSON()")
        for part in ("begins", "about")
    )
    assert left["right"] <= right["left"]  # the id stays beside a text that is read from the right


def test_a_prompt_is_chosen_with_the_finger(explorer):
    prompts_listed(explorer)
    explorer.click("document.querySelector('#prompt-2')")
    explorer.until(f"!({IS_OPEN})")
    assert shown_prompt(explorer) == 2
    assert value(explorer) == "Wie heißt der Fluss?"
    assert text_of(explorer, "#given-text").startswith(TEMPLATE.format(QUESTIONS[2]))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("SKY is", []), ("sky", [1]), ("up-003", [3]), ("heißt der", [2]), ("السماء", [3])],
)
def test_the_list_is_searched_by_text_and_id(explorer, wanted, found):
    search(explorer, wanted)
    said = f"{len(found)} of 5 found" if found else "no prompt has this in its text or id"
    explorer.until(f"document.querySelector('#prompt-number').textContent === '{said}'")
    assert explorer.evaluate(f"{IS_OPEN} ? {LISTED}.length : 0") == len(found)
    explorer.press("Enter")
    if found:
        explorer.until(f"!({IS_OPEN})")
        assert shown_prompt(explorer) == found[0]
    else:
        explorer.press("Escape")
        assert shown_prompt(explorer) == 0
        assert value(explorer) == "What is 7 + 5?"


def test_the_list_is_searched_in_what_is_not_shown_too(explorer):
    search(explorer, "helpful assistant")
    explorer.until(f"{LISTED}.length === 5 && document.querySelector('#prompt-number').textContent === '5 of 5 found'")


def test_keys_walk_through_the_list(explorer):
    explorer.evaluate("document.querySelector('#prompt').focus()")
    explorer.press("ArrowDown")
    explorer.until(IS_OPEN)
    assert explorer.evaluate(f"{ACTIVE}.id") == "prompt-0"
    for expected in (1, 2, 3, 4, 4):
        explorer.press("ArrowDown")
        assert explorer.evaluate(f"{ACTIVE}.id") == f"prompt-{expected}"
        assert explorer.evaluate(f"{ACTIVE}.getAttribute('aria-selected')") == "true"
    explorer.press("ArrowUp")
    explorer.press("Enter")
    explorer.until(f"!({IS_OPEN})")
    assert shown_prompt(explorer) == 3
    assert explorer.evaluate("document.activeElement.id") == "prompt"
    explorer.press("Enter")
    explorer.until(IS_OPEN)
    assert explorer.evaluate(f"{ACTIVE}.id") == "prompt-3"
    explorer.press("Tab")
    explorer.until(f"!({IS_OPEN})")
    assert value(explorer) == QUESTIONS[3]
    assert shown_prompt(explorer) == 3


def test_a_run_without_texts_lists_ids(browser, tmp_path):
    prompts = planted({"perturbed": [2, 1], "unperturbed": [2, 1]}, n_prompts=2, n_tokens=2)
    run = write_run(tmp_path / "run", prompts, texts=dict.fromkeys(prompts, ""))
    path = tmp_path / "page.html"
    path.write_text(explorer_html(run), encoding="utf-8")
    browser.open(path.as_uri())
    browser.until(READY)
    assert [begins for begins, _ in prompts_listed(browser)] == ["made-up-000", "made-up-001"]
