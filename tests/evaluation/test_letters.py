"""The chosen letter against a reading sign by sign and hand-made cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.evaluation.scoring import chosen_letter

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
    ('The answer is "B". Not D.', "B"),
    ("The answer is 'B'. Not D.", "B"),
    ("The answer is “B”, since A, C and D fail.", "B"),
    ("The answer is ‘B’; so much for D", "B"),
    ("The answer is «B», so much for D", "B"),
    ("The answer is „B“, so much for D", "B"),
    ("The answer is 「B」, so much for D", "B"),
    ("The answer is （B）, so much for D", "B"),
    ("The answer is `B`, so much for D", "B"),
    ("The answer is ``B'', so much for D", "B"),
    ('The answer is **"B"**, so much for D', "B"),
    ('The answer is "**B**", so much for D', "B"),
    ('The answer is "(B)", so much for D', "B"),
    ('Answer: "b", so much for D', "B"),
    ("I take 'B'", "B"),
    ("The answer is option B, so much for D", "B"),
    ("The correct option is (B), so much for D", "B"),
    ("The answer must be B, so much for D", "B"),
    ("It is B, not D", "B"),
    ("It is B, **not** (D).", "B"),
    ("It is B rather than D", "B"),
    ("It is B, unlike C and D", "B"),
    ("B it is. It isn't option D.", "B"),
    ("B it is; neither A nor D.", "B"),
    ("B is right. D is wrong.", "B"),
    ("B is right. D is not correct.", "B"),
    ("B. For A, C and D are wrong.", "B"),
    ("B. D fails.", "B"),
    ("It is not B but D", "D"),
    ("It is not B, D is", "D"),
    ("Not sure, maybe D", "D"),
    ("The answer is not D.", None),
    ("All but D", None),
    ("The answer is A or B.", None),
    ('The answer is "A" or "B".', None),
    ("The answer is (A), (B) or (C).", None),
    ("The answer is B/C", None),
    ("It is A or B", None),
    ("B and D are right", None),
    ("The answer is B and D is wrong", "B"),
    ("B is true; D is not.", "B"),
    ("C. D doesn't work.", "C"),
    ("C. D doesn’t.", "C"),
    ("C. D cannot be.", "C"),
    ("B. D won't do.", "B"),
    ("B is the answer. D does not hold.", "B"),
    ("B holds. C and D do not.", "B"),
    ("B holds; C and D both have never held.", "B"),
    ("C, as D never holds.", "C"),
    ("C, since D must be wrong.", "C"),
    ("The answer is B. D is the answer? No.", "B"),
    ("The answer is A? No, B.", "B"),
    ("The correct option is A? No, C.", "C"),
    ("Is it A? No, it is B.", "B"),
    ("I take B. Or is it D?", "B"),
    ("Is it A? No.", None),
    ("The answer is A? Yes.", None),
    ("I don't think the answer is D. B", "B"),
    ("It is not possible, therefore the answer is D", "D"),
    ("As for A, it is not possible therefore D", "D"),
    ("There is no doubt it is D", "D"),
    ("D is not wrong.", "D"),
    ("D does not fail.", "D"),
    ("D is not only right", "D"),
    ("C++", None),
    ("I know C# and C++.", None),
    ("He got a A+ or a D-.", None),
    ("B. Heat it to 20 °C.", "B"),
    ("B, by the group C_2 or D^3", "B"),
    ("B, as x_D and C_{p} say", "B"),
    ("I take _B_", "B"),
    (r"\boxed{A, B}", None),
    (r"\boxed{B. Paris} and D", "B"),
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
        outside = text[place - 2 : place - 1] if place > 1 else "", text[place + 2 : place + 3]
        alone = alone or (before == after == "'" and not any(map(str.isalnum, outside)))
        article = sign == "A" and after == " " and text[place + 2 : place + 3].islower()
        if sign in "ABCD" and alone and not article:
            standing = sign
    assert {reference for reference in "ABCD" if chosen_letter(text, reference)} == ({standing} - {None})
