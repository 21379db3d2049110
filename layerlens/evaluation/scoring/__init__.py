"""Whether an answer is right, by the way of scoring that its dataset declares. Each way compares texts alone.

    last number       the last number of the text that it does not deny equals the reference's
    chosen letter     the text settles on the reference's letter, A to D
    exact             what the text states in the end is the reference, but for its spelling
    number or words   as "last number" where the reference is one; else its words stand, not denied, where the text ends

A text that was cut off is scored as it stands. None of the ways reads a number of more than 1,000 characters.
"""

from layerlens.evaluation.scoring.ways import (
    WAYS,
    Score,
    check_references,
    chosen_letter,
    exact,
    last_number,
    number_or_words,
    way_of_scoring,
)

__all__ = [
    "WAYS",
    "Score",
    "check_references",
    "chosen_letter",
    "exact",
    "last_number",
    "number_or_words",
    "way_of_scoring",
]
