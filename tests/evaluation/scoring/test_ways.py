"""Every way of scoring on whole texts: hand-made cases and the solutions and references of the real datasets."""

import json
import re
import time
from itertools import combinations
from typing import get_args

import pytest

import layerlens.datasets as ld
from layerlens.datasets.registry import SOURCES
from layerlens.datasets.source import Scoring
from layerlens.errors import OptionError, PromptError
from layerlens.evaluation.scoring import (
    WAYS,
    check_references,
    exact,
    last_number,
    number_or_words,
    way_of_scoring,
)
from layerlens.evaluation.scoring.spelling import read
from tests.conftest import REAL_DATA
from tests.refusals import refused


def rows(name):
    if not (REAL_DATA / name).is_file():
        pytest.skip(f"the real data is not here: no {name} in a folder shared/datasets beside the checkout")
    return [json.loads(line) for line in (REAL_DATA / name).read_bytes().splitlines()]


def test_every_solution_of_gsm8k_is_right_for_its_own_reference_alone():
    solutions = [row["answer"] for row in rows("gsm8k/test.jsonl")]
    references = [solution.split("####")[1].strip().replace(",", "") for solution in solutions]
    assert len(solutions) == 1319
    for place, solution in enumerate(solutions):
        assert last_number(solution, references[place]), solution
        other = references[place - 1]
        assert last_number(solution, other) == (int(references[place]) == int(other)), solution


def test_every_solution_of_math500_is_right_for_its_own_reference_alone():
    problems = rows("math500/test.jsonl")
    assert len(problems) == 500
    for place, row in enumerate(problems):
        assert exact(row["solution"], row["answer"]), row["answer"]
        assert exact(f"So it is\n{row['answer']}.", row["answer"]), row["answer"]
        assert exact(f"The answer is: ${row['answer']}$.\nBye", row["answer"]), row["answer"]
        other = problems[place - 1]["answer"]
        alike = row["answer"] == other or {row["answer"], other} == {"x=5", "5"}
        assert exact(row["solution"], other) == alike, (row["answer"], other)


RESPELLED = [
    (r"\\d?frac\s*\{(\d)\}\s*\{(\d)\}", r"\\frac\1\2"),
    (r"\\d?frac\s*\{(\d+)\}\s*\{(\d)\}", r"\\tfrac{\1}\2"),
    (r"^(-?)\\d?frac\s*\{(\d+)\}\s*\{(\d+)\}$", r"\1\2/\3"),
    (r"\\frac\{(\\[a-z]+(?:\{\d+\})?)\}\{(\d+)\}", r"\1/\2"),
    (r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    (r"\\sqrt\{(\d+)\}", r"√\1"),
    (r"(\d)\s*(\\sqrt|\\pi)", r"\1 \\cdot \2"),
    (r"\\pi", "π"),
    ("-", "−"),
    (r"\^\\circ", "°"),
    (r"\^\\circ", r"\\text{ degrees}"),
    (r"\^\\circ", " degrees"),
    (r"\\\\ ", r"\\\\"),
    ("pmatrix", "bmatrix"),
    (r"([{ ]-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}"),
    (r"\\(?:left|right)", ""),
    (r"\\text\{([(\w)]+)\}", r"\1"),
    (r"\\text\{\((\w)\)\}", r"\1"),
    (r"\\(?:text|mbox)\{ ?(\w+)\}", r" \1"),
    (r"\\\$", ""),
    (r"\\\$(.*)", r"\1 dollars"),
    (r",\\! ?", ","),
    (r",\\! ?", "{,}"),
    (r",\\! ?", r"\\,"),
    (r",\\! ?", ""),
    (r"^(\d+),(\d{3})$", r"\1{,}\2"),
    (r"^(-?\d{1,3}?)(?=\d{3}$)", r"\1,"),
    (r"^(-?\d{1,3}?)(?=\d{3}$)", r"\1,\\!"),
    (r"^(-?\d{1,3}?)(?=\d{3}$)", r"\1 "),
    (r"^(-?\d+)$", r"x = \1.0"),
    (r"^(-?[1-9]\d*)000$", r"\1 \\cdot 10^3"),
    (r"^(-?[1-9]\d*)000$", r"\1\\times 10^{3}"),
    (r"^(-?[1-9]\d*)000$", r"\1e3"),
    (r"^(-?\d+)$", r"\1\\text{ units}"),
    (r"^(-?\d+)$", r"\\$\1"),
    (r"^(-?\d+)$", r"\1\\%"),
    (r"^(\d*) ?\\frac\{1\}\{2\}$", r"\1½"),
    (r"^\.", "0."),
    (r"^0\.", "."),
    (r"^[xy]\s*(?:=|\\in)", ""),
    (r"(?<=\^)(\w)", r"{\1}"),
    (r"_\{?(\d)\}?", r"_{\1}"),
    (r"(?<=[\w}]) ?([+-]) ?(?=[\w\\])", r" \1  "),
    (r"^(.*)$", r"**$\1$**."),
    (r"^(.*)$", r"\\( \1 \\)"),
]


def test_the_references_of_math500_are_right_in_their_other_spellings_and_no_two_values_are_one():
    references = list(dict.fromkeys(row["answer"] for row in rows("math500/test.jsonl")))
    for pattern, spelling in RESPELLED:
        respelled = [(reference, re.sub(pattern, spelling, reference)) for reference in references]
        assert any(one != other for one, other in respelled), f"{pattern} respells nothing"
        for reference, other in respelled:
            assert exact(rf"So it is \boxed{{{other}}}.", reference), (other, reference)
    items = {reference: read(reference).items for reference in references}
    pairs = [(one, other) for one, other in combinations(references, 2) if items[one] == items[other]]
    alike = [{one, other} for one, other in pairs if exact(one, other)]
    assert alike == [
        {r"90^\circ", "90"},
        {"5", "x=5"},
        {"1,-2", "-2,1"},
        {r"120^\circ", "120"},
        {"36", r"36^\circ"},
        {"36", r"\$36"},
        {r"\frac{1}{4}", r"\frac14"},
        {r"30^\circ", "30"},
        {r"10,\!080", "10080"},
        {"15", r"15\mbox{ cm}^2"},
        {r"2 \sqrt{5}", r"2\sqrt{5}"},
    ]


def test_the_boxes_of_omni_math_are_right_for_their_references():
    """Its solutions are free text; where the last box holds the reference's letters, the two have to be the same."""
    same = 0
    for row in rows("omni_math_rule/head400.jsonl"):
        _, box, rest = row["solution"].rpartition(r"\boxed{")
        if box and rest.startswith(row["answer"] + "}"):
            same += 1
            assert exact(row["solution"], row["answer"]), row["answer"]
    assert same > 40


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("it is 12", "12", True),
        ("it is 12 or 13", "12", False),
        ("First.\nPlants take carbon dioxide.", "carbon dioxide", True),
        ("Plants take Carbon Dioxide.\nThey like it.", "carbon dioxide", False),
        ("No. If it rained, the street would be wet, yes.", "no", True),
        ("Yes. There is no doubt.", "no", False),
        ("Nobody knows.", "no", False),
        ("It ends at 22:05.", "22:05", True),
        ("It ends at 122:05.", "22:05", False),
        ("The label is **MIXED**", "MIXED", True),
        ("the answer is: Sam\nTom is tall", "Sam", True),
        ("", "Sam", False),
        ("It is not Paris.", "Paris", False),
        ("It isn't the city of **Paris**.", "Paris", False),
        ("It isn’t Paris.", "Paris", False),
        ("It is Rome rather than Paris.", "Paris", False),
        ("It is Rome instead of Paris.", "Paris", False),
        ("Unlike Paris, Rome is.", "Paris", False),
        ("It is neither Paris nor Rome.", "Paris", False),
        ("It is neither Rome nor Paris.", "Paris", False),
        ("I never said that it is Paris.", "Paris", False),
        ("It can be anything but Paris.", "Paris", False),
        ("All of them except for Paris.", "Paris", False),
        ("It is other than Paris.", "Paris", False),
        ("Everything but Paris.", "Paris", False),
        ("It cannot be Paris.", "Paris", False),
        ("It is not Rome because Paris is.", "Paris", True),
        ("It is not Rome, only Paris.", "Paris", True),
        ("It is not just Paris.", "Paris", True),
        ("Paris seems wrong.", "Paris", False),
        ("Paris clearly fails.", "Paris", False),
        ("Paris also fails.", "Paris", False),
        ("Paris is ruled out.", "Paris", False),
        ("Paris is incorrect.", "Paris", False),
        ("Paris is false.", "Paris", False),
        ("Paris can not be.", "Paris", False),
        ("Paris would be wrong.", "Paris", False),
        ("Paris are not.", "Paris", False),
        ("Paris is not just big.", "Paris", True),
        ("It is not one of the very big Paris suburbs.", "Paris", True),
        ("It is not one of the big Paris suburbs.", "Paris", False),
        ("Paris is wrong.", "Paris", False),
        ("Paris is not the right city.", "Paris", False),
        ("It is Paris or Rome.", "Paris", False),
        ("It is Rome or Paris.", "Paris", False),
        ("Is it Rome or Paris? Paris.", "Paris", True),
        ("It is not Rome but Paris.", "Paris", True),
        ("It is not Rome, it is Paris.", "Paris", True),
        ("It is Paris, not Rome.", "Paris", True),
        ("It is not only Paris.", "Paris", True),
        ("No, Paris.", "Paris", True),
        ("It is neither.", "neither", True),
        ("There is no doubt that it follows: yes.", "no", False),
        ("There is no doubt that it follows: yes.", "yes", True),
        ("No one knows.", "no", False),
        ("No, it does not follow.", "no", True),
        ("Not yes.", "yes", False),
        ("Not yes.", "no", False),
        ("I say no, not yes.", "no", True),
        ("I wouldn't say yes.", "yes", False),
        ("Yes, it does not follow.", "yes", True),
        ("It does not follow - no.", "no", True),
        ("Does it follow that no cat barks? Yes.", "yes", True),
        ("Does it follow that no cat barks? Yes.", "no", False),
        ("Yes or no? No.", "no", True),
        ("Is it Paris? No, Rome.", "Paris", False),
        ("Is it Paris? No, Rome.", "Rome", True),
        ("Is it Paris or Rome? Rome.", "Rome", True),
        ("It is Paris, isn't it?", "Paris", False),
        ("Paris isn't the capital of Germany. Berlin", "Paris", False),
        ("Paris isn't the capital of Germany. Berlin", "Berlin", True),
        ("Paris does not fit: Lyon.", "Paris", False),
        ("Paris never was: Lyon.", "Paris", False),
        ("Paris is not wrong.", "Paris", True),
        ("Paris, which is not in Spain.", "Paris", True),
        ("It is Bogot\u00e1.", "Bogota\u0301", True),
        ("It is Bogota\u0301.", "Bogot\u00e1", True),
        ("It is Bogota\u0301.", "bogota", False),
        ("It is x\u0302.", "x", False),
        ("It is STRASSE.", "Straße", True),
        ("It is New  York.", "New York", True),
        ("It is New\u00a0York.", "New \t York", True),
        ("It is x2.", "x²", False),
        ("It is x².", "x2", False),
        (r"It is 2\cdot 10^3.", "2000", True),
        ("It is 2000.", r"2 \times 10^{3}", True),
        ("It is 3½.", "3.5", True),
        ("It is 3.5.", "3½", True),
        ("I doubt it is Paris.", "Paris", False),
        ("We seriously doubt that it is Paris.", "Paris", False),
        ("There is no doubt it is Paris.", "Paris", True),
        ("I do not doubt it is Paris.", "Paris", True),
        ("It is no longer Paris.", "Paris", False),
        ("Paris no longer is.", "Paris", False),
        ("The answer is not, as many think, Paris.", "Paris", False),
        ("It isn't, however, Paris.", "Paris", False),
        ("No, as I said, Paris.", "Paris", True),
        ("Rome is not, Lyon is not, Paris is.", "Paris", True),
        ("Le résultat n'est pas Paris.", "Paris", False),
        ("Paris n’est pas.", "Paris", False),
        ("Ce n'est pas Rome mais Paris.", "Paris", True),
        ("Ce n'est pas seulement Paris.", "Paris", True),
        ("Paris. No, wait: Rome", "Paris", False),
        ("Paris. No, wait: Rome", "Rome", True),
        ("Paris, sorry, I meant New York.", "Paris", False),
        ("The answer is Paris.\nNo, wait: it is Rome.", "Paris", False),
        ("The answer is Paris.\nNo, wait: it is Rome.", "Rome", True),
        ("The answer is Paris\nMake that Rome.", "Rome", True),
        ("A knight. Correction: the knave.", "knight", False),
        ("Paris. Wait, let me check.", "Paris", True),
        ("Paris. Actually, Rome is not far.", "Paris", True),
        ("The answer is:\nNo, Tom.", "no", True),
        ("It is 12, not 13.", "12", True),
        ("It is 13, not 12.", "12", False),
    ],
)
def test_a_number_or_words(text, reference, right):
    assert number_or_words(text, reference) == right


def test_every_dataset_declares_a_way_that_there_is_and_its_references_can_be_scored():
    assert {way_of_scoring(name) for name in SOURCES} == set(WAYS)
    assert list(WAYS) == list(get_args(Scoring))
    check_references(ld.dataset("sample"), "number or words")


def test_the_shipped_problems_tell_their_answers_apart():
    answers = [prompt.reference for prompt in ld.dataset("sample")]
    for answer in answers:
        rightly = {other for other in answers if number_or_words(f"We think.\nSo it is {answer}.", other)}
        assert rightly == {answer}


def test_a_dataset_without_a_way_and_references_that_cannot_be_scored_are_refused():
    with refused(OptionError, "dataset", "prompts", advice="sample, gsm8k"):
        way_of_scoring("prompts")
    for reference, given in ((None, "b"), ("many", "many")):
        dataset = ld.from_prompts([ld.Prompt("a", "?", "5"), ld.Prompt("b", "?", reference)])
        with refused(PromptError, given=given):
            check_references(dataset, "last number")


LOOPS = ["1", "1,", "1 ", "1/", r"\boxed{", "}", r"\frac{1", "answer is ", "answer:\n", "A ", "-$", "\\", "{", " "]
LOOPS += [
    "A? ",
    "D is not ",
    "½",
    "10^",
    "2*10^3*",
    "1e",
    "yes ",
    "a_",
    "f(",
    "111 ",
    "1 000 ",
    "\\log ",
    "2**",
    "{1}",
    "wait, ",
    "I pick ",
    "not, a, ",
    "B over ",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("piece", LOOPS)
def test_a_model_that_repeats_itself_is_scored_at_once(way, piece):
    started = time.process_time()
    WAYS[way](piece * 30_000, "A")
    WAYS[way](piece * 30_000, "12")
    assert time.process_time() - started < 5
