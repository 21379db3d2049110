"""What a text states in the end."""

import pytest

from layerlens.evaluation.scoring.stated import stated


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (r"\boxed{3} and \boxed{4}", "4"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{\{4}", r"\{4"),
        (r"} \boxed{4} {", "4"),
        (r"\fbox{4} is the answer: 5", "4"),
        ("The answer is 3.\nThe answer is 4.", "4."),
        ("The answer is\n4\nand so on", "4"),
        ("Answer: 4\nmore", "4"),
        ("first 3\n4\n\n", "4"),
        ("first 3\nthen 4\nat last 5", "at last 5"),
        ("The answer is 3.\nThe answer is 4.\nThe answer is 5.", "5."),
        ("The answer is 3.\nThe answer is", "3."),
        ("The answer is 3, no, wait: 4.\nThe answer is 5.", "5."),
        ("I said 2. No, wait: 3.\nIt is 4.", "It is 4."),
        ("It is 3. No, wait: 4. Sorry, I meant 5.", "5."),
        ("It is 3. No, wait: 4.\n", "4."),
        ("It is Paris\nMake that Rome.", "Rome."),
        ("", ""),
        (" \n ", ""),
        (r"\boxed{3} {\boxed{4}} {5}", "4"),
        (r"\boxed{a{b}c{d}}", "a{b}c{d}"),
        (r"\boxed{a}} \boxed{b{c}", "a"),
        (r"{{} \boxed{3}}", "3"),
        (r"\boxed{}", ""),
    ],
)
def test_what_a_text_states(text, end):
    assert stated(text) == end
