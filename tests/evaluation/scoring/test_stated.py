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
    ],
)
def test_what_a_text_states(text, end):
    assert stated(text) == end
