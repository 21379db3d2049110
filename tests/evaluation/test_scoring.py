"""Every way of scoring against slow readings of its definition, hand-made cases and the real references."""

import json
import re
import time
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens.datasets as ld
from layerlens.datasets.registry import SOURCES
from layerlens.datasets.source import Scoring
from layerlens.errors import OptionError, PromptError
from layerlens.evaluation.scoring import (
    WAYS,
    check_references,
    chosen_letter,
    exact,
    last_number,
    number_or_words,
    way_of_scoring,
)
from tests.conftest import REAL_DATA


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


def test_the_boxes_of_omni_math_are_right_for_their_references():
    """Its solutions are free text; where the last box holds the reference's letters, the two have to be the same."""
    same = 0
    for row in rows("omni_math_rule/head400.jsonl"):
        _, box, rest = row["solution"].rpartition(r"\boxed{")
        if box and rest.startswith(row["answer"] + "}"):
            same += 1
            assert exact(row["solution"], row["answer"]), row["answer"]
    assert same > 40


NUMBERS = [
    ("He makes $18 every day.", "18"),
    ("That is 2,125", "2125"),
    ("1,450,000 people", "1450000"),
    ("**Total: $1,450,000.00**", "1450000"),
    ("a loss of -10 dollars", "-10"),
    ("a loss of −$10.", "-10"),
    ("a loss of -$10.", "-10"),
    ("a loss of $-10.", "-10"),
    ("x = -3%", "-3"),
    ("it is half: 0.5", "1/2"),
    ("it is 1/2.", "0.5"),
    ("it is .5", "0.50"),
    (r"it is $\frac{1}{2}$", "0.5"),
    (r"it is $-\dfrac{3}{4}$", "-0.75"),
    (r"it is 2\frac{1}{2} hours", "2.5"),
    ("it takes 2 1/2 hours", "2.5"),
    (r"\boxed{10,\!080}", "10080"),
    (r"\boxed{10{,}080}", "10080"),
    ("10-12 hours", "12"),
    ("5-3", "3"),
    ("(7)-2", "2"),
    ("so --5", "5"),
    ("first 1, 2, 3", "3"),
    ("12345,678", "678"),
    ("1,23", "23"),
    ("on the 3rd", "3"),
    ("H2O", "2"),
    ("50%", "50"),
    ("16/2=8", "8"),
    ("2.0", "2"),
    ("007", "7"),
    ("v1.2.3", "3"),
    ("18.", "18"),
    ("-0", "0"),
    ("line 5\n1/2", "0.5"),
    ("the 4\u202f000", "0"),
]


@pytest.mark.parametrize(("text", "reference"), NUMBERS)
def test_the_last_number(text, reference):
    assert last_number(text, reference)
    value = Fraction(reference)
    assert not last_number(text, str(value + 1))
    assert last_number(text, str(-value)) == (value == 0)
    assert not last_number(f"{text} or {value + 1}", reference)


@pytest.mark.parametrize("text", ["", "none", "-", "$", "1/0", "٣", "9" * 5000, "0." + "9" * 5000])
def test_what_is_no_number_equals_nothing(text):
    assert not last_number(text, text)
    assert not last_number(text, "9")


def plain_last_number(text):
    """The last number of a text without fractions or LaTeX, read sign by sign."""
    place, found = 0, None
    while place < len(text):
        sign = place
        if text[place] not in "0123456789":
            place += 1
            continue
        digits = ""
        while place < len(text) and text[place] in "0123456789":
            digits, place = digits + text[place], place + 1
        while len(digits.split(",")[0]) <= 3 and _is_group(text, place):
            digits, place = digits + text[place : place + 4], place + 4
        if text[place : place + 1] == "." and text[place + 1 : place + 2] in tuple("0123456789"):
            digits, place = digits + ".", place + 1
            while place < len(text) and text[place] in "0123456789":
                digits, place = digits + text[place], place + 1
        before = text[:sign].removesuffix("$")
        negative = before[-1:] in ("-", "−") and not re.fullmatch(r"[0-9A-Za-z)\]}%−-]", before[-2:-1] or " ")
        found = -Fraction(digits.replace(",", "")) if negative else Fraction(digits.replace(",", ""))
    return found


def _is_group(text, place):
    group = text[place : place + 5]
    return group[:1] == "," and group[1:4].isdigit() and len(group[1:4]) == 3 and not group[4:].isdigit()


@given(
    st.lists(
        st.one_of(
            st.sampled_from([" ", " ", "-", "−", "$", ",", ".", "%", "a", "is", "=", "(", ")", "\n"]),
            st.integers(0, 10**7).map(str),
            st.integers(0, 10**7).map(lambda number: f"{number:,}"),
            st.decimals(0, 1000, places=2).map(str),
        ),
        max_size=9,
    )
)
def test_the_last_number_as_read_sign_by_sign(parts):
    text = " ".join("".join(parts).split(" "))
    if re.search(r"(?<![0-9A-Za-z.])\.[0-9]|[0-9]{4},[0-9]{3}|,[0-9]{3},[0-9]{3}[0-9]|,[0-9]{4}", text):
        return  # a number that begins with its point, and commas that set off no groups: cases above
    value = plain_last_number(text)
    if value is None:
        assert not last_number(text, "5")
    else:
        assert last_number(text, str(value))
        assert not last_number(text, str(value + 1))


LETTERS = [
    ("The answer is (C).", "C"),
    ("The answer is C", "C"),
    ("the correct answer is: **C** because of B", "C"),
    ("Answer: C", "C"),
    ("**Answer:** C", "C"),
    ("**Answer**: (C) 5 m", "C"),
    ("ANSWER: C.", "C"),
    ("Answer:\n\nC", "C"),
    (r"Answer: \(C\)", "C"),
    (r"The answer is $\boxed{C}$", "C"),
    (r"The answer is \boxed{\text{(C)}}.", "C"),
    ("the answer is (c)", "C"),
    ("The answer is A because D is wrong", "A"),
    ("The answer is B. No, the answer is D.", "D"),
    ("The answer is B. And the answer is not clear", "B"),
    (r"\boxed{B} and then (D)", "B"),
    (r"\boxed{\textbf{b}}", "B"),
    (r"\boxed{B} but \boxed{C", "B"),
    ("I choose (B)", "B"),
    ("A, B or C? B", "B"),
    ("B is right. A dog is not.", "B"),
    ("It is A", "A"),
    ("A) is wrong, so D)", "D"),
    ("vitamin B-12, so A. Yes", "A"),
    ("D's bond to CH, ABCD, B2", None),
    ("The answer is E", None),
    ("the answer is a bit unclear", None),
    ("c", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_the_chosen_letter(text, letter):
    assert {reference for reference in "ABCD" if chosen_letter(text, reference)} == ({letter} - {None})


@given(st.text(st.sampled_from("ABCDEx a1'-.()\n"), max_size=12))
def test_the_last_letter_that_stands_alone(text):
    standing = None
    for place, sign in enumerate(text):
        before, after = text[place - 1 : place] if place else "", text[place + 1 : place + 2]
        alone = not any(near.isalnum() or near in ("'", "-") for near in (before, after) if near)
        article = sign == "A" and after == " " and text[place + 2 : place + 3].islower()
        if sign in "ABCD" and alone and not article:
            standing = sign
    assert {reference for reference in "ABCD" if chosen_letter(text, reference)} == ({standing} - {None})


SAME = [
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "$1/2$"),
    (r"1\frac{4}{5}", "1.8"),
    ("58,500", "58500"),
    (".35625", "0.35625"),
    ("0", "0.0"),
    (r"90^\circ", "90°"),
    (r"90^\circ", r"90^{\circ}"),
    (r"\$18.90", "18.9"),
    (r"10\%", "10"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "(C)"),
    ("x=5", "5"),
    (r"x \in [-2,7]", "[-2, 7]"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"11\sqrt2", r"11\sqrt{2}"),
    ("4210_{5}", "4210_5"),
    ("x^{2}+1", "x^2 + 1"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{1 \pm \sqrt{5}, -2\}"),
    ("42.", "**42**"),
]
OTHER = [
    ("p - q", "q - p"),
    ("52_8", "52"),
    ("(3,4]", "[3,4]"),
    ("x", "X"),
    ("1,-2", "-2,1"),
    ("2k+2", "2k"),
    (r"3\sqrt{13}", r"\sqrt{13}"),
    (r"\frac{3}{56}", r"\frac{56}{3}"),
    ("10", "100"),
    ("", "5"),
    ("", ""),
    ("$", "%"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_spellings_of_one_answer(left, right):
    for text in (left, rf"Long talk of 7.\n So \(\boxed{{{left}}}\), as 9 < 10.", f"7\n\n{left}\n"):
        assert exact(text, right), text
    assert exact(f"The answer is {right}", left)


@pytest.mark.parametrize(("left", "right"), OTHER)
def test_other_answers_are_not_the_same(left, right):
    assert not exact(left, right)
    assert not exact(right, left)
    assert not exact(rf"so \boxed{{{left}}}, not {right}", right) or left == right


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"\boxed{3} and \boxed{4}", "4"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{\{4}", r"\{4"),
        (r"} \boxed{4} {", "4"),
        (r"\fbox{4} is the answer: 5", "4"),
        ("The answer is 3.\nThe answer is 4.", "4"),
        ("The answer is\n4\nand so on", "4"),
        ("Answer: 4\nmore", "4"),
        ("first 3\n4\n\n", "4"),
    ],
)
def test_what_a_text_states(text, reference):
    assert exact(text, reference)
    assert not exact(text, "5")


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
    with pytest.raises(OptionError, match="'prompts' have no way of scoring; give one of the datasets sample, gsm8k"):
        way_of_scoring("prompts")
    for reference, words in ((None, "prompt b of prompts has no reference"), ("many", "'many' of prompt b")):
        dataset = ld.from_prompts([ld.Prompt("a", "?", "5"), ld.Prompt("b", "?", reference)])
        with pytest.raises(PromptError, match=words) as error:
            check_references(dataset, "last number")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "piece", ["1", "1,", "1 ", "1/", r"\boxed{", "}", r"\frac{1", "answer is ", "answer:\n", "A ", "-$", "\\", "{", " "]
)
def test_a_model_that_repeats_itself_is_scored_at_once(way, piece):
    started = time.perf_counter()
    WAYS[way](piece * 30_000, "A")
    WAYS[way](piece * 30_000, "12")
    assert time.perf_counter() - started < 5
