"""Whether an answer is right, by the way of scoring that its dataset declares. Each way compares texts alone.

    last number       the last number that the text does not deny equals that of the reference
    chosen letter     the text settles on the reference's letter, A to D
    exact             what the text states in the end is the reference, apart from spelling
    number or words   as "last number" where the reference is a number; else the text ends with its words, not denied

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
